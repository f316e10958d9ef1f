"""The console command.

    hf-clipseg segment photo.jpg --classes "sky, sea, boat|ship" --model openai/clip-vit-base-patch16 --output out
    hf-clipseg segment photos/ --model runs/mine/final --output out      # a folder; the classes are the model's own
    hf-clipseg models                                                     # what is on this machine

`segment` writes three files per picture: `NAME.overlay.png` to look at, `NAME.labels.png` whose pixel values are class ids, and
`NAME.json` with names and areas. Pictures of a folder keep their place in it. One that cannot be read is named at the end, and
the exit status is then 1.
"""

import argparse
import difflib
import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from .atomic import replace_file
from .checkpoints import SHIPPED, Checkpoint, LoadedCheckpoint, describe_checkpoint, find_checkpoints, load_checkpoint
from .clip.class_files import class_names_of_argument
from .clip.text_bank import templates_of_argument
from .drawing.label_files import index_picture, label_record
from .drawing.overlay import overlay
from .processing.image_io import load_image
from .processing.inference import OUTPUT_STRIDE, segment
from .refinement.refinements import REFINEMENTS

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-clipseg", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("segment", help="pictures or folders of pictures -> overlays, index PNGs, JSON")
    run.add_argument("pictures", nargs="+", help="files, or folders that are searched for pictures")
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
    models = commands.add_parser("models", help="the checkpoints on this machine: shipped, in a folder, in the Hub's cache")
    models.add_argument("folder", nargs="?", help="also list this checkpoint, or those in the sub-folders of this one")
    return parser


def find_pictures(paths: Sequence[str], output: str | Path) -> list[tuple[Path, Path]]:
    """Each picture with the name of its results below the output folder, without a suffix.

    An output folder amid the pictures is not searched: its overlays are no pictures.

    Raises:
        ValueError: a path does not exist, a folder holds no picture or is that of the output, or two pictures would have the
            same results.
    """
    output = Path(output).resolve()
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            if path.resolve() == output:
                raise ValueError(
                    f"--output {path} is the folder of the pictures; name another one, such as {path / 'segmented'}."
                )
            pictures = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            pictures = [file for file in pictures if output not in file.resolve().parents]
            if not pictures:
                raise ValueError(f"{path} holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))}).")
            names = {picture: picture.relative_to(path) for picture in pictures}
        elif path.is_file():
            names = {path: Path(path.name)}
        else:
            raise ValueError(f"There is no file or folder {path}.")
        for picture, name in names.items():
            # photo.jpg and photo.png in one folder keep their suffixes, so that neither overwrites the other
            stem = name.with_suffix("") if name.with_suffix("") not in found else name
            if stem in found:
                raise ValueError(f"{picture} and {found[stem]} would be saved under one name: run them one after the other.")
            found[stem] = picture
    return [(picture, stem) for stem, picture in found.items()]


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


def write_results(target: Path, picture, label_map, class_names: list[list[str]], about: dict, opacity: float) -> None:
    """Overlay, index PNG and JSON, each complete or absent; the JSON comes last, so that it stands for all three."""
    names = [synonyms[0] for synonyms in class_names]
    target.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(target.with_name(f"{target.name}.overlay.png")) as partial:
        overlay(picture, label_map, names, opacity).save(partial, format="PNG")
    with replace_file(target.with_name(f"{target.name}.labels.png")) as partial:
        index_picture(label_map, names).save(partial, format="PNG")
    with replace_file(target.with_name(f"{target.name}.json")) as partial:
        record = about | label_record(label_map, class_names)
        partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def run_segment(arguments: argparse.Namespace) -> int:
    """Exit status: 0, or 1 where a picture could not be read."""
    if not 0 <= arguments.opacity <= 1:
        raise ValueError(f"--opacity is {arguments.opacity}; expected 0 (picture) to 1 (colours).")
    if Path(arguments.output).is_file():
        raise ValueError(f"--output {arguments.output} is a file; name a folder.")
    check_device(arguments.device)
    pictures = find_pictures(arguments.pictures, arguments.output)
    asked_for = read_classes(arguments.classes)
    checkpoint = load_checkpoint(resolve_model(arguments.model), arguments.device)
    class_names = class_names_of(checkpoint, asked_for, arguments.model)
    options = {name: getattr(arguments, name) for name in ("window", "stride", "flip", "refinement", "output_stride")}
    if arguments.templates is not None:
        options["templates"] = templates_of_argument(arguments.templates)
    print(
        f"{type(checkpoint.model).__name__} {arguments.model}: {count(len(pictures), 'picture')}, "
        f"{count(len(class_names), 'class')}, results in {arguments.output}"
    )
    unreadable = []
    for path, stem in tqdm(pictures, disable=len(pictures) == 1, unit="picture"):
        try:
            picture = load_image(path)
        except ValueError as error:
            unreadable.append(str(error))
            continue
        (label_map,) = segment(checkpoint.model, checkpoint.processor, [picture], asked_for, **options)
        about = {"picture": str(path), "model": arguments.model}
        write_results(Path(arguments.output) / stem, picture, label_map, class_names, about, arguments.opacity)
    for line in unreadable:
        print(f"left out: {line}", file=sys.stderr)
    return 1 if unreadable else 0


def cached_checkpoints() -> list[tuple[str, int]]:
    """Id and size in bytes of every model in the Hub's cache that has a configuration and weights."""
    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = []
    for repository in repositories:
        files = {file.file_name for revision in repository.revisions for file in revision.files}
        weights = any(name.endswith(".safetensors") for name in files)
        if repository.repo_type == "model" and "config.json" in files and weights:
            found.append((repository.repo_id, repository.size_on_disk))
    return sorted(found)


def describe(checkpoint: Checkpoint) -> str:
    classes = f"{len(checkpoint.class_names)} classes" if checkpoint.class_names else "no classes of its own"
    return f"  {checkpoint.name:<28} {classes}{', takes others' if checkpoint.open_vocabulary else ''}"


def run_models(arguments: argparse.Namespace) -> int:
    shipped = find_checkpoints(SHIPPED)
    if shipped:
        print(f"shipped ({SHIPPED}):", *map(describe, shipped), sep="\n")
    else:
        print(
            "The shipped checkpoints are not part of the installed package: they are the folder model_cards of its source "
            "repository. Copy or clone it, then run: hf-clipseg models PATH/TO/model_cards"
        )
    if arguments.folder:
        if not Path(arguments.folder).is_dir():
            raise ValueError(f"There is no folder {arguments.folder}.")
        is_one = (Path(arguments.folder) / "config.json").is_file()
        found = [describe_checkpoint(arguments.folder)] if is_one else find_checkpoints(arguments.folder)
        print(f"in {arguments.folder}:", *(map(describe, found) if found else ["  none of this package's"]), sep="\n")
    if cached := cached_checkpoints():
        lines = (f"  {name:<44} {size / 2**20:8.0f} MiB" for name, size in cached)
        print("in the Hub's cache (methods of this package, and CLIPs, can be used):", *lines, sep="\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `hf-clipseg`; what the user can mend ends as one line and exit status 1."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    disable_progress_bar()  # of loading weights: one bar counts the pictures
    try:
        return run_segment(arguments) if arguments.command == "segment" else run_models(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
