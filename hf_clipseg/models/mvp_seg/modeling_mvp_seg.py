"""MVP-SEG: learnable prompts that look at a frozen CLIP from several views.

Paper: "MVP-SEG: Multi-View Prompt Learning for Open-Vocabulary Semantic Segmentation", Guo et al., PRCV 2023, arXiv 2304.06957.
k prompts each give a map per class, `m_i = features . text_i`; their sum is the segmentation. One more, global prompt gives
`g_c`, the probability that class c is in the image, which scales the map of the class (Global Prompt Refining).

Symbols: p_0..p_k `prompts.contexts`; m_i `view_maps`; tau_1 `exp(mask_scale) / k`; 1 / tau_2 `exp(presence_scale)`;
b `presence_threshold`; log g_c `logsigmoid(presence_logits)`; L_seg, L_cls, L_OC `losses`.

Deviations, each with the paper's form kept as a configuration:
- `fusion`: a sum of views is one embedding per class (see `multi_view`); non-linear fusions keep the views apart.
- `presence_loss="multilabel"`: with positives only, g = 1 everywhere is a perfect solution.
- `global_refinement="threshold"`: without b, g < 1/2 needs a negative cosine, which CLIP hardly ever gives.
- `orthogonality="text"`: mean prompt tokens are nearly orthogonal at random initialisation, the texts that they make are not.
  But nine tenths of its gradient are common to all classes: it moves views apart by a constant, and they depend on the class
  less and less. `centred` is |cos(u_i^c, u_j^c)| with u_i^c = t_i^c - mean_c t_i^c, where a constant counts nothing; alone it
  empties all views but one, so it goes with `train_mvp_seg --spread_weight`, which bounds the mean cosine of classes in a view.
- The refined mask `softmax(m_f) g` is kept as `m_f + log g`: the same argmax, and a proper cross-entropy.
- Training adds a loss of its own that keeps the fused text of a class near its template ensemble (`train_mvp_seg
  --anchor_weight`; the paper has none: 0).
- L_cls is a mean over classes, not a sum, so that its weight does not depend on the size of the vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import can_return_tuple

from ...clip.clip_backbone import DenseFeatures
from ...clip.multi_view import centre_classes, fused_logits, pairwise_overlap, view_maps
from ...clip.prompt_learner import INITIAL_STANDARD_DEVIATION, PromptLearner
from ...clip.similarity import cosine_maps, max_over_synonyms
from ...constants import IGNORE_INDEX
from ...outputs import SegmentationOutput
from ..dense_clip import DenseClipPreTrainedModel
from ..losses import segmentation_cross_entropy
from .configuration_mvp_seg import MvpSegConfig

INITIAL_PRESENCE_SCALE = 20.0
INITIAL_PRESENCE_THRESHOLD = 0.2


@dataclass
class MvpSegOutput(SegmentationOutput):
    """
    Args:
        presence_logits (`torch.Tensor` of shape `(batch, classes)`): `logit(g_c)`; None without Global Prompt Refining.
        view_embeds (`torch.Tensor` of shape `(1 + views, names, dim)`): text embeddings, the global prompt first.
        view_maps (`torch.Tensor` of shape `(batch, 1 + views, names, height, width)`): cosine of every patch with every view,
            the global prompt first, on request.
    """

    presence_logits: torch.FloatTensor | None = None
    view_embeds: torch.FloatTensor | None = None
    view_maps: torch.FloatTensor | None = None


class MvpSegForSemanticSegmentation(DenseClipPreTrainedModel):
    """Open-vocabulary segmentation with learned prompts; CLIP itself stays frozen.

    Training needs the classes' tokens in every call (`processor(images=..., segmentation_maps=..., class_names=...)`), because
    the prompts are learned through them. `set_classes` then bakes the views, and inference needs no text encoder.

    ```python
    >>> model = MvpSegForSemanticSegmentation.from_clip("openai/clip-vit-base-patch16", num_views=3)
    >>> processor = SegmentationProcessor.from_clip("openai/clip-vit-base-patch16", templates="name")
    >>> outputs = model.train()(**processor(images=image, segmentation_maps=mask, class_names=["sky", "boat"]))
    >>> outputs.loss.backward()  # reaches the prompts, the two temperatures and the threshold
    ```
    """

    config_class = MvpSegConfig

    def __init__(self, config: MvpSegConfig):
        super().__init__(config)
        self.build_clip(config)
        self.prompts = PromptLearner(1 + config.num_views, config.num_prompt_tokens, config.clip_config.text_config.hidden_size)
        self.mask_scale = nn.Parameter(torch.empty(()))
        self.presence_scale = nn.Parameter(torch.empty(()))
        self.presence_threshold = nn.Parameter(torch.empty(()))
        if self.class_embeds is not None:
            self.class_embeds = self.class_embeds.expand(1 + config.num_views, -1, -1).clone()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PromptLearner):
            init.normal_(module.contexts, std=INITIAL_STANDARD_DEVIATION)
        elif module is self:
            init.constant_(self.mask_scale, self.config.clip_config.logit_scale_init_value)
            init.constant_(self.presence_scale, torch.tensor(INITIAL_PRESENCE_SCALE).log())
            init.constant_(self.presence_threshold, INITIAL_PRESENCE_THRESHOLD if self.uses_threshold else 0.0)

    @property
    def uses_threshold(self) -> bool:
        return self.config.global_refinement == "threshold"

    def train(self, mode: bool = True):
        """Freezes what is not learned, here because `from_pretrained` makes every parameter anew and ends in `eval()`."""
        self.clip.requires_grad_(False)
        self.presence_scale.requires_grad_(self.config.global_refinement != "none")
        self.presence_threshold.requires_grad_(self.uses_threshold)
        return super().train(mode)

    @classmethod
    def from_clip(cls, pretrained_model_name_or_path, **kwargs):
        """See [`DenseClipPreTrainedModel.from_clip`]. The maps start at the scale that CLIP was trained with."""
        model = super().from_clip(pretrained_model_name_or_path, **kwargs)
        model.mask_scale.data.copy_(model.clip.logit_scale)
        return model

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        name_ids: torch.Tensor | None = None,
        class_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        patch_embeds: torch.Tensor | None = None,
        output_view_maps: bool = False,
        output_hidden_states: bool | None = None,
    ) -> MvpSegOutput | tuple:
        """
        Args:
            pixel_values: `(batch, 3, height, width)`, any size.
            input_ids: `(prompts, length)` tokens of all class prompts, from the processor; baked classes where left out.
            name_ids: `(prompts,)`, the name each prompt was made from.
            class_ids: `(names,)`, the class each name belongs to.
            labels: `(batch, H, W)` int64 masks, 255 ignored; adds `loss` and the named `losses`.
            patch_embeds: `(batch, h, w, dim)` from `dense_features`, in place of `pixel_values`: CLIP is frozen, so training
                can compute them once.
            output_view_maps: also return the map of every view.
            output_hidden_states: also return the input of the first block and the output of every block.
            return_dict: `False` returns a tuple.

        Returns:
            `MvpSegOutput` with `logits (batch, classes, h, w)` on the patch grid.
        """
        wants_states = self.check_inputs(output_hidden_states, pixel_values=pixel_values, patch_embeds=patch_embeds)
        if self.training and labels is not None and input_ids is None:
            raise ValueError(
                "Prompts are learned through the tokens of the class names, and none were passed. Train with "
                "processor(images=..., segmentation_maps=..., class_names=[...]); set_classes comes after training."
            )
        hidden_states = None
        if patch_embeds is None:
            patch_embeds, hidden_states = self.encode(pixel_values, wants_states)
        view_embeds, class_ids = self.resolve_classes(input_ids, name_ids, class_ids)
        view_embeds = view_embeds.to(patch_embeds.dtype)

        scores = fused_logits(patch_embeds, view_embeds[1:], self.mask_scale.exp(), self.config.fusion)
        logits = max_over_synonyms(scores, class_ids)
        presence_logits = self.presence(patch_embeds, view_embeds[0], class_ids)
        if presence_logits is not None:
            logits = logits + nn.functional.logsigmoid(presence_logits)[:, :, None, None]

        losses = None if labels is None else self.losses(logits, presence_logits, view_embeds, labels)
        return MvpSegOutput(
            loss=None if losses is None else self.total_loss(losses),
            logits=logits,
            hidden_states=hidden_states,
            losses=None if losses is None else {name: loss.detach() for name, loss in losses.items()},
            patch_embeds=patch_embeds,
            presence_logits=presence_logits,
            view_embeds=view_embeds,
            view_maps=view_maps(patch_embeds, view_embeds) if output_view_maps else None,
        )

    def dense_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """L2-normalised features `(batch, h, w, dim)` of `pixel_values (batch, 3, height, width)`, as configured."""
        return self.encode(pixel_values).patch_embeds

    def encode(self, pixel_values: torch.Tensor, output_hidden_states: bool = False) -> DenseFeatures:
        """One run through CLIP, as configured."""
        config = self.config
        return self.clip.encode(
            pixel_values, config.attention_variant, config.keep_residual, output_hidden_states=output_hidden_states
        )

    def encode_names(self, input_ids: torch.Tensor, name_ids: torch.Tensor) -> torch.Tensor:
        """Every view of every name `(1 + views, names, dim)`, the global prompt first. Cached outside training.

        Args:
            input_ids: `(prompts, length)`; several prompts of one name are averaged.
            name_ids: `(prompts,)`, the name of each prompt.
        """
        if self.training and torch.is_grad_enabled():
            return self.prompts.encode_names(self.clip, input_ids, name_ids)
        return self.prompts.encode_names_once(self.text_cache, self.clip, input_ids, name_ids)

    def presence(self, patch_embeds: torch.Tensor, name_embeds: torch.Tensor, class_ids: torch.Tensor) -> torch.Tensor | None:
        """`logit(g)` `(batch, classes)` of the global prompt's `name_embeds (names, dim)`; None without refinement."""
        if self.config.global_refinement == "none":
            return None
        maps = max_over_synonyms(cosine_maps(patch_embeds, name_embeds), class_ids).flatten(2)
        pooled = (maps * (self.config.pooling_scale * maps).softmax(dim=-1)).sum(dim=-1)
        return (pooled - self.presence_threshold) * self.presence_scale.exp()

    def losses(
        self, logits: torch.Tensor, presence_logits: torch.Tensor | None, view_embeds: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The paper's L_seg, L_cls and L_OC, unweighted; those that the configuration turns off are left out."""
        losses = {"segmentation": segmentation_cross_entropy(logits, labels)}
        if presence_logits is not None:
            losses["presence"] = presence_loss(presence_logits, labels, self.config.presence_loss)
        if self.config.orthogonality != "none":
            vectors = {
                "prompt": lambda: self.prompts.contexts.mean(dim=1),
                "text": lambda: view_embeds,
                "centred": lambda: centre_classes(view_embeds),
            }[self.config.orthogonality]()
            is_supervised = (labels != IGNORE_INDEX).any()  # a batch without a label teaches nothing
            losses["orthogonality"] = pairwise_overlap(vectors[1:]) * is_supervised
        return losses

    def total_loss(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        weights = {
            "segmentation": self.config.segmentation_weight,
            "presence": self.config.presence_weight,
            "orthogonality": self.config.orthogonality_weight,
        }
        return sum(weights[name] * loss for name, loss in losses.items())


def classes_in_masks(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Which classes `labels (batch, height, width)` show, `(batch, classes)` bool; ignored pixels show none."""
    counts = torch.zeros(len(labels), IGNORE_INDEX + 1, dtype=torch.bool, device=labels.device)
    return counts.scatter_(1, labels.flatten(1), True)[:, :num_classes]


def presence_loss(presence_logits: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    """Cross-entropy of "is this class in the image"; images without a single label take no part.

    Args:
        presence_logits: `(batch, classes)`.
        labels: `(batch, height, width)` int64, 255 ignored.
        kind: `positive` averages `-log g` over the classes that are present (paper), `multilabel` over all classes.
    """
    present = classes_in_masks(labels, presence_logits.shape[1])
    per_class = nn.functional.binary_cross_entropy_with_logits(presence_logits.float(), present.float(), reduction="none")
    counted = present if kind == "positive" else present.any(dim=1, keepdim=True).expand_as(present)
    return (per_class * counted).sum() / counted.sum().clamp(min=1)
