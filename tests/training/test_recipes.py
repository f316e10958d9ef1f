"""Recipes: every option exists, everything that is ours has a reason, and the commands take them."""

import importlib
import json

import pytest

from training.settings.recipes import RECIPES, read_recipe, recipe_names

NAMES = [f"{method}-{data}" for method in ("mvp-seg", "mvp-seg-plus") for data in ("voc", "coco-stuff", "context")] + [
    "vpl-voc", "vpl-coco", "mta-clip-ade20k", "mta-clip-cityscapes", "cocu-cc3m", "cocu-cc12m", "groupvit-cc3m",
    "groupvit-cc12m",
]  # fmt: skip


def parsed(name: str, *more: str):
    recipe = read_recipe(name)
    options = ["--recipe", name, "--dataset_name", "my-folder", "--output_dir", "out", *more]
    options += ["--concepts", "archive"] if name.startswith("cocu") else []
    return importlib.import_module(f"training.{recipe.command}").parse_arguments(options)


def test_every_published_row_has_its_recipe():
    assert recipe_names() == sorted(NAMES)
    assert recipe_names("train_vpl") == ["vpl-coco", "vpl-voc"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_what_the_command_runs(name):
    recipe, args = read_recipe(name), parsed(name)
    for option, value in recipe.options.items():
        assert getattr(args, option) == value, option
    for option, entry in recipe.ours.items():
        assert set(entry) == {"value", "reason"} and len(entry["reason"]) > 4, option
        assert option not in recipe.published, option
    assert "arXiv" in recipe.source and recipe.data and recipe.figures
    for schedule in ("max_train_steps", "train_batch_size", "learning_rate", "warmup_steps", "weight_decay"):
        assert schedule in recipe.options, schedule


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_says_what_would_be_done(name, capsys):
    """Nothing is read: the folder does not exist. Every option says whether it is published, ours, or changed."""
    recipe = read_recipe(name)
    options = ["--recipe", name, "--dataset_name", "my-folder", "--output_dir", "out", "--train_batch_size", "3", "--dry_run"]
    importlib.import_module(f"training.{recipe.command}").main(options)
    text = capsys.readouterr().out
    assert text.startswith(
        f"python -m training.{recipe.command} --recipe {name}: my-folder, split train -> out\ndata: {recipe.data}"
    )
    lines = {line.split()[0]: line for line in text.splitlines()[3:]}
    for option, value in recipe.options.items():
        if value is None or option == "train_batch_size":
            continue
        origin = f"ours: {recipe.ours[option]['reason']}" if option in recipe.ours else "published"
        assert lines[option].endswith(f"  {value}  ({origin})"), option
    published = recipe.options["train_batch_size"]
    assert lines["train_batch_size"].endswith(f"  3  (command line, in place of {published})") or published == 3


def test_facts():
    """A few, as the papers and the released code have them."""
    cocu = read_recipe("cocu-cc3m")
    assert cocu.processes * cocu.options["train_batch_size"] == 4096
    assert cocu.options["max_train_steps"] == round(30 * 2.75e6 / 4096) and cocu.options["warmup_steps"] == 1343
    assert cocu.published["top_classes"] == 5 and cocu.published["temperature"] == 1.0
    mta = read_recipe("mta-clip-ade20k")
    assert mta.processes * mta.options["train_batch_size"] == 16 and mta.options["max_train_steps"] == 160_000
    assert mta.published["max_class_share"] == 0.75 and mta.published["normalise_texts"] is False
    assert read_recipe("mvp-seg-plus-coco-stuff").published["teacher_steps"] == 8000
    assert read_recipe("vpl-coco").published["affinity_threshold"] == 0.7
    assert read_recipe("mvp-seg-voc").published["anchor_weight"] == 0.0


def test_the_command_line_comes_after_the_recipe():
    assert parsed("mvp-seg-voc", "--max_train_steps", "2", "--train_batch_size", "3").max_train_steps == 2
    assert parsed("mta-clip-ade20k", "--no-reduce_labels").reduce_labels is False


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("train_vpl", ["--recipe", "vpl"], "no recipe 'vpl'; these are: vpl-coco, vpl-voc"),
        ("train_vpl", ["--recipe", "mvp-seg-voc"], "is for python -m training.train_mvp_seg, not for train_vpl"),
        ("train_vpl", ["--recipe", "vpl-voc"], "needs your copy of the data as --dataset_name: VOC 2012 train_aug"),
    ],
)
def test_wrong_recipes_end_with_one_line(command, options, message, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(f"training.{command}").parse_arguments([*options, "--output_dir", "out"])
    assert message in capsys.readouterr().err


def test_a_recipe_with_an_option_that_does_not_exist(monkeypatch, tmp_path):
    content = json.loads((RECIPES / "vpl-voc.json").read_text())
    content["published"]["magic"] = 1
    (tmp_path / "vpl-voc.json").write_text(json.dumps(content))
    monkeypatch.setattr("training.settings.recipes.RECIPES", tmp_path)
    with pytest.raises(ValueError, match="sets .'magic'., which python -m training.train_vpl does not have"):
        parsed("vpl-voc")
