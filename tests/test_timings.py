"""The timing runner: what it computes from a clock, and that every row of the page can be run."""

import json

import pytest

from benchmarks.timings import run_all
from benchmarks.timings.pairs import Pair, as_table, measure
from benchmarks.timings.run_all import main


def test_ratios_are_those_of_neighbours_in_time():
    now, calls = [0.0], []

    def lasting(name, seconds):
        seconds = iter(seconds)

        def run():
            calls.append(name)
            now[0] += next(seconds)

        return run

    pair = Pair("row", lasting("b", [9, 2, 4, 10]), lasting("c", [9, 1, 1, 20]), "b against c")  # the first is the warm-up
    timing = measure(pair, 3, clock=lambda: now[0])
    assert calls == ["b", "c"] * 4
    assert (timing.baseline, timing.candidate) == (4, 1)
    assert (timing.ratio, timing.lowest_ratio, timing.highest_ratio) == (0.5, 0.25, 2.0)
    assert as_table([timing]).splitlines()[-1] == "| row | b against c | 4.0000 | 1.0000 | **0.500** | 0.250 to 2.000 |"
    with pytest.raises(ValueError, match="at least one"):
        measure(pair, 0)


def test_the_command_writes_figures_and_page(tmp_path, capsys):
    main(["--group", "scores", "--repeats", "1", "--json", str(tmp_path / "t.json"), "--page", str(tmp_path / "page.md")])
    figures = json.loads((tmp_path / "t.json").read_text())
    assert [row["name"].split(",")[0] for row in figures["timings"]] == ["boundary F"]
    assert figures["timings"][0]["ratio"] > 0 and figures["machine"]["torch"]
    page = (tmp_path / "page.md").read_text()
    assert "python -m benchmarks.timings.run_all --group scores" in page and "| boundary F" in page
    with pytest.raises(SystemExit, match="no row has 'nothing'"):
        main(["--only", "nothing", "--group", "scores"])


def test_the_rows_of_the_methods_run_at_a_small_size():
    rows = list(run_all.methods(num_classes=2, side=32))
    assert len(rows) == 5
    rows[0].baseline(), rows[0].candidate()
