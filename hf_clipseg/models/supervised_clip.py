"""What the methods that learn from masks share: a fixed list of classes read through learned prompts, and the features of CLIP,
or of another vision encoder, as a pyramid behind Mask2Former's pixel decoder.

The pixel decoder is transformers' `Mask2FormerPixelDecoder`, multi-scale deformable attention in pure PyTorch (Zhu et al. 2020,
arXiv 2010.04159). Outside of transformers' own model nothing would initialise it properly: see `initialise_as_mask2former`.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import CLIPModel, Mask2FormerConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMaskedAttentionDecoderLayer,
    Mask2FormerPixelDecoder,
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
    Mask2FormerPixelDecoderOutput,
    Mask2FormerPredictionBlock,
    Mask2FormerPreTrainedModel,
)

from ..clip.feature_pyramid import DirectFeatures, FeaturePyramid
from ..clip.prompt_learner import INITIAL_STANDARD_DEVIATION, PromptLearner
from ..clip.text_bank import ClassName, normalise_class_names
from ..clip.vision_network import LEVELS, load_network
from ..clip.vision_pyramid import VisionPyramid
from .configuration_supervised_clip import SupervisedClipConfig
from .dense_clip import DenseClipPreTrainedModel

INITIALISED_BY_MASK2FORMER = (
    Mask2FormerPixelDecoder,
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
    Mask2FormerMaskedAttentionDecoderLayer,
    Mask2FormerPredictionBlock,
)


def pixel_decoder_config(config: SupervisedClipConfig, **fields) -> Mask2FormerConfig:
    """What transformers' Mask2Former modules are built from; the strides only say that each level halves the size."""
    return Mask2FormerConfig(
        feature_size=config.hidden_dim,
        mask_feature_size=config.hidden_dim,
        hidden_dim=config.hidden_dim,
        num_attention_heads=config.num_attention_heads,
        encoder_layers=config.pixel_decoder_layers,
        encoder_feedforward_dim=config.pixel_decoder_feedforward_dim,
        feature_strides=[4, 8, 16, 32],
        common_stride=4,
        **fields,
    )


def initialise_as_mask2former(module: nn.Module) -> None:
    """Initialise transformers' Mask2Former parts inside `module` as their own model does; loaded weights are left alone.

    Call it for a module with parameters of its own: in models from outside of transformers, `post_init` takes modules without
    such parameters for initialised and never offers them to `_init_weights`, the deformable attention among them.
    """
    as_model = Mask2FormerPreTrainedModel(Mask2FormerConfig())  # without weights: its standard deviations are wanted
    for part in module.modules():
        if isinstance(part, INITIALISED_BY_MASK2FORMER):
            as_model._init_weights(part)


