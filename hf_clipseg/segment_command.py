"""`hf-clipseg segment`: pictures, folders or a column of a data set through one model.

Several processes, as `accelerate launch` starts them, share the pictures; each has its device and files of its own.
"""

import argparse
import difflib
import re
import sys
from pathlib import Path

import torch
from tqdm.auto import tqdm

from .bulk.label_rows import label_row
from .bulk.picture_folders import find_pictures
from .bulk.picture_stream import segment_many
from .bulk.process_rank import ProcessRank
from .bulk.result_files import result_target, write_class_file, write_label_map, write_results
from .bulk.run_record import keep_record
from .checkpoints import SHIPPED, LoadedCheckpoint, find_checkpoints, load_checkpoint
from .clip.class_files import class_names_of_argument
from .clip.text_bank import templates_of_argument, weights_fingerprint
from .processing.inference import OUTPUT_STRIDE
from .refinement.refinements import REFINEMENTS

FORMATS = ("pictures", "labels", "parquet")


def add_segment_options(run: argparse.ArgumentParser) -> None:
    run.add_argument("pictures", nargs="*", help="files, or folders that are searched for pictures")
    run.add_argument("--model", required=True, help="a folder, a Hub id, or a name that `hf-clipseg models` lists")
    run.add_argument("--classes", help="names parted by commas, synonyms by '|'; or a file (default: the model's own)")
    run.add_argument("--output", required=True, help="folder for the results")
    run.add_argument("--window", type=int, help="side of sliding windows, in pixels of the model's input")
    run.add_argument("--stride", type=int, help="distance of the windows (default: half a window)")
    run.add_argument(
        "--output_stride", type=int, default=OUTPUT_STRIDE,
        help="pixels per cell on which windows are averaged: 4 is fast, 1 exact (%(default)s)",
    )  # fmt: skip
    run.add_argument("--templates", help="of the prompts: a preset, one template with '{}', or a file with one a line")
    run.add_argument("--flip", action=argparse.BooleanOptionalAction, default=False, help="average over the mirror image")
    run.add_argument("--refinement", choices=sorted(REFINEMENTS), help="move boundaries to the edges of the picture")
    run.add_argument("--opacity", type=float, default=0.5, help="of the overlay's colours, 0 to 1 (%(default)s)")
    run.add_argument("--device", default="cpu", help="such as cuda (%(default)s)")
    run.add_argument(
        "--format", choices=FORMATS, default="pictures",
        help="overlay, index PNG and JSON per picture; index PNGs alone; or tables of index PNGs (%(default)s)",
    )  # fmt: skip
    run.add_argument("--resume", action="store_true", help="go on with the results of a run that was broken off")
    run.add_argument("--workers", type=int, help="threads (default: one per core on a CPU, 4 beside an accelerator)")
    run.add_argument("--batch_size", type=int, help="pictures of one size per forward pass (default: 1 on a CPU, else 8)")
    run.add_argument("--dataset_name", help="segment a column of this data set: a Hub id, or a folder that `datasets` reads")
    run.add_argument("--split", default="train", help="of the data set (%(default)s)")
    run.add_argument("--image_column", default="image", help="of the data set (%(default)s)")
    run.add_argument("--key_column", help="whose values name the results (default: the number of the row)")


def resolve_model(name: str) -> str:
    """The folder of a shipped checkpoint that is called `name`; every other folder or Hub id as it is.

    Raises:
        ValueError: neither a folder nor a shipped checkpoint nor `owner/name`; names those that are spelt alike.
    """
    if Path(name).exists():
        return name
    shipped = {checkpoint.name: checkpoint.source for checkpoint in find_checkpoints(SHIPPED)}
    if name in shipped or "/" in name:
        return shipped.get(name, name)
    alike = difflib.get_close_matches(name, shipped, n=3)
    advice = (
        f"Did you mean {' or '.join(alike)}?" if alike else "Pass a folder, owner/name for the Hub, or what is listed there."
    )
    raise ValueError(f"There is no model {name}: `hf-clipseg models` lists those on this machine. {advice}")


def read_classes(argument: str | None) -> list[list[str]] | None:
    """What `--classes` names. Raises ValueError where it can only be a misspelt file."""
    if argument is None:
        return None
    names = class_names_of_argument(argument)
    if len(names) == 1 and re.fullmatch(r"\S+\.\w{1,5}", argument) and not Path(argument).is_file():
        raise ValueError(f"There is no class file {argument}; names are parted by commas: 'sky, sea, boat|ship'.")
    return names


