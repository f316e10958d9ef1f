"""The door before the demo's server: what is refused there reaches nothing behind it."""

import asyncio
import os

import httpx
import pytest

from demo.entrance import DAY, Allowance, Entrance
from demo.limits import Limits
from demo.storage import StorageCap

LIMITS = Limits(upload_bytes=100, body_bytes=50, daily_bytes=150, stored_bytes=1000)


@pytest.fixture
def reached():
    """Paths of the requests that came through."""
    return []


@pytest.fixture
def knock(tmp_path, reached):
    """Posts a body of so many bytes to a path; what came back."""

    async def server(scope, receive, send):
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    door = Entrance(server, LIMITS, StorageCap(tmp_path, LIMITS.stored_bytes, interval=0))

    def post(path: str, content, **headers):
        async def ask():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://demo") as client:
                return await client.post(path, content=content, headers=headers)

        return asyncio.run(ask())

    return post


def test_bodies_are_measured_before_they_are_read(knock, reached):
    for path, size, status in (
        ("/gradio_api/call/segment", 50, 200),
        ("/gradio_api/call/segment", 51, 413),
        ("/gradio_api/upload", 100, 200),
        ("/gradio_api/upload", 101, 413),
    ):
        assert knock(path, b"x" * size).status_code == status, (path, size)
    assert reached == ["/gradio_api/call/segment", "/gradio_api/upload"]


def test_a_body_without_an_announced_end_is_refused(knock, reached):
    async def endless():
        yield b"x"
        raise AssertionError("the body was read")

    answer = knock("/gradio_api/call/segment", endless())
    assert answer.status_code == 411 and "Content-Length" in answer.json()["detail"] and not reached


def test_every_address_has_its_day(knock, reached):
    assert knock("/gradio_api/upload", b"x" * 100).status_code == 200
    answer = knock("/gradio_api/upload", b"x" * 100)
    assert answer.status_code == 429 and "today" in answer.json()["detail"]
    assert knock("/gradio_api/upload", b"x" * 100, **{"X-Forwarded-For": "10.0.0.7, 10.0.0.1"}).status_code == 200
    assert knock("/gradio_api/call/segment", b"x" * 50).status_code == 200  # only uploads are stored


def test_an_allowance_is_that_of_one_day():
    now = [10 * DAY]
    allowance = Allowance(100, clock=lambda: now[0])
    assert allowance.take("a", 60) and not allowance.take("a", 60) and allowance.take("a", 40) and allowance.take("b", 100)
    now[0] += DAY
    assert allowance.take("a", 100) and not allowance.take("a", 1)


def test_a_full_store_refuses_until_files_are_old(knock, tmp_path, reached):
    """Files that somebody may be looking at stay, and then there is no room; old ones make room."""
    file = tmp_path / "picture.png"
    file.write_bytes(b"x" * 950)
    assert knock("/gradio_api/upload", b"x" * 60).status_code == 507 and not reached
    os.utime(file, (0, 0))
    store = StorageCap(tmp_path, 1000, interval=0)
    assert not store.is_full(40) and file.exists()
    store._stored, store._last = 990, float("-inf")  # the next second
    assert not store.is_full(60) and not file.exists() and store._stored == 60
