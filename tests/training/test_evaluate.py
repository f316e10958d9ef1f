"""The evaluator: its ceilings against direct computation, its counts against scikit-learn, its files, its error messages."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix

from hf_clipseg.toyscapes import CLASS_NAMES as TOYSCAPES_NAMES
from hf_clipseg.toyscapes import UNSEEN_CLASSES
from training.data.splits import SPLITS, unseen_class_ids
from training.engine.provenance import commit_of, provenance, write_json
from training.evaluate import main
from training.evaluation.oracle import (
    PatchClassifier,
    collect_patches,
    fit_linear_probe,
    fit_prototypes,
    grid_shares,
    through_the_grid,
)
from training.evaluation.scoring import LogitGrid, score

from ..tiny_segmenter import CLASS_NAMES, tiny_segmenter

COLORS = np.array([[40, 90, 230], [20, 160, 120], [220, 40, 30]], dtype=np.uint8)  # of sky, sea, boat


def make_sample(index, size=(24, 32)):
    """Blocks of class colours with some noise, and an unlabelled corner."""
    generator = np.random.default_rng(index)
    mask = generator.integers(0, 3, (size[0] // 8, size[1] // 8)).repeat(8, 0).repeat(8, 1)
    pixels = np.clip(COLORS[mask] + generator.integers(-20, 20, (*size, 3)), 0, 255).astype(np.uint8)
    mask[:3, :3] = 255
    return {"image": Image.fromarray(pixels), "mask": mask, "key": f"sample-{index}"}


class Samples:
    """A source of a few samples of two sizes."""

    class_names = CLASS_NAMES

    def __init__(self, count):
        self.items = [make_sample(index, (24, 32) if index % 3 else (32, 16)) for index in range(count)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_grid_shares_are_the_area_of_each_class_in_each_cell():
    mask = np.array([[0, 0, 2, 2], [0, 2, 2, 255]])
    ids, shares = grid_shares(mask, (1, 2))
    assert ids.tolist() == [0, 2]
    assert shares.tolist() == [[[0.75, 0.0]], [[0.25, 0.75]]]
    assert grid_shares(np.full((4, 4), 255), (2, 2))[1].shape == (0, 2, 2)


def test_a_grid_as_fine_as_the_mask_loses_nothing_and_a_single_cell_keeps_the_majority():
    mask = make_sample(0)["mask"]
    labelled = mask != 255
    assert np.array_equal(through_the_grid(mask, mask.shape)[labelled], mask[labelled])
    majority = np.bincount(mask[labelled]).argmax()
    assert (through_the_grid(mask, (1, 1)) == majority).all()
    assert (through_the_grid(np.full((4, 4), 255), (2, 2)) == 0).all()


@given(st.integers(0, 2**16), st.sampled_from([(1, 3), (2, 2), (3, 5), (6, 8)]))
@settings(max_examples=20, deadline=None)
def test_through_the_grid_equals_the_written_out_steps(seed, grid):
    mask = np.random.default_rng(seed).integers(0, 4, (12, 16)) * 7  # ids with gaps
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(mask), 22).permute(2, 0, 1)[None].float()
    cells = torch.nn.functional.adaptive_avg_pool2d(one_hot, grid)
    shares = torch.nn.functional.interpolate(cells, size=mask.shape, mode="bilinear")[0]
    chosen = shares.gather(0, torch.from_numpy(through_the_grid(mask, grid))[None])[0]
    torch.testing.assert_close(chosen, shares.amax(0), atol=1e-6, rtol=0)  # ties may fall either way


def test_prototypes_are_the_weighted_class_means():
    features = torch.nn.functional.normalize(torch.randn(50, 6), dim=1)
    shares = torch.rand(50, 3) * torch.tensor([1.0, 1.0, 0.0])
    classifier = fit_prototypes(features, shares)
    for class_id in range(2):
        mean = np.average(features.numpy(), axis=0, weights=shares[:, class_id].numpy())
        np.testing.assert_allclose(classifier.weight[class_id].numpy(), mean / np.linalg.norm(mean), atol=1e-5)
    assert classifier.bias.tolist() == [0, 0, -math.inf]


def test_the_probe_is_logistic_regression():
    centres = torch.randn(3, 5)
    labels = torch.arange(300) % 3
    features = torch.nn.functional.normalize(centres[labels] + torch.randn(300, 5), dim=1)
    shares = torch.zeros(300, 4)
    shares[torch.arange(300), labels] = 1  # class 3 never occurs
    probe = fit_linear_probe(features, shares, weight_decay=0.01)
    standardised = ((features - features.mean(0)) / features.std(0)).double().numpy()
    reference = LogisticRegression(C=1 / (300 * 0.01), tol=1e-8, max_iter=1000).fit(standardised, labels.numpy())
    probabilities = (features @ probe.weight.T + probe.bias).softmax(1)
    assert (probabilities[:, 3] == 0).all()
    np.testing.assert_allclose(probabilities[:, :3].numpy(), reference.predict_proba(standardised), atol=2e-3)


def test_patches_of_a_train_split_and_their_limit(monkeypatch):
    model, processor = tiny_segmenter()
    samples = [make_sample(index) for index in range(3)]
    features, shares = collect_patches(iter(samples), model, processor, 3, 5)
    cells = math.prod(model.dense_features(processor(images=samples[0]["image"])["pixel_values"]).shape[1:3])
    assert len(features) == len(shares) == 3 * cells  # a little wider than the unlabelled corner of 3 x 3
    assert shares.shape[1] == 5
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    expected = sum(np.mean(sample["mask"] == 1) for sample in samples)
    shown = 42 / 44  # of the width, in pixels of the model's input: the rest is padding
    assert shares[:, 1].sum().item() / cells == pytest.approx(shown * expected, abs=0.01)  # 32 pixels, 10.5 cells
    monkeypatch.setattr("training.evaluation.oracle.MAX_PATCHES", 30)
    assert len(collect_patches(iter(samples), model, processor, 3, 5)[0]) == 30


def test_score_counts_as_scikit_learn_does_on_the_same_maps():
    model, processor = tiny_segmenter()
    source, seen = Samples(7), []
    scores = score(
        model, processor, source, CLASS_NAMES, 3, Accelerator(), {"batch_size": 2}, on_sample=lambda *pair: seen.append(pair)
    )
    truth = np.concatenate([sample["mask"].ravel() for sample, _ in seen])
    predicted = np.concatenate([label_map.ravel() for _, label_map in seen])
    expected = confusion_matrix(truth[truth != 255], predicted[truth != 255], labels=range(3))
    assert [sample["key"] for sample, _ in seen] == [sample["key"] for sample in source.items]
    assert np.array_equal(scores.confusions["mIoU"].matrix.numpy(), expected)
    figures = scores.figures(CLASS_NAMES, unseen=[2])
    assert figures["pixel_accuracy"] == pytest.approx(np.mean(truth[truth != 255] == predicted[truth != 255]))
    assert list(figures["per_class_iou"]) == CLASS_NAMES and figures["oracle_mIoU"] is None
    assert figures["mIoU_unseen"] == figures["per_class_iou"]["boat"]


class ColorModel(torch.nn.Module):
    """Dense features that are the mean colours of 4 x 4 patches: enough to tell the classes of `make_sample` apart."""

    device, dtype = torch.device("cpu"), torch.float32

    def dense_features(self, pixel_values):
        patches = torch.nn.functional.avg_pool2d(pixel_values, 4).permute(0, 2, 3, 1)
        return torch.nn.functional.normalize(torch.cat([patches, torch.ones_like(patches[..., :1])], dim=-1), dim=-1)


def test_the_oracle_reaches_the_grid_limit_where_the_features_tell_the_classes_apart():
    (_, processor), model, samples = tiny_segmenter(), ColorModel(), [make_sample(index) for index in range(20)]
    features, shares = collect_patches(iter(samples[:12]), model, processor, 12, 3)
    probe, prototypes = fit_linear_probe(features, shares), fit_prototypes(features, shares)
    agreement = {"probe": [], "prototypes": []}
    for sample in samples[12:]:
        (dense,) = model.dense_features(processor(images=sample["image"])["pixel_values"])
        (extent,) = processor.image_processor.content_extents([sample["mask"].shape])
        limit = through_the_grid(sample["mask"], dense.shape[:2], extent)
        for name, classifier in (("probe", probe), ("prototypes", prototypes)):
            agreement[name].append(np.mean(classifier.label_map(dense, sample["mask"].shape, extent) == limit))
    assert np.mean(agreement["probe"]) > 0.95 and np.mean(agreement["prototypes"]) > 0.9


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, (8, 16)), ({"window": 16}, (8, 16)), ({"window": 20}, (8, 16)), ({"scales": (0.5, 1.5)}, (12, 24))],
)
def test_logit_grid(options, expected):
    """A 20 x 40 image enters at 32 x 64 pixels, in patches of 4."""
    model, processor = tiny_segmenter()
    assert LogitGrid(model, processor, CLASS_NAMES, **options)((40, 20)) == expected


def test_unseen_classes_by_preset_and_by_name():
    assert [TOYSCAPES_NAMES[index] for index in unseen_class_ids("toyscapes", TOYSCAPES_NAMES)] == sorted(
        UNSEEN_CLASSES, key=TOYSCAPES_NAMES.index
    )
    assert unseen_class_ids("boat, sky", CLASS_NAMES) == [0, 2]
    assert unseen_class_ids(None, CLASS_NAMES) == []
    assert {name: len(split.unseen_ids) for name, split in SPLITS.items() if name != "toyscapes"} == {
        "voc_15_5": 5,
        "coco_stuff_156_15": 15,
        "context_49_10": 10,
    }
    for bad, message in (("voc_15_5", "a split of 20 classes"), ("ship", "'ship'"), (",", "nothing")):
        with pytest.raises(ValueError, match=message):
            unseen_class_ids(bad, CLASS_NAMES)


def test_files_are_whole_and_an_untracked_file_has_no_commit(tmp_path):
    write_json(tmp_path / "new" / "scores.json", {"mIoU": 0.5})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["scores.json"]
    assert json.loads((tmp_path / "new" / "scores.json").read_text()) == {"mIoU": 0.5}
    with pytest.raises(ValueError):
        write_json(tmp_path / "new" / "scores.json", {"mIoU": math.nan})
    assert json.loads((tmp_path / "new" / "scores.json").read_text()) == {"mIoU": 0.5}
    assert commit_of(tmp_path / "new" / "scores.json") == {"commit": None, "dirty": None}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a tiny model and a data set of parallel folders."""
    folder = tmp_path_factory.mktemp("workplace")
    model, processor = tiny_segmenter()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    for split, first, count in (("train", 100, 6), ("test", 0, 5)):
        for kind in ("images", "masks"):
            (folder / "data" / split / kind).mkdir(parents=True)
        for index in range(first, first + count):
            sample = make_sample(index)
            sample["image"].save(folder / "data" / split / "images" / f"{index:03}.png")
            Image.fromarray(sample["mask"].astype(np.uint8)).save(folder / "data" / split / "masks" / f"{index:03}.png")
    (folder / "data" / "classes.txt").write_text("\n".join(CLASS_NAMES))
    return folder


