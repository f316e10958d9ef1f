"""`hf-clipseg` as a person types it: right files, right ids, and one line for every mistake."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from PIL import Image

from hf_clipseg import MaskClipForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.bulk import picture_stream
from hf_clipseg.bulk.picture_folders import find_pictures
from hf_clipseg.checkpoints import SHIPPED
from hf_clipseg.cli import main
from hf_clipseg.clip.class_files import read_class_file
from hf_clipseg.drawing.label_files import index_picture, label_record
from hf_clipseg.processing.inference import segment

from .tiny import save_tiny_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return str(save_tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_segment_writes_what_the_library_computes(clip, photo, tmp_path):
    output = tmp_path / "out"
    assert main(["segment", str(photo), "--classes", "sky, boat|ship", "--model", clip, "--output", str(output)]) == 0
    assert sorted(file.name for file in output.glob("[!.]*")) == ["photo.json", "photo.labels.png", "photo.overlay.png"]
    model = MaskClipForSemanticSegmentation.from_clip(clip, attention_variant="naclip").eval()
    processor = SegmentationProcessor.from_clip(clip)
    with torch.no_grad():
        (expected,) = segment(model, processor, [photo], [["sky"], ["boat", "ship"]])
    written = np.asarray(Image.open(output / "photo.labels.png"))
    np.testing.assert_array_equal(written, expected)
    record = json.loads((output / "photo.json").read_text())
    assert [entry["name"] for entry in record["classes"]] == ["sky", "boat"]
    assert record["classes"][1]["synonyms"] == ["ship"]
    assert [entry["area"] for entry in record["classes"]] == pytest.approx([(expected == k).mean() for k in (0, 1)], abs=1e-6)
    assert Image.open(output / "photo.overlay.png").size == (56, 40)


def test_windows_stitched_exactly_and_own_templates(clip, photo, tmp_path):
    (tmp_path / "templates.txt").write_text("# two\na {}\na photo of the {}\n")
    options = ["--window", "24", "--stride", "10", "--output_stride", "1", "--templates", str(tmp_path / "templates.txt")]
    command = ["segment", str(photo), "--classes", "sky, boat", "--model", clip, "--output", str(tmp_path / "out")]
    assert main([*command, *options]) == 0
    model = MaskClipForSemanticSegmentation.from_clip(clip, attention_variant="naclip").eval()
    (expected,) = segment(
        model, SegmentationProcessor.from_clip(clip), [photo], [["sky"], ["boat"]], window=24, stride=10, output_stride=1,
        templates=["a {}", "a photo of the {}"],
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/photo.labels.png")), expected)
    assert main([*command, "--templates", "nothing.txt"]) == 1


def test_a_folder_keeps_its_shape_and_a_broken_picture_does_not_stop_it(clip, tmp_path, capsys):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "a.jpg", "sub/a.png"):
        Image.new("RGB", (20, 20), "red").save(folder / name)
    (folder / "b.png").write_bytes(b"no picture")
    output = tmp_path / "out"
    assert main(["segment", str(folder), "--classes", "sky, grass", "--model", clip, "--output", str(output)]) == 1
    found = sorted(file.relative_to(output).as_posix() for file in output.rglob("[!.]*.json"))
    assert found == ["a.json", "a.png.json", "sub/a.json"]
    error = capsys.readouterr().err
    assert f"left out: {folder / 'b.png'} is no image" in error and error.count("b.png") == 1


def test_results_amid_the_pictures_are_no_pictures(clip, photo, capsys):
    words = ["segment", str(photo.parent), "--classes", "sky, sea", "--model", clip]
    for _ in range(2):
        assert main([*words, "--output", str(photo.parent / "segmented")]) == 0
    assert capsys.readouterr().out.count(": 1 picture, 2 classes, ") == 2
    assert main([*words, "--output", str(photo.parent)]) == 1
    assert "is the folder of the pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["segment", "nowhere.jpg", "--classes", "a, b"], "There is no file or folder nowhere.jpg"),
        (["segment", "PHOTO"], "pass --classes"),
        (["segment", "PHOTO", "--classes", "a, b", "--opacity", "2"], "--opacity is 2.0"),
        (["segment", "PHOTO", "--classes", "a, a"], "'a' is given twice"),
        (["segment", "PHOTO", "--classes", "voc.tx"], "There is no class file voc.tx"),
        (["segment", "PHOTO", "--classes", "a, b", "--device", "gpu"], "--device gpu cannot be used on this machine"),
        (["segment", "PHOTO", "--classes", "a, b", "--model", "mask-clip-toyscape"], "Did you mean mask-clip-toyscapes"),
        (["segment", "PHOTO", "--classes", "a, b", "--model", "zzz"], "There is no model zzz"),
        (["segment", "PHOTO", "--classes", "a, b", "--output", "PHOTO"], "photo.png is a file; name a folder"),
        (["models", "nowhere"], "There is no folder nowhere"),
    ],
)
def test_a_mistake_ends_in_one_line(arguments, said, clip, photo, tmp_path, capsys):
    arguments = [str(photo) if argument == "PHOTO" else argument for argument in arguments]
    if arguments[0] == "segment":
        arguments[1:1] = ["--model", clip, "--output", str(tmp_path / "out")]  # what follows wins
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_models_lists_the_shipped_ones_and_those_of_a_folder(tmp_path, capsys):
    assert main(["models", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "mask-clip-toyscapes" in said and "30 classes" in said and "none of this package's" in said
    shipped = next(line for line in said.splitlines() if "mask-clip-toyscapes" in line)
    assert main(["models", str(SHIPPED / "mask-clip-toyscapes")]) == 0
    assert capsys.readouterr().out.splitlines().count(shipped) == 2


def test_without_shipped_checkpoints_it_says_where_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hf_clipseg.cli.SHIPPED", tmp_path)
    assert main(["models"]) == 0
    assert "model_cards" in capsys.readouterr().out


def test_pictures_of_one_name_from_two_folders_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / folder / "x.png")
    with pytest.raises(ValueError, match="one name"):
        find_pictures(
            [str(tmp_path / "a" / "x.png"), str(tmp_path / "b" / "x.png"), str(tmp_path / "b" / "x.png")], tmp_path / "out"
        )


def test_pixel_values_are_class_ids_whatever_their_number():
    label_map = np.array([[0, 1], [2, 255]])
    picture = index_picture(label_map, ["a", "b", "c"])
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.asarray(picture), label_map)
    many = np.array([[0, 299]])
    np.testing.assert_array_equal(np.asarray(index_picture(many, [f"class {i}" for i in range(300)])), many)
    with pytest.raises(ValueError, match=r"ids 3\.\.3, but there are 3 classes"):
        index_picture(np.array([[3]]), ["a", "b", "c"])


def test_the_record_counts_labelled_pixels_only():
    record = label_record(np.array([[0, 0], [1, 255]]), [["sky"], ["boat", "ship"]])
    assert [(entry["id"], entry["name"], entry["area"]) for entry in record["classes"]] == [
        (0, "sky", pytest.approx(2 / 3, abs=1e-6)),
        (1, "boat", pytest.approx(1 / 3, abs=1e-6)),
    ]


@pytest.fixture
def album(tmp_path):
    """Four pictures of two sizes in a folder and its sub-folder."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 56, 3), dtype=np.uint8)
    (tmp_path / "album" / "sub").mkdir(parents=True)
    for number, name in enumerate(("a", "b", "sub/c", "sub/d")):
        Image.fromarray(pixels[number, :, : 56 - 16 * (number % 2)]).save(tmp_path / "album" / f"{name}.png")
    return tmp_path / "album"


