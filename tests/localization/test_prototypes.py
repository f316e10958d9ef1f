"""Prototypes: the objective and its gradient, what each rule finds, files, and everything that must be refused."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from hf_clipseg import MaskClipForSemanticSegmentation, SegmentationProcessor, VisionPrototypes
from hf_clipseg.localization.localization import Localization, LocalizationSettings
from hf_clipseg.localization.prototype_rules import (
    PrototypeSettings,
    Regions,
    alignment_gradient,
    alignment_loss,
    balance,
    learn_prototypes,
    modality_gap,
    objective,
    shrink,
    soft_centroids,
    text_targets,
)
from hf_clipseg.localization.prototypes import (
    VISION_SCALE,
    collect_regions,
    encode_image_labels,
    region_embeddings,
    text_prototypes,
    vision_hash,
)

from ..precision import assert_same, double_precision
from ..tiny import save_tiny_clip

CLASSES = ["sky", ["boat", "ship"], "grass"]
TAGS = [["sky", "boat"], ["ship"], ["grass", "sky"], ["boat", "grass"]]
RULE_SETTINGS = [
    PrototypeSettings(rule="step", targets="text"),
    PrototypeSettings(rule="adam", targets="text"),
    PrototypeSettings(rule="lbfgs", targets="text"),
    PrototypeSettings(rule="centroid", targets="text"),
    PrototypeSettings(rule="centroid", centred=True, targets="text"),
    PrototypeSettings(rule="centroid", targets="own"),
    PrototypeSettings(),
]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def clip(clip_folder):
    return MaskClipForSemanticSegmentation.from_clip(clip_folder).clip


@pytest.fixture
def processor(clip_folder):
    return SegmentationProcessor.from_clip(clip_folder, templates="ensemble")


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    sizes = ((32, 32), (40, 24), (32, 32), (24, 48))
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def clustered_regions(classes=6, per_class=30, dim=32):
    """Regions around class centres that share an offset: the modality gap to texts that point to the centres alone."""
    generator = torch.Generator().manual_seed(1)
    centres = F.normalize(torch.randn(classes, dim, generator=generator), dim=1)
    offset = 2 * F.normalize(torch.randn(dim, generator=generator), dim=0)
    class_ids = torch.arange(classes).repeat_interleave(per_class)
    noise = 0.06 * torch.randn(len(class_ids), dim, generator=generator)
    embeds = F.normalize(centres[class_ids] + offset + noise, dim=1)
    allowed = torch.rand(len(class_ids), classes, generator=generator) < 0.3
    allowed[torch.arange(len(class_ids)), class_ids] = True
    text = F.normalize(centres + 0.25 * torch.randn(classes, dim, generator=generator), dim=1)
    return Regions(embeds, class_ids, allowed), text


def test_closed_form_gradient_is_that_of_autograd():
    embeds, prototypes = F.normalize(torch.randn(20, 8), dim=1).double(), F.normalize(torch.randn(5, 8), dim=1).double()
    targets = torch.rand(20, 5).double().softmax(1)
    prototypes.requires_grad_()
    (expected,) = torch.autograd.grad(alignment_loss(embeds, targets, prototypes, 0.04), prototypes)
    torch.testing.assert_close(alignment_gradient(embeds, targets, prototypes.detach(), 0.04), expected)


def test_loss_is_the_kl_divergence():
    embeds, prototypes = torch.randn(7, 4), torch.randn(3, 4)
    targets = torch.rand(7, 3).softmax(1)
    expected = F.kl_div((embeds @ prototypes.T / 0.5).log_softmax(1), targets, reduction="batchmean")
    torch.testing.assert_close(alignment_loss(embeds, targets, prototypes, 0.5), expected)
    one_hot = torch.eye(3)[[0, 1, 2, 0, 1, 2, 0]]
    assert torch.isfinite(alignment_loss(embeds, one_hot, prototypes, 0.5))


def test_targets_are_masked_and_confident_rows_one_hot():
    text, embeds = torch.eye(3), F.normalize(torch.tensor([[1.0, 0.9, 5.0], [1.0, 0.99, 0.0]]), dim=1)
    allowed = torch.tensor([[True, True, False], [True, True, True]])
    targets = text_targets(embeds, text, allowed, PrototypeSettings(text_temperature=0.1, confident=0.6))
    assert targets[0, 2] == 0 and targets[1].max() < 0.6
    torch.testing.assert_close(targets.sum(1), torch.ones(2))
    confident = text_targets(embeds, text, allowed, PrototypeSettings(text_temperature=0.001, confident=0.6))
    assert confident.tolist() == [[1, 0, 0], [1, 0, 0]]


def test_sinkhorn_balances_columns():
    targets = balance(torch.rand(60, 3) * torch.tensor([5.0, 1.0, 1.0]))
    torch.testing.assert_close(targets.sum(0), torch.full((3,), 20.0), rtol=0.02, atol=0)
    assert torch.isfinite(balance(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))).all()


@pytest.mark.parametrize(
    "settings", RULE_SETTINGS, ids=lambda settings: f"{settings.rule}-{settings.centred}-{settings.targets}"
)
def test_every_rule_classifies_regions_better_than_text(settings):
    regions, text = clustered_regions()
    learnt = learn_prototypes(regions, text, settings)
    torch.testing.assert_close(learnt.norm(dim=1), torch.ones(6))

    def accuracy(prototypes):
        return ((regions.embeds @ prototypes.T).argmax(1) == regions.class_ids).float().mean()

    assert accuracy(learnt) > accuracy(text) + 0.25


@pytest.mark.parametrize("rule", ["step", "adam", "lbfgs"])
def test_descent_lowers_the_loss(rule):
    regions, text = clustered_regions()
    settings = PrototypeSettings(rule=rule, targets="text", shrinkage=0.0)
    targets = text_targets(regions.embeds, text, regions.allowed, settings)
    losses = []
    for iterations in (0, 20, 200):
        learnt = learn_prototypes(regions, text, dataclasses.replace(settings, max_iterations=iterations))
        losses.append(alignment_loss(regions.embeds, targets, learnt, 0.04))
    assert losses[0] > losses[1] > losses[2]


def test_lbfgs_comes_to_rest_on_the_sphere_where_the_step_rule_does_not(recwarn):
    regions, text = clustered_regions()
    settings = PrototypeSettings(rule="lbfgs", shrinkage=0.0)
    learnt = learn_prototypes(regions, text, settings)
    targets = F.one_hot(regions.class_ids, 6).float()
    slopes = {}
    for rule in ("step", "lbfgs"):
        stopped = learn_prototypes(regions, text, dataclasses.replace(settings, rule=rule))
        gradient = alignment_gradient(regions.embeds, targets, stopped, 0.04)
        slopes[rule] = (gradient - (gradient * stopped).sum(1, keepdim=True) * stopped).norm()
    assert slopes["lbfgs"] < 1e-4 < slopes["step"]
    assert objective(regions, learnt, text, settings) == pytest.approx(alignment_loss(regions.embeds, targets, learnt, 0.04))
    assert not recwarn.list
    with pytest.warns(UserWarning, match="not converged in 3 iterations"):
        learn_prototypes(regions, text, dataclasses.replace(settings, max_iterations=3))


def test_centroids_close_the_modality_gap():
    regions, text = clustered_regions()
    learnt = learn_prototypes(regions, text, PrototypeSettings("centroid", targets="text", shrinkage=0.0))
    before, after = modality_gap(regions, text), modality_gap(regions, learnt)
    assert after["region_distance"] < before["region_distance"] / 2
    assert after["centroid_distance"] < before["centroid_distance"] / 2


def test_centroids_by_hand():
    embeds = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    targets = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    means = torch.tensor([[1.3, 0.4], [0.3, 1.4]]) / 1.5
    torch.testing.assert_close(soft_centroids(embeds, targets, False), F.normalize(means, dim=1))
    centred = F.normalize(means - means.mean(0), dim=1)
    torch.testing.assert_close(soft_centroids(embeds, targets, True), centred)


def test_rare_classes_lean_on_their_text_moved_over_the_gap():
    prototypes, text = F.normalize(torch.randn(3, 8), dim=1), F.normalize(torch.randn(3, 8), dim=1)
    mass = torch.tensor([1e6, 1e6, 0.0])
    result = shrink(prototypes, mass, text, shrinkage=2.0)
    torch.testing.assert_close(result[:2], prototypes[:2], rtol=1e-4, atol=1e-4)
    moved = F.normalize(text[2] + (prototypes[:2] - text[:2]).mean(0), dim=0)
    torch.testing.assert_close(result[2], moved, rtol=1e-4, atol=1e-4)


def test_modality_gap_by_hand():
    regions = Regions(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), torch.ones(2, 2) > 0)
    prototypes = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    gap = modality_gap(regions, prototypes)
    assert gap["region_distance"] == pytest.approx(2**0.5 / 2)
    assert gap["centroid_distance"] == pytest.approx(0.5**0.5)


def test_a_region_pools_the_patches_it_wins():
    maps = torch.tensor([[[[0.8, 0.2, 0.0]], [[0.4, 0.6, 0.1]]]])  # (1, 2 slots, 1, 3)
    features = torch.eye(3)[None, None]  # (1, 1, 3, 3)
    found = Localization(maps, torch.tensor([[0, 2]]), torch.tensor([[True, True]]), features)
    labels = torch.tensor([[1, 0, 1]])
    regions = region_embeddings(found, labels, torch.eye(3))
    assert regions.class_ids.tolist() == [0, 2] and regions.allowed.tolist() == [[True, False, True]] * 2
    torch.testing.assert_close(regions.embeds, F.normalize(torch.tensor([[0.8, 0, 0], [0, 0.6, 0.1]]), dim=1))
    sharp = region_embeddings(found, labels, torch.eye(3), sharpness=2.0)
    torch.testing.assert_close(sharp.embeds[1], F.normalize(torch.tensor([0, 0.36, 0.01]), dim=0))


def test_background_words_share_what_no_class_claims():
    maps = torch.tensor([[[[0.8, 0.2, 0.0]]]])
    found = Localization(maps, torch.tensor([[1]]), torch.tensor([[True]]), torch.eye(3)[None, None])
    words = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [-1.0, -1.0, -1.0]])  # the third is nowhere the most similar one
    prototypes = torch.cat([torch.eye(3)[:2], F.normalize(words, dim=1)])
    regions = region_embeddings(found, torch.tensor([[0, 1]]), prototypes)
    assert regions.class_ids.tolist() == [1, 2, 3]
    assert regions.allowed.tolist() == [[False, True, True, True, True]] * 3
    torch.testing.assert_close(regions.embeds[1], F.normalize(torch.tensor([0.2, 0.8, 0.0]), dim=0))
    torch.testing.assert_close(regions.embeds[2], torch.tensor([0.0, 0.0, 1.0]))


@pytest.mark.parametrize("maps", ["similarity", "cam", "refined"])
def test_regions_do_not_depend_on_the_batch_size(images, clip, processor, maps):
    targets = encode_image_labels(TAGS, CLASSES)
    text, settings = text_prototypes(clip, processor, CLASSES), PrototypeSettings(region_maps=maps)
    with double_precision():
        clip, text = clip.double(), text.double()
        regions = [
            collect_regions(clip, processor, images, targets, text, LocalizationSettings(), settings, size) for size in (1, 16)
        ]
    order = [torch.argsort(part.embeds[:, 0]) for part in regions]
    assert_same(regions[0].embeds[order[0]], regions[1].embeds[order[1]])


@pytest.mark.parametrize("given, used", [(None, [None, VISION_SCALE, VISION_SCALE]), (7.0, [7.0, 7.0, 7.0])])
def test_later_rounds_compare_with_vision_at_its_own_scale(images, clip, processor, monkeypatch, given, used):
    """CLIP's logit scale fits text prototypes; from the second round on the maps come from vision prototypes."""
    scales = []

    def remember(clip, processor, images, targets, prototypes, localization, *others):
        scales.append(localization.cam_scale)
        return collect_regions(clip, processor, images, targets, prototypes, localization, *others)

    monkeypatch.setattr("hf_clipseg.localization.prototypes.collect_regions", remember)
    VisionPrototypes.fit(
        images, TAGS, CLASSES, clip, processor, localization=LocalizationSettings(cam_scale=given), rounds=3,
        settings=PrototypeSettings(region_maps="cam"),
    )  # fmt: skip
    assert scales == used


