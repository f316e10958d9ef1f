"""The border between visitors and the code: uploads, tickets, and errors that tell a visitor what to do and nothing else."""

import html
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from gradio.context import LocalContext
from starlette.middleware import Middleware

from .limits import Limits, Ticket, check_picture_count

logger = logging.getLogger(__name__)

NOT_UPLOADED = "The picture is not among the uploaded files. Upload it again."


def check_upload(path: str | None, cache: str | os.PathLike, limits: Limits) -> str:
    """The path of a file that a visitor has uploaded.

    One message for every other path, whether there is a file or not: answers must not tell what is on the server.

    Raises:
        gr.Error: the path leads out of the cache, there is no such file, or it is too large.
    """
    try:
        file, root = Path(path).resolve(), Path(cache).resolve()
        inside = file.is_file() and file.is_relative_to(root)
    except (OSError, TypeError, ValueError):  # nonsense such as a number or a zero byte
        inside = False
    if not inside:
        raise gr.Error(NOT_UPLOADED, print_exception=False)
    if (size := file.stat().st_size) > limits.file_bytes:
        limit = limits.file_bytes / 2**20
        raise gr.Error(f"The file has {size / 2**20:.0f} MB; at most {limit:.0f} MB are read.", print_exception=False)
    return str(file)


class PictureInput(gr.Image):
    """`gr.Image` that hands over the path of an uploaded file, unopened, so that a broken one meets `load_image`."""

    is_template = True  # the page draws it as its base class
    limits = Limits()

    def preprocess(self, payload):
        return None if payload is None else check_upload(payload.path, self.GRADIO_CACHE, self.limits)


class PicturesInput(gr.File):
    """Several pictures, as paths of uploaded files."""

    is_template = True
    limits = Limits()

    def preprocess(self, payload):
        files = [] if payload is None else getattr(payload, "root", [payload])
        with errors_for_people():
            check_picture_count(len(files), self.limits)
        return [check_upload(file.path, self.GRADIO_CACHE, self.limits) for file in files]


class GuardedBlocks(gr.Blocks):
    """Blocks whose every error is a message for people: no traceback, no path, no class name of Python.

    `door` is the middleware before its server.
    """

    door: Middleware | None = None

    def launch(self, *args, **options):
        """As in the base class, behind the door."""
        return super().launch(*args, app_kwargs={"middleware": [self.door]} if self.door else {}, **options)

    async def preprocess_data(self, block_fn, inputs, *args, **kwargs):
        """As in the base class; what does not fit its component becomes one sentence."""
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except gr.Error as error:
            raise gr.Error(error.message, print_exception=False) from None
        except Exception as error:
            logger.info("refused a call of %s: %s", block_fn.api_name, type(error).__name__)
            names = ", ".join(filter(None, (getattr(block, "label", None) for block in block_fn.inputs)))
            raise gr.Error(
                f"The call does not fit this endpoint, which takes {len(block_fn.inputs)} values: {names}. See 'Use via API'.",
                print_exception=False,
            ) from None

    async def process_api(self, *args, **kwargs):
        """As in the base class; what nobody foresaw is logged here, and the visitor is told no details."""
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            logger.error("unexpected error", exc_info=error)
            raise gr.Error(
                "Something went wrong on the server. Try again, or with another picture.", print_exception=False
            ) from None


@contextmanager
def errors_for_people() -> Iterator[None]:
    """What a visitor can put right becomes a message on the page; messages are HTML there, and quote what was typed."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from error


def new_ticket(limits: Limits) -> Ticket:
    """A ticket for the request that is being answered: it ends with the time limit, with Stop, and when the visitor leaves."""
    return Ticket(limits.seconds, abandonment())


def abandonment() -> Callable[[], bool]:
    """Tells whether Gradio has given up the event that is being answered; outside of one, never."""
    blocks, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    queue = getattr(blocks, "_queue", None)
    event = getattr(queue, "event_ids_to_events", {}).get(event_id)
    return lambda: event is not None and not event.alive
