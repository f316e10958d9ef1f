"""One visitor must not hurt another: files, sizes, time, memory, and what errors give away."""

import ctypes
import logging
import re
import threading
import time
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
from gradio.data_classes import FileData, ListFiles
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import app as demo_app
from demo import desk as desk_module
from demo.guard import NOT_UPLOADED, PicturesInput, check_upload
from demo.limits import Limits, RunEnded, Ticket, Tickets
from demo.memory import share_arenas
from demo.storage import StorageCap
from hf_clipseg.checkpoints import LoadedCheckpoint

from .demo_checkpoints import save_demo_checkpoints
from .demo_server import ask, running_demo

CLASSES = "sky, sea, boat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_demo_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    Image.new("RGB", (64, 48), "teal").save(path)
    return path


@pytest.fixture(scope="module")
def url(folder):
    with running_demo(folder) as (_, url):
        yield url


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


def call(url, endpoint: str, data: list) -> str:
    """What a program without a client library gets: the whole answer of the server, as text."""
    event = httpx.post(f"{url}gradio_api/call/{endpoint}", json={"data": data}, timeout=60)
    if event.status_code != 200:
        return event.text
    return httpx.get(f"{url}gradio_api/call/{endpoint}/{event.json()['event_id']}", timeout=60).text


def segment_data(image, **changes) -> list:
    values = {"classes": CLASSES, "checkpoints": ["open"], "attention": "as in the checkpoint", "window": "whole picture"}
    values |= {"refinement": "none", "threshold": 0, "cut_out": ""} | changes
    return [image, *values.values()]


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
@pytest.mark.parametrize("exists", [True, False])
def test_no_file_of_the_server_is_read(url, picture, tmp_path, meta, exists):
    """Nor told apart from one that does not exist."""
    path = picture if exists else tmp_path / "nothing.png"
    answer = call(url, "segment", segment_data({"path": str(path), **meta}))
    assert "event: error" in answer and "labels" not in answer
    if not meta:
        assert NOT_UPLOADED in answer
    assert str(path) not in answer


def test_links_out_of_the_cache_are_followed_before_the_check(tmp_path, picture):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "link.png").symlink_to(picture)
    limits = Limits(file_bytes=1000)
    for path in (
        cache / "link.png",
        cache / ".." / ".." / "etc" / "passwd",
        cache,
        None,
        7,
        "a\0b",
        "https://example.org/a.png",
    ):
        with pytest.raises(gr.Error, match=NOT_UPLOADED):
            check_upload(path, cache, limits)
    (cache / "own.png").write_bytes(b"x" * 1000)
    assert check_upload(cache / "own.png", cache, limits) == str((cache / "own.png").resolve())
    (cache / "large.png").write_bytes(b"x" * 1001)
    with pytest.raises(gr.Error, match="at most"):
        check_upload(cache / "large.png", cache, limits)


def test_the_number_of_pictures_is_counted_before_they_are_read(monkeypatch):
    monkeypatch.setattr(PicturesInput, "limits", Limits(pictures=2))
    box = PicturesInput(file_count="multiple")
    three = ListFiles([FileData(path=f"{index}.png") for index in range(3)])
    with pytest.raises(gr.Error, match="There are 3 pictures; at most 2 are read"):
        box.preprocess(three)
    with pytest.raises(gr.Error, match=NOT_UPLOADED):
        box.preprocess(ListFiles(three.root[:2]))


def test_teaching_pictures_are_checked_alike(url, picture, tmp_path):
    answers = []
    for path in (picture, tmp_path / "nothing.png"):
        file = {"path": str(path)}
        answers.append(call(url, "teach", [[file], ["sea"], file, "", "open"]))
        assert "event: error" in answers[-1] and str(path) not in answers[-1]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "data",
    [
        [],
        [1, 2, 3],
        segment_data(7),
        segment_data({"path": 5}),
        segment_data(None, classes=7),
        segment_data(None, checkpoints="open"),
        segment_data(None, checkpoints=["no such thing"]),
        segment_data(None, attention="magic"),
        segment_data(None, window=0),
        segment_data(None, refinement=None),
        segment_data(None, threshold="much"),
    ],
)
def test_malformed_calls_get_a_sentence_and_leave_no_traceback(url, data, capfd, caplog):
    answer = call(url, "segment", data)
    assert "event: error" in answer and "Traceback" not in answer
    message = re.search(r"data: (.*)", answer)[1]
    assert len(message) > 20 and "/" not in message.replace("\\/", "/").split("Use via")[0]
    output = capfd.readouterr()
    assert "Traceback" not in output.err + output.out + caplog.text