def arguments_for(workplace, output=None):
    arguments = [str(workplace / "model"), "--dataset_name", str(workplace / "data"), "--split", "test"]
    return arguments + (["--output", str(output)] if output else [])


def test_the_command_end_to_end(workplace, tmp_path, capsys):
    output = tmp_path / "scores.json"
    main([*arguments_for(workplace, output), "--unseen", "boat", "--oracle", "--pictures", "2", "--batch_size", "3"])
    results = json.loads(output.read_text())
    names = "mIoU pixel_accuracy mIoU_seen mIoU_unseen hIoU boundary_f images_per_second grid_limit oracle_mIoU"
    printed = capsys.readouterr().out
    for name in (*names.split(), "oracle_prototypes_mIoU"):
        assert f"{name} " in printed and f"{results[name]:.4f}" in printed
    assert results["mIoU"] < results["grid_limit"] <= 1
    assert set(results["per_class_iou"]) == set(CLASS_NAMES)
    assert (results["num_images"], results["split"], results["class_names"]) == (5, "test", CLASS_NAMES)
    assert results["command"].startswith("python -m training.evaluate ") and "--oracle" in results["command"]
    assert results["versions"]["torch"] == torch.__version__
    assert {"commit", "dirty", "date", "dataset_name", "seed", "limit", "model"} <= set(results)
    assert Image.open(output.with_suffix(".png")).width == 3 * 248 + 8