def test_text_prototypes_are_averaged_on_the_sphere(clip, processor):
    single = text_prototypes(clip, processor, ["boat"])[0] + text_prototypes(clip, processor, ["ship"])[0]
    torch.testing.assert_close(text_prototypes(clip, processor, CLASSES)[1], F.normalize(single, dim=0))


def test_a_few_lines_and_a_file(images, clip, processor, tmp_path):
    prototypes = VisionPrototypes.fit(images, TAGS, CLASSES, clip, processor, background_words=["tree", "car"])
    assert prototypes.embeds.shape == (5, 24) and prototypes.class_names[1] == ["boat", "ship"]
    assert prototypes.details["num_images"] == 4 and set(prototypes.details["modality_gap"]) == {"text", "vision"}
    path = tmp_path / "folder" / "prototypes.safetensors"
    prototypes.save(path)
    loaded = VisionPrototypes.load(path, clip)
    assert torch.equal(loaded.embeds, prototypes.embeds) and torch.equal(loaded.text_embeds, prototypes.text_embeds)
    fields = [dataclasses.asdict(item) for item in (prototypes, loaded)]
    assert all(fields[0][name] == fields[1][name] for name in ("class_names", "background_words", "weights_hash", "details"))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_tags_may_be_names_ids_or_a_matrix():
    expected = torch.tensor([[True, True, False], [False, False, True]])
    for tags in ([["sky", "Ship"], ["grass"]], [[0, 1], 2], expected, expected.int().numpy(), [["sky", 1], "grass"]):
        assert torch.equal(encode_image_labels(tags, CLASSES), expected)


