"""Training-free segmentation with a frozen CLIP.

Paper: "Extract Free Dense Labels from CLIP" (MaskCLIP), Zhou, Loy and Dai, ECCV 2022, arXiv 2112.01071; the attention variants
of its successors are listed in `clip_backbone`.
Deviations: features are L2-normalised and scaled by CLIP's own logit scale; the paper's key smoothing and prompt denoising are
left out (`refinement` does more for the former, a chosen vocabulary for the latter). The paper's own ViT setting is not CLIP's:
ImageNet's mean and deviation, exact GELU, layer norms with eps 1e-6, pictures of 512 pixels; here CLIP runs as it was trained.
With a `proxy` it is ProxyCLIP, see `proxy_guidance`.
"""

import torch
from transformers import AutoModel, PreTrainedModel
from transformers.utils import can_return_tuple

from ...clip.clip_backbone import DenseFeatures
from ...clip.similarity import cosine_maps, max_over_synonyms
from ...outputs import SegmentationOutput
from ..dense_clip import DenseClipPreTrainedModel
from ..losses import segmentation_cross_entropy
from .configuration_mask_clip import PROXY, MaskClipConfig
from .proxy_guidance import PROXY_TYPES, guided_tokens, proxy_features


class MaskClipForSemanticSegmentation(DenseClipPreTrainedModel):
    """Dense CLIP features compared with class texts; no weight beyond CLIP's own.

    ```python
    >>> model = MaskClipForSemanticSegmentation.from_clip("openai/clip-vit-base-patch16", attention_variant="naclip")
    >>> processor = SegmentationProcessor.from_clip("openai/clip-vit-base-patch16")
    >>> inputs = processor(images=image, class_names=["sky", ["boat", "ship"]], return_tensors="pt")
    >>> maps = processor.post_process_semantic_segmentation(model(**inputs), target_sizes=[image.size[::-1]])
    ```
    """

    config_class = MaskClipConfig

    def __init__(self, config: MaskClipConfig):
        super().__init__(config)
        self.build_clip(config)
        self.proxy = None if config.proxy_config is None else without_pooler(AutoModel.from_config(config.proxy_config))
        self.post_init()

    @classmethod
    def from_clip(
        cls,
        pretrained_model_name_or_path,
        *,
        proxy: str | None = None,
        proxy_kwargs: dict | None = None,
        clip_kwargs: dict | None = None,
        **config_fields,
    ):
        """Build the method on a CLIP checkpoint.

        Args:
            pretrained_model_name_or_path: Hub id or folder of any CLIP-architecture checkpoint (OpenAI, LAION, MetaCLIP).
            proxy: Hub id or folder of a DINO, DINOv2 or DINOv3 that guides the last block (see `proxy_guidance`); sets
                `attention_variant="proxy"`.
            proxy_kwargs, clip_kwargs: arguments for `from_pretrained` (`revision`, `token`, `dtype`, ...).
            config_fields: fields of the configuration.
        """
        model = super().from_clip(pretrained_model_name_or_path, clip_kwargs=clip_kwargs, **config_fields)
        if proxy is not None:
            model.load_proxy(proxy, **(proxy_kwargs or {}))
        return model

    def load_proxy(self, pretrained_model_name_or_path, **kwargs) -> None:
        """Take a DINO, DINOv2 or DINOv3 in, and let it guide the last block from now on.

        Raises:
            ValueError: a model of another kind.
        """
        proxy = AutoModel.from_pretrained(pretrained_model_name_or_path, **kwargs)
        if proxy.config.model_type not in PROXY_TYPES:
            raise ValueError(
                f"{pretrained_model_name_or_path} is a {proxy.config.model_type!r} model; a proxy is one of "
                f"{', '.join(PROXY_TYPES)} (DINO, DINOv2, DINOv3)."
            )
        self.proxy = without_pooler(proxy).to(self.device, self.dtype).eval()
        self.config.proxy_config, self.config.attention_variant, self.config.keep_residual = proxy.config, PROXY, None
        self.config.check()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        name_ids: torch.Tensor | None = None,
        class_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> SegmentationOutput | tuple:
        """
        Args:
            pixel_values: `(batch, 3, height, width)`, any size.
            input_ids: `(prompts, length)` tokens of all class prompts, from the processor; baked classes where left out.
            name_ids: `(prompts,)`, the name each prompt was made from.
            class_ids: `(names,)`, the class each name belongs to.
            labels: `(batch, H, W)` int64 masks, 255 ignored; adds the cross-entropy as `loss`.
            output_hidden_states: also return the input of the first block and the output of every block.
            return_dict: `False` returns a tuple.

        Returns:
            `SegmentationOutput` with `logits (batch, classes, h, w)` on the patch grid.
        """
        wants_states = self.check_inputs(output_hidden_states, pixel_values=pixel_values)
        patch_embeds, hidden_states = self.encode(pixel_values, wants_states)
        name_embeds, class_ids = self.resolve_classes(input_ids, name_ids, class_ids)
        cosines = max_over_synonyms(cosine_maps(patch_embeds, name_embeds.to(patch_embeds.dtype)), class_ids)
        logits = self.logit_scale * cosines

        loss = None if labels is None else segmentation_cross_entropy(logits, labels)
        return SegmentationOutput(
            loss=loss,
            logits=logits,
            hidden_states=hidden_states,
            losses=None if loss is None else {"cross_entropy": loss.detach()},
            patch_embeds=patch_embeds,
        )

    def dense_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """L2-normalised features `(batch, h, w, dim)` of `pixel_values (batch, 3, height, width)`, as configured."""
        return self.encode(pixel_values).patch_embeds

    def encode(self, pixel_values: torch.Tensor, output_hidden_states: bool = False) -> DenseFeatures:
        """One run through CLIP, as configured."""
        config = self.config
        if config.attention_variant == PROXY:
            return self.encode_guided(pixel_values)
        return self.clip.encode(
            pixel_values, config.attention_variant, config.keep_residual, config.position_interpolation, output_hidden_states
        )

    def encode_guided(self, pixel_values: torch.Tensor) -> DenseFeatures:
        """One run through CLIP and one through the proxy, on whose grid the features are."""
        tokens, grid = self.clip.embed(pixel_values, self.config.position_interpolation)
        states = [tokens]
        for block in self.clip.blocks[:-1]:
            states.append(block(states[-1], None))
        features = proxy_features(self.proxy, pixel_values)
        guided = guided_tokens(
            self.clip.blocks[-1], states[-1], grid, features, self.config.proxy_beta, self.config.proxy_gamma
        )
        return DenseFeatures(self.clip.project(guided).unflatten(1, features.shape[1:3]), (*states, guided))

    @property
    def logit_scale(self) -> torch.Tensor | float:
        """What the cosines are multiplied by."""
        return self.clip.logit_scale.exp() if self.config.logit_scale is None else self.config.logit_scale


def without_pooler(proxy: PreTrainedModel) -> PreTrainedModel:
    """Published DINOs come without the pooler that transformers adds; random weights need not be kept."""
    if hasattr(proxy, "pooler"):
        proxy.pooler = None
    return proxy
