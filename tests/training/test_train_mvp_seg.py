"""Both training scripts, end to end on small folders: what is learned, what never leaks, resuming, bad input."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, ResNetBackbone, ResNetConfig

from benchmarks.ablations import mvp_seg as driver
from hf_clipseg import MvpSegForSemanticSegmentation, MvpSegPlusForSemanticSegmentation, SegmentationProcessor
from training import train_mvp_seg, train_mvp_seg_plus
from training.data.zero_shot import ZeroShotLabels

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

NAMES = ["sky", "boat", "grass", "tree"]
UNSEEN = "boat,tree"
COLOURS = np.array([(90, 150, 230), (200, 60, 40), (60, 160, 60), (90, 70, 20)])


def save_folder(folder, names=NAMES, shuffle_unseen=False, count=6):
    """Images of coloured quarters with their masks; `shuffle_unseen` swaps the labels of the two unseen classes at random."""
    generator, swaps = np.random.default_rng(0), np.random.default_rng(1)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        mask = generator.permutation(4).reshape(2, 2).repeat(20, 0).repeat(20, 1)
        noise = generator.integers(-20, 20, (40, 40, 3))
        Image.fromarray((COLOURS[mask] + noise).clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{index}.png")
        mask[:2] = 255
        unseen = np.isin(mask, (1, 3))
        if shuffle_unseen:
            mask[unseen] = swaps.choice((1, 3), unseen.sum())
        Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / f"{index}.png")
    (folder / "classes.txt").write_text("\n".join(names))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("data"))


def arguments(data, output_dir, *more):
    return [
        "--dataset_name", str(data), "--unseen", UNSEEN, "--image_size", "32", "--output_dir", str(output_dir),
        "--max_train_steps", "6", "--train_batch_size", "4", "--checkpointing_steps", "3", "--logging_steps", "1",
        "--warmup_steps", "1", *more,
    ]  # fmt: skip


def train_prompts(clip_folder, data, output_dir, *more):
    options = ["--model_name_or_path", str(clip_folder), "--num_prompt_tokens", "4", "--learning_rate", "0.02", *more]
    return train_mvp_seg.run(train_mvp_seg.parse_arguments(arguments(data, output_dir, *options)))


def train_student(teacher, data, output_dir, *more):
    options = ["--teacher", str(teacher), "--mixed_precision", "no", "--teacher_steps", "3", *more]
    return train_mvp_seg_plus.run(train_mvp_seg_plus.parse_arguments(arguments(data, output_dir, *options)))


@pytest.fixture(scope="module")
def trained(clip_folder, data, tmp_path_factory):
    """A finished run of `train_mvp_seg` with random first prompts: its folder and its model."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    return folder, train_prompts(clip_folder, data, folder)


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_weights(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def test_prompts_are_learned_and_clip_is_not(trained, clip_folder):
    folder, model = trained
    losses = [row["loss"] for row in log(folder)]
    assert len(losses) == 6 and losses[-1] < losses[0]
    loaded = MvpSegForSemanticSegmentation.from_pretrained(folder / "final")
    assert same_weights(loaded, model)
    clip = CLIPModel.from_pretrained(clip_folder).state_dict()
    assert all(torch.equal(clip[name], value) for name, value in loaded.clip.state_dict().items())
    assert loaded.config.id2label == dict(enumerate(NAMES))
    processor = SegmentationProcessor.from_pretrained(folder / "final")
    image = Image.new("RGB", (50, 30))
    baked, called = model(**processor(images=image)).logits, model(**processor(images=image, class_names=NAMES)).logits
    torch.testing.assert_close(baked, called)


def spreads(model, processor, names):
    """Mean cosine of different classes, pair by pair: of every prompt of `model`, and of the one by hand."""
    inputs = dict(processor(class_names=names, templates="name"))
    by_hand = model.clip.encode_text(processor(class_names=names, templates="a photo of a {}")["input_ids"])
    with torch.no_grad():
        views = [*model.encode_names(inputs["input_ids"], inputs["name_ids"]), by_hand]
    pairs = [(a, b) for a in range(len(names)) for b in range(a)]
    return [np.mean([torch.cosine_similarity(view[a], view[b], dim=0).item() for a, b in pairs]) for view in views]


@pytest.mark.parametrize("refinement", ["none", "threshold"])
def test_every_row_says_how_far_views_depend_on_the_class(refinement, clip_folder, data, tmp_path):
    """At rate 0 the prompts that are logged are those of the result."""
    model = train_prompts(clip_folder, data, tmp_path, "--learning_rate", "0", "--global_refinement", refinement)
    expected = spreads(model, SegmentationProcessor.from_pretrained(tmp_path / "final"), ["sky", "grass"])
    names = ["class_spread/global", *(f"class_spread/view_{view}" for view in (1, 2, 3)), "class_spread/by_hand"]
    if refinement == "none":
        del names[0], expected[0]
    for row in log(tmp_path):
        assert {name: row[name] for name in row if name.startswith("class_spread")} == pytest.approx(
            dict(zip(names, expected, strict=True)), abs=2e-6
        )


def test_views_are_kept_from_forgetting_the_class(clip_folder, data, tmp_path):
    """Random contexts drown the class, and only the loss on the spread brings it back."""
    final = {}
    for weight in ("0", "20"):
        options = ["--spread_weight", weight, "--learning_rate", "0.1", "--logging_steps", "6"]
        train_prompts(clip_folder, data, tmp_path / weight, *options)
        (final[weight],) = log(tmp_path / weight)
    excess = {
        w: sum(row[f"class_spread/view_{v}"] - row["class_spread/by_hand"] for v in (1, 2, 3)) for w, row in final.items()
    }
    assert "spread" not in final["0"] and final["20"]["spread"] >= 0
    assert excess["20"] < excess["0"] - 0.05


def test_scores_among_the_classes_of_an_image():
    """Class 2 wins everywhere and is in no image; of the others the scores know the order."""
    masks = torch.tensor([[[0, 1], [255, 1]], [[1, 1], [1, 1]]])
    arrays = {"encoded": np.zeros((2, 2, 2, 1), np.float16), "labels": masks.numpy().astype(np.uint8)}
    cache = type("Cache", (), {"__len__": lambda _: 2, **arrays})
    test_set = driver.TestSet(cache(), driver.Vocabulary(ZeroShotLabels(["a", "b", "c"], [])))

    def predict(encoded):
        scores = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.full((2, 2), 5.0)
        return torch.stack(scores).expand(len(encoded), -1, -1, -1)

    assert test_set.score(predict)["pixel_accuracy"] == 0
    assert test_set.score(predict, classes_known=True)["pixel_accuracy"] == 1


def test_the_driver_of_the_tables_takes_any_clip_and_any_masks(clip_folder, data, tmp_path, capsys):
    options = [
        "--clip", str(clip_folder), "--dataset_name", str(data), "--validation_fraction", "0.34", "--split", "validation",
        "--unseen", UNSEEN, "--image_size", "32", "--max_train_steps", "2", "--seeds", "0", "--output_dir", str(tmp_path),
    ]  # fmt: skip
    variants = driver.VARIANTS | {"default": ["--num_prompt_tokens", "4"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "VARIANTS", variants)
        driver.main([*options, "--only", "baselines", "default", "MVP-SEG+"])
    driver.main(["--output_dir", str(tmp_path), "--tables"])
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"| MaskCLIP ensemble, names", "| oracle", "| oracle, classes known", "| default", "| MVP-SEG+"} <= set(rows)
    figures = json.loads((tmp_path / "default-0.json").read_text())["figures"]
    baselines = json.loads((tmp_path / "baselines-0.json").read_text())["figures"]
    assert baselines["oracle, classes known"]["pixel_accuracy"] >= baselines["oracle"]["pixel_accuracy"]
    assert "synonyms" not in figures and set(figures["class_spread"]) == {"view 1", "view 2", "view 3", "global", "by hand"}
    assert len(figures["names"]["per_class_iou"]) == 4


@pytest.mark.parametrize("script", ["prompts", "student"])
def test_resuming_gives_the_very_same_model(script, trained, clip_folder, data, tmp_path):
    def run(*more):
        if script == "prompts":
            return train_prompts(clip_folder, data, tmp_path, *more)
        return train_student(trained[0] / "final", data, tmp_path, *more)

    whole = run()
    shutil.rmtree(tmp_path / "checkpoint-6")
    assert (tmp_path / "checkpoint-3").is_dir()
    assert same_weights(run("--resume_from_checkpoint", "latest"), whole)
    steps = [row["step"] for row in log(tmp_path)]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("script", ["prompts", "student"])
def test_the_ground_truth_of_unseen_classes_decides_nothing(script, trained, clip_folder, data, tmp_path):
    """Trained again on data whose unseen labels are shuffled, the model is the same to the bit."""
    shuffled = save_folder(tmp_path / "shuffled", shuffle_unseen=True)
    masks = [np.array(Image.open(folder / "masks" / "0.png")) for folder in (data, shuffled)]
    assert (masks[0] != masks[1]).any()
    if script == "prompts":
        models = [train_prompts(clip_folder, folder, tmp_path / str(index)) for index, folder in enumerate((data, shuffled))]
    else:
        teacher = trained[0] / "final"
        models = [train_student(teacher, folder, tmp_path / str(index)) for index, folder in enumerate((data, shuffled))]
    assert same_weights(*models)


def test_the_student_learns_and_its_classifier_stays(trained, data, tmp_path):
    folder, teacher = trained
    student = train_student(folder / "final", data, tmp_path)
    assert torch.equal(student.prompts.contexts, teacher.prompts.contexts[1:])
    torch.testing.assert_close(student.class_embeds, teacher.class_embeds[1:])
    assert not torch.equal(student.clip.visual_projection.weight, teacher.clip.visual_projection.weight)
    assert same_weights(MvpSegPlusForSemanticSegmentation.from_pretrained(tmp_path / "final"), student)
    assert all(0 < row["guessed_pixels"] < 1 for row in log(tmp_path))


def test_a_student_of_another_architecture(trained, data, tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"])
    ResNetBackbone(config).save_pretrained(tmp_path / "resnet")
    student = train_student(trained[0] / "final", data, tmp_path / "run", "--backbone", str(tmp_path / "resnet"))
    loaded = MvpSegPlusForSemanticSegmentation.from_pretrained(tmp_path / "run" / "final")
    assert type(loaded.backbone).__name__ == "ResNetBackbone" and same_weights(loaded, student)


def test_guesses_are_unseen_classes_and_confident_where_asked():
    logits = torch.zeros(1, 4, 1, 2)
    logits[0, :, 0, 0] = torch.tensor([9.0, 3.0, 8.0, 1.0])
    logits[0, :, 0, 1] = torch.tensor([9.0, 1.0, 8.0, 1.1])
    assert train_mvp_seg_plus.guess_unseen(logits, [1, 3], (1, 2), 0.0).tolist() == [[[1, 3]]]
    assert train_mvp_seg_plus.guess_unseen(logits, [1, 3], (1, 2), 0.8).tolist() == [[[1, 255]]]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (NAMES, ["--unseen", "kite"], r"\['kite'\] is no class of the data set"),
        (NAMES, ["--unseen", "voc_15_5"], "split of 20 classes, the data set has 4"),
        (["sky", "boat", "grass", " ".join(["red"] * 11)], [], "has 13 tokens .* more than the 16"),
        (NAMES[:3], ["--unseen", "boat"], "holds the labels .3., but there are 3 classes"),
        (NAMES, ["--num_views", "0"], "num_views must be at least 1, got 0"),
        (NAMES, ["--prompt_words", "a photo of a", "the"], "equal numbers of tokens, got 'a photo of a': 4, 'the': 1"),
        (NAMES, ["--image_size", "0"], "image_size must be at least 1"),
    ],
)
def test_bad_input_is_named_before_training_starts(names, options, message, clip_folder, tmp_path):
    data = save_folder(tmp_path / "data", names)
    fixed = ["--model_name_or_path", str(clip_folder), "--num_prompt_tokens", "4"]
    if names[-1].startswith("red"):
        options = ["--unseen", "boat"]
    with pytest.raises(SystemExit, match=message):
        train_mvp_seg.main(arguments(data, tmp_path / "run", *fixed, *options))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_teacher_of_other_classes_is_refused(trained, tmp_path):
    data = save_folder(tmp_path / "data", ["sky", "boat", "car", "tree"])
    with pytest.raises(SystemExit, match="The teacher knows the classes .*'grass'.* data set has .*'car'"):
        train_mvp_seg_plus.main(arguments(data, tmp_path / "run", "--teacher", str(trained[0] / "final")))


def test_real_photographs_as_a_folder(real_data, clip_folder, tmp_path):
    """msrc_v2, as it is: the loss on seen classes falls below its start."""
    names = json.loads((real_data / "msrc_v2" / "classes.json").read_text())["classes"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    options = [
        "--classes", str(tmp_path / "names.txt"), "--unseen", "cow,boat,flower", "--limit", "24",
        "--max_train_steps", "12", "--train_batch_size", "24", "--anchor_weight", "0",
    ]  # fmt: skip
    train_prompts(clip_folder, real_data / "msrc_v2", tmp_path, *options)
    losses = [row["loss"] for row in log(tmp_path)]
    assert min(losses[-3:]) < 0.97 * losses[0]
