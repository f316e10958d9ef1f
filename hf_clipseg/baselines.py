"""Segmentation models of the Hub as they are, behind the interface of this package's methods, to be compared with them.

| what | how its output becomes scores | classes |
|---|---|---|
| `AutoModelForSemanticSegmentation` (SegFormer, UPerNet, DeepLabV3, ...) | its logits | its own |
| `AutoModelForUniversalSegmentation` (Mask2Former, OneFormer) | sum over queries: class x mask probability | its own |
| CLIPSeg | one logit map per name, names of a class by maximum | any |

GroupViT is not here: `CocuForSemanticSegmentation.from_groupvit` runs it.

CLIPSeg says per name whether a pixel belongs to it, and knows no background. The rule: a class called "background" is not asked
for; its score is 0 everywhere, so it takes the pixels where every other class has a probability below one half. Without such a
class the best name wins everywhere.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    CLIPSegForImageSegmentation,
    PreTrainedConfig,
)

from .clip.similarity import max_over_synonyms
from .clip.text_bank import class_prompts, normalise_class_names, resolve_templates
from .outputs import SegmentationOutput
from .processing.image_io import load_image
from .processing.image_processing_segmentation import SegmentationImageProcessor

PROMPTS_AT_ONCE = 32
BACKGROUND = "background"


def baseline_class(config: PreTrainedConfig) -> Any:
    """The transformers class that loads a checkpoint of this configuration as a baseline; None where there is none."""
    if config.model_type == "clipseg":
        return CLIPSegForImageSegmentation
    # OneFormer and its like stand in both tables; their own masks are what they are published with
    for auto_class in (AutoModelForUniversalSegmentation, AutoModelForSemanticSegmentation):
        if type(config) in auto_class._model_mapping:
            return auto_class
    return None


def is_closed_baseline(config: PreTrainedConfig) -> bool:
    """Whether it is a baseline that knows the classes of its `id2label` and no others."""
    return config.model_type != "clipseg" and baseline_class(config) is not None


def load_baseline(config: PreTrainedConfig, source: str, **hub_options) -> tuple["Baseline", "BaselineProcessor"]:
    """A baseline and its processor from a folder or Hub id.

    Raises:
        ValueError: no baseline, or weights that do not fit the configuration (which transformers would make up).
    """
    model_class = baseline_class(config)
    if model_class is None:
        raise ValueError(f"{source} is a {config.model_type!r} model, which segments nothing.")
    model, report = model_class.from_pretrained(source, output_loading_info=True, **hub_options)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"The weights of {source} lack {len(missing)} tensors, {missing[0]} among them.")
    images = AutoImageProcessor.from_pretrained(source, **hub_options)
    tokenizer = AutoTokenizer.from_pretrained(source, **hub_options) if config.model_type == "clipseg" else None
    task = oneformer_task(source, **hub_options) if config.model_type == "oneformer" else None
    own = None if tokenizer is not None else [[config.id2label[index]] for index in range(len(config.id2label))]
    return Baseline(model, own, task).eval(), BaselineProcessor(images, own, tokenizer)


def oneformer_task(source: str, **hub_options) -> torch.Tensor:
    """OneFormer is told what to do by a sentence; its tokens `(1, length)`."""
    processor = AutoProcessor.from_pretrained(source, **hub_options)
    return processor(images=torch.zeros(3, 32, 32), task_inputs=["semantic"], return_tensors="pt")["task_inputs"]


class Baseline(nn.Module):
    """A model of transformers with the call of this package's methods: `(pixel_values, [prompts]) -> SegmentationOutput`.

    Args:
        model: see the table at the top.
        class_names: its own classes; None where it takes any.
        task: the tokens that OneFormer wants beside the image.
    """

    def __init__(self, model, class_names: list[list[str]] | None, task: torch.Tensor | None = None):
        super().__init__()
        self.model, self.config = model, model.config
        self.open_vocabulary = class_names is None
        self.config.class_names = class_names
        self.register_buffer("task", task, persistent=False)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def forward(self, pixel_values: torch.Tensor, **prompts) -> SegmentationOutput:
        """
        Args:
            pixel_values: `(batch, 3, height, width)` from the `BaselineProcessor`.
            prompts: for CLIPSeg: `input_ids`, `attention_mask`, `name_ids`, `class_ids` and `background` from the processor.

        Returns:
            `logits (batch, classes, h, w)`: logits, for universal models sums of probabilities.
        """
        if self.open_vocabulary:
            return SegmentationOutput(logits=self.clipseg_logits(pixel_values, **prompts))
        extra = {} if self.task is None else {"task_inputs": self.task.expand(len(pixel_values), -1)}
        outputs = self.model(pixel_values=pixel_values, **extra)
        if "logits" in outputs:
            return SegmentationOutput(logits=outputs.logits)
        if self.task is not None or hasattr(outputs, "masks_queries_logits"):
            classes = outputs.class_queries_logits.softmax(-1)[..., :-1]
            return SegmentationOutput(logits=torch.einsum("bqc,bqhw->bchw", classes, outputs.masks_queries_logits.sigmoid()))
        raise ValueError(f"{type(self.model).__name__} returns neither logits nor masks of queries: it cannot be compared.")

    def clipseg_logits(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        name_ids: torch.Tensor | None = None,
        class_ids: torch.Tensor | None = None,
        background: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The image encoder once per image, the decoder once per image and name, `PROMPTS_AT_ONCE` at a time."""
        if input_ids is None or attention_mask is None:
            raise ValueError("CLIPSeg has no classes of its own: pass class_names.")
        chunks = zip(input_ids.split(PROMPTS_AT_ONCE), attention_mask.split(PROMPTS_AT_ONCE), strict=True)
        sentences = [
            self.model.get_conditional_embeddings(len(ids), input_ids=ids, attention_mask=mask) for ids, mask in chunks
        ]
        # CLIPSeg's condition has the length of CLIP's text feature: templates are averaged as they are
        names = mean_by_id(torch.cat(sentences), name_ids)
        vision = self.model.clip.vision_model(pixel_values, output_hidden_states=True, interpolate_pos_encoding=True)
        layers = [vision.hidden_states[index + 1] for index in self.model.extract_layers]
        maps = []
        for image in range(len(pixel_values)):
            parts = []
            for condition in names.split(PROMPTS_AT_ONCE):
                states = [layer[image : image + 1].expand(len(condition), -1, -1) for layer in layers]
                parts.append(self.model.decoder(states, condition).logits.view(len(condition), *pixel_values.shape[-2:]))
            maps.append(torch.cat(parts))
        scores = max_over_synonyms(torch.stack(maps), class_ids)
        return scores if background is None else scores.index_fill(1, background, 0.0)


