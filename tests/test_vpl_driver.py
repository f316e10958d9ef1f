"""VPL's driver: scenes of any data set keep their roles apart, the oracle is one, and the command runs from end to end."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.ablations import vpl, vpl_ladder
from benchmarks.ablations.vpl_oracles import fit_probe
from benchmarks.ablations.vpl_scenes import FrozenScenes, SceneSource, oracle_prototypes, toyscapes_protocol
from hf_clipseg import SegmentationProcessor, VplForSemanticSegmentation
from hf_clipseg.localization.localization import LocalizationSettings

from .tiny import save_tiny_clip

CLASSES = ["sky", "boat", "grass"]
COLOURS = np.array([[90, 140, 230], [200, 60, 50], [70, 160, 60]], dtype=np.uint8)
SHORT = ["--train_options", "--max_train_steps", "2", "--train_batch_size", "2", "--warmup_steps", "1"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twenty pictures of two of three colours, wider than high, with masks; the last rows are unlabelled."""
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for number in range(20):
        mask = np.full((36, 50), number % 3, dtype=np.uint8)
        mask[generator.integers(8, 28) :] = (number + 1) % 3
        image = COLOURS[mask] + generator.integers(0, 20, (36, 50, 3), dtype=np.uint8)
        mask[-4:] = 255
        Image.fromarray(image).save(folder / "images" / f"{number:02}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:02}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return folder


def test_roles_share_no_scene_and_squares_keep_image_and_mask_together(photos):
    source = SceneSource(str(photos), 24)
    roles = {role: {sample.key for sample in source.samples(role, 0, 99)} for role in ("fitted", "chosen", "unseen", "test")}
    assert [len(roles[role]) for role in ("fitted", "chosen", "unseen")] == [12, 4, 4] and roles["test"] == roles["unseen"]
    assert len(roles["fitted"] | roles["chosen"] | roles["unseen"]) == 20
    assert [s.key for s in source.samples("fitted", 0, 5)] != [s.key for s in source.samples("fitted", 1, 5)]
    for sample in source.samples("fitted", 0, 12):
        known = sample.mask != 255
        nearest = ((sample.image[:, :, None].astype(int) - COLOURS - 10) ** 2).sum(-1).argmin(-1)
        assert (nearest == sample.mask)[known].mean() > 0.9 and 0 < (~known).sum() < known.sum()
        assert sample.tags == sorted({*sample.mask[known].tolist()})


def test_toyscapes_draws_every_role_from_a_split_of_its_own():
    source = SceneSource("toyscapes", 64)
    keys = {role: [sample.key for sample in source.samples(role, 1, 2)] for role in ("fitted", "chosen", "unseen", "test")}
    assert len({key for found in keys.values() for key in found}) == 8
    assert [s.key for s in source.samples("chosen", 0, 2)] == keys["chosen"]
    assert [s.key for s in source.samples("unseen", 0, 2)] != keys["unseen"]


def test_the_oracle_is_above_text_and_centroids_where_it_was_fitted(clip_folder):
    model = VplForSemanticSegmentation.from_clip(clip_folder, attention_variant="value", keep_residual=False)
    processor = SegmentationProcessor.from_clip(clip_folder, size={"shortest_edge": 64, "longest_edge": 256})
    settings = LocalizationSettings("value", False, affinity_layers=0, read_out="softmax")
    scores = {}
    for name in ("full", "things"):
        samples = SceneSource("toyscapes", 64).samples("fitted", 0, 8)
        scenes = FrozenScenes(model, processor, toyscapes_protocol(name), samples, 0)
        text, shares = scenes.text(), scenes.truth_on_grid()
        assert shares.shape == (len(scenes), 64, scenes.protocol.num_labels)
        torch.testing.assert_close(shares.sum(-1), torch.ones(len(scenes), 64))
        centroids = oracle_prototypes(scenes.true_regions(settings), False)
        probes = [fit_probe(scenes, settings, text, hold) for hold in (0.0, 1e6)]
        scores[name] = [scenes.score(scenes.pseudo_masks(rows, settings)[0]) for rows in (text, centroids, probes[0])]
        torch.testing.assert_close(probes[1], text, atol=1e-3, rtol=0)
    for text, centroids, probe in scores.values():
        assert probe > max(text, centroids) + 5


def test_command_on_any_clip_and_data_set(clip_folder, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(vpl_ladder, "TEMPLATES", {"name": ["{}"]})  # the tiny tokenizer knows no word with a full stop
    options = ["--output_dir", str(tmp_path), "--clip", str(clip_folder), "--dataset_name", str(photos), "--image_size", "48"]
    counts = ["--seeds", "0", "--ladder_scenes", "6", "--train_scenes", "6", "--test_scenes", "4"]
    few = ["--segmenters", "text prototypes", "vision prototypes, online refinement"]
    small = ["--decoder_dim", "16", "--decoder_heads", "2", "--decoder_layers", "1", "--attention_variant", "value"]
    vpl.main([*options, *counts, *few, *SHORT, *small, "--label_size", "12"])
    ladder = json.loads((tmp_path / "ladder-full-0.json").read_text())
    assert ladder["scenes"] == {"unseen": 4, "fitted": 6, "chosen": 4}
    assert list(ladder["scores"]["region prototypes"]["softmax + crf"]) == ["unseen", "fitted", "chosen"]
    for name, rule in ladder["rules"].items():
        assert list(rule["gradient"]) == list(rule["softmax"]) == ["unseen", "fitted"], name
    trained = json.loads((tmp_path / "segmenter-vision_prototypes_online_refinement-0.json").read_text())
    assert 0 <= trained["test"] <= 100 and trained["read-out"] in ("gradient", "softmax")
    vpl.main([*options, "--tables"])
    tables = capsys.readouterr().out
    scores = ladder["scores"]["text"]["gradient"]
    assert f"| text | gradient | {scores['unseen']:.1f} | {scores['fitted']:.1f} |" in tables
    with pytest.raises(SystemExit, match="error: .*protocols things"):
        vpl.main([*options, "--protocols", "things"])
