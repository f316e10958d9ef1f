"""The options of the commands: dataclasses whose fields become flags, read by transformers' `HfArgumentParser`.

Every command takes its data by the flags of `DataArguments` and of the class for what it reads besides images: masks, captions
or tags. What a method's configuration documents is not written down again: `config_arguments` makes the flags from it.
Defaults that belong to one data set, Toyscapes above all, are in `dataset_defaults`; here are those of data nobody knows.
"""

import argparse
import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from .dataset_defaults import PRESETS, defaults_for
from .model_paths import check_models
from .recipes import add_recipe_argument, apply_recipe, describe_run, recipe_names


@dataclass
class DataArguments:
    """Where the images are, and which of them a command reads."""

    _argument_group_name = "data"

    dataset_name: str = HfArg(default="toyscapes", help="'toyscapes', a preset, a Hub id, or a folder")
    dataset_config_name: str | None = HfArg(default=None, help="configuration of a Hub data set")
    split: str = HfArg(default="train", help="what is read")
    image_column: str | None = HfArg(default=None, help="where it cannot be guessed")
    limit: int | None = HfArg(default=None, help="use so many images; default: all")
    streaming: bool = HfArg(
        default=False, help="read the first --limit rows of a Hub data set without the rest; kept on disk, not in memory"
    )


@dataclass
class PresetArguments:
    """Options that belong together."""

    _argument_group_name = "data"

    preset: str | None = HfArg(
        default=None, metadata={"choices": ["photos"]}, help="defaults of other options, see training/settings/photo_presets.py"
    )


@dataclass
class ClassArguments:
    """What the classes are called."""

    _argument_group_name = "classes"

    classes: str | None = HfArg(
        default=None,
        help="class names in the order of the ids: parted by commas, synonyms by '|'; or a file with one class per line; "
        "default: the data set's",
    )


@dataclass
class MaskArguments:
    """How masks become class ids."""

    _argument_group_name = "masks"

    mask_column: str | None = HfArg(default=None, help="where it cannot be guessed")
    reduce_labels: bool = HfArg(default=False, help="masks count from 1, and 0 is unlabelled")
    ignore_label: int | None = HfArg(default=None, help="mask value that is unlabelled, beside 255")
    id_map: str | None = HfArg(default=None, help="JSON file: value in the mask -> class id, or 255 for unlabelled")
    colour_map: str | None = HfArg(default=None, help="file with the colour of every class, for masks stored as colours")


@dataclass
class CaptionArguments:
    """What belongs to images with captions."""

    _argument_group_name = "captions"

    caption_column: str | None = HfArg(default=None, help="where it cannot be guessed")
    omission_rate: float = HfArg(default=0.0, help="Toyscapes: share of concepts that a caption leaves out")
    closeup_rate: float = HfArg(default=0.0, help="Toyscapes: share of images in which one concept fills the frame")


@dataclass
class CaptionImageArguments:
    """What curation and CoCu's training must be told alike."""

    _argument_group_name = "captions"

    image_size: int = HfArg(default=128, help="side of the images in the training cache, and of Toyscapes scenes")


@dataclass
class TagArguments:
    """What belongs to images with tags."""

    _argument_group_name = "tags"

    labels_csv: str | None = HfArg(default=None, help="for a folder: a CSV with the columns file and labels (parted by ';')")
    labels_column: str | None = HfArg(default=None, help="where it cannot be guessed")


@dataclass
class DataSeedArguments:
    """Chooses rows apart from `--seed`, which decides weights, order and augmentation."""

    _argument_group_name = "data"

    data_seed: int = HfArg(default=0, help="which rows under --limit, which scenes of Toyscapes; --seed does not change them")


@dataclass
class ValidationArguments:
    """Masks to score while training; the best checkpoint is kept beside the last."""

    _argument_group_name = "validation"

    validation_split: str | None = HfArg(default=None, help="scored now and then, and at the end; default: nothing is")
    validation_fraction: float | None = HfArg(
        default=None, help="hold so large a share of --split out and score that; the same images as in training.evaluate"
    )
    validation_limit: int | None = HfArg(default=500, help="score so many images at most")
    validation_steps: int = HfArg(default=500, help="score every so many steps")


@dataclass
class MaskValidationArguments:
    """How masks are scored while training."""

    _argument_group_name = "validation"

    validation_window: int | None = HfArg(
        default=None, help="score by sliding windows of this side in pixels, a multiple of 4; default: the whole image at once"
    )
    validation_stride: int | None = HfArg(default=None, help="distance of the windows; default: half a window")
    validation_pictures: int = HfArg(
        default=4, help="draw so many images, from all over the set, with their masks and what the model makes of them"
    )


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it is written, and the default of every flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default is not None else action.help


