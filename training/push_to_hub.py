"""Uploads model folders to the Hub, each with its code and in one commit; and the app, as a Space.

python -m training.push_to_hub --dry_run                 # every folder of model_cards/, and the Space: which files would go
python -m training.push_to_hub --namespace my-name       # and send them, to my-name/vpl-toyscapes and so on
python -m training.push_to_hub runs/mine/final --hub_model_id my-name/mine
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import ModelCard
from transformers import AutoConfig

from hf_clipseg import METHODS, SegmentationProcessor
from hf_clipseg.checkpoints import SHIPPED, check_weight_files
from hf_clipseg.hub_export import add_code

from .engine.hub import check_repository_name, describe_push, push_folder, push_space
from .engine.space import LEFT_OUT, ROOT, SPACE_FILES, space_files
from .settings.arguments import SuggestingParser


def build_parser() -> argparse.ArgumentParser:
    parser = SuggestingParser(prog="python -m training.push_to_hub", description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", help="model folders (default: all that are shipped)")
    parser.add_argument("--hub_model_id", help="repository of a single folder; default: the folder's name")
    parser.add_argument("--namespace", help="user or organisation that owns the repositories (default: that of the token)")
    parser.add_argument("--space", default="hf-clipseg", help="name of the Space that goes along where no folder is named")
    parser.add_argument("--dry_run", action="store_true", help="print every file that would go, and send nothing")
    return parser


@contextmanager
def as_repository(folder: Path, namespace: str | None) -> Iterator[Path]:
    """A copy of a model folder as its repository will be: with code, and a card whose base model is beside it on the Hub."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / folder.name
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        if "auto_map" not in json.loads((copy / "config.json").read_text(encoding="utf-8")):
            model_class = METHODS.get(type(AutoConfig.from_pretrained(copy)))
            if model_class is not None:
                add_code(copy, model_class, SegmentationProcessor.from_pretrained(copy))
        if (copy / "README.md").is_file():
            name_base_model(copy / "README.md", namespace)
        yield copy


def name_base_model(card_file: Path, namespace: str | None) -> None:
    """A card that names a shipped checkpoint names it as the Hub knows it; without a namespace nobody can know that yet."""
    card = ModelCard.load(card_file)
    base = card.data.base_model
    if isinstance(base, str) and (SHIPPED / base).is_dir():
        card.data.base_model = f"{namespace}/{base}" if namespace else None
        card.save(card_file)


def check_folder(folder: Path) -> None:
    """Raises ValueError where `folder` is no model folder."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no model folder: it has no config.json. Name one that a training script has written")
    check_weight_files(folder)


def push(args: argparse.Namespace) -> None:
    folders = [Path(folder) for folder in args.folders] or sorted(file.parent for file in SHIPPED.glob("*/config.json"))
    if args.hub_model_id and len(folders) != 1:
        raise ValueError(f"--hub_model_id names one repository, but {len(folders)} folders would go there")
    if not folders:
        raise ValueError(f"there is no model folder in {SHIPPED}: name one")
    for folder in folders:
        check_folder(folder)
    for folder in folders:
        repository = args.hub_model_id or owned(args, folder.resolve().name)
        check_repository_name(repository)
        with as_repository(folder, args.namespace) as copy:
            print(describe_push(copy, repository))
            if not args.dry_run:
                print(push_folder(copy, repository, f"{repository}: weights, processor, code and card"))

    if not args.folders:
        push_app(owned(args, args.space), args.dry_run)


def push_app(repository: str, dry_run: bool) -> None:
    """The Space: the files of this repository that it runs from."""
    check_repository_name(repository)
    print(describe_push(ROOT, f"spaces/{repository}", space_files()))
    if not dry_run:
        print(push_space(ROOT, repository, SPACE_FILES, LEFT_OUT))


def owned(args: argparse.Namespace, name: str) -> str:
    return f"{args.namespace}/{name}" if args.namespace else name


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        push(build_parser().parse_args(arguments))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
