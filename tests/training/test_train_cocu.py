"""CoCu's training: concepts joined by key, sampled anew each epoch, resumed exactly."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel

from benchmarks.ablations import cocu as driver
from hf_clipseg import CocuForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.toyscapes import ToyscapesDataset
from training.curation.concept_batches import CaptionsWithConcepts, Collate
from training.curation.concept_table import ConceptTable
from training.data.caption_cache import CachedCaptions
from training.data.caption_sources import SelectedRows
from training.data.sources import load_captions
from training.engine.loop import SampleKey
from training.train_cocu import build_tokenizer, main, parse_arguments, run

from ..tiny import save_tiny_clip
from ..tiny_groupvit import tiny_groupvit_config

IMAGES = 12


def write_sidecar(folder: Path, rows: dict[str, dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    columns = {
        "key": pa.array(list(rows), pa.string()),
        "caption_concepts": pa.array([row.get("caption_concepts", []) for row in rows.values()], pa.list_(pa.string())),
        "concepts": pa.array([row["concepts"] for row in rows.values()], pa.list_(pa.string())),
        "scores": pa.array([row["scores"] for row in rows.values()], pa.list_(pa.float32())),
        "clusters": pa.array([row["clusters"] for row in rows.values()], pa.list_(pa.int16())),
    }
    parquet.write_table(pa.table(columns), folder / "concepts.parquet")
    return folder


ROW = {
    "caption_concepts": ["sea"],
    "concepts": ["boat", "sea", "tree", "sky"],
    "scores": [2.0, 1.9, 1.0, 0.5],
    "clusters": [0, 0, 1, 2],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Concepts and the image cache of a few scenes, and the configuration of a tiny model."""
    folder = tmp_path_factory.mktemp("cocu")
    keys = [scene.key for scene in ToyscapesDataset("train", (32, 32), IMAGES)]
    write_sidecar(folder / "concepts", {key: ROW for key in reversed(keys)})  # another order than the images
    options = {"limit": IMAGES, "seed": 0, "size": (32, 32), "omission_rate": 0.5, "closeup_rate": 0.0}
    CachedCaptions(load_captions("toyscapes", "train", **options), 32, folder / "cache", num_processes=1)
    config = tiny_groupvit_config().to_dict()
    for name in ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"):
        del config["text_config"][name]
    (folder / "model.json").write_text(json.dumps(config))
    return folder


def options(folder: Path, output: Path, *more: str) -> list[str]:
    return [
        "--concepts", str(folder / "concepts"), "--cache_dir", str(folder / "cache"), "--output_dir", str(output),
        "--model_config", str(folder / "model.json"), "--limit", str(IMAGES), "--image_size", "32",
        "--train_batch_size", "4", "--max_train_steps", "4", "--checkpointing_steps", "2", "--mixed_precision", "no",
        "--warmup_steps", "1", "--logging_steps", "1", "--validation_limit", "2", "--validation_steps", "100", *more,
    ]  # fmt: skip


def test_a_run_broken_off_and_resumed_ends_with_the_same_weights(folder, tmp_path):
    main(options(folder, tmp_path / "whole"))
    model = CocuForSemanticSegmentation.from_pretrained(tmp_path / "whole" / "final")
    shutil.rmtree(tmp_path / "whole" / "checkpoint-4")  # as if it had been killed after step 2
    main(options(folder, tmp_path / "whole", "--resume_from_checkpoint", "latest"))
    again = CocuForSemanticSegmentation.from_pretrained(tmp_path / "whole" / "final")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert {"caption", "concepts", "loss"} <= lines[0].keys()
    assert 0 <= lines[-1]["mIoU"] <= 1

    processor = SegmentationProcessor.from_pretrained(tmp_path / "whole" / "final")
    image = Image.new("RGB", (50, 40))
    outputs = again(**processor(images=image))
    assert processor.post_process_semantic_segmentation(outputs, [(40, 50)])[0].shape == (40, 50)
    assert again.config.id2label[0] == "sky" and len(again.config.id2label) == 30


