"""The protocols behind published training-free figures, one entry per row of a table, every setting named.

    python -m training.evaluate openai/clip-vit-base-patch16 --protocol naclip-voc21 --dataset_path VOCdevkit/VOC2012
    python -m training.evaluate openai/clip-vit-base-patch16 --protocol naclip-voc21 --dry_run      # every setting, and no more

Where the settings come from: the configurations that the authors released (SCLIP, NACLIP, ClearCLIP, ProxyCLIP), read in their
repositories. All four evaluate with mmsegmentation: the image is resized without a filter to a short side, windows slide over
it without padding, their scores are stitched at full resolution and resized to the size of the mask, the softmax runs over all
names, and mIoU is taken over the whole split. The names of classes and background are in `training/data/vocabularies`.

What could not be read is said in the note of an entry: nobody released the settings of the MaskCLIP rows, and where a figure
was found in tables of later papers only, `verified` is False.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from PIL import Image
from transformers.hf_argparser import HfArg

from hf_clipseg.clip.text_bank import resolve_templates
from hf_clipseg.processing.inference import OUTPUT_STRIDE
from hf_clipseg.processing.label_rules import LabelRule

from ..data.benchmarks import BENCHMARKS, open_benchmark, vocabulary
from ..data.presets import PRESETS

CLIP_B16 = "openai/clip-vit-base-patch16"
DATASETS = ("voc21", "voc20", "context60", "context59", "coco-object", "coco-stuff", "ade20k", "cityscapes")
WITH_BACKGROUND = ("voc21", "context60", "coco-object")


@dataclass(frozen=True)
class Published:
    """A figure somebody printed.

    Args:
        miou: percent.
        source: where it stands.
        verified: read at the source itself; otherwise in tables of later papers that agree with each other.
    """

    miou: float
    source: str
    verified: bool

    def __str__(self) -> str:
        """In percent; what was not read at its source says so wherever it is printed."""
        return f"{self.miou:.2f}" + ("" if self.verified else " (unverified: read in later papers, not at the source)")


@dataclass(frozen=True)
class Protocol:
    """Everything that a published figure depends on.

    Args:
        name: of the entry.
        dataset: a name in `benchmarks.BENCHMARKS`.
        split: of that data set.
        vocabulary: file in `data/vocabularies`: one line per class, its names parted by commas.
        weights: the CLIP it was published with.
        attention_variant, keep_residual: of the last block, see `hf_clipseg`'s `MaskClipConfig`.
        proxy: checkpoint whose similarities guide the last block; None for all but ProxyCLIP.
        short_side, long_side: the image is resized to the short side unless the long one would pass its limit.
        resample: `"cv2_bilinear"`: four neighbours, no filter, sides rounded to the nearest pixel.
        position_interpolation: of CLIP's position embedding, where windows are not of its native size.
        window, stride: of the sliding windows, pixels of the resized image.
        output_stride: of the canvas they are stitched on; 1 is every pixel.
        templates: preset of `hf_clipseg.text_bank.TEMPLATES`.
        logit_scale: of the cosines in the softmax.
        prob_thd: pixels whose best class is less probable become background; 0 is off.
        area_thd: classes that cover a smaller share of the foreground are dropped; 0 is off.
        pamr_iterations, pamr_dilations: PAMR on the scores of all names; 0 iterations is off.
        published: the figure.
        note: what is not known or differs.
    """

    name: str
    dataset: str
    split: str
    vocabulary: str
    weights: str
    attention_variant: str
    keep_residual: bool
    proxy: str | None
    short_side: int
    long_side: int
    resample: str
    position_interpolation: str
    window: int
    stride: int
    output_stride: int
    templates: str
    logit_scale: float
    prob_thd: float
    area_thd: float
    pamr_iterations: int
    pamr_dilations: tuple[int, ...]
    published: Published
    note: str = ""

    def rule(self) -> LabelRule:
        """How scores become labels."""
        return LabelRule(
            per_name=True, min_probability=self.prob_thd, min_area=self.area_thd, pamr_iterations=self.pamr_iterations,
            pamr_dilations=self.pamr_dilations,
        )  # fmt: skip

    def apply(self, model, processor) -> None:
        """Give a MaskCLIP and its processor these settings.

        Raises:
            ValueError: another method.
        """
        if getattr(model.config, "model_type", None) != "mask_clip":
            raise ValueError(
                f"--protocol {self.name} is for training-free methods: pass a CLIP such as {self.weights}, not a "
                f"{type(model).__name__}."
            )
        for name in ("attention_variant", "keep_residual", "position_interpolation", "logit_scale"):
            setattr(model.config, name, getattr(self, name))
        if self.proxy is not None:
            model.load_proxy(self.proxy)
        images = processor.image_processor
        images.size = {"shortest_edge": self.short_side, "longest_edge": self.long_side}
        images.resample, images.antialias, images.round_size = Image.Resampling.BILINEAR, False, True
        images.do_pad, processor.templates = True, list(resolve_templates(self.templates))

    def names(self) -> list[list[str]]:
        """The names of every class."""
        return vocabulary(self.vocabulary)

    def options(self) -> dict:
        """Arguments of `hf_clipseg.processing.inference.segment`."""
        return {"window": self.window, "stride": self.stride, "output_stride": self.output_stride, "rule": self.rule()}


BASE = dict(
    split="validation", weights=CLIP_B16, proxy=None, short_side=336, long_side=2048, resample="cv2_bilinear",
    position_interpolation="scale_factor", window=224, stride=112, output_stride=1, templates="clip_80", logit_scale=40.0,
    prob_thd=0.0, area_thd=0.0, pamr_iterations=0, pamr_dilations=(8, 16),
)  # fmt: skip
"""What SCLIP's code does unless a configuration says otherwise; the others start from it."""

