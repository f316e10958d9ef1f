"""A running demo for tests, and calls of its endpoint as programs make them."""

from contextlib import contextmanager
from pathlib import Path

from gradio_client import Client, handle_file

import app as demo_app
from demo.limits import Limits


@contextmanager
def running_demo(folder: Path, limits: Limits | None = None, **launch):
    """The page and its address."""
    page = demo_app.build_app(folder, limits=limits)
    try:
        _, url, _ = page.launch(**demo_app.LAUNCH, prevent_thread_lock=True, quiet=True, **launch)
        yield page, url
    finally:
        page.close()


def ask(client: Client, image, class_names="sky, sea, boat", checkpoints=("open",), **options):
    """What `/segment` answers: the record, `{checkpoint: path of its label map}`, and the path of the archive."""
    image = image if image is None or isinstance(image, dict) else handle_file(str(image))
    record, paths, archive = client.predict(
        image=image, class_names=class_names, checkpoints=list(checkpoints), **options, api_name="/segment"
    )
    return record, {result["checkpoint"]: path for result, path in zip(record["results"], paths, strict=True)}, archive