@pytest.mark.parametrize("more", [("--sampling", "none"), ("--sampling", "top")])
def test_other_ways_of_sampling_train_too(folder, tmp_path, more):
    model = run(
        parse_arguments(options(folder, tmp_path, "--max_train_steps", "1", "--validation_dataset_name", "none", *more))
    )
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_starts_from_the_shipped_clip(folder, tmp_path):
    """At a learning rate of nothing the text encoder is still CLIP's after a step, and so are the words it knows."""
    clip = Path(__file__).parents[2] / "model_cards" / "clip-toyscapes"
    more = (
        "--start_from_clip",
        str(clip),
        "--model_config",
        "small",
        "--learning_rate",
        "1e-12",
        "--validation_dataset_name",
        "none",
    )
    model = run(parse_arguments(options(folder, tmp_path, "--max_train_steps", "1", *more)))
    for name, tensor in CLIPModel.from_pretrained(clip).text_model.state_dict().items():
        torch.testing.assert_close(model.clip.text_model.state_dict()[name], tensor, msg=name)
    assert model.config.pooling == "after_projection"
    tokenizer = SegmentationProcessor.from_pretrained(tmp_path / "final").tokenizer
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(clip).get_vocab()


def test_frozen_vision_keeps_the_groups(folder, tmp_path):
    """The vision encoder is the same after a step and after none; the projections and the text encoder move."""
    clip = Path(__file__).parents[2] / "model_cards" / "clip-toyscapes"
    more = ("--start_from_clip", str(clip), "--model_config", "small", "--validation_dataset_name", "none", "--freeze_vision")
    models = [
        run(parse_arguments(options(folder, tmp_path / rate, "--max_train_steps", "1", "--learning_rate", rate, *more)))
        for rate in ("1e-12", "1e-2")
    ]
    for part, moves in (("vision_model", False), ("text_model", True), ("visual_projection", True)):
        first, second = (dict(getattr(model.clip, part).named_parameters()) for model in models)
        assert any((first[name] - second[name]).abs().max() > 1e-4 for name in first) == moves, part


def test_concepts_stay_with_their_image(folder):
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "model_cards" / "clip-toyscapes")
    sample = {"image": torch.zeros(3, 8, 8, dtype=torch.uint8), "jitter": torch.zeros(3)}
    texts = [("a boat on the sea", ["a boat", "the sea"]), ("a tree", ["a tree", "the sky"])]
    samples = [{**sample, "caption": caption, "concepts": names, "concept_ids": [0, 1]} for caption, names in texts]
    batch = Collate(tokenizer, 8)(samples)
    read = [[tokenizer.decode(row, skip_special_tokens=True) for row in rows] for rows in batch["concept_input_ids"]]
    assert read == [["a boat", "the sea"], ["a tree", "the sky"]]
    assert tokenizer.batch_decode(batch["caption_input_ids"], skip_special_tokens=True) == ["a boat on the sea", "a tree"]


def test_captions_alone(folder, tmp_path):
    """Without curation there is one loss; the second temperature is not trained."""
    arguments = options(folder, tmp_path, "--max_train_steps", "1", "--validation_dataset_name", "none", "--sampling", "none")
    run(parse_arguments(arguments[2:]))
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert "caption" in line and "concepts" not in line


def test_background_needs_masks_with_background(folder, tmp_path):
    with pytest.raises(SystemExit, match="class 0 of the masks is 'sky'"):
        main(options(folder, tmp_path, "--background_threshold", "0.5"))