SCLIP_WORDS = {name: name.replace("-", "_") for name in DATASETS}
PLAIN_WORDS = SCLIP_WORDS | {"voc21": "voc21_plain", "voc20": "voc20_plain", "coco-object": "coco_object_plain"}
SCENERY_WORDS = SCLIP_WORDS | {"voc21": "voc21_scenery", "voc20": "voc20_plain", "coco-object": "coco_object_scenery"}

LARGER = {"coco-stuff": {"short_side": 448}, "cityscapes": {"short_side": 560}}
A_TENTH = {name: {"prob_thd": 0.1} for name in WITH_BACKGROUND}
WHOLE_448 = {name: {"short_side": 448, "window": 448, "stride": 224} for name in DATASETS}


def merged(*tables: Mapping[str, dict]) -> dict[str, dict]:
    """Per data set, the settings of all tables; the later ones win."""
    return {name: {key: value for table in tables for key, value in table.get(name, {}).items()} for name in DATASETS}


@dataclass(frozen=True)
class Method:
    """The rows of one method: what they share, what differs by data set, and the figures in the order of `DATASETS`."""

    settings: Mapping[str, object]
    vocabularies: Mapping[str, str]
    by_dataset: Mapping[str, dict]
    figures: Sequence[float]
    source: str
    verified: bool
    note: str = ""


