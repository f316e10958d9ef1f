"""One processor for all methods: images, class names and label maps in; label maps of the original size out."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from transformers import AutoTokenizer, BatchFeature, CLIPConfig, ProcessorMixin

from ..clip.clip_checkpoint import check_architecture
from ..clip.text_bank import ClassName, ClassPrompts, class_prompts, normalise_class_names, resolve_templates
from ..clip.vision_network import image_settings
from .image_processing_segmentation import SegmentationImageProcessor

TOKENS_KEPT = 4
_kept_tokens: WeakKeyDictionary = WeakKeyDictionary()


def tokens_of(tokenizer, texts: tuple[str, ...]) -> np.ndarray:
    """`(prompts, length)` int64, padded to the longest; those of the last few lists of texts are remembered per tokenizer.

    A large vocabulary takes a second to tokenise, which a loop over pictures would pay for each of them.
    """
    kept, key = _kept_tokens.setdefault(tokenizer, {}), (texts, len(tokenizer))  # added tokens change the answer
    tokens = kept.get(key)
    if tokens is None:
        tokens = np.array(tokenizer(list(texts), padding=True, return_attention_mask=False)["input_ids"], dtype=np.int64)
        for oldest in list(kept)[: max(0, len(kept) - TOKENS_KEPT + 1)]:
            kept.pop(oldest, None)  # another thread may have been first
        kept[key] = tokens
    return tokens


class SegmentationProcessor(ProcessorMixin):
    """Prepares inputs for every method and turns outputs into label maps.

    Args:
        image_processor: the `SegmentationImageProcessor`.
        tokenizer: CLIP's tokenizer.
        templates: a preset of `text_bank.TEMPLATES`, one template, or a list; `{}` stands for the class name.
    """

    def __init__(self, image_processor=None, tokenizer=None, templates: str | Sequence[str] = "photo", **kwargs):
        super().__init__(image_processor, tokenizer)
        self.templates = list(resolve_templates(templates))

    @classmethod
    def from_clip(
        cls, pretrained_model_name_or_path, *, templates="photo", size: dict | None = None, vision_backbone=None, **hub_kwargs
    ):
        """The processor for a CLIP checkpoint: its tokenizer, and its patch and image size.

        Args:
            pretrained_model_name_or_path: Hub id or folder of any CLIP-architecture checkpoint.
            templates: see the class.
            size: `{"shortest_edge": ..., "longest_edge": ...}`; by default 1.5 times CLIP's image size, aspect up to 1:4.
            vision_backbone: encoder that reads the images in place of CLIP's, as the model's `from_clip` takes it: images are
                normalised and resized as its own preprocessing says.
            hub_kwargs: `revision`, `token`, `cache_dir`, ...

        Raises:
            ValueError: no CLIP; see `clip_checkpoint.check_architecture`.
        """
        check_architecture(pretrained_model_name_or_path, **hub_kwargs)
        vision = CLIPConfig.from_pretrained(pretrained_model_name_or_path, **hub_kwargs).vision_config
        short = vision.image_size * 3 // 2
        settings = {"size": {"shortest_edge": short, "longest_edge": 4 * short}, "size_divisor": vision.patch_size}
        if vision_backbone is not None:
            settings |= image_settings(vision_backbone)
        image_processor = SegmentationImageProcessor(**(settings if size is None else settings | {"size": size}))
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **hub_kwargs)
        return cls(image_processor, tokenizer, templates=templates)

    def __call__(
        self,
        images=None,
        class_names: Sequence[ClassName] | None = None,
        segmentation_maps=None,
        templates: str | Sequence[str] | None = None,
        return_tensors: str | None = "pt",
        **image_kwargs,
    ) -> BatchFeature:
        """
        Args:
            images: one image or a list (PIL, arrays `(height, width, 3)`, or tensors `(3, height, width)`).
            class_names: one name, or a list of synonyms, per class; leave out where classes are baked in.
            segmentation_maps: label maps of the images' sizes.
            templates: overrides the processor's own.
            return_tensors: as in transformers.
            image_kwargs: overrides of the image processor's settings (`size`, `do_reduce_labels`, ...).

        Returns:
            `BatchFeature` with `pixel_values`, `labels` where maps were given, and for class names `input_ids (prompts,
            length)`, `name_ids (prompts,)` and `class_ids (names,)`, which any number of images share.

        Raises:
            ValueError: nothing to process, bad or repeated class names, or a prompt longer than the text encoder reads.
        """
        if images is None and class_names is None:
            raise ValueError("Pass images, class_names, or both.")
        data = {}
        if images is not None:
            data.update(self.image_processor(images, segmentation_maps, return_tensors=return_tensors, **image_kwargs))
        if class_names is not None:
            data.update(self.tokenize_classes(class_prompts(class_names, templates or self.templates)))
        return BatchFeature(data, tensor_type=return_tensors)

    def tokenize_classes(self, prompts: ClassPrompts) -> dict[str, Any]:
        """Tokens of all prompts, no longer than the longest one: the text encoder is causal, so padding only costs time."""
        tokens = tokens_of(self.tokenizer, prompts.texts)
        limit = self.tokenizer.model_max_length
        if tokens.shape[1] > limit:
            plain = self.tokenizer(list(prompts.texts))["input_ids"]
            longest = max(range(len(plain)), key=lambda index: len(plain[index]))
            raise ValueError(
                f"The prompt {prompts.texts[longest]!r} has {len(plain[longest])} tokens and the text encoder reads "
                f"{limit}. Use a shorter class name or template."
            )
        return {"input_ids": tokens.copy(), "name_ids": list(prompts.name_ids), "class_ids": list(prompts.class_ids)}

    def unknown_words(self, class_names: Sequence[ClassName]) -> list[str]:
        """Words that the tokenizer cannot represent, so that a class named by them means nothing to the model.

        Always empty for byte-level vocabularies such as OpenAI's.
        """
        unknown = self.tokenizer.unk_token_id
        if unknown is None or unknown == self.tokenizer.eos_token_id:
            return []
        words = {word: None for names in normalise_class_names(class_names) for name in names for word in name.split()}
        return [word for word in words if unknown in self.tokenizer(word, add_special_tokens=False)["input_ids"]]

    def post_process_semantic_segmentation(self, outputs, target_sizes=None, refinement=None, images=None, **options):
        """See `SegmentationImageProcessor.post_process_semantic_segmentation`."""
        return self.image_processor.post_process_semantic_segmentation(outputs, target_sizes, refinement, images, **options)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "name_ids", "class_ids", "labels"]
