"""An exported graph in the place of the model it was made from, so that the evaluator can score what is deployed.

python -m training.export model_cards/vpl-toyscapes --output vpl-onnx --format onnx
python -m training.evaluate vpl-onnx --limit 500
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hf_clipseg import SegmentationImageProcessor, SegmentationProcessor
from hf_clipseg.checkpoints import LoadedCheckpoint
from hf_clipseg.outputs import SegmentationOutput

FORMATS = {"onnx": "model.onnx", "torch": "model.pt2"}
"""Format -> name of the graph's file."""

SETTINGS = "preprocessing.json"


@dataclass(frozen=True)
class GraphConfig:
    """The classes, as in the configuration of a method."""

    class_names: list[list[str]]
    id2label: dict[int, str]


class GraphModel(nn.Module):
    """What the evaluator needs of a model: `model(pixel_values=...).logits`, and the names of the classes.

    Args:
        run: `pixel_values (1, 3, height, width)` -> `logits (1, classes, h, w)`.
        labels: the name of every class.
    """

    open_vocabulary = False
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, run: Callable[[torch.Tensor], torch.Tensor], labels: Sequence[str]):
        super().__init__()
        self.run_one = [run]  # in a list: no submodule, since programs of torch.export refuse eval()
        self.config = GraphConfig([[label] for label in labels], dict(enumerate(labels)))

    def forward(self, pixel_values: torch.Tensor) -> SegmentationOutput:
        """`(batch, 3, height, width)`; graphs take one image, so a batch is one after the other."""
        return SegmentationOutput(logits=torch.cat([self.run_one[0](image[None]) for image in pixel_values]))


class GraphProcessor(SegmentationProcessor):
    """Pictures and label maps only: a graph has no tokenizer, without which transformers' own constructor would refuse."""

    def __init__(self, image_processor: SegmentationImageProcessor):
        self.image_processor, self.tokenizer, self.templates = image_processor, None, ["{}"]

    def tokenize_classes(self, prompts):
        raise ValueError(
            "The classes of an exported graph are fixed. Leave --classes and --templates out, and score it on data that has "
            "the same classes in the same order; or export again with --classes."
        )


def is_graph(source: str | Path) -> bool:
    """Whether a folder was written by `training.export --format onnx` or `torch`."""
    return (Path(source) / SETTINGS).is_file()


def load_graph(folder: str | Path) -> LoadedCheckpoint:
    """Model and processor of such a folder.

    Raises:
        ValueError: the graph is missing, or what runs it.
    """
    folder = Path(folder)
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    file = next((folder / name for name in FORMATS.values() if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"{folder} has a {SETTINGS} but no {' or '.join(FORMATS.values())}: export it again.")
    images = SegmentationImageProcessor(
        size={name: settings[name] for name in ("shortest_edge", "longest_edge") if settings[name]},
        size_divisor=settings["size_divisor"],
        do_pad=settings["pad"],
        resample=settings["resample"],
        image_mean=settings["image_mean"],
        image_std=settings["image_std"],
    )
    return LoadedCheckpoint(GraphModel(graph_runner(file), settings["labels"]).eval(), GraphProcessor(images))


def graph_runner(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from `pixel_values (1, 3, height, width)` to `logits`, for either format."""
    if file.suffix == ".pt2":
        return torch.export.load(file).module()
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("onnxruntime is missing: pip install 'hf_clipseg[export]', or export with --format torch") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors reach us as exceptions
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda pixel_values: torch.from_numpy(session.run(None, {"pixel_values": pixel_values.numpy()})[0])
