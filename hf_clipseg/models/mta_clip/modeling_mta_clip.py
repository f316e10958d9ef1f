"""MTA-CLIP: supervised segmentation with mask-text alignment.

Paper: "MTA-CLIP: Language-Guided Semantic Segmentation with Mask-Text Alignment", Das, Hu, Jiang and Schiele, ECCV 2024, arXiv
2407.21654. Mask queries and the text tokens of all classes, N learned prompts each, pass a Mask2Former decoder as one sequence;
a contrastive loss then pulls every mask towards the text of its class.

Symbols: t[z, k] `texts`; W_p, W_m, W_r `text_input`, `mask_to_text`, `text_output`; gamma `refinement_scale`; F `pixel_embeds`;
M and S the first and the other tokens of the sequence; s[q, k, z] `similarities`.

Deviations:
- prompts start at a standard deviation of 0.02 (released code: 1.0);
- texts have unit length before their projections (released code: as the text encoder leaves them; `normalise_texts=False`);
- in training, crops are taken as they come and contexts have no weight decay (released code: `training.train_mta_clip
  --max_class_share 0.75 --decay_contexts`);
- mask losses are divided by the number of masks (released code: by the sum of the class weights);
- `logits` are the logarithm of the class scores, so that they can be averaged and refined like those of every other method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import Mask2FormerConfig
from transformers import initialization as init
from transformers.utils import can_return_tuple

from ...outputs import SegmentationOutput
from ..losses import check_labels
from ..supervised_clip import SupervisedClipPreTrainedModel, initialise_as_mask2former, pixel_decoder_config
from .configuration_mta_clip import MtaClipConfig
from .mask_text_decoder import DecoderState, MaskTextDecoder
from .mask_text_loss import MaskTargets, MaskTextLoss

NO_OBJECT = "none"
INITIAL_REFINEMENT_SCALE = 1e-4
SMALLEST_SCORE = 1e-6


@dataclass
class MtaClipOutput(SegmentationOutput):
    """
    Args:
        class_queries_logits (`torch.Tensor` of shape `(batch, queries, classes + 1)`): "no object" last; on request.
        masks_queries_logits (`torch.Tensor` of shape `(batch, queries, height, width)`): on request.
        similarities (`torch.Tensor` of shape `(batch, queries, classes + 1, prompts)`): cosine of every mask with every text,
            refined by the decoder; on request, None without text or without the contrastive loss.
    """

    class_queries_logits: torch.FloatTensor | None = None
    masks_queries_logits: torch.FloatTensor | None = None
    similarities: torch.FloatTensor | None = None


class Prediction(NamedTuple):
    """What one decoder layer says; shapes as in `MtaClipOutput`."""

    class_logits: torch.Tensor
    mask_logits: torch.Tensor
    similarities: torch.Tensor | None


class MtaClipForSemanticSegmentation(SupervisedClipPreTrainedModel):
    """Mask2Former on CLIP, with class texts among its queries. Learns from `labels`; its vocabulary is closed.

    ```python
    >>> model = MtaClipForSemanticSegmentation.from_clip("openai/clip-vit-base-patch16")
    >>> processor = SegmentationProcessor.from_clip("openai/clip-vit-base-patch16")
    >>> model.set_classes(["wall", "building", ["sky", "heaven"]], processor)
    >>> outputs = model.train()(**processor(images=image, segmentation_maps=mask))
    >>> outputs.loss.backward()
    ```
    """

    config_class = MtaClipConfig
    EXTRA_NAMES = (NO_OBJECT,)

    def __init__(self, config: MtaClipConfig):
        super().__init__(config)
        self.build_supervised(config, config.normalise_texts)
        self.query_features = nn.Embedding(config.num_queries, config.hidden_dim)
        self.query_positions = nn.Embedding(config.num_queries, config.hidden_dim)
        self.input_norm = nn.LayerNorm(config.hidden_dim)
        self.decoder = MaskTextDecoder(mask2former_config(config))
        text_dim = config.clip_config.projection_dim
        if config.num_prompts:
            self.text_input = nn.Linear(text_dim, config.hidden_dim)
        if self.compares_texts:
            self.text_output = nn.Linear(config.hidden_dim, text_dim)
            self.text_output_norm = nn.LayerNorm(text_dim)
            self.refinement_scale = nn.Parameter(torch.empty(text_dim))
            self.mask_to_text = nn.Linear(config.hidden_dim, text_dim)
        self.post_init()

    @property
    def compares_texts(self) -> bool:
        """Whether masks are contrasted with texts. Nothing else trains the similarities, so without the loss there are none."""
        return self.config.num_prompts > 0 and self.config.contrastive_weight > 0

    def build_heads(self, num_classes: int) -> None:
        self.class_predictor = nn.Linear(self.config.hidden_dim, num_classes + 1)
        if self.config.num_prompts:
            num_texts = self.config.num_prompts * (num_classes + 1)
            self.text_positions = nn.Embedding(num_texts, self.config.hidden_dim)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, MaskTextDecoder):
            initialise_as_mask2former(module)
            init.normal_(module.level_embed)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif module is self and self.compares_texts:
            init.constant_(self.refinement_scale, INITIAL_REFINEMENT_SCALE)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        name_ids: torch.Tensor | None = None,
        class_ids: torch.Tensor | None = None,
        block_maps: torch.Tensor | Sequence[torch.Tensor] | None = None,
        output_queries: bool = False,
        output_hidden_states: bool | None = None,
    ) -> MtaClipOutput | tuple:
        """
        Args:
            pixel_values: `(batch, 3, height, width)`, any size.
            labels: `(batch, H, W)` int64 masks, 255 ignored; adds `loss` and the named `losses`, summed over the layers.
            input_ids: refused, as are `name_ids` and `class_ids`: the vocabulary is closed.
            block_maps: from `encode_blocks`, in place of `pixel_values`: where the vision encoder is frozen, training can
                compute them once.
            output_queries: also return the masks, classes and text similarities of all queries.
            output_hidden_states: also return the input of CLIP's first block and the output of every block, or the maps of
                `vision_backbone` that are read.
            return_dict: `False` returns a tuple.

        Returns:
            `MtaClipOutput` with `logits (batch, classes, h, w)`, the logarithm of the class scores, at the size of the finest
            pyramid level.

        Raises:
            ValueError: no classes yet, class names in the call, labels that do not fit, or predictions that have diverged.
        """
        wants_states = self.check_inputs(output_hidden_states, pixel_values=pixel_values, block_maps=block_maps)
        self.refuse_class_names(input_ids, name_ids, class_ids)
        texts = self.class_texts()
        decoded, hidden_states = self.decode_pixels(pixel_values, block_maps)
        states = self.decode_sequence(texts, decoded.multi_scale_features, decoded.mask_features)
        wanted = states[-1:] if labels is None else states
        predictions = [self.predict(state, texts, decoded.mask_features) for state in wanted]
        last = predictions[-1]

        losses = None if labels is None else self.losses(predictions, labels)
        return MtaClipOutput(
            loss=None if losses is None else self.total_loss(losses),
            logits=semantic_logits(last.class_logits, last.mask_logits),
            hidden_states=hidden_states if wants_states else None,
            losses=None if losses is None else {name: loss.detach() for name, loss in losses.items()},
            class_queries_logits=last.class_logits if output_queries else None,
            masks_queries_logits=last.mask_logits if output_queries else None,
            similarities=last.similarities if output_queries else None,
        )

    def decode_sequence(
        self, texts: torch.Tensor, feature_maps: Sequence[torch.Tensor], pixel_embeds: torch.Tensor
    ) -> list[DecoderState]:
        """Queries and text tokens, as one sequence, through all layers.

        Args:
            texts: `(prompts, classes + 1, dim)`.
            feature_maps: three `(batch, hidden_dim, h, w)`, coarse to fine.
            pixel_embeds: `(batch, hidden_dim, height, width)`.
        """
        tokens, positions = self.query_features.weight, self.query_positions.weight
        if self.config.num_prompts:
            tokens = torch.cat([tokens, self.text_input(texts.flatten(0, 1).to(tokens.dtype))])
            positions = torch.cat([positions, self.text_positions.weight])
        tokens = self.input_norm(tokens).expand(len(pixel_embeds), -1, -1)
        fused = self.config._attn_implementation != "eager"
        return self.decoder(tokens, positions, feature_maps, pixel_embeds, fused)

    def predict(self, state: DecoderState, texts: torch.Tensor, pixel_embeds: torch.Tensor) -> Prediction:
        """Class, mask and text similarities of every query after one layer."""
        num_queries = self.config.num_queries
        masks = state.tokens[:, :num_queries]
        mask_logits = torch.einsum("bqc,bchw->bqhw", state.mask_embeds[:, :num_queries], pixel_embeds)
        similarities = None
        if self.compares_texts:
            similarities = self.compare(masks, state.tokens[:, num_queries:], texts)
        return Prediction(self.class_predictor(masks), mask_logits, similarities)

    def compare(self, masks: torch.Tensor, text_tokens: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Cosine of every mask with every text, which the decoder has refined.

        Args:
            masks: `(batch, queries, hidden_dim)`.
            text_tokens: `(batch, prompts * (classes + 1), hidden_dim)`.
            texts: `(prompts, classes + 1, dim)`.

        Returns:
            `(batch, queries, classes + 1, prompts)`.
        """
        refinement = self.text_output_norm(self.text_output(text_tokens)) * self.refinement_scale
        refined = nn.functional.normalize(texts.flatten(0, 1).to(refinement.dtype) + refinement, dim=-1)
        masks = nn.functional.normalize(self.mask_to_text(masks), dim=-1)
        return (masks @ refined.transpose(1, 2)).unflatten(2, texts.shape[:2]).transpose(2, 3)

    def losses(self, predictions: Sequence[Prediction], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every loss, unweighted, summed over the decoder's layers; each layer is matched once."""
        check_labels(labels, len(predictions[0].mask_logits), len(self.config.class_names))
        criterion = MaskTextLoss(
            mask2former_config(self.config), self.config.contrastive_form, self.config.contrastive_temperature
        ).to(labels.device)
        targets = MaskTargets(labels)
        seed = int(torch.randint(2**31, ()))  # one draw per step, whatever the batch: processes stay in step
        totals: dict[str, torch.Tensor] = {}
        with torch.autocast(labels.device.type, enabled=False):
            for layer, prediction in enumerate(predictions):
                terms = criterion(
                    prediction.mask_logits, prediction.class_logits, prediction.similarities, targets, seed + layer
                )
                for name, value in terms.items():
                    totals[name] = totals.get(name, 0) + value
        return totals

    def total_loss(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        weights = {
            "cross_entropy": self.config.class_weight,
            "mask": self.config.mask_weight,
            "dice": self.config.dice_weight,
            "contrastive": self.config.contrastive_weight,
        }
        return sum(weights[name] * loss for name, loss in losses.items())


def mask2former_config(config: MtaClipConfig) -> Mask2FormerConfig:
    """Decoder and loss settings in transformers' words."""
    return pixel_decoder_config(
        config,
        decoder_layers=config.decoder_layers + 1,  # transformers counts the prediction before the first layer
        dim_feedforward=config.feedforward_dim,
        class_weight=config.class_weight,
        mask_weight=config.mask_weight,
        dice_weight=config.dice_weight,
        no_object_weight=config.no_object_weight,
        train_num_points=config.num_points,
        oversample_ratio=config.oversample_ratio,
        importance_sample_ratio=config.importance_sample_ratio,
        num_labels=config.num_labels,
    )


def semantic_logits(class_logits: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
    """Logarithm of `sum_q softmax(class)_qk * sigmoid(mask)_q`, without "no object".

    Args:
        class_logits: `(batch, queries, classes + 1)`.
        mask_logits: `(batch, queries, h, w)`.

    Returns:
        `(batch, classes, h, w)`, in the dtype of `mask_logits`.
    """
    classes = class_logits.float().softmax(dim=-1)[..., :-1]
    scores = torch.einsum("bqk,bqhw->bkhw", classes, mask_logits.float().sigmoid())
    return scores.clamp(min=SMALLEST_SCORE).log().to(mask_logits.dtype)
