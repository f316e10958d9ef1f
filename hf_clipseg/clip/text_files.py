"""Text embeddings on disk, so that a large vocabulary is encoded once per machine: by the app, the evaluator or a script.

847 classes in 80 templates take a CPU minutes; their embeddings are 2 MB. A file is named by a hash of everything that they
depend on: the content of the weights, the configuration of the text encoder, the tokens, and the computation. It can therefore
be wrong only if it was tampered with; what cannot be read is computed again.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..atomic import replace_file

FOLDER_VARIABLE = "HF_CLIPSEG_TEXT_CACHE"
"""Environment variable: the folder, or `off`. By default the Hugging Face home's `hf_clipseg/texts`."""

MOST_BYTES = 256 * 2**20
FEWEST_PROMPTS = 256
"""Vocabularies with fewer prompts are encoded in seconds: hashing the weights would cost as much."""


class TextFiles:
    """Embeddings by key, at most `most_bytes` of them; those used longest ago go first.

    Args:
        folder: created when something is kept.
        most_bytes: of all files together; the one kept last stays, however large it is.
    """

    def __init__(self, folder: str | Path, most_bytes: int = MOST_BYTES):
        self.folder, self.most_bytes = Path(folder), most_bytes

    @classmethod
    def from_environment(cls) -> "TextFiles | None":
        folder = os.environ.get(FOLDER_VARIABLE, "")
        return None if folder == "off" else cls(folder or Path(HF_HOME) / "hf_clipseg" / "texts")

    def get(self, key: str) -> torch.Tensor | None:
        """The embeddings of `key`, on the CPU; None where there are none that can be read."""
        path = self._path(key)
        try:
            embeds = load_file(path)["embeds"]
            os.utime(path)  # it was of use just now
        except (OSError, SafetensorError, KeyError):
            return None
        return embeds

    def put(self, key: str, embeds: torch.Tensor) -> None:
        """Keeps `embeds`; a folder that cannot be written to is no reason to fail."""
        try:
            with replace_file(self._path(key), per_process=True) as partial:
                save_file({"embeds": embeds.detach().cpu().contiguous()}, partial)
            self._make_room(keep=self._path(key))
        except OSError:
            return

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _make_room(self, keep: Path) -> None:
        files = [(path.stat().st_mtime_ns, path.stat().st_size, path) for path in self.folder.glob("*.safetensors")]
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total > self.most_bytes and path != keep:
                path.unlink(missing_ok=True)
                total -= size


def content_key(weights: Sequence[torch.Tensor], tokens: Sequence[torch.Tensor], computation: str) -> str:
    """Hash of the bytes of all tensors, and of words for what is done with them."""
    digest = hashlib.sha256(computation.encode())
    for tensor in (*weights, *tokens):
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