def figures_of(workplace, tmp_path, *options):
    main([*arguments_for(workplace, tmp_path / "scores.json"), *options])
    return json.loads((tmp_path / "scores.json").read_text())


def test_options_change_the_figures_they_should(workplace, tmp_path):
    plain = figures_of(workplace, tmp_path)
    for options in (["--image_size", "64"], ["--window", "16"], ["--flip"], ["--refinement", "pamr"]):
        assert figures_of(workplace, tmp_path, *options)["pixel_accuracy"] != plain["pixel_accuracy"], options
    for options in (["--attention_variant", "naclip"], ["--no-keep_residual"], ["--templates", "the {}"]):
        assert figures_of(workplace, tmp_path, *options)["pixel_accuracy"] != plain["pixel_accuracy"], options
    assert figures_of(workplace, tmp_path, "--image_size", "64")["grid_limit"] > plain["grid_limit"]
    assert figures_of(workplace, tmp_path, "--limit", "2")["num_images"] == 2


def test_classes_of_one_s_own_with_synonyms(workplace, tmp_path):
    (tmp_path / "names.txt").write_text("sky\nsea\nship|boat\n")
    from_file = figures_of(workplace, tmp_path, "--classes", str(tmp_path / "names.txt"), "--unseen", "ship")
    assert from_file["class_names"] == ["sky", "sea", "ship"] and from_file["mIoU_unseen"] is not None
    typed = figures_of(workplace, tmp_path, "--classes", "sky, sea, ship|boat")
    assert typed["per_class_iou"] == from_file["per_class_iou"]


