"""Makes a static page that segments pictures in the visitor's browser, from a graph that `training.export` has written.

    python -m training.export model_cards/mask-clip-toyscapes --output mask-clip-onnx --format onnx
    python -m training.web_page mask-clip-onnx --output site --title "MaskCLIP in the browser"
    python -m http.server --directory site

The page needs no server of its own, and once it is made nothing from elsewhere: onnxruntime-web is copied into it from its npm
package. Pushed to the Hub as it is, the folder is a Space of type static.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hf_clipseg.atomic import replace_folder
from hf_clipseg.drawing.class_palette import class_palette

from .evaluation.graph_model import FORMATS, SETTINGS

PAGE = Path(__file__).parent / "web"
RUNTIME = "onnxruntime-web@1.30.0"
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
RESAMPLES = (2, 3)
"""Pillow's bilinear and bicubic, which `web/segment.js` has."""

CARD = """---
title: {title}
sdk: static
pinned: false
---

{title}: the model runs in the visitor's browser. Made by `python -m training.web_page`.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.web_page", description=__doc__.split("\n")[0])
    parser.add_argument("graph", help="a folder that training.export --format onnx has written")
    parser.add_argument("--output", required=True, help="the folder to write; it must not exist")
    parser.add_argument("--title", default="Segmentation in the browser")
    return parser


def make_page(graph: str | Path, output: str | Path, title: str) -> None:
    """Writes the folder `output`.

    Raises:
        ValueError: no ONNX graph, a folder that exists, a filter the page does not have, or no npm package.
    """
    graph, output = Path(graph), Path(output)
    model = graph / FORMATS["onnx"]
    if not (model.is_file() and (graph / SETTINGS).is_file()):
        raise ValueError(f"{graph} holds no ONNX graph: write one with python -m training.export ... --format onnx")
    if output.exists():
        raise ValueError(f"{output} exists already: choose another --output")
    settings = json.loads((graph / SETTINGS).read_text(encoding="utf-8"))
    if settings["resample"] not in RESAMPLES:
        raise ValueError(f"The page resizes by Pillow's filters {RESAMPLES}, this graph wants {settings['resample']}.")
    title = " ".join(title.replace(":", " ").split())  # one line of YAML
    with replace_folder(output) as partial:
        copy_runtime(partial)
        for file in (*PAGE.iterdir(), model, graph / SETTINGS):
            shutil.copyfile(file, partial / file.name)
        colours = class_palette(settings["labels"]).tolist()
        (partial / "colours.json").write_text(json.dumps(colours) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(CARD.format(title=title), encoding="utf-8")


def copy_runtime(folder: Path) -> None:
    """onnxruntime-web from its npm package: three files, of which one is the WebAssembly, 14 MB."""
    with tempfile.TemporaryDirectory() as temporary:
        try:
            subprocess.run(
                ["npm", "pack", "--silent", "--prefer-offline", "--pack-destination", temporary, RUNTIME],
                check=True, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
        except FileNotFoundError:
            raise ValueError("npm is missing: install Node.js, which brings it") from None
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            last = (str(error.stderr or error).strip().splitlines() or ["no answer"])[-1]
            raise ValueError(f"npm cannot fetch {RUNTIME} ({last}): look at the connection and try again") from None
        (package,) = Path(temporary).glob("*.tgz")
        with tarfile.open(package) as archive:
            for name in RUNTIME_FILES:
                source = archive.extractfile(f"package/dist/{name}")
                if source is None:
                    raise ValueError(f"{RUNTIME} has no file {name}: another version is needed")
                (folder / name).write_bytes(source.read())


def main(arguments: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    try:
        make_page(args.graph, args.output, args.title)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.output} is a static page: python -m http.server --directory {args.output}")


if __name__ == "__main__":
    main()