class SupervisedClipPreTrainedModel(DenseClipPreTrainedModel):
    """Subclasses call `self.build_supervised(config)` in their constructor, list in `EXTRA_NAMES` the texts that they need
    beyond the classes, and make what depends on the number of classes in `build_heads`.
    """

    open_vocabulary = False
    EXTRA_NAMES: tuple[str, ...] = ()

    def build_supervised(self, config: SupervisedClipConfig, normalise_texts: bool = True) -> None:
        """`normalise_texts`: whether `class_texts` have unit length."""
        self.build_clip(config)
        self.normalise_texts = normalise_texts
        if config.vision_backbone is None:
            width = config.clip_config.vision_config.hidden_size
            self.pyramid, channels = FeaturePyramid(width, config.finest_scale, LEVELS), [width] * LEVELS
            deepest = width
        else:
            self.pyramid = VisionPyramid(config.vision_backbone, config.finest_scale, LEVELS)
            self.clip.vision_model = self.clip.visual_projection = None
            channels, deepest = self.pyramid.channels, self.pyramid.plan.channels[-1]
        self.pixel_decoder = Mask2FormerPixelDecoder(pixel_decoder_config(config), channels)
        self.direct_features = DirectFeatures(deepest, config.hidden_dim) if config.direct_features else None
        self.prompts = None
        if config.num_prompts and config.has_text_encoder:
            text_width = config.clip_config.text_config.hidden_size
            self.prompts = PromptLearner(config.num_prompts, config.num_prompt_tokens, text_width, normalise_texts)
        self.class_offsets = None
        if config.class_names is not None:
            self.class_embeds = torch.zeros(self.text_shape())
            self.build_offsets()
            self.build_heads(len(config.class_names))

    def build_offsets(self) -> None:
        """What moves the text of each class and extra name, `(texts, dim)`; see `part_unknown_names` for where it starts."""
        if self.config.learned_class_texts and self.config.has_text_encoder:
            self.class_offsets = nn.Parameter(torch.zeros(self.text_shape()[1:], device=self.device, dtype=self.dtype))

    def build_heads(self, num_classes: int) -> None:
        """Create the modules whose size depends on the number of classes."""
        raise NotImplementedError

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Mask2FormerPixelDecoder):
            initialise_as_mask2former(module)
        elif isinstance(module, DirectFeatures):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, PromptLearner):
            init.normal_(module.contexts, std=INITIAL_STANDARD_DEVIATION)
        elif module is self and self.class_offsets is not None:
            init.zeros_(self.class_offsets)

    def train(self, mode: bool = True):
        """Freezes what is not learned: the text encoder, and the parts of the vision encoder that the pyramid does not read."""
        vision_model = self.clip.vision_model
        unread = [self.clip.text_model, self.clip.text_projection, self.clip.visual_projection]
        for module in [*unread, None if vision_model is None else vision_model.post_layernorm]:
            if module is not None:
                module.requires_grad_(False)
        self.clip.logit_scale.requires_grad_(False)
        if isinstance(self.pyramid, VisionPyramid):
            self.pyramid.freeze_unread()
        return super().train(mode)

    @classmethod
    def from_clip(cls, pretrained_model_name_or_path, *, vision_backbone=None, **kwargs):
        """See [`DenseClipPreTrainedModel.from_clip`].

        Args:
            pretrained_model_name_or_path: the CLIP checkpoint whose texts are read, and whose vision encoder too where there is
                no `vision_backbone`.
            vision_backbone: Hub id, folder, or `timm/NAME`, whose weights are taken, see `vision_network.load_network`; or a
                configuration, for random weights.
        """
        if vision_backbone is None or isinstance(vision_backbone, (dict, PreTrainedConfig)):
            return super().from_clip(pretrained_model_name_or_path, vision_backbone=vision_backbone, **kwargs)
        network = load_network(vision_backbone)
        model = super().from_clip(pretrained_model_name_or_path, vision_backbone=network.config, **kwargs)
        model.pyramid.network.load_state_dict(network.state_dict())
        return model

    def load_clip(self, clip_model: CLIPModel) -> None:
        """With a vision encoder of its own, CLIP's is left out."""
        self.clip.load_state_dict(clip_model.state_dict(), strict=self.config.vision_backbone is None)

    # -- classes

    def text_shape(self) -> tuple[int, int, int]:
        """`(prompts, classes + extra names, dim)` of the text embeddings."""
        texts = len(self.config.class_names) + len(self.EXTRA_NAMES)
        return self.config.num_prompts, texts, self.config.clip_config.projection_dim

    @torch.no_grad()
    def set_classes(self, class_names: Sequence[ClassName], processor) -> None:
        """Fix the classes: before training, or to give trained prompts other words for the same classes.

        Another number of classes makes new, untrained heads.

        Args:
            class_names: one name, or a list of synonyms, per class, in the order of the ids in the label maps.
            processor: the `SegmentationProcessor` that knows the tokenizer. Its templates are not used: prompts are learned.
        """
        if not self.config.has_text_encoder:
            raise ValueError("The classes of a checkpoint without its text encoder are fixed; load the full checkpoint.")
        inputs = processor(class_names=[*class_names, *self.EXTRA_NAMES], templates="name", return_tensors="pt")
        old_count = None if self.config.class_names is None else len(self.config.class_names)
        self.config.class_names = normalise_class_names(class_names)
        self.config.name_labels()
        self.config.prompt_input_ids = inputs["input_ids"].tolist()
        self.config.prompt_class_ids = inputs["class_ids"][inputs["name_ids"]].tolist()
        if len(self.config.class_names) != old_count:
            before = set(self.modules())
            self.build_offsets()
            self.part_unknown_names([*class_names, *self.EXTRA_NAMES], processor)
            self.build_heads(len(self.config.class_names))
            for module in reversed([module for module in self.modules() if module not in before]):  # children first
                self._init_weights(module.to(self.device, self.dtype))
        self.bake_classes()

    @torch.no_grad()
    def part_unknown_names(self, names: Sequence[ClassName], processor) -> None:
        """Random offsets of unit length, on average, for what the tokenizer does not know: from 0 they would part slowly."""
        if self.class_offsets is not None:
            for offset, name in zip(self.class_offsets, names, strict=True):
                if processor.unknown_words([name]):
                    offset.normal_(std=len(offset) ** -0.5)

    def class_texts(self) -> torch.Tensor:
        """Text embeddings `(prompts, classes + extra names, dim)`, L2-normalised; synonyms of a class are averaged, and every
        class is moved by its offset where there are such.

        They are computed with gradients in training, once per change of the weights otherwise, and never again after
        `drop_text_encoder`.
        """
        if self.config.class_names is None:
            raise ValueError("This model has no classes yet. Fix them once: model.set_classes(['sky', 'boat'], processor).")
        if self.prompts is None:
            return self.class_embeds
        if self.config.prompt_input_ids is None:
            raise ValueError("The class names were never tokenized. Call model.set_classes(names, processor).")
        input_ids = torch.tensor(self.config.prompt_input_ids, device=self.device)
        class_ids = torch.tensor(self.config.prompt_class_ids, device=self.device)
        if self.training and torch.is_grad_enabled():
            texts = self.prompts.encode_names(self.clip, input_ids, class_ids)
        else:
            texts = self.prompts.encode_names_once(self.text_cache, self.clip, input_ids, class_ids)
        if self.class_offsets is None:
            return texts
        moved = texts + self.class_offsets
        return nn.functional.normalize(moved, dim=-1) if self.normalise_texts else moved

    @torch.no_grad()
    def bake_classes(self) -> None:
        """Copy the present text embeddings into the checkpoint."""
        if self.config.class_names is None:
            return
        if self.prompts is None:
            self.class_embeds = torch.zeros(self.text_shape(), device=self.device, dtype=self.dtype)
        else:
            self.class_embeds = self.class_texts().detach().clone().to(self.dtype)

    def drop_text_encoder(self) -> None:
        """Forget the text encoder and the prompts; what they say about the classes stays, computed once and for all."""
        if self.config.has_text_encoder:
            self.eval().bake_classes()
        super().drop_text_encoder()
        self.prompts = self.class_offsets = None

    def save_pretrained(self, *args, **kwargs):
        """As in transformers; the text embeddings are brought up to date first."""
        if self.config.has_text_encoder:
            self.bake_classes()
        return super().save_pretrained(*args, **kwargs)

    def refuse_class_names(self, *class_inputs: torch.Tensor | None) -> None:
        if any(value is not None for value in class_inputs):
            raise ValueError(
                "The vocabulary of this model is closed: its classes are fixed by set_classes and trained. Leave class_names "
                "out of the call, or use an open-vocabulary method, such as MaskClipForSemanticSegmentation."
            )

    # -- pixels

    def encode_blocks(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor | list[torch.Tensor], tuple[torch.Tensor, ...]]:
        """What the pyramid reads of the vision encoder, as maps.

        Returns:
            `(batch, blocks, h, w, width)`, CLIP's blocks in ascending order, each once; with `vision_backbone` a list of maps
            `(batch, channels, h, w)`, finest first. And all hidden states of CLIP, or these maps.
        """
        if self.config.vision_backbone is not None:
            maps = self.pyramid.encode(pixel_values)
            return maps, tuple(maps)
        hidden_states = self.clip.hidden_states(pixel_values)
        grid = tuple(-(-side // self.clip.patch_size) for side in pixel_values.shape[-2:])
        blocks = [hidden_states[block + 1][:, 1:] for block in sorted(set(self.config.feature_layers))]
        return torch.stack(blocks, dim=1).unflatten(2, grid), hidden_states

    def decode_pixels(
        self, pixel_values: torch.Tensor | None, block_maps: torch.Tensor | Sequence[torch.Tensor] | None = None
    ) -> tuple[Mask2FormerPixelDecoderOutput, tuple[torch.Tensor, ...] | None]:
        """Vision encoder -> pyramid -> pixel decoder.

        Args:
            pixel_values: `(batch, 3, height, width)`, or None with `block_maps`; see `check_inputs`.
            block_maps: from `encode_blocks`.

        Returns:
            The decoder's output, with `mask_features (batch, hidden_dim, h, w)` and three `multi_scale_features`, coarse to
            fine; and the hidden states of `encode_blocks`, None with `block_maps`.
        """
        hidden_states = None
        if block_maps is None:
            block_maps, hidden_states = self.encode_blocks(pixel_values)
        if isinstance(block_maps, torch.Tensor) != (self.config.vision_backbone is None):
            raise ValueError(f"block_maps are a {type(block_maps).__name__}; pass what encode_blocks of this model gives.")
        if isinstance(block_maps, torch.Tensor):
            blocks = sorted(set(self.config.feature_layers))
            block_maps = [block_maps[:, blocks.index(block)] for block in self.config.feature_layers]
        levels = self.pyramid(block_maps)
        # Sampling positions need more than the 8 bits of bf16, so this part ignores autocast, as in the original.
        with torch.autocast(levels[0].device.type, enabled=False):
            decoded = self.pixel_decoder([level.to(self.pixel_decoder.level_embed.dtype) for level in levels])
            if self.direct_features is not None:
                deepest = block_maps[-1] if self.config.vision_backbone is not None else block_maps[-1].permute(0, 3, 1, 2)
                size = decoded.mask_features.shape[-2:]
                decoded.mask_features = decoded.mask_features + self.direct_features(deepest, size)
        return decoded, hidden_states

    def dense_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The pixel decoder's features `(batch, h, w, hidden_dim)`, L2-normalised."""
        decoded, _ = self.decode_pixels(pixel_values)
        return nn.functional.normalize(decoded.mask_features.permute(0, 2, 3, 1), dim=-1)