def test_a_checkpoint_without_its_text_encoder_is_scored_on_its_baked_classes(workplace, tmp_path, capsys):
    model, processor = tiny_segmenter()
    model.set_classes(CLASS_NAMES, processor)
    model.drop_text_encoder()
    model.save_pretrained(tmp_path / "closed")
    processor.save_pretrained(tmp_path / "closed")
    expected = figures_of(workplace, tmp_path)["per_class_iou"]
    main([str(tmp_path / "closed"), *arguments_for(workplace, tmp_path / "closed.json")[1:]])
    assert "3 classes baked into the checkpoint" in capsys.readouterr().out
    assert json.loads((tmp_path / "closed.json").read_text())["per_class_iou"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "sky,sea"], "there are 2 classes (0 to 1); name all classes"),
        (["--classes", "sky,sea,boat,tree"], "names 4 classes, but the data set has 3"),
        (["--classes", "sky,sea,sea"], "given twice"),
        (["--unseen", "ship"], "the classes are"),
        (["--split", "validation"], "validation"),
        (["--dataset_name", "nobody/nothing"], "--dataset_name nobody/nothing cannot be opened"),
        (["--pictures", "1"], "pass --output"),
        (["--window", "18"], "try window 20"),
        (["--image_size", "0"], "--image_size is 0"),
        (["--templates", "photo of"], "no template with"),
    ],
)
def test_errors_are_one_line_that_names_the_fix(workplace, options, message):
    with pytest.raises(SystemExit) as caught:
        main([*arguments_for(workplace), *options])
    assert str(caught.value).startswith("error: ") and message in str(caught.value)


