"""Turns a training checkpoint into a model folder that loads everywhere.

    python -m training.export runs/mine/checkpoint-500 --output runs/mine/step-500
    python -m training.export runs/mine/checkpoint-500 --output step-500 --classes "sky, boat|ship"
    python -m training.export model_cards/vpl-toyscapes --output vpl-onnx --format onnx

The averaged weights are taken where the run keeps an average. Open-vocabulary models whose classes are baked in at the end of
training get those of the run, or the ones that `--classes` names. `--format onnx` and `torch` write one graph, which needs
neither this package nor a text encoder, of a checkpoint or of a finished model folder: see `graph_export`.
"""

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedModel

import hf_clipseg
from hf_clipseg import SegmentationProcessor
from hf_clipseg.atomic import replace_folder
from hf_clipseg.clip.text_bank import parse_class_names
from hf_clipseg.hub_export import add_code

from .engine.checkpoints import EMA_FILE, EXPORT_FOLDER, STATE_FILE, read_state
from .engine.lora import merge_lora
from .engine.provenance import provenance
from .engine.result_card import ResultCard, write_card
from .graph_export import FORMATS, export_graph
from .settings.arguments import SuggestingParser

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"


def build_parser() -> argparse.ArgumentParser:
    parser = SuggestingParser(prog="python -m training.export", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="a folder checkpoint-N of any training script; for a graph, a model folder, too")
    parser.add_argument("--output", required=True, help="the folder to write; it must not exist")
    parser.add_argument("--classes", help="bake these in: parted by commas, synonyms by '|' (default: those of the run)")
    parser.add_argument("--format", choices=["folder", *FORMATS], default="folder", help="a model folder, or one graph")
    parser.add_argument("--drop_text_encoder", action="store_true", help="keep the baked classes only")
    return parser


def load_trained(checkpoint: str | Path) -> PreTrainedModel:
    """The model of a training checkpoint, with its averaged weights where it has some.

    Raises:
        ValueError: no checkpoint, none of a model that can be exported, or one that lacks weights.
    """
    checkpoint, state = Path(checkpoint), read_state(checkpoint)
    if "export" not in state:
        raise ValueError(
            f"{checkpoint} says not which model it holds: it was written by an older version, or by no script of ours"
        )
    name, prefix = state["export"]["class"], state["export"]["prefix"]
    model_class = getattr(hf_clipseg, name, None) or getattr(transformers, name)
    file = next((checkpoint / each for each in (EMA_FILE, WEIGHTS_FILE) if (checkpoint / each).is_file()), None)
    if file is None:
        raise ValueError(f"{checkpoint} has no {WEIGHTS_FILE}: sharded checkpoints are exported after a run on one process")
    weights = {key.removeprefix("module."): tensor for key, tensor in load_file(file).items()}
    weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
    if "lora_scale" in state["export"]:
        weights = merge_lora(weights, state["export"]["lora_scale"])
    config = AutoConfig.from_pretrained(checkpoint / EXPORT_FOLDER)
    model, report = model_class.from_pretrained(None, config=config, state_dict=weights, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(f"{file} lacks {len(report['missing_keys'])} tensors, {min(report['missing_keys'])} among them")
    return model.eval()


def load_processor(checkpoint: Path) -> SegmentationProcessor | None:
    """None for a CLIP, which has a tokenizer and an image processor only."""
    folder = checkpoint / EXPORT_FOLDER
    return SegmentationProcessor.from_pretrained(folder) if (folder / "processor_config.json").is_file() else None


def bake_classes(model: Any, processor: Any, checkpoint: Path, classes: str | None) -> None:
    """What training scripts do at their end: the classes of the run, or those asked for, become the model's own."""
    names = parse_class_names(classes) if classes else None
    if names is None and getattr(model.config, "class_names", None) is None:
        names = read_state(checkpoint)["identity"].get("class_names")
    if not names:
        return
    if processor is None or not getattr(model, "open_vocabulary", hasattr(model, "set_classes")):
        raise ValueError(f"{type(model).__name__} takes no other classes than it was trained for: leave --classes out")
    model.set_classes(names, processor)


def export(checkpoint: str | Path, output: str | Path, classes: str | None = None, drop_text_encoder: bool = False) -> None:
    """Writes the model folder `output`: weights, configuration, processor, code and a card."""
    checkpoint, output = Path(checkpoint), Path(output)
    if output.exists():
        raise ValueError(f"{output} exists already: choose another --output")
    model, processor = load_trained(checkpoint), load_processor(checkpoint)
    bake_classes(model, processor, checkpoint, classes)
    if drop_text_encoder:
        model.drop_text_encoder()
    with replace_folder(output) as partial:
        shutil.copytree(checkpoint / EXPORT_FOLDER, partial, dirs_exist_ok=True)
        model.save_pretrained(partial)
        add_code(partial, type(model), processor)
        write_card(checkpoint_card(checkpoint, output), model, partial, output.name)


def checkpoint_card(checkpoint: Path, output: Path) -> ResultCard:
    """The card of a model that no script has finished: step, data and the validation that chose it, if one did."""
    state = read_state(checkpoint)
    best = state.get("best") or {}
    scores = {best["metric"]: best["value"]} if best.get("step") == state["step"] else None
    return ResultCard(
        title=f"{checkpoint.resolve().parent.name}, step {state['step']}",
        description=f"A checkpoint of training after {state['step']} of {state['identity']['max_train_steps']} steps.",
        provenance=provenance("training.export", [str(checkpoint), "--output", str(output)]),
        data={name: value for name, value in state["identity"].items() if name != "model"},
        scores=scores,
        limits=["Training was not finished when these weights were written."]
        * (state["step"] < state["identity"]["max_train_steps"]),
    )


def export_as_graph(source: str | Path, output: str | Path, graph_format: str, classes: str | None = None) -> None:
    """Writes the graph of a training checkpoint or of a model folder; see `graph_export.export_graph`."""
    source = Path(source)
    if (source / "config.json").is_file() and not (source / STATE_FILE).is_file():
        model = AutoModelForSemanticSegmentation.from_pretrained(source)
        processor = SegmentationProcessor.from_pretrained(source)
        if classes:
            model.set_classes(parse_class_names(classes), processor)
    else:
        model, processor = load_trained(source), load_processor(source)
        bake_classes(model, processor, source, classes)
    export_graph(model, processor, output, graph_format)


def main(arguments: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    try:
        if args.format != "folder":
            export_as_graph(args.checkpoint, args.output, args.format, args.classes)
            print(f"{args.output} holds {FORMATS[args.format]} and what belongs to it")
            return
        export(args.checkpoint, args.output, args.classes, args.drop_text_encoder)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.output} is a model folder: load it with from_pretrained, or push it with python -m training.push_to_hub")


if __name__ == "__main__":
    main()