def test_errors_that_nobody_foresaw_say_nothing(client, picture, monkeypatch, caplog):
    def break_down(*_, **__):
        raise RuntimeError("/secret/place")

    monkeypatch.setattr(desk_module.Workbench, "question", break_down)
    with pytest.raises(AppError, match="Something went wrong on the server") as caught:
        ask(client, picture)
    assert "secret" not in str(caught.value) and "/secret/place" in caplog.text  # the operator is told


def test_repeated_methods_run_once(client, picture):
    record, _, _ = ask(client, picture, checkpoints=["open"] * 50)
    assert len(record["results"]) == 1


@pytest.mark.parametrize(
    ("limits", "changes", "message"),
    [
        (Limits(classes=2), {}, "There are 3 classes; at most 2"),
        (Limits(class_characters=10), {}, "has 14 characters; at most 10"),
        (Limits(decoded_pixels=3000), {}, "has 64 x 48 pixels; at most 3,000"),
        (Limits(file_bytes=50), {}, "at most 0 MB"),
        (Limits(seconds=0), {}, "longer than 0 s and was stopped"),
    ],
)
def test_limits_are_refused_in_a_sentence(folder, picture, limits, changes, message):
    with running_demo(folder, limits) as (_, url):
        client = Client(url, verbose=False)
        with pytest.raises(AppError, match=message):
            ask(client, picture, **changes)


def test_the_real_limits(folder):
    page = demo_app.build_app(folder)
    assert page._queue.max_size == 48 and page.desk.bench.limits.file_bytes == 20 * 2**20
    assert demo_app.LAUNCH["max_file_size"] == "20mb" and not demo_app.LAUNCH["show_error"]
    limits = {fn.concurrency_id: fn.concurrency_limit for fn in page.fns.values() if isinstance(fn.concurrency_id, str)}
    assert limits["models"] == 2 and limits["comparisons"] == 48
    assert page.desk.bench.slots._value == 2
    assert demo_app.LAUNCH["max_threads"] >= 48 + 2 + 8  # those who wait hold a thread each, and others go on beside them


def test_waiting_for_a_turn_costs_no_time_and_can_be_given_up():
    slots = threading.Semaphore(1)
    first, second, third = Ticket(60), Ticket(60), Ticket(60)
    entered = threading.Event()

    def wait_for_turn():
        with second.turn(slots):
            entered.set()

    with first.turn(slots):
        end = second.end
        waiting = threading.Thread(target=wait_for_turn)
        waiting.start()
        third.stop()
        with pytest.raises(RunEnded, match="Stopped"), third.turn(slots):
            pytest.fail("two at once")
        assert not entered.wait(0.3)
    waiting.join()
    assert entered.is_set() and second.end >= end + 0.3 and slots._value == 1


def test_a_refusal_does_not_wait_for_those_who_compute(folder, picture, slow_model):
    """Two comparisons hold all slots and never end; what is refused is answered all the same."""
    with running_demo(folder, Limits(classes=2, seconds=10)) as (_, url):
        upload = httpx.post(f"{url}gradio_api/upload", files={"files": picture.read_bytes()}, timeout=60).json()[0]
        data = segment_data({"path": upload, "meta": {"_type": "gradio.FileData"}}, classes="sky")
        for _ in range(2):
            httpx.post(f"{url}gradio_api/call/segment", json={"data": data}, timeout=60)
        assert slow_model.wait(60)
        data[1] = CLASSES
        assert "There are 3 classes; at most 2" in call(url, "segment", data)


def test_twenty_thousand_classes_are_refused_at_once(client, picture):
    start = time.perf_counter()
    with pytest.raises(AppError, match="characters; at most 20,000"):
        ask(client, picture, ", ".join(f"class {index}" for index in range(20_000)))
    assert time.perf_counter() - start < 20  # it took 295 s; generous, since other work may share the machine


