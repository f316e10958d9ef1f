"""The timing runner: what it computes from a clock, and that every row of the page can be run."""

import json

import pytest
import torch

from benchmarks.timings import before, rows_methods, run_all, steady
from benchmarks.timings.pairs import Pair, as_table, measure
from benchmarks.timings.run_all import main
from hf_clipseg.evaluation.metrics import BoundaryF
from hf_clipseg.processing.upsampling import upsample_argmax
from hf_clipseg.refinement.pamr import pamr


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


def test_patience_ends_a_slow_row_early_and_memory_is_what_a_call_adds():
    now, held = [0.0], []

    def slow():
        now[0] += 100

    def hold():
        held[:] = [torch.ones(2**23)]  # 32 MiB, written to

    assert measure(Pair("row", slow, slow, ""), 9, clock=lambda: now[0], patience=1).repeats == 3
    timing = measure(Pair("row", lambda: None, hold, "", images=8, memory=True), 1)
    if timing.candidate_mib is not None:  # Linux with glibc
        assert timing.baseline_mib < 8
        assert 30 < timing.candidate_mib + 32 < 72  # the one that is replaced is freed before or after
        assert as_table([timing]).splitlines()[0].endswith("| ours, images/s | memory: baseline, MiB | ours, MiB |")


def test_every_group_is_written_beside_the_others(tmp_path, capsys):
    rows = {"one": [Pair("first row", lambda: None, lambda: None, "a against b")], "two": []}
    (tmp_path / "benchmarks.json").write_text(json.dumps({"scores": part("an older row")}))
    run_all.GROUPS["texts"], before = lambda: iter(rows["one"]), run_all.GROUPS["texts"]
    try:
        main(["--group", "texts", "--repeats", "1", "--docs", str(tmp_path)])
    finally:
        run_all.GROUPS["texts"] = before
    figures = json.loads((tmp_path / "benchmarks.json").read_text())
    assert list(figures) == ["scores", "texts"] and figures["texts"]["rows"][0]["name"] == "first row"
    assert "python -m benchmarks.timings.run_all --group texts --repeats 1" in figures["texts"]["command"]
    page = (tmp_path / "benchmarks.md").read_text()
    assert page.index("## Scores") < page.index("| an older row") < page.index("## Class texts") < page.index("| first row")
    assert page == run_all.page(figures)


def part(name):
    row = {"name": name, "words": "", "repeats": 1}
    row |= dict.fromkeys(("baseline", "candidate", "ratio", "lowest_ratio", "highest_ratio"), 1.0)
    return {"command": "c", "machine": {"torch": "2"}, "date": "2026-01-01", "rows": [row]}


def test_a_look_at_some_rows_writes_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit, match="no row has 'nothing'"):
        main(["--only", "nothing", "--group", "throughput", "--docs", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_the_page_is_made_of_the_figures():
    if not (run_all.DOCS / run_all.FIGURES).is_file():
        pytest.skip("not measured yet")
    assert (run_all.DOCS / run_all.PAGE).read_text() == run_all.page(run_all.read_figures(run_all.DOCS))


def test_the_old_ways_give_what_the_new_ones_give():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 9, 12, generator=generator)
    labels = upsample_argmax(logits, (70, 90))
    assert labels.equal(before.labels_in_chunks(logits, (70, 90))) and labels.equal(before.segformer_labels(logits, (70, 90)))
    images, masks = torch.rand(1, 3, 40, 50, generator=generator), torch.rand(1, 17, 40, 50, generator=generator)
    torch.testing.assert_close(before.pamr_by_16(images, masks), pamr(images, masks))
    truth = torch.arange(4).view(2, 2).repeat_interleave(30, 0).repeat_interleave(40, 1)
    found, score = truth.roll((2, 5), dims=(0, 1)), BoundaryF(4)
    score.update(found, truth)
    by_class = before.boundary_f_by_class(found, truth)
    assert score.per_class().tolist() == pytest.approx([by_class[index] for index in range(4)], abs=1e-12)


def test_rows_of_the_models_run_at_a_small_size():
    rows = [*rows_methods.training(batch=2, side=32)]
    assert [row.name.split(",")[0] for row in rows] == ["vpl", "mvp-seg", "mvp-seg-plus", "mta-clip", "cocu"]
    for row in rows:
        row.baseline(), row.candidate()


def test_memory_is_read_at_equal_shares_and_its_growth_is_that_of_the_second_half(tmp_path, capsys):
    now, held = [0.0], [100.0]
    watch = steady.Watch("calls", lambda: held[0], lambda: now[0])
    for minute in range(1, 21):  # of 20: 10 readings, steep at first, then 3 MiB a minute
        now[0], held[0] = 60.0 * minute, held[0] + (50 if minute <= 9 else 3)
        assert watch.share(20) == minute / 20
        watch.note(watch.share(20), 7 * minute)
    assert [(reading.minutes, reading.done) for reading in watch.readings] == [(m, 7 * m) for m in range(0, 21, 2)]
    assert steady.growth(watch.readings, "minutes") == pytest.approx(3)
    assert steady.growth(watch.readings, "done") == pytest.approx(3 / 7)
    steady.save(tmp_path / "load.json", "segment-load", "a command", watch, ["A sentence."])
    main(["--take", str(tmp_path / "load.json"), "--docs", str(tmp_path)])
    page = (tmp_path / "benchmarks.md").read_text()
    assert "## `segment` under load\n\n    a command" in page and "| MiB | 100 | 200 |" in page
    assert "between 553 and 583 MiB: **+3.00 MiB a minute**, +428.57 MiB per 1,000 calls.\n\nA sentence." in page