def test_sampling_needs_concepts(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(options(folder, tmp_path)[2:])
    assert "--sampling clustered needs --concepts" in capsys.readouterr().err


# -- texts of a step


def samples(folder: Path, tmp_path: Path, *more: str) -> CaptionsWithConcepts:
    args = parse_arguments(options(folder, tmp_path, *more))
    table = ConceptTable(args.concepts)
    source = {"limit": IMAGES, "seed": 0, "size": (32, 32), "omission_rate": 0.5, "closeup_rate": 0.0}
    return CaptionsWithConcepts(CachedCaptions(load_captions("toyscapes", "train", **source), 32, args.cache_dir), table, args)


def test_concepts_are_drawn_anew_in_each_epoch(folder, tmp_path):
    dataset = samples(folder, tmp_path)
    draws = [tuple(dataset[SampleKey(3, epoch, 0)]["concept_ids"]) for epoch in range(30)]
    assert len(set(draws)) > 3
    assert dataset[SampleKey(3, 7, 0)]["concepts"] == dataset[SampleKey(3, 7, 99)]["concepts"]
    names = dataset.table.names()
    for draw in draws:
        drawn = {names[concept] for concept in draw}
        assert len(drawn) == 3 and {"tree", "sky"} < drawn and drawn & {"boat", "sea"}  # one of each cluster


def test_missing_concepts_are_filled_with_the_caption(folder, tmp_path):
    dataset = samples(folder, tmp_path, "--sampling", "none")
    sample = dataset[SampleKey(0, 0, 0)]
    assert sample["concept_ids"][1:] == [-1, -1] and sample["concepts"][1:] == [sample["caption"]] * 2
    assert "sea" in sample["concepts"][0]


def test_an_image_is_not_contrasted_with_its_archive(folder, tmp_path):
    """The whole archive, drawn or not; padded to the longest of the table, so that processes can gather it."""
    dataset = samples(folder, tmp_path)
    assert dataset[SampleKey(0, 0, 0)]["archive_ids"] == [0, 1, 3, 2]  # boat, sea, tree, sky
    assert samples(folder, tmp_path, "--sampling", "none")[SampleKey(0, 0, 0)]["archive_ids"] == [1, -1, -1, -1]
    assert "archive_ids" not in samples(folder, tmp_path, "--contrast_archive")[SampleKey(0, 0, 0)]
    tokenizer = build_tokenizer(dataset.args, dataset.cache, dataset.table, ["lighthouse"])
    batch = Collate(tokenizer, 16)([dataset[SampleKey(index, 0, 0)] for index in range(3)])
    assert batch["archive_ids"].tolist() == 3 * [[0, 1, 3, 2]]


def test_collated_texts_keep_their_places(folder, tmp_path):
    dataset = samples(folder, tmp_path)
    tokenizer = build_tokenizer(dataset.args, dataset.cache, dataset.table, ["lighthouse"])
    batch = Collate(tokenizer, 16)([dataset[SampleKey(index, 0, 0)] for index in range(3)])
    assert batch["pixel_values"].shape == (3, 3, 16, 16) and batch["concept_ids"].shape == (3, 3)
    for index in range(3):
        sample = dataset[SampleKey(index, 0, 0)]
        assert tokenizer.decode(batch["caption_input_ids"][index], skip_special_tokens=True).split()[:1] == [
            sample["caption"].lower().replace("-", " - ").split()[0]
        ]
        assert batch["concept_ids"][index].tolist() == sample["concept_ids"]
    assert tokenizer.unk_token_id not in batch["concept_input_ids"]


# -- the table


def test_top_concepts_and_unknown_modes(tmp_path):
    table = ConceptTable(write_sidecar(tmp_path, {"a": ROW}))
    random = np.random.default_rng(0)
    assert table.sample("a", "top", 2, 1.0, random) == ["boat", "sea"]
    assert table.sample("a", "none", 3, 1.0, random) == ["sea"]
    assert table.names() == ["boat", "sea", "sky", "tree"] and table.id_of("sky") == 2
    with pytest.raises(ValueError, match="sampling must be one of"):
        table.sample("a", "best", 2, 1.0, random)


def test_samples_that_were_not_curated(tmp_path):
    table = ConceptTable(write_sidecar(tmp_path, {"a": ROW}))
    table.check(["a"], {})
    with pytest.raises(ValueError, match="2 of 3 samples have no concepts.*'b', 'c'"):
        table.check(["a", "b", "c"], {})


def test_row_numbers_of_another_data_set(tmp_path):
    """Without a key column, row 0 of any data set has the key "0": the data set itself must be the same."""
    write_sidecar(tmp_path / "concepts", {"0": ROW})
    (tmp_path / "manifest.json").write_text(json.dumps({"keyed_by": "row number", "source": {"fingerprint": "x"}}))
    with pytest.raises(ValueError, match="not finished"):
        ConceptTable(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"skipped": [{"row": 4, "key": "4", "error": "broken"}]}))
    table = ConceptTable(tmp_path)
    table.check(["0"], {"fingerprint": "x"})
    assert table.skipped_rows() == [4]
    with pytest.raises(ValueError, match="joined by row number"):
        table.check(["0"], {"fingerprint": "y"})


def test_no_concepts_and_double_keys(tmp_path):
    with pytest.raises(ValueError, match="holds no concepts"):
        ConceptTable(tmp_path)
    write_sidecar(tmp_path, {"a": ROW})
    (tmp_path / "more.parquet").write_bytes((tmp_path / "concepts.parquet").read_bytes())
    with pytest.raises(ValueError, match="1 keys occur more than once"):
        ConceptTable(tmp_path)


# -- sources


def test_a_row_without_a_caption_is_named(tmp_path):
    image = io.BytesIO()
    Image.new("RGB", (4, 4)).save(image, "PNG")
    rows = {"image": [{"bytes": image.getvalue(), "path": None}] * 2, "caption": ["a sea", None], "key": ["a", "b"]}
    columns = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.Value("string"), "key": datasets.Value("string")}
    )
    datasets.Dataset.from_dict(rows, features=columns).save_to_disk(tmp_path / "saved")
    source = load_captions(str(tmp_path / "saved"), "train")
    assert source[0]["captions"] == ["a sea"]
    with pytest.raises(ValueError, match="'b' has no caption"):
        _ = source[1]


