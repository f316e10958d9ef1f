"""MVP-SEG+: a student network behind the multi-view text embeddings that MVP-SEG learned.

Papers: "MVP-SEG", Guo et al. 2023, arXiv 2304.06957; the student's training follows MaskCLIP+, Zhou et al. 2022,
arXiv 2112.01071. The teacher's prompts label the pixels whose ground truth is withheld, the student trains on them and on the
masks of seen classes, then on its own predictions (`training.train_mvp_seg_plus`). The text embeddings are its classifier and
stay fixed, so it stays open-vocabulary.
Deviation: the student is CLIP's own vision encoder, or any transformers backbone and a linear projection, not DeepLabv2.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoBackbone, AutoConfig, PreTrainedModel
from transformers import initialization as init
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING
from transformers.utils import can_return_tuple

from ...clip.clip_backbone import KEEPS_RESIDUAL, ClipBackbone
from ...clip.multi_view import fused_logits
from ...clip.prompt_learner import INITIAL_STANDARD_DEVIATION, PromptLearner
from ...clip.similarity import max_over_synonyms
from ...outputs import SegmentationOutput
from ..dense_clip import DenseClipPreTrainedModel
from ..losses import segmentation_cross_entropy
from .configuration_mvp_seg_plus import MvpSegPlusConfig


@dataclass
class MvpSegPlusOutput(SegmentationOutput):
    """
    Args:
        view_embeds (`torch.Tensor` of shape `(views, names, dim)`): the classifier.
    """

    view_embeds: torch.FloatTensor | None = None


class MvpSegPlusForSemanticSegmentation(DenseClipPreTrainedModel):
    """A trained segmentation network that still takes any class names.

    ```python
    >>> teacher = MvpSegForSemanticSegmentation.from_pretrained("runs/mvp-seg/final")
    >>> student = MvpSegPlusForSemanticSegmentation.from_teacher(teacher)  # or backbone="microsoft/resnet-50"
    ```
    """

    config_class = MvpSegPlusConfig

    def __init__(self, config: MvpSegPlusConfig):
        super().__init__(config)
        self.build_clip(config)
        self.backbone: Any = None
        self.projection: Any = None
        if config.backbone_config is not None:
            self.clip.vision_model = self.clip.visual_projection = None  # the student replaces them
            self.backbone = AutoBackbone.from_config(config.backbone_config)
            self.projection = nn.Conv2d(self.backbone.channels[-1], config.clip_config.projection_dim, kernel_size=1)
        self.prompts = PromptLearner(config.num_views, config.num_prompt_tokens, config.clip_config.text_config.hidden_size)
        self.mask_scale = nn.Parameter(torch.empty(()))
        if self.class_embeds is not None:
            self.class_embeds = self.class_embeds.expand(config.num_views, -1, -1).clone()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PromptLearner):
            init.normal_(module.contexts, std=INITIAL_STANDARD_DEVIATION)
        elif module is self:
            init.constant_(self.mask_scale, self.config.clip_config.logit_scale_init_value)

    def train(self, mode: bool = True):
        """Freezes all but what the student uses, here because `from_pretrained` makes every parameter anew."""
        self.clip.requires_grad_(False)
        self.prompts.requires_grad_(False)
        if self.clip.vision_model is not None:
            for module in used_modules(self.clip, self.config.attention_variant, self.config.keep_residual):
                module.requires_grad_(True)
        return super().train(mode)

    @classmethod
    def from_clip(cls, pretrained_model_name_or_path, **kwargs):
        """See [`DenseClipPreTrainedModel.from_clip`]; the prompts are random, so this is for tests and for training from
        scratch. Use [`from_teacher`] for a student of a trained MVP-SEG model."""
        if kwargs.get("backbone_config") is not None:
            raise ValueError(
                "A student with a backbone of its own takes its classifier from a trained model: "
                "from_teacher(teacher, backbone=...) instead of from_clip(..., backbone_config=...)."
            )
        model = super().from_clip(pretrained_model_name_or_path, **kwargs)
        model.mask_scale.data.copy_(model.clip.logit_scale)
        return model

    @classmethod
    @torch.no_grad()
    def from_teacher(cls, teacher: PreTrainedModel, backbone: str | None = None):
        """A student with the teacher's text side and scale.

        Args:
            teacher: a trained `MvpSegForSemanticSegmentation`. Its global prompt stays behind.
            backbone: Hub id or folder of a transformers backbone; None starts from the teacher's own vision encoder.
        """
        shared = ("attention_variant", "keep_residual", "num_views", "num_prompt_tokens", "fusion", "class_names")
        network = None if backbone is None else load_backbone(backbone)
        config = cls.config_class(
            clip_config=teacher.config.clip_config.to_dict(),
            backbone_config=None if network is None else network.config,
            **{name: getattr(teacher.config, name) for name in shared},
        )
        model = cls(config).to(teacher.dtype)
        kept = model.clip.state_dict().keys()
        model.clip.load_state_dict({name: value for name, value in teacher.clip.state_dict().items() if name in kept})
        if network is not None:
            model.backbone.load_state_dict(network.state_dict())
        model.prompts.contexts.copy_(teacher.prompts.contexts[1:])
        model.mask_scale.copy_(teacher.mask_scale)
        if teacher.class_embeds is not None:
            model.class_embeds.copy_(teacher.class_embeds[1:])
        return model.eval()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        name_ids: torch.Tensor | None = None,
        class_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> MvpSegPlusOutput | tuple:
        """
        Args:
            pixel_values: `(batch, 3, height, width)`, any size.
            input_ids: `(prompts, length)` tokens of all class prompts, from the processor; baked classes where left out.
            name_ids: `(prompts,)`, the name each prompt was made from.
            class_ids: `(names,)`, the class each name belongs to.
            labels: `(batch, H, W)` int64 masks, 255 ignored; adds the cross-entropy as `loss`.
            output_hidden_states: also return the hidden states of the student's network.
            return_dict: `False` returns a tuple.

        Returns:
            `MvpSegPlusOutput` with `logits (batch, classes, h, w)` on the student's grid.
        """
        wants_states = self.check_inputs(output_hidden_states, pixel_values=pixel_values)
        patch_embeds, hidden_states = self.student(pixel_values, wants_states)
        view_embeds, class_ids = self.resolve_classes(input_ids, name_ids, class_ids)
        view_embeds = view_embeds.to(patch_embeds.dtype)
        logits = max_over_synonyms(
            fused_logits(patch_embeds, view_embeds, self.mask_scale.exp(), self.config.fusion), class_ids
        )

        loss = None if labels is None else segmentation_cross_entropy(logits, labels)
        return MvpSegPlusOutput(
            loss=loss,
            logits=logits,
            hidden_states=hidden_states,
            losses=None if loss is None else {"segmentation": loss.detach()},
            patch_embeds=patch_embeds,
            view_embeds=view_embeds,
        )

    def dense_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """L2-normalised features `(batch, h, w, dim)` of the student for `pixel_values (batch, 3, height, width)`."""
        return self.student(pixel_values, output_hidden_states=False)[0]

    def student(self, pixel_values: torch.Tensor, output_hidden_states: bool) -> tuple[torch.Tensor, tuple | None]:
        """`dense_features`, and the hidden states of the network where asked for."""
        if self.backbone is None:
            config = self.config
            return self.clip.encode(
                pixel_values, config.attention_variant, config.keep_residual, output_hidden_states=output_hidden_states
            )
        outputs = self.backbone(pixel_values, output_hidden_states=output_hidden_states)
        embeds = self.projection(outputs.feature_maps[-1]).permute(0, 2, 3, 1)
        return nn.functional.normalize(embeds, dim=-1), outputs.hidden_states

    def encode_names(self, input_ids: torch.Tensor, name_ids: torch.Tensor) -> torch.Tensor:
        """Every view of every name `(views, names, dim)`, cached: the text side is never trained here.

        Args:
            input_ids: `(prompts, length)`; several prompts of one name are averaged.
            name_ids: `(prompts,)`, the name of each prompt.
        """
        return self.prompts.encode_names_once(self.text_cache, self.clip, input_ids, name_ids)


def load_backbone(pretrained_model_name_or_path: str) -> PreTrainedModel:
    """A transformers backbone with its weights, from the Hub or a folder (`AutoBackbone.from_pretrained` takes no folder)."""
    config = AutoConfig.from_pretrained(pretrained_model_name_or_path)
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise ValueError(
            f"{pretrained_model_name_or_path} is a {config.model_type!r}, which transformers has no backbone class for."
        )
    return MODEL_FOR_BACKBONE_MAPPING[type(config)].from_pretrained(pretrained_model_name_or_path)


def used_modules(clip: ClipBackbone, attention_variant: str, keep_residual: bool | None) -> list[nn.Module]:
    """The parts of CLIP's vision encoder that `dense_features` runs through; distributed training stumbles over any other."""
    vision, last = clip.vision_model, clip.blocks[-1]
    attention = last.self_attn
    modules = [vision.embeddings, vision.pre_layrnorm, *clip.blocks[:-1], vision.post_layernorm, clip.visual_projection]
    modules += [last.layer_norm1, attention.v_proj, attention.out_proj]
    if attention_variant in ("sclip", "clearclip"):
        modules.append(attention.q_proj)
    if attention_variant in ("sclip", "naclip"):
        modules.append(attention.k_proj)
    if KEEPS_RESIDUAL[attention_variant] if keep_residual is None else keep_residual:
        modules += [last.layer_norm2, last.mlp]
    return modules
