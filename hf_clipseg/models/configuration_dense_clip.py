"""Configuration fields that every method on a CLIP backbone shares."""

from typing import Any

from transformers import CLIPConfig, PreTrainedConfig

from ..clip.text_bank import normalise_class_names

BACKGROUND = "background"


class DenseClipConfig(PreTrainedConfig):
    r"""
    Args:
        clip_config (`dict` or `CLIPConfig`, *optional*):
            The CLIP checkpoint the model is built on; transformers' ViT-B/32 by default.
        class_names (`list[list[str]]`, *optional*):
            Classes baked into the checkpoint, each a list of its names with the display name first. Sets `id2label`. Use
            `model.set_classes`, which computes the embeddings too.
        has_text_encoder (`bool`, *optional*, defaults to `True`):
            `False` in checkpoints saved after `model.drop_text_encoder()`, which know their baked classes only.
    """

    sub_configs = {"clip_config": CLIPConfig}

    clip_config: Any = None  # given as above, a CLIPConfig from construction on
    class_names: list | None = None
    has_text_encoder: bool = True

    def __post_init__(self, **kwargs):
        if not isinstance(self.clip_config, PreTrainedConfig):
            self.clip_config = self.sub_configs["clip_config"](**(self.clip_config or {}))
        if self.class_names is not None:
            self.class_names = normalise_class_names(self.class_names)
            self.name_labels()
        super().__post_init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Reject combinations that no model can be built from. Methods extend it with their own fields."""
        if not self.has_text_encoder and self.class_names is None:
            raise ValueError(
                "has_text_encoder=False without class_names leaves nothing to compare an image with. Bake classes first: "
                "model.set_classes(names, processor); model.drop_text_encoder()."
            )

    @property
    def has_background(self) -> bool:
        """Whether the model predicts a background class with id 0, so that class c has the id c + 1. Methods may say so."""
        return False

    def name_labels(self) -> None:
        """Set `id2label` from the classes, after background where there is one."""
        names = [names[0] for names in self.class_names or ()]
        self.id2label = dict(enumerate([BACKGROUND, *names] if self.has_background else names))
        self.label2id = {label: index for index, label in self.id2label.items()}

    def baked_class_ids(self) -> list[int] | None:
        """The class of every baked name, in the order of the baked embeddings."""
        if self.class_names is None:
            return None
        return [class_id for class_id, names in enumerate(self.class_names) for _ in names]