def mean_by_id(values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Mean of the rows `(prompts, dim)` of every id, `(names, dim)`."""
    count = torch.bincount(ids).to(values.dtype)[:, None]
    return values.new_zeros(len(count), values.shape[-1]).index_add(0, ids, values) / count


class BaselineImageProcessor(SegmentationImageProcessor):
    """The checkpoint's own image processor in, this package's label maps out."""

    do_pad = False

    def __init__(self, image_processor):
        super().__init__()
        self.inner = image_processor

    def preprocess(self, images, segmentation_maps=None, return_tensors="pt", **kwargs) -> BatchFeature:
        """`pixel_values`; images of one call must have one size, so that nothing is padded."""
        images = [load_image(image) for image in (images if isinstance(images, (list, tuple)) else [images])]
        if len({image.size for image in images}) > 1:
            raise ValueError("A baseline takes images of one size per call; hf_clipseg.segment sorts them.")
        options = {"do_center_crop": False} if getattr(self.inner, "do_center_crop", False) else {}
        return BatchFeature({"pixel_values": self.inner(images, return_tensors=return_tensors, **options)["pixel_values"]})

    def __call__(self, images, *args, **kwargs) -> BatchFeature:
        return self.preprocess(images, *args, **kwargs)


class BaselineProcessor:
    """What a `SegmentationProcessor` offers, for a `Baseline`.

    Args:
        image_processor: the checkpoint's.
        class_names: its own classes; None where it takes any.
        tokenizer: CLIPSeg's.
        templates: as in `SegmentationProcessor`.
    """

    def __init__(self, image_processor, class_names=None, tokenizer=None, templates="photo"):
        self.image_processor = BaselineImageProcessor(image_processor)
        self.class_names, self.tokenizer, self.templates = class_names, tokenizer, list(resolve_templates(templates))

    def __call__(self, images=None, class_names=None, templates=None, return_tensors="pt", **kwargs) -> BatchFeature:
        data = {} if images is None else dict(self.image_processor(images, return_tensors=return_tensors))
        if class_names is not None:
            data |= self.closed_names(class_names) if self.tokenizer is None else self.prompts(class_names, templates)
        return BatchFeature(data, tensor_type=return_tensors)

    def closed_names(self, class_names) -> dict:
        """Nothing: the model's own classes need no prompt; other ones are refused."""
        asked_for, own = (
            [fold(names[0]) for names in normalise_class_names(list_)] for list_ in (class_names, self.class_names)
        )
        if asked_for != own:
            raise ValueError(
                f"This model knows its own {len(own)} classes only, in this order: "
                f"{', '.join(names[0] for names in self.class_names)}. Leave class_names out."
            )
        return {}

    def prompts(self, class_names, templates) -> dict:
        prompts = class_prompts(class_names, templates or self.templates)
        tokens = self.tokenizer(list(prompts.texts), padding=True, truncation=True)
        background = [index for index, name in enumerate(prompts.class_names) if fold(name) == BACKGROUND]
        ids = {"name_ids": list(prompts.name_ids), "class_ids": list(prompts.class_ids)}
        return (
            {key: tokens[key] for key in ("input_ids", "attention_mask")}
            | ids
            | ({"background": background} if background else {})
        )

    def unknown_words(self, class_names) -> list[str]:
        """None: closed models are asked for their own names, and CLIPSeg's vocabulary is byte-level."""
        return []

    def post_process_semantic_segmentation(self, outputs, target_sizes=None, refinement=None, images=None, **options):
        """See `SegmentationImageProcessor.post_process_semantic_segmentation`."""
        return self.image_processor.post_process_semantic_segmentation(outputs, target_sizes, refinement, images, **options)


def fold(name: str) -> str:
    """`Dining table` and `diningtable` are one name."""
    return "".join(character for character in name.lower() if character.isalnum())