def test_webdataset_shards(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as tar:
            for row in range(3):
                image = io.BytesIO()
                Image.new("RGB", (8, 8), (shard, row, 0)).save(image, "PNG")
                for suffix, content in (("png", image.getvalue()), ("txt", f"picture {row}\nof {shard}".encode())):
                    member = tarfile.TarInfo(f"{shard}{row}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    source = load_captions(str(tmp_path), "train")
    rows = {source[row]["key"]: source[row] for row in range(len(source))}
    assert sorted(rows) == ["00", "01", "02", "10", "11", "12"]
    assert rows["12"]["captions"] == ["picture 2\nof 1"] and rows["12"]["image"].getpixel((0, 0)) == (1, 2, 0)


def test_rows_left_out_by_curation_keep_their_keys(tmp_path):
    (tmp_path / "captions.tsv").write_text("image\tcaption\n" + "".join(f"{name}.png\ta {name}\n" for name in "abc"))
    for name in "abc":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    source = SelectedRows(load_captions(str(tmp_path), "train"), [1])
    assert [source[index]["key"] for index in range(len(source))] == ["a.png", "c.png"]
    assert source.description["skipped"] == [1]


def test_a_caption_file_without_its_columns(tmp_path):
    (tmp_path / "captions.csv").write_text("file,words\na.png,x\n")
    with pytest.raises(ValueError, match="columns must be image and caption.*'file', 'words'"):
        load_captions(str(tmp_path), "train")


def save_photos(folder: Path) -> tuple[Path, Path]:
    """The same pictures with captions, and with masks."""
    generator, names = np.random.default_rng(0), ["sky", "boat", "grass"]
    captioned, masked = folder / "captioned", folder / "masked"
    for part in (captioned / "images", masked / "images" / "validation", masked / "masks" / "validation"):
        part.mkdir(parents=True)
    rows = ["image,caption"]
    for number in range(12):
        mask = np.full((32, 32), number % 3, dtype=np.uint8)
        mask[16:] = (number + 1) % 3
        picture = Image.fromarray(np.uint8(60 * mask[..., None] + generator.integers(0, 40, (32, 32, 3))))
        picture.save(captioned / "images" / f"{number}.png")
        rows.append(f"{number}.png,a {names[number % 3]} and a {names[(number + 1) % 3]}")
        if number < 4:
            picture.save(masked / "images" / "validation" / f"{number}.png")
            Image.fromarray(mask).save(masked / "masks" / "validation" / f"{number}.png")
    (captioned / "captions.csv").write_text("\n".join(rows))
    (masked / "classes.txt").write_text("\n".join(names))
    return captioned, masked


def test_driver_takes_any_clip_and_data_set(folder, tmp_path, monkeypatch):
    captioned, masked = save_photos(tmp_path)
    common = [
        "--output_dir",
        str(tmp_path / "runs"),
        "--dataset_name",
        str(captioned),
        "--test_dataset_name",
        str(masked),
        "--seeds",
        "0",
    ]
    training = [
        "training", *common, "--clip", str(save_tiny_clip(tmp_path / "clip")), "--images", "12", "--curation_options",
        "--min_count 2 --num_neighbours 4", "--training_options", f"--model_config {folder / 'model.json'} --image_size 32",
        "--train_batch_size 4 --max_train_steps 2 --checkpointing_steps 2 --warmup_steps 1 --mixed_precision no",
    ]  # fmt: skip
    driver.main([*training, "--only", "CoCu", "CoCu, archive contrasted"])
    driver.main(["groups", *common])
    for variant in ("CoCu", "CoCu-archive-contrasted"):
        run_folder = tmp_path / "runs" / "training" / "noise" / f"{variant}-0"
        assert json.loads((run_folder / "scores.json").read_text())["figures"].keys() == {"mIoU"}
        assert 0 <= json.loads((run_folder / "groups.json").read_text())["figures"]["image recall"] <= 1
        assert list(CocuForSemanticSegmentation.from_pretrained(run_folder / "final").config.id2label.values()) == [
            "sky",
            "boat",
            "grass",
        ]
    monkeypatch.setattr("training.train_cocu.main", lambda _: pytest.fail("a finished run is done again"))
    driver.main([*training, "--only", "CoCu"])
    for wrong in (["--only", "oracle concepts"], ["--only", "CoCu, closed vocabulary"]):
        with pytest.raises(SystemExit, match="of Toyscapes"):
            driver.main([*training, *wrong])
    with pytest.raises(SystemExit, match="ground truth"):
        driver.main(["curation", *common])