NACLIP = {"attention_variant": "naclip", "keep_residual": False}
NACLIP_NOTE = "The class names are SCLIP's, which NACLIP says it follows."
METHODS = {
    "maskclip": Method(
        {"attention_variant": "value", "keep_residual": True}, SCLIP_WORDS, merged(LARGER, A_TENTH),
        (43.4, 74.9, 23.2, 26.4, 20.6, 16.7, 11.9, 24.9),
        "arXiv 2312.01597 (SCLIP), its own run of MaskCLIP", False,
        "The settings of this run were not released: SCLIP's are used, with the threshold that it gives to most data sets.",
    ),
    "sclip": Method(
        {"attention_variant": "sclip", "keep_residual": True}, SCLIP_WORDS,
        merged(LARGER, {
            "voc21": {"logit_scale": 65.0, "prob_thd": 0.1, "area_thd": 0.1},
            "context60": {"logit_scale": 50.0, "prob_thd": 0.1},
            "coco-object": {"logit_scale": 50.0, "prob_thd": 0.1},
        }),
        (59.63, 81.54, 31.74, 34.46, 33.52, 22.77, 16.45, 32.34),
        "README of github.com/wangf3014/SCLIP (the paper, arXiv 2312.01597: 59.1 80.4 30.4 34.2 30.5 22.4 16.1 32.2)", True,
    ),
    "clearclip": Method(
        {"attention_variant": "clearclip", "keep_residual": False, "logit_scale": 50.0}, PLAIN_WORDS,
        merged(WHOLE_448, {
            "voc21": {"prob_thd": 0.5}, "context60": {"prob_thd": 0.15}, "coco-object": {"prob_thd": 0.4},
            "cityscapes": {"window": 224},
        }),
        (51.8, 80.9, 32.6, 35.9, 33.0, 23.9, 16.7, 30.0),
        "arXiv 2407.12442 (ClearCLIP)", False,
        "The settings are those of the released code. Only VOC21's list of names could be read there; the others are taken to "
        "be plain names, too. The settings of ADE20K and COCO-Stuff could not be read: what most data sets share is used.",
    ),
    "naclip": Method(
        NACLIP, SCLIP_WORDS, merged(LARGER, A_TENTH), (58.9, 79.7, 32.2, 35.2, 33.2, 23.3, 17.4, 35.5),
        "arXiv 2404.08181 (NACLIP), without PAMR", False, NACLIP_NOTE,
    ),
    "naclip-pamr": Method(
        NACLIP | {"pamr_iterations": 10}, SCLIP_WORDS, merged(LARGER, A_TENTH),
        (64.07, 83.03, 34.99, 38.35, 36.19, 25.69, 19.05, 38.27), "README of github.com/sinahmr/NACLIP", True, NACLIP_NOTE,
    ),
    "proxyclip": Method(
        {"attention_variant": "proxy", "keep_residual": False, "proxy": "facebook/dino-vitb8", "window": 336}, SCENERY_WORDS,
        merged({
            "voc21": {"prob_thd": 0.2}, "context60": {"prob_thd": 0.15}, "coco-object": {"prob_thd": 0.25},
            "ade20k": {"short_side": 448}, "cityscapes": {"short_side": 448, "window": 224},
        }),
        (61.3, 80.3, 35.3, 39.1, 37.5, 26.5, 20.2, 38.1),
        "arXiv 2408.04883 (ProxyCLIP), CLIP ViT-B/16 with DINO ViT-B/8", False,
        "The settings of VOC20 and Context59 could not be read in the released code: those that most data sets share are used.",
    ),
}  # fmt: skip


def _entries() -> dict[str, Protocol]:
    entries = {}
    for method_name, method in METHODS.items():
        for dataset, figure in zip(DATASETS, method.figures, strict=True):
            name = f"{method_name}-{dataset}"
            settings = BASE | dict(method.settings) | method.by_dataset.get(dataset, {})
            published = Published(figure, method.source, method.verified)
            entries[name] = Protocol(
                name=name, dataset=dataset, vocabulary=method.vocabularies[dataset], published=published, note=method.note,
                **settings,
            )  # fmt: skip
    return entries


PROTOCOLS = _entries()


@dataclass
class ProtocolArguments:
    """A published protocol, the folder of its data, and what protocols differ in where there is none."""

    _argument_group_name = "protocol"

    protocol: str | None = HfArg(
        default=None, help="repeat a published figure: METHOD-DATA, such as naclip-voc21; a wrong name lists them all"
    )
    dataset_path: str | None = HfArg(
        default=None, help=f"original folder of a benchmark (VOCdevkit/VOC2012, ...) as --dataset_name: {', '.join(BENCHMARKS)}"
    )
    dry_run: bool = HfArg(default=False, help="say what would be read and done, and stop")
    output_stride: int = HfArg(
        default=OUTPUT_STRIDE, help="pixels per cell of the canvas that windows are stitched on: 4 is fast, 1 exact"
    )
    min_probability: float = HfArg(default=0.0, help="pixels whose best class is less probable become class 0; 0 is off")
    min_presence: float = HfArg(
        default=0.0, help="classes that are nowhere more probable than this get no pixel; 0 is off, 0.5 is MaskCLIP's"
    )
    min_area: float = HfArg(default=0.0, help="classes that cover a smaller share of all but class 0 are dropped; 0 is off")


