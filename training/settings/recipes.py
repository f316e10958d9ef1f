"""Recipes of published training runs: one file per row, every hyper-parameter as published or as ours with the reason.

    accelerate launch --num_processes 8 -m training.train_mta_clip --recipe mta-clip-ade20k \
        --dataset_name ADEChallengeData2016 --output_dir runs/mta-clip-ade20k

    python -m training.train_vpl --recipe vpl-voc --dataset_name photos --output_dir runs --dry_run   # every option, no more

A recipe sets defaults: what the command line says comes after it. It never names a folder of data, which only you know. The
files are `training/recipes/NAME.json`: the command they belong to, where the figures come from, how many processes their batch
size is meant for, the options as published, and our own ones, each with its reason.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class Recipe:
    """One published run.

    Args:
        name: of its file.
        command: module below `training` that it configures.
        source: papers and code that were read.
        figures: what was published for it.
        data: what to pass as data.
        processes: that its `train_batch_size` is meant for.
        published: options as published.
        ours: options that are not, each `{"value": ..., "reason": ...}`.
        note: what else to know.
    """

    name: str
    command: str
    source: str
    figures: Mapping[str, float]
    data: str
    processes: int
    published: Mapping[str, Any]
    ours: Mapping[str, Mapping[str, Any]]
    note: str = ""

    @property
    def options(self) -> dict[str, Any]:
        return {**self.published, **{name: entry["value"] for name, entry in self.ours.items()}}


def recipe_names(command: str | None = None) -> list[str]:
    """All recipes, or those of a command."""
    names = sorted(path.stem for path in RECIPES.glob("*.json"))
    return [name for name in names if command is None or read_recipe(name).command == command]


def read_recipe(name: str, command: str | None = None) -> Recipe:
    """A recipe by its name.

    Raises:
        ValueError: none of that name, or one of another command.
    """
    path = RECIPES / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"There is no recipe {name!r}; these are: {', '.join(recipe_names(command))}.")
    recipe = Recipe(name, **json.loads(path.read_text(encoding="utf-8")))
    if command is not None and recipe.command != command:
        raise ValueError(f"The recipe {name} is for python -m training.{recipe.command}, not for {command}.")
    return recipe


def add_recipe_argument(parser: argparse.ArgumentParser, command: str) -> None:
    parser.add_argument("--recipe", help=f"defaults of a published run: {', '.join(recipe_names(command))}")


def apply_recipe(parser: argparse.ArgumentParser, command: str, arguments) -> None:
    """Set the defaults of the recipe that `arguments` ask for, if any; ends the command where it does not exist."""
    probe = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    probe.add_argument("--recipe")
    probe.add_argument("--dataset_name")
    asked_for = probe.parse_known_args(arguments)[0]
    name = asked_for.recipe
    if name is None:
        return
    try:
        recipe = read_recipe(name, command)
    except ValueError as error:
        parser.error(str(error))
    if asked_for.dataset_name in (None, "toyscapes"):
        parser.error(f"--recipe {name} needs your copy of the data as --dataset_name: {recipe.data}")
    known = {action.dest for action in parser._actions}
    unknown = sorted(set(recipe.options) - known)
    if unknown:
        raise ValueError(f"The recipe {name} sets {unknown}, which python -m training.{command} does not have.")
    parser.set_defaults(**recipe.options)


def describe_run(args: argparse.Namespace) -> str:
    """What a run would read, and every option with where it is from: published, ours and why, or the command line."""
    recipe = None if args.recipe is None else read_recipe(args.recipe)
    head, origins = [f"{args.dataset_name}, split {args.split} -> {args.output_dir}"], {}
    if recipe is not None:
        figures = ", ".join(f"{name} {value}" for name, value in recipe.figures.items())
        head = [
            f"python -m training.{recipe.command} --recipe {recipe.name}: {head[0]}",
            f"data: {recipe.data}",
            f"published: {figures} ({recipe.source})",
            f"a step sees {recipe.processes} x {recipe.options['train_batch_size']} samples; processes: {recipe.processes}",
            *([recipe.note] if recipe.note else []),
        ]
        origins = {name: "published" for name in recipe.published}
        origins |= {name: f"ours: {entry['reason']}" for name, entry in recipe.ours.items()}
        for name, value in recipe.options.items():
            if getattr(args, name) != value:
                origins[name] = f"command line, in place of {value}"
    left_out = {"command_line", "recipe", "dry_run", "dataset_name", "split", "output_dir"}
    settings = {name: value for name, value in sorted(vars(args).items()) if name not in left_out and value is not None}
    width = max(map(len, settings))
    rows = [f"{name:<{width}}  {value}{f'  ({origins[name]})' if name in origins else ''}" for name, value in settings.items()]
    return "\n".join([*head, *rows])
