"""A trained model as one graph that runs without this package: ONNX for onnxruntime, or a program of `torch.export`.

The folder holds the graph, `preprocessing.json` (what happens to a picture before and to the scores after, and the class names)
and, for ONNX, `segment.py`: numpy, Pillow and onnxruntime are all it needs. Height and width are dynamic, in multiples of the
patch; classes are baked in and the text encoder is left out.
"""

import copy
import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from hf_clipseg.atomic import replace_folder

from .evaluation.graph_model import FORMATS, SETTINGS, graph_runner

OPSET = 18
TRACED_CELLS = (12, 10)
CHECKED_CELLS = ((9, 14), (17, 5))
MOST_CELLS = 512
MOST_DIFFERENCE = 1e-3
"""Where a written graph gives other logits than the model by more, relative to the largest, it is not kept."""

EXAMPLE = Path(__file__).parent / "onnx_example.py"


class TraceableForms(TorchFunctionMode):
    """The same values in forms that can be traced and that onnxruntime computes exactly.

    Mask2Former's pixel decoder puts sizes into tensors by `torch.tensor`, which would fix them at those of the trace, and
    spaces reference points by `torch.linspace`, whose ONNX version loses points at other sizes. `sigmoid` and `logsigmoid` are
    written by exp and softplus, which are precise relative to the value: onnxruntime's own sigmoid is so only to 1e-7 beside 1,
    which the logarithm of a small score makes an error of 0.03.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and _is_symbolic(args[0]):
            return _stacked(args[0], dtype=kwargs.get("dtype"), device=kwargs.get("device"))
        if func is torch.linspace and _is_symbolic(args):
            start, end, steps = args
            gaps = torch.arange(steps, dtype=kwargs.get("dtype"), device=kwargs.get("device"))
            return start + gaps * ((end - start) / torch.sym_max(steps - 1, 1))
        if func in (torch.sigmoid, torch.Tensor.sigmoid):
            return 1 / (1 + (-args[0]).exp())
        if func is nn.functional.logsigmoid:
            return -nn.functional.softplus(-args[0])
        return func(*args, **kwargs)


def _is_symbolic(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_symbolic, value))
    return isinstance(value, torch.SymInt | torch.SymFloat)


def _stacked(value: Any, **options: Any) -> torch.Tensor:
    if isinstance(value, list | tuple):
        return torch.stack([_stacked(each, **options) for each in value])
    return torch.full((), value, **options)


class LogitsOnly(nn.Module):
    """`pixel_values (1, 3, height, width)` -> `logits (1, classes, h, w)`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        with TraceableForms():
            return self.model(pixel_values=pixel_values).logits


