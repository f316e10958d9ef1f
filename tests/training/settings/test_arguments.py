"""Options are written once: one spelling in all commands, defaults and help from the configurations."""

import dataclasses
import importlib

import pytest
import torch

from hf_clipseg import MtaClipConfig, MvpSegConfig, VplConfig
from hf_clipseg.localization.prototype_rules import PrototypeSettings
from training import train_mta_clip, train_mvp_seg, train_vpl
from training.settings.arguments import CommandParser, DataArguments, MaskArguments, config_arguments, config_values

TRAINERS = ("train_clip", "train_cocu", "train_mta_clip", "train_mvp_seg", "train_mvp_seg_plus", "train_vpl")
COMMANDS = (*TRAINERS, "evaluate", "make_pseudo_labels", "curate_concepts")
DATA = {"dataset_name", "dataset_config_name", "split", "image_column", "limit"}
MASKS = {"mask_column", "classes", "reduce_labels", "ignore_label", "id_map", "colour_map"}
VALIDATION = {"validation_split", "validation_fraction", "validation_limit", "validation_steps"}
OLD_SPELLINGS = {
    "dataset", "config_name", "dataset_config", "train_split", "max_train_samples", "classes_file", "eval_dataset",
    "eval_split", "eval_samples", "eval_steps", "max_validation_samples",
}  # fmt: skip


def flags(command: str) -> set[str]:
    return {action.dest for action in importlib.import_module(f"training.{command}").build_parser()._actions}


@pytest.mark.parametrize("command", [*COMMANDS, "check_dataset", "bake_classes", "export"])
def test_one_spelling(command):
    assert not flags(command) & OLD_SPELLINGS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_its_data_alike(command):
    assert flags(command) >= DATA
    if command in TRAINERS:
        assert flags(command) >= VALIDATION
    if command.startswith(("train_mta", "train_mvp", "train_vpl", "train_cocu", "evaluate")):
        assert flags(command) >= MASKS
    assert "validation_fraction" in flags("evaluate")


@pytest.mark.parametrize("command", TRAINERS)
def test_precision_is_left_to_the_hardware_except_where_results_were_made_without(command):
    default = importlib.import_module(f"training.{command}").build_parser().get_default("mixed_precision")
    assert default == ("no" if command in ("train_vpl", "train_mvp_seg") else "auto")


def test_yes_and_no_are_pairs_and_flags_are_not_shortened(capsys):
    parser = CommandParser((DataArguments, MaskArguments), "about")
    assert parser.parse_args([]).reduce_labels is False
    assert parser.parse_args(["--reduce_labels"]).reduce_labels is True
    assert parser.parse_args(["--reduce_labels", "--no-reduce_labels"]).reduce_labels is False
    for words in (["--reduce"], ["--dataset", "voc"], ["--reduce_labels", "yes"]):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
    assert "unrecognized arguments" in capsys.readouterr().err


def test_no_command_has_a_choice_of_yes_and_no():
    for command in (*COMMANDS, "bake_classes"):
        for action in importlib.import_module(f"training.{command}").build_parser()._actions:
            assert {"yes", "no"} != set(action.choices or ()), f"{command} --{action.dest}"


@pytest.mark.parametrize(
    ("script", "group", "config"),
    [
        (train_mta_clip, train_mta_clip.ModelArguments, MtaClipConfig()),
        (train_mvp_seg, train_mvp_seg.ModelArguments, MvpSegConfig()),
        (train_vpl, train_vpl.ModelArguments, VplConfig()),
        (train_vpl, train_vpl.PrototypeArguments, PrototypeSettings()),
    ],
)
def test_method_options_are_the_configuration_s(script, group, config, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # or a smaller decoder would be the default
    args = script.parse_arguments(["--output_dir", "x", "--dataset_name", "my-folder"])
    values = config_values(args, group)
    assert values == {name: getattr(config, name) for name in values} and len(values) >= 4


def test_options_of_a_configuration_have_its_types_and_words():
    @dataclasses.dataclass
    class Settings:
        """What is set.

        Args:
            width: of it all, in cells;
                at least 40 % of them.
            deep, sharp: switches.
        """

        width: int = 3
        deep: bool = True
        wild: float | None = None

    parser = CommandParser([config_arguments(Settings, ["width", "deep"], "settings")], "about")
    args = parser.parse_args(["--width", "7", "--no-deep"])
    assert (args.width, args.deep) == (7, False) and parser.parse_args([]).width == 3
    text = " ".join(parser.format_help().split())
    assert "of it all, in cells; at least 40 % of them. (default: 3)" in text and "switches." in text
    with pytest.raises(ValueError, match="does not say what wild is"):
        config_arguments(Settings, ["wild"], "settings")


@pytest.mark.parametrize("command", TRAINERS)
def test_what_is_wrong_with_the_data_ends_in_one_line(command, tmp_path, monkeypatch):
    """No traceback, in any script."""
    monkeypatch.chdir(tmp_path)
    more = {"train_cocu": ["--sampling", "none"], "train_mvp_seg_plus": ["--teacher", "nowhere"]}.get(command, [])
    options = ["--dataset_name", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "run"), *more]
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"training.{command}").main(options)
    assert str(stopped.value).startswith("error: ") and "nowhere" in str(stopped.value) and "\n" not in str(stopped.value)
