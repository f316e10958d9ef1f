"""The door before the page's server: bodies that are too large, and uploads beyond what one visitor may store in a day.

What is refused here costs the server nothing: the body is not read, no file is written, and no place in the queue is taken.
"""

import asyncio
import json
import threading
import time
from collections import OrderedDict

from .limits import Limits
from .storage import StorageCap

UPLOAD = "/gradio_api/upload"
DAY = 86_400.0
ADDRESSES = 10_000  # whose uploads are remembered; the one that came first is forgotten first
MEGABYTE = 2**20


class Entrance:
    """ASGI middleware.

    Args:
        app: the server behind the door.
        limits: `body_bytes` of a call, `upload_bytes` of an upload (several pictures), `daily_bytes` of one address's uploads.
        storage: what is on the disk; uploads are refused while it is full.
    """

    def __init__(self, app, limits: Limits, storage: StorageCap):
        self.app, self.limits, self.storage = app, limits, storage
        self.allowance = Allowance(limits.daily_bytes)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            return await self.app(scope, receive, send)
        is_upload = scope["path"].rstrip("/").endswith(UPLOAD)
        limit = self.limits.upload_bytes if is_upload else self.limits.body_bytes
        size = content_length(scope)
        if size is None:
            return await refuse(send, 411, "Say how long the request is: it has no Content-Length.")
        if size > limit:
            return await refuse(
                send, 413, f"The request has {size / MEGABYTE:.0f} MB; at most {limit / MEGABYTE:.0f} MB are read."
            )
        if is_upload:
            if await asyncio.to_thread(self.storage.is_full, size):
                return await refuse(send, 507, "There is no room for more pictures just now. Try again in a few minutes.")
            if not self.allowance.take(address_of(scope), size):
                allowed = self.limits.daily_bytes / MEGABYTE
                return await refuse(send, 429, f"More than {allowed:.0f} MB came from you today. Go on tomorrow.")
        await self.app(scope, receive, send)


class Allowance:
    """Bytes that every address may still send today."""

    def __init__(self, daily_bytes: int, clock=time.time):
        self.daily_bytes, self.clock = daily_bytes, clock
        self._lock = threading.Lock()
        self._day = 0
        self._used: OrderedDict[str, int] = OrderedDict()

    def take(self, address: str, size: int) -> bool:
        """Counts an upload, where it is still allowed."""
        with self._lock:
            if (day := int(self.clock() // DAY)) != self._day:
                self._day = day
                self._used.clear()
            used = self._used.get(address, 0) + size
            if used > self.daily_bytes:
                return False
            self._used[address] = used
            if len(self._used) > ADDRESSES:
                self._used.popitem(last=False)
            return True


def content_length(scope) -> int | None:
    """Of the body in bytes; 0 where there is none, None where its end is not announced."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return None
    length = headers.get(b"content-length", b"0")
    return int(length) if length.isdigit() else None


def address_of(scope) -> str:
    """Of the visitor; behind a proxy such as a Space's, the address that it names first."""
    forwarded = dict(scope["headers"]).get(b"x-forwarded-for", b"").decode("latin-1").split(",")[0].strip()
    return forwarded or (scope.get("client") or ("",))[0]


async def refuse(send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