def test_a_missing_checkpoint_and_masks_that_do_not_fit(workplace, tmp_path):
    with pytest.raises(SystemExit, match="nowhere"):
        main([str(tmp_path / "nowhere"), *arguments_for(workplace)[1:]])
    for kind, size in (("images", (8, 8)), ("masks", (9, 8))):
        (tmp_path / "data" / kind).mkdir(parents=True)
        Image.new("L", size).save(tmp_path / "data" / kind / "odd.png")
    (tmp_path / "data" / "classes.txt").write_text("sky\nsea\nboat")
    with pytest.raises(SystemExit, match="'odd' differ in size"):
        main([str(workplace / "model"), "--dataset_name", str(tmp_path / "data"), "--split", "train"])


def test_two_processes_give_the_figures_of_one(workplace, tmp_path):
    alone = figures_of(workplace, tmp_path)
    command = [sys.executable, "-m", "training.evaluate", *arguments_for(workplace, tmp_path / "together.json")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting_point = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    shared = os.environ | meeting_point | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    ranks = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]  # what every launcher sets
    processes = [subprocess.Popen(command, cwd=Path(__file__).parents[2], env=environment) for environment in ranks]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    together = json.loads((tmp_path / "together.json").read_text())
    assert (together["num_processes"], together["num_images"]) == (2, 5)
    for name in ("mIoU", "pixel_accuracy", "boundary_f", "grid_limit", "per_class_iou"):
        assert together[name] == pytest.approx(alone[name], abs=1e-12), name


def test_padding_is_no_part_of_the_grid():
    """2 x 3 pixels of a picture that was padded to 2 x 4, two cells: the second one shows a column and nothing."""
    mask = np.array([[0, 1, 1], [0, 1, 2]])
    ids, shares = grid_shares(mask, (1, 2), (1.0, 0.75))
    assert ids.tolist() == [0, 1, 2] and shares.tolist() == [[[0.5, 0.0]], [[0.5, 0.25]], [[0.0, 0.25]]]
    assert through_the_grid(mask, (2, 4), (1.0, 0.75)).tolist() == mask.tolist()
    classifier = PatchClassifier(torch.eye(2), torch.zeros(2))
    features = torch.eye(2)[torch.tensor([[0, 0, 1, 1]])]  # one row of cells, the last of them padding
    assert classifier.label_map(features, (1, 3), (1.0, 0.75)).tolist() == [[0, 0, 1]]


def test_git_is_asked_once(monkeypatch):
    calls = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: calls.append(args) or run(*args, **options))
    commit_of.cache_clear()
    first = provenance("training.evaluate", [])
    asked = len(calls)
    assert provenance("training.evaluate", ["--x"])["commit"] == first["commit"] and len(calls) == asked <= 3


def test_the_share_that_training_held_out_is_scored(workplace, tmp_path):
    """`--validation_fraction` divides the training images the same way every time, and the parts do not overlap."""
    flat = tmp_path / "flat"
    for kind in ("images", "masks"):
        shutil.copytree(workplace / "data" / "train" / kind, flat / kind)
    shutil.copy(workplace / "data" / "classes.txt", flat)
    counts = {}
    for split in ("train", "validation"):
        options = ["--dataset_name", str(flat), "--split", split, "--validation_fraction", "0.34"]
        main([str(workplace / "model"), *options, "--output", str(tmp_path / f"{split}.json")])
        counts[split] = json.loads((tmp_path / f"{split}.json").read_text())["num_images"]
    assert counts == {"train": 4, "validation": 2}
