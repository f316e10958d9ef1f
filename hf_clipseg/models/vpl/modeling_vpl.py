"""VPL: weakly supervised segmentation with vision prototypes.

Paper: "Toward Modality Gap: Vision Prototype Learning for Weakly-supervised Semantic Segmentation with CLIP", Xu, Tang et al.,
AAAI 2025, arXiv 2412.19650. No official code is public: this is a reconstruction from the paper's abstract and what later
papers say about it. Localisation follows CLIP-ES (arXiv 2212.09506), the segmenter WeCLIP (arXiv 2406.11189).

    tagged images -> vision prototypes (`prototypes`) -> localisation maps (`localization`) -> pseudo masks (`pseudo_labels`)
    pseudo masks  -> this model's decoder, on a frozen CLIP, with regional semantic contrast against the prototypes

Decided here, because unpublished: the form, temperature and weight of the contrast, and that its features are a linear
projection of the decoder's. WeCLIP's refinement of pseudo labels while the segmenter trains is an option (`online_confidence`,
see `label_refinement`); without it the segmenter learns from the masks as they were written. Prediction needs no image labels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import can_return_tuple

from ...clip.text_bank import ClassName, normalise_class_names
from ...localization.localization import PLAIN, Localization, LocalizationSettings, localize, mean_attention
from ...localization.prototypes import VISION_SCALE, VisionPrototypes, text_prototypes
from ...outputs import SegmentationOutput
from ..dense_clip import DenseClipPreTrainedModel
from ..losses import check_labels
from .configuration_vpl import VplConfig
from .label_refinement import refined_labels, relation_of_patches
from .vpl_decoder import SegmentationDecoder
from .vpl_losses import affinity_loss, balanced_cross_entropy, labels_on_grid, patch_affinity, region_contrast


class VplForSemanticSegmentation(DenseClipPreTrainedModel):
    """A frozen CLIP that localises image labels, and a decoder that learns from the pseudo masks made that way.

    ```python
    >>> model = VplForSemanticSegmentation.from_clip("openai/clip-vit-base-patch16")
    >>> prototypes = VisionPrototypes.fit(images, image_labels, ["cat", "sofa"], model.clip, processor)
    >>> model.set_prototypes(prototypes)
    >>> maps = model.localization_maps(pixel_values, image_labels)  # then training/make_pseudo_labels.py, training/train_vpl.py
    ```
    """

    config_class = VplConfig
    open_vocabulary = False

    def __init__(self, config: VplConfig):
        super().__init__(config)
        self.build_clip(config)
        self.class_embeds = None  # the classes live in `prototypes` and in the classifier
        self.clip.requires_grad_(False)
        vision = config.clip_config.vision_config
        self.decoder = SegmentationDecoder(
            vision.num_hidden_layers, vision.hidden_size, config.decoder_dim, config.decoder_layers, config.decoder_heads,
            config.decoder_dropout,
        )  # fmt: skip
        self.projection = nn.Linear(config.decoder_dim, config.clip_config.projection_dim)
        has_classes = config.class_names is not None
        self.classifier: Any = nn.Linear(config.decoder_dim, config.num_labels) if has_classes else None
        shape = (config.num_prototypes, config.clip_config.projection_dim)
        self.register_buffer("prototypes", torch.zeros(shape) if has_classes else None)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self and self.prototypes is not None:
            init.zeros_(self.prototypes)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        name_ids: torch.Tensor | None = None,
        class_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        block_states: torch.Tensor | None = None,
        contrast_factor: float = 1.0,
        online_confidence: float | None = None,
        output_hidden_states: bool | None = None,
    ) -> SegmentationOutput | tuple:
        """
        Args:
            pixel_values: `(batch, 3, height, width)`, any size.
            input_ids, name_ids, class_ids: refused, because the classes are fixed by training.
            labels: `(batch, H, W)` int64 pseudo masks (or true ones), 255 ignored; adds `loss`.
            block_states: `(batch, blocks, h, w, width)` from `encode_blocks`, in place of `pixel_values`: CLIP is frozen, so
                its features can be computed once.
            contrast_factor: multiplies the weight of the contrast; training scripts raise it from 0 to 1.
            online_confidence: refine `labels` with the decoder's affinity first, see `refine_labels`; None leaves them.
            output_hidden_states: also return the input of the first block and the output of every block.
            return_dict: `False` returns a tuple.

        Returns:
            `SegmentationOutput` with `logits (batch, labels, h, w)` on the patch grid, and where there are labels the named
            losses `cross_entropy`, `affinity` and `contrast`.
        """
        wants_states = self.check_inputs(output_hidden_states, pixel_values=pixel_values, block_states=block_states)
        self.check_classes(input_ids)
        hidden_states = None
        if block_states is None:
            hidden_states = self.frozen_states(pixel_values)
            block_states = self.patch_states(hidden_states, pixel_values)
        grid = block_states.shape[2:4]
        fused, decoded = self.decoder(block_states.flatten(2, 3).to(self.classifier.weight.dtype))
        logits = self.classifier(decoded).transpose(1, 2).unflatten(2, grid)

        loss, losses = None, None
        if labels is not None:
            if online_confidence is not None:
                labels = self.refine_labels(labels, fused, block_states, online_confidence)
            losses = self.compute_losses(logits, fused, decoded, labels)
            weights = {
                "cross_entropy": 1.0,
                "affinity": self.config.affinity_loss_weight,
                "contrast": self.config.contrast_loss_weight * contrast_factor,
            }
            loss = sum(weights[name] * value for name, value in losses.items())
            losses = {name: value.detach() for name, value in losses.items()}
        return SegmentationOutput(
            loss=loss, logits=logits, losses=losses, hidden_states=hidden_states if wants_states else None
        )

    def compute_losses(self, logits, fused, decoded, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Named, differentiable, unweighted losses of features `(batch, n, dim)` and logits `(batch, labels, h, w)`."""
        check_labels(labels, logits.shape[0], logits.shape[1])
        grid_labels = labels_on_grid(labels, logits.shape[-2:])
        return {
            "cross_entropy": balanced_cross_entropy(logits, labels, bool(self.config.background_words)),
            "affinity": affinity_loss(fused, grid_labels, self.config.affinity_radius),
            "contrast": region_contrast(
                self.projection(decoded), grid_labels, self.prototypes, len(self.config.class_names),
                self.config.contrast_temperature,
            ),
        }  # fmt: skip

    @torch.no_grad()
    def refine_labels(
        self, labels: torch.Tensor, fused: torch.Tensor, block_states: torch.Tensor, confidence: float
    ) -> torch.Tensor:
        """Pseudo labels `(batch, H, W)` moved along the decoder's affinity and the attentions of CLIP that agree with it.

        Args:
            fused: `(batch, n, dim)`, the decoder's fused features.
            block_states: as in `forward`.
            confidence: pixels whose best label has a smaller share become 255.
        """
        first = max(1, len(self.clip.blocks) - self.config.affinity_layers)  # the input of the first block is not kept
        tokens = block_states.flatten(2, 3).to(self.classifier.weight.dtype)
        attentions = [
            mean_attention(block.self_attn, block.layer_norm1(tokens[:, index - 1]))
            for index, block in enumerate(self.clip.blocks)
            if index >= first
        ]
        affinity = patch_affinity(fused)
        stacked = torch.stack(attentions, dim=1) if attentions else affinity.new_zeros(len(affinity), 0, *affinity.shape[1:])
        relation = relation_of_patches(affinity, stacked)
        return refined_labels(
            labels, self.config.num_labels, relation, block_states.shape[2:4], self.config.affinity_threshold, confidence
        )

    @torch.no_grad()
    def frozen_states(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Input of the first block and output of every block, `(batch, 1 + n, width)` each, without gradients."""
        return self.clip.hidden_states(pixel_values)

    def patch_states(self, hidden_states: Sequence[torch.Tensor], pixel_values: torch.Tensor) -> torch.Tensor:
        """Outputs of all blocks without the class token, `(batch, blocks, h, w, width)`."""
        patch = self.clip.patch_size
        grid = tuple(-(-side // patch) for side in pixel_values.shape[-2:])
        return torch.stack([states[:, 1:] for states in hidden_states[1:]], dim=1).unflatten(2, grid)

    def encode_blocks(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the decoder reads of `pixel_values`, `(batch, blocks, h, w, width)`; see `block_states` of `forward`."""
        return self.patch_states(self.frozen_states(pixel_values), pixel_values)

    def dense_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """L2-normalised CLIP features `(batch, h, w, dim)` that localisation and prototypes are made of."""
        if self.config.attention_variant == PLAIN:
            hidden_states = self.clip.hidden_states(pixel_values)
            return self.clip.project(self.patch_states(hidden_states, pixel_values)[:, -1])
        return self.clip.dense_features(pixel_values, self.config.attention_variant, self.config.keep_residual)

    @property
    def localization_settings(self) -> LocalizationSettings:
        """How this model makes localisation maps, from its configuration."""
        return LocalizationSettings(
            self.config.attention_variant, self.config.keep_residual, self.config.cam_scale, self.config.affinity_layers,
            self.config.affinity_threshold, self.config.read_out, self.config.read_out_temperature,
        )  # fmt: skip

    def localize(self, pixel_values: torch.Tensor, image_labels: torch.Tensor) -> Localization:
        """`localization.localize` with this model's prototypes and settings: maps of the tagged classes only."""
        self.check_classes()
        return localize(self.clip, pixel_values, self.prototypes, image_labels, self.localization_settings)

    def localization_maps(self, pixel_values: torch.Tensor, image_labels: torch.Tensor) -> torch.Tensor:
        """Where the classes of `image_labels (batch, classes)` are: `(batch, classes, h, w)` in [0, 1], 0 for other classes.

        Raises:
            ValueError: an image without labels, or a model without classes.
        """
        return self.localize(pixel_values, image_labels).per_class(len(self.config.class_names))

    def set_classes(self, class_names: Sequence[ClassName], processor, background_words: Sequence[str] = ()) -> None:
        """Start from text prototypes of these classes; the classifier is new and must be trained."""
        texts = text_prototypes(self.clip, processor, normalise_class_names(class_names), background_words)
        self.config.cam_scale = None  # CLIP's own, which fits texts
        self.adopt_classes(class_names, background_words, texts)

    def set_prototypes(self, prototypes: VisionPrototypes) -> None:
        """Take classes and vision prototypes; a classifier that was trained for the same number of classes stays.

        Raises:
            ValueError: the prototypes were learnt with other CLIP weights.
        """
        prototypes.check_weights(self.clip)
        self.config.cam_scale = prototypes.details["localization"]["cam_scale"] or VISION_SCALE
        self.adopt_classes(prototypes.class_names, prototypes.background_words, prototypes.embeds)

    def adopt_classes(self, class_names, background_words: Sequence[str], embeds: torch.Tensor) -> None:
        """Prototypes, names, and a classifier of the right size."""
        self.config.class_names = normalise_class_names(class_names)
        self.config.background_words = list(background_words)
        self.config.name_labels()
        weight = self.projection.weight
        self.prototypes = embeds.to(weight.device, weight.dtype, copy=True)
        if self.classifier is None or self.classifier.out_features != self.config.num_labels:
            self.classifier = nn.Linear(self.config.decoder_dim, self.config.num_labels).to(weight.device, weight.dtype)
            self._init_weights(self.classifier)

    def drop_text_encoder(self) -> None:
        """Forget the text encoder, which neither prediction nor localisation needs once prototypes are set."""
        self.check_classes()
        self.clip.text_model = None
        self.clip.text_projection = None
        self.config.has_text_encoder = False

    def check_classes(self, input_ids: torch.Tensor | None = None) -> None:
        if input_ids is not None:
            raise ValueError(
                "VPL is a closed-vocabulary model: its classes are fixed by training. Leave out class_names; the classes are "
                f"{list(self.config.id2label.values())}."
            )
        if self.prototypes is None:
            raise ValueError(
                "This model has no classes yet. Learn prototypes, VisionPrototypes.fit(images, image_labels, class_names, "
                "model.clip, processor), then model.set_prototypes(prototypes)."
            )
