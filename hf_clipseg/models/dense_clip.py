"""What the models share apart from their forward pass: building on a CLIP checkpoint, and the classes they know."""

from collections.abc import Sequence

import torch
from transformers import CLIPModel, PreTrainedModel
from transformers import initialization as init

from ..clip.clip_backbone import ClipBackbone
from ..clip.clip_checkpoint import load_whole
from ..clip.text_bank import ClassName, TextCache, average_templates, normalise_class_names


class DenseClipPreTrainedModel(PreTrainedModel):
    """A segmentation model with a `ClipBackbone` in `self.clip` and, once baked, class embeddings in `self.class_embeds`.

    Subclasses call `self.build_clip(config)` in their constructor and write their own `forward`.
    """

    open_vocabulary = True  # whether names may be given per call; methods that fix their classes in training say False
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # otherwise Trainer scales the gradients of accumulated batches a second time
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["CLIPEncoderLayer", "CLIPTextEmbeddings", "CLIPVisionEmbeddings"]

    def build_clip(self, config) -> None:
        """Create the backbone and the place for baked classes. `class_embeds` is `(names, dim)`, L2-normalised, or None."""
        self.clip = ClipBackbone(config.clip_config, with_text_encoder=config.has_text_encoder)
        self.prepare_classes(config)

    def prepare_classes(self, config) -> None:
        """The place for baked classes, of the size that the checkpoint has."""
        class_ids = config.baked_class_ids()
        shape = None if class_ids is None else (len(class_ids), config.clip_config.projection_dim)
        self.register_buffer("class_embeds", None if shape is None else torch.zeros(shape))
        self.text_cache = TextCache()

    @torch.no_grad()
    def _init_weights(self, module):
        """CLIP's own encoders initialise themselves; what is left are the projections around them."""
        super()._init_weights(module)
        if isinstance(module, ClipBackbone):
            for projection in (module.visual_projection, module.text_projection):
                if projection is not None:
                    init.normal_(projection.weight, std=projection.in_features**-0.5)
            init.constant_(module.logit_scale, module.config.logit_scale_init_value)
        elif module is self and self.class_embeds is not None:
            init.zeros_(self.class_embeds)

    @classmethod
    def from_clip(cls, pretrained_model_name_or_path, *, clip_kwargs: dict | None = None, **config_fields):
        """Build the method on a CLIP checkpoint.

        Args:
            pretrained_model_name_or_path: Hub id or folder of any CLIP-architecture checkpoint (OpenAI, LAION, MetaCLIP).
            clip_kwargs: arguments for `CLIPModel.from_pretrained` (`revision`, `token`, `dtype`, ...).
            config_fields: fields of the method's configuration.

        Raises:
            ValueError: no CLIP, or one whose weights are not all there; see `clip_checkpoint.load_whole`.
        """
        clip_model = load_whole(pretrained_model_name_or_path, **(clip_kwargs or {}))
        config = cls.config_class(clip_config=clip_model.config.to_dict(), **config_fields)
        model = cls(config).to(clip_model.dtype)
        model.load_clip(clip_model)
        return model.eval()

    def load_clip(self, clip_model: CLIPModel) -> None:
        """Take over the weights of a CLIP of the same configuration."""
        self.clip.load_state_dict(clip_model.state_dict())

    @torch.no_grad()
    def set_classes(self, class_names: Sequence[ClassName], processor) -> None:
        """Bake classes into the model: they become part of the checkpoint, and `id2label` follows.

        Args:
            class_names: one name, or a list of synonyms, per class.
            processor: the `SegmentationProcessor` that knows the tokenizer and the templates.
        """
        inputs = processor(class_names=class_names, return_tensors="pt").to(self.device)
        self.class_embeds = self.encode_names(inputs["input_ids"], inputs["name_ids"]).to(self.dtype)
        self.config.class_names = normalise_class_names(class_names)
        self.config.name_labels()

    def drop_text_encoder(self) -> None:
        """Forget the text encoder; the baked classes stay. Shrinks a ViT-B/16 checkpoint by 63 M parameters."""
        if self.class_embeds is None:
            raise ValueError("Bake classes with set_classes(names, processor) before dropping the text encoder.")
        self.clip.text_model = None
        self.clip.text_projection = None
        self.config.has_text_encoder = False

    def encode_names(self, input_ids: torch.Tensor, name_ids: torch.Tensor) -> torch.Tensor:
        """Embedding of every name `(names, dim)`, its templates averaged. Cached unless gradients are wanted.

        Args:
            input_ids: `(prompts, length)`.
            name_ids: `(prompts,)`, the name of each prompt.
        """
        weights = self.clip.text_weights()
        wants_gradient = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights) and self.training
        if wants_gradient:
            return average_templates(self.clip.encode_text(input_ids), name_ids)
        return self.text_cache.get_or_compute(
            lambda: average_templates(self.clip.encode_text(input_ids), name_ids),
            weights,
            input_ids,
            name_ids,
            computation=f"average_templates {self.clip.config.text_config.to_json_string()}",
        )

    def check_inputs(self, output_hidden_states: bool | None, **inputs: torch.Tensor | None) -> bool:
        """Whether this call returns hidden states: as it asks, or else as configured.

        Args:
            output_hidden_states: of the call.
            inputs: `pixel_values` and what may stand in for it, such as features that were computed before.

        Raises:
            ValueError: none or several of `inputs` were passed, or hidden states are wanted of features computed before.
        """
        given = [name for name, value in inputs.items() if value is not None]
        if len(given) != 1:
            both = ", and not both" if len(inputs) > 1 else ""
            raise ValueError(f"Pass {' or '.join(inputs)}{both}; this call has {' and '.join(given) or 'no input'}.")
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if wanted and given != ["pixel_values"]:
            raise ValueError(
                f"Hidden states are those of a run through CLIP, and {given[0]} come from an earlier one. Pass pixel_values, "
                "or leave output_hidden_states out."
            )
        return bool(wanted)

    def resolve_classes(
        self, input_ids: torch.Tensor | None, name_ids: torch.Tensor | None, class_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | list[int]]:
        """Name embeddings `(names, dim)` and the class of each name: of this call, or the baked ones, as plain numbers."""
        if input_ids is not None:
            if name_ids is None or class_ids is None:
                raise ValueError(
                    "input_ids came without name_ids and class_ids. Let the processor make all three: "
                    "processor(images=..., class_names=[...], return_tensors='pt')."
                )
            return self.encode_names(input_ids, name_ids), class_ids
        if self.class_embeds is None:
            raise ValueError(
                "This model has no classes yet. Pass them per call, processor(images=..., class_names=['sky', 'boat']), "
                "or bake them in once, model.set_classes(['sky', 'boat'], processor)."
            )
        return self.class_embeds, self.config.baked_class_ids()