def test_a_ticket_ends_with_its_time_a_stop_or_its_visitor():
    Ticket(60).check()
    with pytest.raises(RunEnded, match="longer than 0 s"):
        Ticket(0).check()
    gone = [False]
    ticket = Ticket(60, lambda: gone[0])
    ticket.check()
    gone[0] = True
    with pytest.raises(RunEnded, match="Stopped"):
        ticket.check()
    tickets = Tickets()
    with tickets.hold("a", Ticket(60)) as first, tickets.hold("b", Ticket(60)) as second:
        assert tickets.stop("a") == 1
        with pytest.raises(RunEnded):
            first.check()
        second.check()
    assert tickets.stop("a") == 0 and tickets._by_visitor == {}


@pytest.fixture
def slow_model(monkeypatch):
    """Models that take for ever unless their check ends them; the event is set once one runs."""
    started = threading.Event()
    real = LoadedCheckpoint._before_layer

    def crawl(self, *args):
        started.set()
        for _ in range(3000):
            real(self, *args)
            time.sleep(0.01)

    monkeypatch.setattr(LoadedCheckpoint, "_before_layer", crawl)
    return started


def test_a_visitor_who_leaves_takes_the_run_along(folder, picture, slow_model, caplog):
    """The connection is cut while the model runs: the run ends, and the next visitor is served."""
    caplog.set_level(logging.INFO, logger="hf_clipseg.requests")
    with running_demo(folder) as (_, url):
        client = Client(url, verbose=False)
        upload = httpx.post(f"{url}gradio_api/upload", files={"files": picture.read_bytes()}, timeout=60).json()[0]
        data = segment_data({"path": upload, "meta": {"_type": "gradio.FileData"}})
        event = httpx.post(f"{url}gradio_api/call/segment", json={"data": data}, timeout=60).json()["event_id"]
        with httpx.stream("GET", f"{url}gradio_api/call/segment/{event}", timeout=60):
            assert slow_model.wait(60)
        deadline = time.monotonic() + 30
        while "outcome=" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "outcome=Error" in caplog.text
        assert client.predict(api_name="/models")


def test_arenas_are_shared_where_there_are_any(monkeypatch):
    asked = []
    library = SimpleNamespace(mallopt=lambda *arguments: asked.append(arguments) or 1)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert share_arenas(3) and asked == [(-8, 3)]
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert not share_arenas()


def test_the_oldest_stored_files_go_first(tmp_path):
    import os

    for index in range(5):
        path = tmp_path / f"{index}" / "file.png"
        path.parent.mkdir()
        path.write_bytes(b"x" * 100)
        os.utime(path, (1000 + index, 1000 + index))
    cap = StorageCap(tmp_path, max_bytes=250, interval=3600)
    assert cap.enforce() == 3 and cap.enforce() == 0
    assert sorted(path.parent.name for path in tmp_path.rglob("*.png")) == ["3", "4"]
    (tmp_path / "new.png").write_bytes(b"x" * 1000)
    assert StorageCap(tmp_path, max_bytes=10, grace=3600).enforce() == 2  # somebody is looking at the new one
    assert [path.name for path in tmp_path.rglob("*.png")] == ["new.png"]


def test_one_line_per_request_without_names_or_words(client, picture, caplog):
    caplog.set_level(logging.INFO, logger="hf_clipseg.requests")
    ask(client, picture, "sky, sea, boat")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "hf_clipseg.requests"]
    assert re.fullmatch(r"segment methods=mask_clip pixels=3072 classes=3 seconds=\d+\.\d\d outcome=ok", line)


def test_a_call_that_is_too_large_is_refused_at_the_door(url):
    answer = httpx.post(f"{url}gradio_api/call/segment", content=b" " * (5 * 2**20), timeout=60)
    assert answer.status_code == 413 and answer.json() == {"detail": "The request has 5 MB; at most 4 MB are read."}


def test_the_upload_limit_of_the_server(url, tmp_path):
    (tmp_path / "large.png").write_bytes(b"x" * (21 * 2**20))
    with pytest.raises(Exception, match="(?i)size|large|413"):
        Client(url, verbose=False).predict(
            image=handle_file(str(tmp_path / "large.png")), class_names="sky", checkpoints=["open"], api_name="/segment"
        )
