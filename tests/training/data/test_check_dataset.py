"""The check of a data set: what it finds, and the command that it ends with."""

import shlex

import numpy as np
import pytest
from PIL import Image

from training.check_dataset import main
from training.data.file_checks import check_files, check_some_masks, label_table
from training.data.sources import load_source

IDS = np.array([[0, 1, 2], [2, 1, 255]], dtype=np.uint8)


def folder_of(tmp_path, masks, names="sky\nsea\nsand\n"):
    """A flat folder with these masks and a photograph of the same size for each."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    for index, mask in enumerate(masks):
        pixels = np.random.default_rng(index).integers(0, 256, (*np.asarray(mask).shape[:2], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
        image = mask if isinstance(mask, Image.Image) else Image.fromarray(np.asarray(mask, dtype=np.uint8))
        image.save(tmp_path / "masks" / f"{index}.png")
    if names:
        (tmp_path / "classes.txt").write_text(names)
    return tmp_path


def check(capsys, folder, *options):
    """(exit status, what was printed, the words of the training command)."""
    status = 0
    try:
        main([str(folder), "--picture", str(folder / "picture.png"), *options])
    except SystemExit as end:
        status = end.code
    printed = capsys.readouterr().out
    command = next((line for line in printed.splitlines() if line.startswith("python -m")), "")
    return status, printed, shlex.split(command)


def value_of(command, flag):
    return command[command.index(flag) + 1]


def test_table_counts_stored_and_relabelled_pixels(tmp_path):
    source = load_source(str(folder_of(tmp_path, [IDS])), "train", reduce_labels=True)
    lines = label_table(source, check_files(source))
    assert [line.split()[:4] for line in lines[1:-1]] == [
        ["0", "->", "255", "16.67%"], ["1", "->", "0", "33.33%"], ["2", "->", "1", "33.33%"], ["255", "->", "255", "16.67%"],
    ]  # fmt: skip
    assert lines[-1] == "ignored: 33.33%"


def test_a_set_without_faults(tmp_path, capsys):
    folder = folder_of(tmp_path, [IDS, IDS[::-1]])
    status, printed, command = check(capsys, folder)
    assert status == 0 and "nothing wrong was found" in printed
    assert value_of(command, "--dataset_name") == str(folder) and value_of(command, "--split") == "train"
    assert value_of(command, "--validation_fraction") == "0.1" and "--ignore_label" not in command
    assert Image.open(folder / "picture.png").size == (3, 2)


def test_every_file_is_read_and_what_is_wrong_is_named_by_kind(tmp_path, capsys):
    masks = [np.random.default_rng(index).integers(0, 3, (6, 8)) for index in range(60)]
    folder = folder_of(tmp_path, masks)
    broken = folder / "images" / "57.png"
    broken.write_bytes(broken.read_bytes()[:60])
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(folder / "masks" / "58.png")
    (folder / "masks" / "59.png").unlink()
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(folder / "masks" / "59.jpg")
    (folder / "masks" / "7.png").write_bytes(b"nothing")
    status, printed, _ = check(capsys, folder)
    assert status == 1
    for line in ("broken image, 1 of 60: 57", "another size than its image, 1 of 60: 58 (image (6, 8), mask (3, 4)",
                 "JPEG mask, 1 of 60: 59", "mask that cannot be read, 1 of 60: 7"):  # fmt: skip
        assert line in printed, printed
    with pytest.raises(ValueError, match="'59' is a JPEG"):
        source = load_source(str(folder), "train")
        source[next(index for index in range(60) if source.stored(index)[0] == "59")]


def test_binary_masks_whose_foreground_would_be_ignored(tmp_path, capsys):
    folder = folder_of(tmp_path, [np.array([[0, 255], [255, 255]])], "background\nboat\n")
    status, printed, command = check(capsys, folder)
    assert status == 1 and "foreground would be ignored" in printed
    answer = value_of(command, "--id_map")
    np.testing.assert_array_equal(load_source(str(folder), "train", id_map=answer)[0]["mask"], [[0, 1], [1, 1]])
    assert check(capsys, folder, "--id_map", answer)[0] == 0


def test_a_run_ends_before_its_first_step_where_masks_cannot_be_right(tmp_path, caplog):
    """The last of many masks is among those that are looked at; black and white ones are warned of."""
    folder = folder_of(tmp_path / "label", [*[np.zeros((2, 2))] * 30, np.full((2, 2), 7)])
    (folder / "masks" / "30.png").rename(folder / "masks" / "99.png")
    (folder / "images" / "30.png").rename(folder / "images" / "99.png")
    with pytest.raises(ValueError, match=r"'99' holds the labels \[7\]"):
        check_some_masks(load_source(str(folder), "train"))
    folder = folder_of(tmp_path / "binary", [np.array([[0, 255], [255, 255]])] * 3)
    check_some_masks(load_source(str(folder), "train"))
    assert "--id_map 0:0,255:1" in caplog.text


def test_a_label_that_no_class_has_is_answered_by_the_ignore_label(tmp_path, capsys):
    folder = folder_of(tmp_path, [[[0, 1, 2], [3, 1, 3]]])
    status, printed, command = check(capsys, folder)
    assert status == 1 and "labels that no class has: [3] (33.33%" in printed and "OUT OF RANGE" in printed
    assert value_of(command, "--ignore_label") == "3"
    status, printed, command = check(capsys, folder, "--ignore_label", "3")
    assert status == 0 and value_of(command, "--ignore_label") == "3" and "3 ->  255" in printed


def test_labels_that_count_from_1_are_answered_by_reducing_them(tmp_path, capsys):
    folder = folder_of(tmp_path, [[[1, 3, 2], [3, 1, 255]]])
    status, printed, command = check(capsys, folder)
    assert status == 1 and "count from 1" in printed and "--reduce_labels" in command and "--ignore_label" not in command
    assert check(capsys, folder, "--reduce_labels")[0] == 0


def test_several_labels_without_a_class_are_answered_by_an_id_map(tmp_path, capsys):
    folder = folder_of(tmp_path, [[[0, 1, 2], [30, 1, 40]]])
    _, _, command = check(capsys, folder)
    answer = value_of(command, "--id_map")
    np.testing.assert_array_equal(load_source(str(folder), "train", id_map=answer)[0]["mask"], [[0, 1, 2], [255, 1, 255]])


def test_names_palettes_twins_and_void(tmp_path, capsys):
    assert "write 3 names, one per line" in check(capsys, folder_of(tmp_path / "unnamed", [IDS], None))[1]
    folder = folder_of(tmp_path / "void", [IDS], "sky\nsea\nvoid\ncar\n")
    assert "'void' would be learnt" in (printed := check(capsys, folder)[1]) and "--ignore_label 2" in printed
    folder = folder_of(tmp_path / "unused", [IDS], "sky\nsea\nsand\ncar\n")
    assert "1 classes occur in no mask: car" in check(capsys, folder)[1]
    palettes = [Image.frombytes("P", (3, 2), IDS.tobytes()) for _ in range(2)]
    for shift, image in enumerate(palettes):
        image.putpalette([(value // 3 + shift) % 256 for value in range(768)])
    status, printed, _ = check(capsys, folder_of(tmp_path / "palettes", palettes))
    assert status == 1 and "label 0 has the colour (0, 0, 0) in 0 and (1, 1, 1) in 1" in printed


def test_masks_stored_as_colours_get_a_draft_of_their_map(tmp_path, capsys, monkeypatch):
    colours = np.array([(9, 8, 7), (200, 10, 30), (0, 0, 0)], dtype=np.uint8)
    masks = [Image.fromarray(colours[np.array(ids)]) for ids in ([[0, 1, 1], [1, 1, 0]], [[1, 2, 2], [0, 1, 1]])]
    folder = folder_of(tmp_path / "data", masks, None)
    monkeypatch.chdir(tmp_path)
    status, printed, command = check(capsys, folder)
    assert status == 1 and "masks hold 3 colours" in printed and value_of(command, "--colour_map") == "colour_map.txt"
    draft = (tmp_path / "colour_map.txt").read_text()
    assert draft.splitlines()[0] == "class_0 200 10 30" and len(draft.splitlines()) == 3
    names = {"200 10 30": "sea", "9 8 7": "sky", "0 0 0": "void"}
    lines = [line.split(" ", 1)[1] for line in draft.splitlines()]
    (tmp_path / "colour_map.txt").write_text("\n".join(f"{names[line]} {line}" for line in lines))
    status, printed, _ = check(capsys, folder, "--colour_map", "colour_map.txt")
    assert status == 0 and "2 classes" in printed
    source = load_source(str(folder), "train", colour_map=tmp_path / "colour_map.txt")
    classes = {"sea": source.class_names.index("sea"), "sky": source.class_names.index("sky")}
    expected = [[classes["sea"], 255, 255], [classes["sky"], classes["sea"], classes["sea"]]]
    np.testing.assert_array_equal(source[1]["mask"], expected)


def test_too_many_colours_are_no_classes(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    status, printed, _ = check(capsys, folder_of(tmp_path, [Image.fromarray(noise)]))
    assert status == 1 and "400 colours: too many" in printed


def test_the_same_photograph_in_two_splits_is_noted(tmp_path, capsys):
    for split in ("train", "val"):
        folder_of(tmp_path / split, [IDS], None)
    (tmp_path / "classes.txt").write_text("sky\nsea\nsand\n")
    status, printed, command = check(capsys, tmp_path)
    assert status == 0 and "val 0 = train 0" in printed and value_of(command, "--validation_split") == "val"


def test_options_of_the_check_are_those_of_the_command(tmp_path, capsys):
    folder = folder_of(tmp_path, [IDS], None)
    options = ["--classes", "sky, sea", "--reduce_labels", "--mask_column", "mask"]
    _, _, command = check(capsys, folder, *options)
    assert value_of(command, "--classes") == "sky, sea" and "--reduce_labels" in command
    assert value_of(command, "--mask_column") == "mask"


def test_what_cannot_be_opened_ends_in_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("photographs to come")
    with pytest.raises(SystemExit, match="error: .*no way that is understood"):
        main([str(tmp_path)])


def test_toyscapes(tmp_path, capsys):
    main(["toyscapes", "--split", "test", "--limit", "1", "--picture", str(tmp_path / "overlay.png")])
    assert Image.open(tmp_path / "overlay.png").size == (128, 128)
    assert "1 images, 30 classes" in capsys.readouterr().out


# ---- tags and captions


def with_table(folder, name, rows):
    folder_of(folder, [IDS] * len(rows))
    (folder / name).write_text("\n".join([{"tags.csv": "file,labels", "captions.csv": "image,caption"}[name], *rows]) + "\n")
    for path in (folder / "masks").iterdir():
        path.unlink()
    (folder / "masks").rmdir()
    (folder / "classes.txt").unlink()
    return folder


def test_tags_are_counted_and_their_faults_found(tmp_path, capsys):
    rows = [f"images/{index}.png,sky{';boat' if index % 2 else ''}" for index in range(12)]
    folder = with_table(tmp_path, "tags.csv", [*rows, "images/12.png,sky;buoy"])
    (folder / "images" / "7.png").write_bytes(b"no picture")
    status, printed, command = check(capsys, folder)
    assert "train: 13 images, 1.5 tags each" in printed
    assert [line.split() for line in printed.splitlines()[2:5]] == [
        ["13", "100.00%", "sky"], ["6", "46.15%", "boat"], ["1", "7.69%", "buoy"],
    ]  # fmt: skip
    assert status == 1 and "- train: broken image, 1 of 13: images/7.png" in printed
    assert "hardly learnt: ['buoy']" in printed and "say nothing about where they are: ['sky']" in printed
    assert command[2] == "training.train_vpl" and value_of(command, "--dataset_name") == str(folder)
    assert Image.open(tmp_path / "picture.png").width == 3 * 328 + 8


def test_captions_are_counted_and_their_faults_found(tmp_path, capsys):
    captions = ["a red boat"] * 3 + ["the sea at night", ""]
    folder = with_table(tmp_path, "captions.csv", [f"{index}.png,{caption}" for index, caption in enumerate(captions)])
    status, printed, command = check(capsys, folder)
    assert "train: 5 images, 5 captions of 3 words (median), 3 of them different" in printed
    assert status == 1 and "- train: 1 images whose captions are empty: ['4.png']" in printed
    assert "one caption is that of 3 images: 'a red boat'" in printed and command[2] == "training.curate_concepts"
    status, printed, _ = check(capsys, folder, "--supervision", "captions", "--limit", "2")
    assert "train: 2 images" in printed