def export_graph(model: Any, processor: Any, output: str | Path, graph_format: str) -> None:
    """Writes the folder `output`.

    Args:
        model: any `...ForSemanticSegmentation` of the package with baked classes; it is left as it is.
        processor: its `SegmentationProcessor`.
        output: a folder that does not exist yet.
        graph_format: `"onnx"` or `"torch"`.

    Raises:
        ValueError: no classes, a folder that exists, an unknown format, a missing library, or a graph whose logits differ from
            the model's at sizes that the trace did not see.
    """
    output = Path(output)
    if graph_format not in FORMATS:
        raise ValueError(f"format must be one of {sorted(FORMATS)}, got {graph_format!r}.")
    if output.exists():
        raise ValueError(f"{output} exists already: choose another --output")
    settings = preprocessing(model, processor)
    graph = without_text_encoder(model)
    with replace_folder(output) as partial, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own code
        file = partial / FORMATS[graph_format]
        if graph_format == "onnx":
            write_onnx(graph, settings["size_divisor"], file)
            shutil.copyfile(EXAMPLE, partial / "segment.py")
        else:
            example, shapes = traced_input(settings["size_divisor"])
            program = torch.export.export(graph, (example,), dynamic_shapes=shapes, strict=False)
            torch.export.save(program, file)
        check_graph(graph, settings["size_divisor"], file)
        (partial / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def preprocessing(model: Any, processor: Any) -> dict[str, Any]:
    """What stands in `preprocessing.json`.

    Raises:
        ValueError: the model has no classes, or the image processor does what the file cannot say.
    """
    images = processor.image_processor
    if getattr(model.config, "class_names", None) is None:
        raise ValueError("The graph needs classes: bake them in with --classes 'sky, boat|ship', or model.set_classes.")
    if images.do_center_crop or not images.do_resize or not images.antialias or images.round_size:
        raise ValueError("Graphs are exported with plain resizing only: no center crop, no unfiltered or rounded sizes.")
    if getattr(model.config, "position_interpolation", "size") != "size":
        raise ValueError("Graphs are exported with position_interpolation='size': a factor would be fixed at the traced size.")
    proxy = getattr(model.config, "proxy_config", None)
    if proxy is not None and images.size_divisor % proxy.patch_size:
        both = math.lcm(images.size_divisor, proxy.patch_size)
        raise ValueError(
            f"The sides must fit the proxy's patches of {proxy.patch_size} pixels, too: set size_divisor in the processor's "
            f"configuration to {both}, from {images.size_divisor}."
        )
    size = images.size if isinstance(images.size, dict) else vars(images.size)
    if not size.get("shortest_edge"):
        raise ValueError(f"Graphs are exported for sizes given as shortest_edge, this processor has {dict(size)}.")
    return {
        "shortest_edge": size["shortest_edge"],
        "longest_edge": size.get("longest_edge"),
        "size_divisor": images.size_divisor,
        "pad": bool(images.do_pad),
        "resample": int(images.resample),
        "image_mean": list(images.image_mean),
        "image_std": list(images.image_std),
        "labels": [model.config.id2label[index] for index in range(len(model.config.id2label))],
    }


def without_text_encoder(model: Any) -> LogitsOnly:
    model = copy.deepcopy(model).float().cpu().eval()
    if model.config.has_text_encoder:
        model.drop_text_encoder()
    return LogitsOnly(model).eval()


def traced_input(divisor: int) -> tuple[torch.Tensor, dict]:
    """An example input, and which of its dimensions may change."""
    example = torch.zeros(1, 3, *(cells * divisor for cells in TRACED_CELLS))
    rows, columns = (torch.export.Dim(name, min=2, max=MOST_CELLS) for name in ("rows", "columns"))
    return example, {"pixel_values": {2: divisor * rows, 3: divisor * columns}}


def write_onnx(graph: LogitsOnly, divisor: int, file: Path) -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error.name} is missing: pip install 'hf_clipseg[export]' (onnx, onnxscript, onnxruntime)") from None
    example, shapes = traced_input(divisor)
    try:
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            input_names=["pixel_values"],
            output_names=["logits"],
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:  # torch 2.6: no bicubic resizing to a size that may change
        raise ValueError(
            f"torch {torch.__version__} cannot write this model as ONNX ({type(error).__name__}). Update torch, or take "
            "--format torch."
        ) from error
    program.save(file, external_data=False)


def check_graph(graph: LogitsOnly, divisor: int, file: Path) -> None:
    """Runs what was written beside the model, at sizes that the trace did not see."""
    run = graph_runner(file)
    generator = torch.Generator().manual_seed(0)
    for cells in CHECKED_CELLS:
        pixel_values = torch.randn(1, 3, *(count * divisor for count in cells), generator=generator)
        expected, found = graph(pixel_values), run(pixel_values)
        difference = (found - expected).abs().max() if found.shape == expected.shape else torch.tensor(float("inf"))
        if not difference <= MOST_DIFFERENCE * expected.abs().max().clamp(min=1):
            raise ValueError(
                f"The exported graph differs from the model by {float(difference):.3g} at {cells[0]} x {cells[1]} patches; "
                "it was not kept. Please report this with the model's configuration."
            )
