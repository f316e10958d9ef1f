"""Tables of results: whole or absent, readable by `datasets`, and nothing twice after a kill."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from hf_clipseg.bulk import label_table
from hf_clipseg.bulk.label_rows import label_row
from hf_clipseg.bulk.label_table import LabelTable
from hf_clipseg.bulk.run_record import RECORD, keep_record

NAMES = ["sky", "sea", "boat"]


def row(number: int) -> dict:
    label_map = np.random.default_rng(number).integers(0, 3, (4 + number, 5))
    return label_row(f"picture {number}", label_map, NAMES)


def stored_keys(folder) -> list[str]:
    return [key for path in sorted(folder.glob("*.parquet")) for key in pq.read_table(path)["key"].to_pylist()]


def killed(table: LabelTable) -> None:
    """What a kill leaves: the file descriptor is gone, and nothing was closed."""
    table._sink.close()


def test_a_row_says_what_is_in_the_picture():
    label_map = np.array([[2, 2, 0], [2, 255, 2]])
    found = label_row("k", label_map, NAMES)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found.pop("label_map")))), label_map)
    assert found == {
        "key": "k", "height": 2, "width": 3, "ids": [2, 0], "names": ["boat", "sky"], "areas": [0.8, 0.2],
    }  # fmt: skip
    many = [f"class {i}" for i in range(300)]
    assert label_row("k", np.array([[255, 299]]), many)["ids"] == [255, 299]  # with so many classes, 255 is one


def test_datasets_reads_the_tables(tmp_path):
    with LabelTable(tmp_path) as table:
        for number in range(3):
            table.add(row(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels-00000-00000.parquet"]
    rows = load_dataset("parquet", data_files=str(tmp_path / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["key"] == [f"picture {number}" for number in range(3)]
    for number, stored in enumerate(rows):
        expected = row(number)
        assert stored["label_map"].size == (5, 4 + number) and stored["names"] == expected["names"]
        assert stored["areas"] == pytest.approx(expected["areas"])


def test_a_full_journal_becomes_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(label_table, "FILE_ROWS", 2)
    with LabelTable(tmp_path) as table:
        for number in range(5):
            table.add(row(number))
        assert stored_keys(tmp_path) == [f"picture {number}" for number in range(4)]
    assert [len(pq.read_table(path)) for path in sorted(tmp_path.glob("*.parquet"))] == [2, 2, 1]


@pytest.mark.parametrize("cut", [0, 3, 200])
def test_a_kill_loses_at_most_the_row_that_was_being_written(tmp_path, cut):
    table = LabelTable(tmp_path)
    for number in range(4):
        table.add(row(number))
    killed(table)
    journal = tmp_path / ".journal-00000.arrows"
    journal.write_bytes(journal.read_bytes()[: -cut or None])
    assert not list(tmp_path.glob("*.parquet"))
    with LabelTable(tmp_path, resume=True) as table:
        whole = 4 if cut == 0 else 3
        assert table.done == {f"picture {number}" for number in range(whole)}
        for number in range(whole, 6):
            table.add(row(number))
    assert stored_keys(tmp_path) == [f"picture {number}" for number in range(6)]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".parquet", ".parquet"]


def test_a_kill_between_file_and_journal_doubles_nothing(tmp_path):
    table = LabelTable(tmp_path)
    table.add(row(0)), table.add(row(1))
    journal = table._journal.read_bytes()
    table.close()
    table._journal.write_bytes(journal)
    with LabelTable(tmp_path, resume=True) as table:
        assert table.done == {"picture 0", "picture 1"}
    assert stored_keys(tmp_path) == ["picture 0", "picture 1"]


def test_fewer_processes_go_on_with_what_more_have_left(tmp_path):
    for rank in range(3):
        table = LabelTable(tmp_path, rank, 3)
        table.add(row(rank))
        killed(table)
    first = LabelTable(tmp_path, 0, 2, resume=True)
    second = LabelTable(tmp_path, 1, 2, resume=True)
    assert first.done == second.done == {"picture 0", "picture 1", "picture 2"}
    first.add(row(3)), second.add(row(4))
    first.close(), second.close()
    assert sorted(stored_keys(tmp_path)) == [f"picture {number}" for number in range(5)]


def test_results_of_another_run_are_not_mixed_in(tmp_path):
    with LabelTable(tmp_path) as table:
        table.add(row(0))
    with pytest.raises(ValueError, match=r"holds results of an earlier run \(labels-00000-00000.parquet\)"):
        LabelTable(tmp_path)
    keep_record(tmp_path, {"classes": [["sky"]], "window": None}, resume=False)
    keep_record(tmp_path, {"classes": [["sky"]], "window": None}, resume=True)
    with pytest.raises(ValueError, match=r"another classes \(\[\[\"sky\"\]\], now \[\[\"sea\"\]\]\)"):
        keep_record(tmp_path, {"classes": [["sea"]], "window": None}, resume=True)
    assert "sky" in (tmp_path / RECORD).read_text()