def label_maps_of(paths, clip):
    model = MaskClipForSemanticSegmentation.from_clip(clip, attention_variant="naclip").eval()
    return [segment(model, SegmentationProcessor.from_clip(clip), [path], ["sky", "boat"])[0] for path in paths]


def rows_of(folder) -> dict:
    return {row["key"]: row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()}


@pytest.mark.parametrize("processes", [1, 2])
def test_tables_of_a_folder(clip, album, tmp_path, monkeypatch, processes):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        words = ["--classes", "sky, boat", "--model", clip, "--output", str(tmp_path / "out"), "--format", "parquet"]
        assert main(["segment", str(album), *words]) == 0
    assert len(list((tmp_path / "out").glob("*.parquet"))) == processes
    rows, keys = rows_of(tmp_path / "out"), ["a", "b", "sub/c", "sub/d"]
    assert sorted(rows) == keys
    for key, expected in zip(keys, label_maps_of([album / f"{key}.png" for key in keys], clip), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(rows[key]["label_map"]["bytes"]))), expected)


@pytest.mark.parametrize("format", ["pictures", "labels", "parquet"])
def test_a_run_that_was_broken_off_repeats_nothing(clip, album, tmp_path, monkeypatch, capsys, format):
    command = ["segment", str(album), "--model", clip, "--output", str(tmp_path / "out"), "--format", format, "--workers", "1"]
    command += ["--classes", "sky, boat"]
    opened = []
    plain = picture_stream.load_image

    def load_two(source):
        if len(opened) == 2:
            raise KeyboardInterrupt
        opened.append(source)
        return plain(source)

    with monkeypatch.context() as patch:
        patch.setattr(picture_stream, "load_image", load_two)
        assert main(command) == 130
    assert "--resume goes on" in capsys.readouterr().err
    segmented = []
    monkeypatch.setattr(picture_stream, "load_image", lambda source: (segmented.append(source.stem), plain(source))[1])
    assert main([*command, "--resume"]) == 0
    assert 2 <= len(segmented) <= 3 and "a" not in segmented  # the second may have been under way
    assert "were done before" in capsys.readouterr().out or len(segmented) == 3
    if format == "parquet":
        assert sorted(rows_of(tmp_path / "out")) == ["a", "b", "sub/c", "sub/d"]
    else:
        assert len(list((tmp_path / "out").rglob("*.labels.png"))) == 4
        assert len(list((tmp_path / "out").rglob("*.overlay.png"))) == (4 if format == "pictures" else 0)
    assert main([*command, "--resume", "--classes", "sky, sea"]) == 1
    assert "was begun with another classes" in capsys.readouterr().err