@pytest.mark.parametrize(
    "tags, message",
    [
        ([["sky"], ["boat"], ["grass"], ["dog"]], "Image 3 has the label 'dog', which is none of the 3 classes"),
        ([["sky"], ["boat"], ["grass"], [7]], "label 7"),
        ([["sky"], ["boat"], ["grass"], []], r"1 images have no labels \(the first: \[3\]\)"),
        ([["sky"], ["boat"], ["sky"], ["boat"]], r"No image is tagged with \['grass'\]"),
        ([["sky"], ["boat"], ["grass"]], "4 images and labels for 3"),
        (torch.ones(4, 2), r"\(images, 3\)"),
        (torch.full((4, 3), 0.5), "0 and 1"),
    ],
)
def test_bad_tags_are_named(images, clip, processor, tags, message):
    with pytest.raises(ValueError, match=message):
        VisionPrototypes.fit(images, tags, CLASSES, clip, processor)


def test_other_weights_and_classes_are_refused(images, clip, processor, tmp_path):
    prototypes = VisionPrototypes.fit(images, TAGS, CLASSES, clip, processor, rounds=1)
    prototypes.save(tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match="classes"):
        prototypes.check_classes(["sky", "grass", "boat"])
    with torch.no_grad():
        clip.visual_projection.weight[0, 0] += 1
    with pytest.raises(ValueError, match="learnt with CLIP weights"):
        VisionPrototypes.load(tmp_path / "p.safetensors", clip)


def test_the_hash_does_not_see_the_text_encoder(clip):
    before = vision_hash(clip)
    clip.text_model = clip.text_projection = None
    assert vision_hash(clip) == before


def test_files_that_are_no_prototypes_are_named(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"not a file")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name, message in (("broken", "cannot be read"), ("missing", "cannot be read"), ("other", "holds no prototypes")):
        with pytest.raises(ValueError, match=message):
            VisionPrototypes.load(tmp_path / f"{name}.safetensors")


def test_impossible_settings_are_refused():
    rates = {"rule": "lbfgs", "learning_rate": 1.0}
    for fields in (
        {"rule": "median"},
        {"rule": "step", "centred": True},
        rates,
        {"text_temperature": 0.0},
        {"shrinkage": -1.0},
    ):
        with pytest.raises(ValueError, match=next(reversed(fields))):
            PrototypeSettings(**fields)
    regions, text = clustered_regions()
    nothing = Regions(regions.embeds[:0], regions.class_ids[:0], regions.allowed[:0])
    with pytest.raises(ValueError, match="at least one region"):
        learn_prototypes(nothing, text, RULE_SETTINGS[0])
