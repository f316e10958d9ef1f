"""The demo: compare methods on a picture, side by side, and see what each of them sees.

    python app.py [CHECKPOINT ...]      # folders or Hub ids, beside those in model_cards/
    python app.py --mcp                 # also an MCP server for language models; needs pip install "hf_clipseg[mcp]"

Works offline with the shipped checkpoints. The page is in `demo/`, its styles in `app.css`.
"""

import argparse
import logging
import threading

from demo.memory import share_arenas
from demo.page import build_app, prepare
from demo.theme import LAUNCH
from hf_clipseg.checkpoints import CheckpointError

__all__ = ["LAUNCH", "build_app", "main"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Segment pictures by class names in the browser.")
    parser.add_argument("checkpoints", nargs="*", help="checkpoint folders or Hub ids, beside those in model_cards/")
    parser.add_argument("--mcp", action="store_true", help="also serve the endpoints to language models")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    share_arenas()
    try:
        page = build_app(extra=arguments.checkpoints)
    except CheckpointError as error:
        parser.error(str(error))
    threading.Thread(target=prepare, args=(page,), daemon=True).start()
    page.launch(**LAUNCH, mcp_server=arguments.mcp)


if __name__ == "__main__":
    main()