DECIDED = {
    "classes": None, "templates": None, "attention_variant": None, "keep_residual": None, "image_size": None, "window": None,
    "stride": None, "refinement": None, "flip": False, "scales": [1.0], "output_stride": OUTPUT_STRIDE, "min_probability": 0.0,
    "min_area": 0.0, "min_presence": 0.0,
}  # fmt: skip
"""Options of `training.evaluate` that a protocol decides, and what they are when they are left out."""


def find_protocol(name: str) -> Protocol:
    """Raises ValueError with all names where there is none of this one."""
    if name not in PROTOCOLS:
        raise ValueError(f"There is no protocol {name!r}; these are: {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def follow_protocol(arguments: argparse.Namespace) -> Protocol | None:
    """The protocol that is asked for, after setting data and split of `arguments` as it has them; None where there is none.

    Raises:
        ValueError: no such protocol, or an option that it decides.
    """
    if arguments.protocol is None:
        return None
    protocol = find_protocol(arguments.protocol)
    changed = [name for name, default in DECIDED.items() if getattr(arguments, name) != default]
    if changed:
        raise ValueError(f"--protocol decides {', '.join('--' + name for name in changed)}; leave out what it decides.")
    arguments.dataset_name, arguments.split = protocol.dataset, protocol.split
    return protocol


def open_original(arguments: argparse.Namespace, split: str, limit: int | None):
    """A benchmark from its original folder; None where `--dataset_name` is something else.

    Raises:
        ValueError: `--dataset_path` is missing for a benchmark that is read from nowhere else, or is given for other data.
    """
    name, path = arguments.dataset_name, arguments.dataset_path
    if path is not None:
        if name not in BENCHMARKS:
            raise ValueError(
                f"--dataset_path is the original folder of a benchmark, and {name} is none of {', '.join(BENCHMARKS)}; give "
                "any other folder as --dataset_name."
            )
        return open_benchmark(name, path, split, limit, arguments.seed)
    if name in BENCHMARKS and name not in PRESETS:
        raise ValueError(f"{name} is read from its original folder: pass --dataset_path, such as {BENCHMARKS[name].where}.")
    return None


def label_options(arguments: argparse.Namespace) -> dict:
    """What the options beside `--protocol` say to `hf_clipseg.processing.inference.segment`."""
    names = ("min_probability", "min_presence", "min_area")
    rule = LabelRule(**{name: getattr(arguments, name) for name in names})
    return {"output_stride": arguments.output_stride, "rule": None if rule.is_plain else rule}


def describe(arguments: argparse.Namespace, protocol: Protocol | None) -> str:
    """What would be read, and every setting, one a line."""
    head = f"{arguments.model} on {arguments.dataset_path or arguments.dataset_name}, split {arguments.split}"
    if protocol is None:
        names = ("classes", "limit", *DECIDED)
        settings = {name: getattr(arguments, name) for name in dict.fromkeys(names)}
    else:
        settings = asdict(protocol)
        settings["published"] = f"{protocol.published}; {protocol.published.source}"
        if arguments.model != protocol.weights:
            head += f"; the figure was published with {protocol.weights}"
    width = max(map(len, settings))
    return "\n".join([head, *(f"{name:<{width}}  {value}" for name, value in settings.items() if value not in (None, ""))])


def compare(protocol: Protocol, miou: float, model: str, num_images: int) -> str:
    """Measured beside published, in percent."""
    published = protocol.published
    condition = "" if model == protocol.weights else f"; published with {protocol.weights}, measured with {model}"
    return (
        f"{protocol.name}: measured {100 * miou:.2f} on {num_images} images, published {published}, "
        f"difference {100 * miou - published.miou:+.2f}{condition}\n  {published.source}"
    )