def test_a_column_of_a_data_set(clip, album, tmp_path, capsys):
    pictures = [Image.open(album / f"{name}.png") for name in ("a", "b")]
    Dataset.from_dict({"photo": pictures, "name": ["first", "../second"]}).save_to_disk(tmp_path / "data")
    words = ["--dataset_name", str(tmp_path / "data"), "--image_column", "photo", "--classes", "sky, boat", "--model", clip]
    assert main(["segment", *words, "--output", str(tmp_path / "numbers"), "--format", "labels"]) == 0
    for number, expected in enumerate(label_maps_of([album / "a.png", album / "b.png"], clip)):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"numbers/{number}.labels.png")), expected)
    assert read_class_file(tmp_path / "numbers/classes.txt") == [["sky"], ["boat"]]
    named = ["--output", str(tmp_path / "names"), "--key_column", "name"]
    assert main(["segment", *words, *named, "--format", "parquet"]) == 0
    assert sorted(rows_of(tmp_path / "names")) == ["../second", "first"]
    capsys.readouterr()
    for options, said in [
        ([*named, "--format", "labels"], "'../second' is no file name below"),
        ([*named, "--image_column", "picture"], "has no column 'picture'; its columns are photo, name"),
        ([*named, str(album)], "one of them, and not both"),
    ]:
        assert main(["segment", *words, *options]) == 1
        error = capsys.readouterr().err
        assert said in error and error.count("error: ") == 1
    assert not (tmp_path / "second.labels.png").exists()