def check_device(device: str) -> None:
    """Raises ValueError where torch does not know the device or this machine does not have it."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # torch built without it, or an unknown name
        reason = str(error).split("\n")[0]
        raise ValueError(f"--device {device} cannot be used on this machine ({reason}). Leave it out for the CPU.") from error


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def class_names_of(checkpoint: LoadedCheckpoint, asked_for: list[list[str]] | None, model: str) -> list[list[str]]:
    """The synonyms of every class id: those asked for, with a word about what the model does not know, or its own."""
    if asked_for is not None:
        if unknown := checkpoint.processor.unknown_words(asked_for):
            print(f"warning: {model} does not know {', '.join(unknown)}; what it finds for them means nothing", file=sys.stderr)
        return asked_for
    own = getattr(checkpoint.model.config, "class_names", None)
    if own is None:
        raise ValueError(f"{model} has no classes of its own: pass --classes 'sky, sea, boat|ship'.")
    return [list(names) for names in own]


class Source:
    """What is to be segmented: a key per picture, in a fixed order, and the pictures at some of their places."""

    def __init__(self, arguments: argparse.Namespace):
        """Raises ValueError where neither or both kinds are named, or nothing is found."""
        if bool(arguments.pictures) == bool(arguments.dataset_name):
            raise ValueError("Name pictures and folders, or a data set by --dataset_name: one of them, and not both.")
        if arguments.dataset_name:
            from .bulk.picture_columns import PictureColumn  # `datasets` takes a second to import

            column = PictureColumn(
                arguments.dataset_name, arguments.split, arguments.image_column, arguments.key_column
            )  # fmt: skip
            self.keys, self.read, self.origins = column.keys, column.read, {}
        else:
            found = find_pictures(arguments.pictures, arguments.output)
            self.keys = [stem.as_posix() for _, stem in found]
            self.origins = {stem.as_posix(): str(path) for path, stem in found}
            self.read = lambda places: ((self.keys[place], found[place][0]) for place in places)


class FileResults:
    """A few files per picture below the output folder: see `result_files`."""

    def __init__(self, arguments: argparse.Namespace, class_names: list[list[str]], source: Source):
        self.origins = source.origins
        self.folder, self.arguments, self.class_names = Path(arguments.output), arguments, class_names
        self.last_file = ".json" if arguments.format == "pictures" else ".labels.png"

    def finish(self, key: str, picture, label_map) -> None:
        if self.arguments.format == "labels":
            write_label_map(result_target(self.folder, key), label_map, self.class_names)
        else:
            about = {"picture": self.origins.get(key, key), "model": self.arguments.model}
            write_results(
                result_target(self.folder, key), picture, label_map, self.class_names, about, self.arguments.opacity
            )  # fmt: skip

    def is_done(self, key: str) -> bool:
        target = result_target(self.folder, key)
        return target.with_name(target.name + self.last_file).is_file()

    def add(self, _) -> None:
        """They were written when they were finished."""

    def __enter__(self) -> "FileResults":
        if self.arguments.format == "labels":
            write_class_file(self.folder, self.class_names)
        return self

    def __exit__(self, *_) -> None:
        pass


class TableResults:
    """Rows of Parquet files: see `label_table`."""

    def __init__(self, arguments: argparse.Namespace, class_names: list[list[str]], rank: ProcessRank):
        from .bulk.label_table import LabelTable

        self.table = LabelTable(arguments.output, rank.index, rank.count, arguments.resume)
        self.names = [names[0] for names in class_names]

    def finish(self, key: str, _, label_map) -> dict:
        return label_row(key, label_map, self.names)

    def is_done(self, key: str) -> bool:
        return key in self.table.done

    def add(self, row: dict) -> None:
        self.table.add(row)

    def __enter__(self) -> "TableResults":
        return self

    def __exit__(self, *_) -> None:
        self.table.close()


def run_segment(arguments: argparse.Namespace) -> int:
    """Exit status: 0, or 1 where a picture could not be read and there is one process (a launcher would stop the others)."""
    if not 0 <= arguments.opacity <= 1:
        raise ValueError(f"--opacity is {arguments.opacity}; expected 0 (picture) to 1 (colours).")
    if Path(arguments.output).is_file():
        raise ValueError(f"--output {arguments.output} is a file; name a folder.")
    rank = ProcessRank.from_environment()
    check_device(device := rank.device(arguments.device))
    source = Source(arguments)
    asked_for = read_classes(arguments.classes)
    checkpoint = load_checkpoint(resolve_model(arguments.model), device)
    class_names = class_names_of(checkpoint, asked_for, arguments.model)
    options = {name: getattr(arguments, name) for name in ("window", "stride", "flip", "refinement", "output_stride")}
    if arguments.templates is not None:
        options["templates"] = templates_of_argument(arguments.templates)
    settings = {"format": arguments.format, "classes": class_names, **options, "weights": weights_fingerprint(checkpoint.model)}
    options |= {"workers": arguments.workers, "batch_size": arguments.batch_size}
    segment_many(checkpoint.model, checkpoint.processor, (), asked_for, **options)  # wrong options end here
    is_table = arguments.format == "parquet"
    with TableResults(arguments, class_names, rank) if is_table else FileResults(arguments, class_names, source) as results:
        if len(source.keys) > 1:  # one picture has no second half to go on with
            keep_record(arguments.output, settings, arguments.resume)
        mine = range(rank.index, len(source.keys), rank.count)
        places = [place for place in mine if not (arguments.resume and results.is_done(source.keys[place]))]
        print(announcement(arguments, checkpoint, len(places), len(mine), len(class_names)))
        unreadable = segment_places(checkpoint, source, places, asked_for, results, options)
    for line in unreadable:
        print(f"left out: {line}", file=sys.stderr)
    return 1 if unreadable and rank.count == 1 else 0


def segment_places(checkpoint: LoadedCheckpoint, source: Source, places: list[int], class_names, results, options) -> list[str]:
    """Segments the pictures at these places of the source; what cannot be read, a sentence each."""
    pictures = tqdm(source.read(places), total=len(places), disable=len(places) == 1, unit="picture")
    unreadable = []
    for key, result in segment_many(
        checkpoint.model, checkpoint.processor, pictures, class_names, finish=results.finish, **options
    ):
        if isinstance(result, ValueError):
            unreadable.append(str(result) if key in source.origins else f"row {key}: {result}")
        else:
            results.add(result)
    return unreadable


def announcement(arguments: argparse.Namespace, checkpoint: LoadedCheckpoint, open_: int, all_: int, classes: int) -> str:
    done = "" if open_ == all_ else f" ({all_ - open_} more were done before)"
    return (
        f"{type(checkpoint.model).__name__} {arguments.model}: {count(open_, 'picture')}{done}, {count(classes, 'class')}, "
        f"results in {arguments.output}"
    )
