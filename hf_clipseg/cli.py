"""The console command.

    hf-clipseg segment photo.jpg --classes "sky, sea, boat|ship" --model openai/clip-vit-base-patch16 --output out
    hf-clipseg segment photos/ --model runs/mine/final --output out      # a folder; the classes are the model's own
    hf-clipseg segment --dataset_name me/photos --model runs/mine/final --output out --format parquet
    hf-clipseg models                                                     # what is on this machine

`segment` writes three files per picture: `NAME.overlay.png` to look at, `NAME.labels.png` whose pixel values are class ids, and
`NAME.json` with names and areas. `--format labels` writes the middle one alone, and a `classes.txt`; `--format parquet` writes
tables of key, index PNG, names and areas that `datasets` reads. Pictures of a folder keep their place in it. One that cannot be
read is named at the end, and the exit status is then 1. `--resume` goes on with a run that was broken off, and repeats nothing.
With several devices, one process for each: `accelerate launch -m hf_clipseg.cli segment ... --device cuda`.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from transformers.utils.logging import disable_progress_bar

from .checkpoints import SHIPPED, Checkpoint, describe_checkpoint, find_checkpoints
from .segment_command import add_segment_options, run_segment


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-clipseg", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("segment", help="pictures, folders or data sets -> overlays, index PNGs, JSON, Parquet")
    add_segment_options(run)
    models = commands.add_parser("models", help="the checkpoints on this machine: shipped, in a folder, in the Hub's cache")
    models.add_argument("folder", nargs="?", help="also list this checkpoint, or those in the sub-folders of this one")
    return parser


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
    except KeyboardInterrupt:
        print("interrupted: what was done is kept, and --resume goes on with it", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