class SuggestingParser(argparse.ArgumentParser):
    """An option that does not exist is answered with the one that is spelt most like it."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = [option for option in self._option_string_actions if option.startswith("--")]
            found = [difflib.get_close_matches(word.partition("=")[0], options, 1) for word in unknown if word.startswith("--")]
            meant = [match for matches in found for match in matches]
            hint = f"did you mean {', '.join(meant)}?" if meant else "--help lists them all"
            self.error(f"unrecognized arguments: {' '.join(unknown)}; {hint}")
        return parsed


class CommandParser(SuggestingParser, HfArgumentParser):
    """`HfArgumentParser` whose yes/no flags are pairs, `--flip` and `--no-flip`, and which takes no shortened flags."""

    def __init__(self, groups: Sequence[type], description: str, **options: Any):
        of_groups: Any = groups  # what argparse calls the program's name is HfArgumentParser's first argument
        super().__init__(of_groups, description=description, formatter_class=HelpFormatter, allow_abbrev=False, **options)

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        if field.type is bool or field.type == bool | None:
            pair = argparse.BooleanOptionalAction
            parser.add_argument(f"--{field.name}", action=pair, default=field.default, **field.metadata)
        else:
            HfArgumentParser._parse_dataclass_field(parser, field)

    def parse_for_dataset(self, arguments: Sequence[str] | None, command: str) -> argparse.Namespace:
        """Parses after the defaults for the data set that `--dataset_name` names, and those of a `--recipe`, are set."""
        if recipe_names(command):
            add_recipe_argument(self, command)
        probe = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        probe.add_argument("--dataset_name", default=self.get_default("dataset_name"))
        self.set_defaults(**defaults_for(command, probe.parse_known_args(arguments)[0].dataset_name))
        apply_recipe(self, command, arguments)
        self.apply_preset(command, arguments)
        return self.parse_args(arguments)

    def apply_preset(self, command: str, arguments: Sequence[str] | None) -> None:
        """Sets the defaults that `--preset` names; one that does not exist is refused where everything is parsed."""
        probe = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        probe.add_argument("--preset", default=self.get_default("preset"))
        name = probe.parse_known_args(arguments)[0].preset
        self.set_defaults(**PRESETS.get(command, {}).get(name, {}))

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As in argparse; the result also holds what was parsed, as `command_line`."""
        parsed = super().parse_args(args, namespace)
        parsed.command_line = sys.argv[1:] if args is None else list(args)
        return parsed


def config_arguments(config_class: type, names: Sequence[str], title: str) -> type:
    """A dataclass of some fields of `config_class`, with its types, defaults and documentation.

    Args:
        config_class: a configuration, or a dataclass of settings.
        names: the fields that become flags.
        title: of their group in `--help`.
    """
    known = {field.name: field for field in dataclasses.fields(config_class)}
    fields = [
        (name, known[name].type, HfArg(default=known[name].default, help=documentation(config_class, name))) for name in names
    ]
    return dataclasses.make_dataclass(f"{config_class.__name__}Arguments", fields, namespace={"_argument_group_name": title})


def documentation(documented: type, name: str) -> str:
    """What the docstring of a class, or of one it inherits from, says about the argument `name`.

    Raises:
        ValueError: nothing.
    """
    for owner in documented.__mro__:
        lines = (owner.__doc__ or "").splitlines()
        for number, line in enumerate(lines):
            if not (match := re.match(rf"( +)(?:\w+, )*{name}(?:, \w+)*(?: \(.*?\))?:(.*)", line)):
                continue
            text = [match[2]]
            for further in lines[number + 1 :]:
                if len(further) - len(further.lstrip()) <= len(match[1]):
                    break
                text.append(further)
            return " ".join(" ".join(text).split()).replace("%", "%%")
    raise ValueError(f"the docstring of {documented.__name__} does not say what {name} is")


def config_values(args: argparse.Namespace, arguments_class: type, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """The options of one group by name: keyword arguments of a configuration, or a part of a run's identity."""
    names = [field.name for field in dataclasses.fields(arguments_class)]
    return {name: getattr(args, name) for name in names if name not in leave_out}


def run_command(run: Callable[[argparse.Namespace], Any], parse: Callable, arguments: Sequence[str] | None) -> None:
    """A script's `main`: what is wrong with the data or the options ends it with one sentence, not with a traceback; a list
    in it stays one."""
    args = parse(arguments)
    if hasattr(args, "recipe") and args.dry_run and not args.push_to_hub:
        print(describe_run(args))
        return
    try:
        check_models(args)
        run(args)
    except (ValueError, OSError) as error:
        lines = str(error).splitlines()
        listed = "".join(f"\n{line}" for line in lines[1:] if line.startswith("  - "))
        sentence = " ".join(" ".join(line for line in lines if not line.startswith("  - ")).split())
        sys.exit(f"error: {sentence}{listed}")
