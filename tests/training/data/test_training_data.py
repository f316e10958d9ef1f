"""Every shape of data set that users bring, made here in small: columns, class names, mask encodings, folders, captions."""

import hashlib
import json

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from training.data.caption_cache import CachedCaptions
from training.data.columns import find_column
from training.data.masks import MaskReader, voc_palette
from training.data.presets import ADE20K_CLASSES, PRESETS
from training.data.sources import load_captions, load_source

IDS = np.array([[0, 1, 2], [2, 1, 255]], dtype=np.uint8)


def picture(height=2, width=3, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def coloured(ids, palette, border=(224, 224, 192)):
    colours = {**dict(enumerate(palette)), 255: border}
    return Image.fromarray(np.array([[colours[value] for value in row] for row in ids.tolist()], dtype=np.uint8))


def parquet_folder(tmp_path, features, rows, split="train"):
    folder = tmp_path / "export"
    folder.mkdir()
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(folder / f"{split}-00000.parquet")
    return str(folder)


def parallel_folders(tmp_path, masks, size=(2, 3)):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for index, mask in enumerate(masks):
        picture(*size, seed=index).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{index}.png")
    return str(tmp_path)


# ---- masks


def palette_image(ids):
    image = Image.fromarray(ids, mode="L").convert("P")
    image.putdata(ids.ravel().tolist())
    image.putpalette([channel for colour in voc_palette(21) for channel in colour])
    return image


@pytest.mark.parametrize(
    "image, kind",
    [
        (Image.fromarray(IDS), "an image of ids"),
        (palette_image(IDS), "a palette image of ids"),
        (Image.fromarray(np.stack([IDS] * 3, -1)), "three equal channels of ids"),
        (coloured(IDS, voc_palette()), "colours of the colour map"),
        (coloured(IDS, voc_palette(), (255, 255, 255)), "colours of the colour map"),
    ],
)  # fmt: skip
def test_every_encoding_of_a_mask_gives_the_same_ids(image, kind, tmp_path):
    image.save(tmp_path / "mask.png")
    reader = MaskReader(num_classes=3, colour_map=voc_palette())
    np.testing.assert_array_equal(reader(str(tmp_path / "mask.png"), "a"), IDS.astype(np.int64))
    assert reader.kinds == {kind}


def test_sixteen_bit_ids_survive():
    wide = np.array([[0, 300], [1000, 2]], dtype=np.uint16)
    np.testing.assert_array_equal(MaskReader()(Image.fromarray(wide), "a"), wide.astype(np.int64))


def test_voc_palette_is_the_published_one():
    assert voc_palette()[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert voc_palette()[15] == (192, 128, 128) and voc_palette()[20] == (0, 64, 128)
    assert len(set(voc_palette(256))) == 256


def test_grey_class_of_voc_is_read_as_a_colour_not_as_an_id():
    bus_only = coloured(np.full((2, 2), 7, dtype=np.uint8), voc_palette())  # (128, 128, 128): three equal channels
    assert (MaskReader(21, voc_palette())(bus_only, "a") == 7).all()


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_colour_masks_round_trip(ids):
    ids = np.array([ids], dtype=np.uint8)
    np.testing.assert_array_equal(MaskReader(21, voc_palette())(coloured(ids, voc_palette()), "a"), ids)


def test_relabelling():
    np.testing.assert_array_equal(MaskReader(reduce_labels=True)(Image.fromarray(IDS), "a"), [[255, 0, 1], [1, 0, 255]])
    np.testing.assert_array_equal(MaskReader(ignore_label=2)(Image.fromarray(IDS), "a"), [[0, 1, 255], [255, 1, 255]])
    mapped = MaskReader(id_map={0: 255, 1: 0, 2: 5})(Image.fromarray(IDS), "a")
    np.testing.assert_array_equal(mapped, [[255, 0, 5], [5, 0, 255]])


@pytest.mark.parametrize(
    "reader, image, words",
    [
        (MaskReader(num_classes=2), Image.fromarray(IDS), ["'k7'", "[2]", "2 classes"]),
        (MaskReader(id_map={0: 0, 1: 1}), Image.fromarray(IDS), ["'k7'", "[2]", "id map"]),
        (MaskReader(), coloured(IDS, voc_palette()), ["'k7'", "no colour map"]),
        (MaskReader(3, voc_palette(3)), coloured(np.full((1, 1), 9, np.uint8), voc_palette()), ["(192, 0, 0)", "not in"]),
        (MaskReader(), b"", ["'k7'", "cannot be read"]),
        (MaskReader(), 3, ["'k7'", "int"]),
    ],
)  # fmt: skip
def test_masks_that_cannot_be_right_are_refused(reader, image, words):
    with pytest.raises(ValueError) as error:
        reader(image, "k7")
    assert all(word in str(error.value) for word in words), str(error.value)


# ---- columns and class names


def test_columns_are_found_by_their_usual_names():
    assert find_column(["pixel_values", "label"], "image") == "pixel_values"
    assert find_column(["image", "semantic_segmentation"], "mask") == "semantic_segmentation"
    assert find_column(["a", "b"], "caption", "b") == "b"


@pytest.mark.parametrize(
    "columns, kind, chosen, words",
    [
        (["a", "b"], "image", None, ["no column", "'a', 'b'", "--image_column"]),
        (["mask", "label", "x"], "mask", None, ["several", "'mask', 'label'", "'x'"]),
        (["image"], "image", "picture", ["'picture' does not exist", "'image'"]),
    ],
)  # fmt: skip
def test_column_errors_list_what_exists(columns, kind, chosen, words):
    with pytest.raises(ValueError) as error:
        find_column(columns, kind, chosen)
    assert all(word in str(error.value) for word in words), str(error.value)


# ---- sources


def test_toyscapes_masks_are_labelled_everywhere():
    source = load_source("toyscapes", "validation", limit=3, size=(48, 64))
    sample = source[1]
    assert sample["image"].size == (64, 48) and sample["mask"].shape == (48, 64) and sample["mask"].dtype == np.int64
    assert sample["mask"].max() < len(source.class_names) and len(source) == 3
    assert len({source[index]["key"] for index in range(3)}) == 3


def test_parallel_folders(tmp_path):
    folder = parallel_folders(tmp_path, [IDS, IDS[::-1]])
    (tmp_path / "classes.txt").write_text("sky\nsea, ocean\nsand|beach\n")
    source = load_source(folder, "train")
    assert source.class_synonyms == [["sky"], ["sea", "ocean"], ["sand", "beach"]]
    assert source.class_names == ["sky", "sea", "sand"] and [source[i]["key"] for i in range(2)] == ["0", "1"]
    np.testing.assert_array_equal(source[1]["mask"], IDS[::-1])
    np.testing.assert_array_equal(np.asarray(source[0]["image"]), np.asarray(picture()))


def test_an_image_without_a_mask_is_named(tmp_path):
    folder = parallel_folders(tmp_path, [IDS])
    picture().save(tmp_path / "images" / "lonely.png")
    with pytest.raises(ValueError, match="lonely"):
        load_source(folder, "train")


def test_mask_of_another_size_is_an_error_with_both_sizes(tmp_path):
    source = load_source(parallel_folders(tmp_path, [IDS], size=(4, 5)), "train")
    with pytest.raises(ValueError, match=r"'0' differ.*\(4, 5\) and \(2, 3\)"):
        source[0]


def test_imagefolder_with_a_mask_column(tmp_path):
    split = tmp_path / "train"
    (split / "m").mkdir(parents=True)
    picture().save(split / "a.png")
    Image.fromarray(IDS).save(split / "m" / "a.png")
    (split / "metadata.csv").write_text("file_name,mask_file_name\na.png,m/a.png\n")
    np.testing.assert_array_equal(load_source(str(tmp_path), "train")[0]["mask"], IDS)


@pytest.mark.parametrize("shape", ["sidewalk", "voc", "ade"])
def test_parquet_folders_in_the_shape_of_hub_sets(tmp_path, shape):
    image, none = datasets.Image(), None
    columns, mask, options, expected = {
        "sidewalk": (("pixel_values", "label"), Image.fromarray(IDS), {"reduce_labels": True}, [[255, 0, 1], [1, 0, 255]]),
        "voc": (("image", "mask"), Image.fromarray(np.stack([IDS] * 3, -1)), {}, IDS),
        "ade": (("image", "annotation"), Image.fromarray(IDS), {"ignore_label": 0}, [[255, 1, 2], [2, 1, 255]]),
    }[shape]
    folder = parquet_folder(tmp_path, dict.fromkeys(columns, image), [{columns[0]: picture(), columns[1]: mask}])
    source = load_source(folder, "train", **options)
    assert source.class_names is none
    np.testing.assert_array_equal(source[0]["mask"], expected)


def test_exported_toyscapes_reads_like_toyscapes(tmp_path):
    from hf_clipseg.toyscapes import load_toyscapes

    data = load_toyscapes("test", size=(32, 40), num_samples=3, seed=4, cache_dir=str(tmp_path / "cache"))
    (tmp_path / "export").mkdir()
    data.to_parquet(tmp_path / "export" / "test-00000.parquet")
    exported, drawn = (
        load_source(str(tmp_path / "export"), "test"),
        load_source("toyscapes", "test", limit=3, seed=4, size=(32, 40)),
    )
    assert list(exported.class_names) == list(drawn.class_names)
    for index in range(3):
        np.testing.assert_array_equal(exported[index]["mask"], drawn[index]["mask"])
        np.testing.assert_array_equal(np.asarray(exported[index]["image"]), np.asarray(drawn[index]["image"]))
        assert exported[index]["key"] == drawn[index]["key"]


def test_unknown_split_lists_those_that_exist(tmp_path):
    folder = parquet_folder(
        tmp_path, {"image": datasets.Image(), "mask": datasets.Image()}, [{"image": picture(), "mask": picture()}]
    )
    with pytest.raises(ValueError, match="no split 'test'.*'train'"):
        load_source(folder, "test")


def test_corrupt_image_is_reported_by_its_key(tmp_path):
    folder = parallel_folders(tmp_path, [IDS])
    (tmp_path / "images" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(ValueError, match="image '0'"):
        load_source(folder, "train")[0]


def test_limit_draws_the_same_rows_for_the_same_seed(tmp_path):
    folder = parallel_folders(tmp_path, [IDS] * 6)
    keys = [[s["key"] for s in load_source(folder, "train", limit=3, seed=seed)] for seed in (1, 1, 2)]
    assert keys[0] == keys[1] != keys[2] and len(keys[0]) == 3


def test_streaming_reads_the_first_rows_and_needs_a_limit(tmp_path):
    rows = [{"image": picture(seed=index), "caption": f"number {index}"} for index in range(4)]
    folder = parquet_folder(tmp_path, {"image": datasets.Image(), "caption": datasets.Value("string")}, rows)
    streamed = load_captions(folder, "train", streaming=True, limit=2)
    assert [streamed[index]["captions"] for index in range(len(streamed))] == [["number 0"], ["number 1"]]
    np.testing.assert_array_equal(np.asarray(streamed[1]["image"]), np.asarray(picture(seed=1)))
    with pytest.raises(ValueError, match="limit"):
        load_captions(folder, "train", streaming=True)


def test_a_stream_is_divided_by_keys_alone(tmp_path):
    """Whatever number of rows is read for training and for validation, none is in both, and none is lost."""
    features = {"image": datasets.Image(), "caption": datasets.Value("string"), "key": datasets.Value("string")}
    rows = [{"image": picture(seed=index), "caption": "a boat", "key": f"photo {index}.jpg"} for index in range(30)]
    folder = parquet_folder(tmp_path, features, rows)

    def keys(split, limit):
        source = load_captions(folder, split, streaming=True, limit=limit, validation_fraction=0.3)
        return [source[index]["key"] for index in range(len(source))]

    digests = {row["key"]: hashlib.sha256(f"0/{row['key'].removesuffix('.jpg')}".encode()).digest() for row in rows}
    held = [key for key, digest in digests.items() if digest[0] < 0.3 * 256]
    assert 3 < len(held) < 15 and keys("validation", 9) == held  # 9 / 0.3: all 30 rows are looked at
    assert keys("train", 30) == [key for key in digests if key not in held]
    assert keys("train", 20) == [key for key in list(digests)[:20] if key not in held]
    with pytest.raises(ValueError, match="leaves a part without images: raise --limit"):
        load_captions(folder, "train", streaming=True, limit=5, validation_fraction=0.999)


def test_streamed_rows_are_kept_on_disk_and_found_again(tmp_path):
    """Random access without rows in memory: what exact resumption needs."""

    def write(offset):
        rows = [{"image": picture(seed=offset + index), "caption": f"number {offset + index}"} for index in range(4)]
        features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
        datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "train-00000.parquet")

    def streamed(limit):
        return load_captions(str(tmp_path), "train", streaming=True, limit=limit)

    write(0)
    first, again, longer = streamed(2), streamed(2), streamed(3)
    assert first.dataset.cache_files and first.dataset.cache_files == again.dataset.cache_files
    assert first.description == again.description != longer.description and len(longer) == 3
    np.testing.assert_array_equal(np.asarray(longer[2]["image"]), np.asarray(picture(seed=2)))
    write(5)
    changed = streamed(2)
    assert changed[0]["captions"] == ["number 5"] and changed.description != first.description


def test_presets_have_as_many_names_as_ids():
    assert len(set(ADE20K_CLASSES)) == 150
    id_map = PRESETS["cityscapes_label_ids"].id_map
    assert sorted(set(id_map.values())) == [*range(19), 255] and id_map[7] == 0 and id_map[33] == 18


# ---- captions and their cache


def caption_folder(tmp_path, captions):
    rows = [{"image": picture(40, 60, seed=index), "caption": caption} for index, caption in enumerate(captions)]
    kind = datasets.Value("string") if isinstance(captions[0], str) else datasets.Sequence(datasets.Value("string"))
    return parquet_folder(tmp_path, {"image": datasets.Image(), "caption": kind}, rows)


def test_cache_holds_square_images_and_all_captions(tmp_path):
    source = load_captions(caption_folder(tmp_path, [["a sea", "water"], ["sand", "a beach"]]), "train")
    cache = CachedCaptions(source, 16, tmp_path / "cache", num_processes=1)
    assert cache.captions == [["a sea", "water"], ["sand", "a beach"]]
    assert cache.images.shape == (2, 16, 16, 3)
    middle = source[1]["image"].crop((10, 0, 50, 40)).resize((16, 16), Image.Resampling.BOX)
    np.testing.assert_array_equal(cache.images[1], np.asarray(middle))


def test_cache_is_reused_for_equal_content_and_not_for_other_content(tmp_path):
    def names():
        return sorted(path.name for path in (tmp_path / "cache").iterdir())

    def build(**options):
        source = load_captions(
            "toyscapes", "train", limit=3, size=(16, 16), **{"omission_rate": 0.0, "closeup_rate": 0.5, **options}
        )
        return CachedCaptions(source, 16, tmp_path / "cache", num_processes=1)

    first = build()
    before = names()
    np.testing.assert_array_equal(build().images, first.images)
    assert names() == before and len(before) == 1
    build(omission_rate=0.5)
    assert len(names()) == 2
    assert json.loads((first.path / "description.json").read_text())["omission_rate"] == 0.0


def test_two_builders_of_one_cache_do_not_fail(tmp_path):
    """The slower one finds a complete cache where it wants to put its own, and uses that."""
    source = load_captions("toyscapes", "train", limit=2, size=(16, 16), omission_rate=0.0, closeup_rate=0.0)
    cache = CachedCaptions(source, 16, tmp_path, num_processes=1)
    cache._build(source, {}, 1)
    assert [path.name for path in tmp_path.iterdir()] == [cache.path.name]
    assert len(CachedCaptions(source, 16, tmp_path).captions) == 2
