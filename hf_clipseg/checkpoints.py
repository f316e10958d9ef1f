"""Checkpoints as people meet them: the shipped folders, a folder of their own, or a model on the Hub.

Whatever is wrong with one (no weights, Git LFS pointers, a foreign model, a Hub that does not answer) is a `CheckpointError`
whose text names the fix. The network is touched only for a Hub model that is not cached, and the Hub then has `HUB_TIMEOUT`
seconds to answer, name resolution included.
"""

import http.client
import json
import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from . import METHODS, CocuForSemanticSegmentation, MaskClipForSemanticSegmentation, SegmentationProcessor
from .baselines import BaselineProcessor, baseline_class, is_closed_baseline, load_baseline
from .checkpoint_cards import Checkpoint, read_card, run_name
from .clip.clip_checkpoint import NotWholeError
from .processing.image_processing_segmentation import SegmentationImageProcessor

SHIPPED = Path(__file__).resolve().parents[1] / "model_cards"
"""One folder per shipped checkpoint, laid out as its Hub repository."""

HUB_TIMEOUT = 2.0
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
MODEL_FILES = ("*.json", "*.txt", "*.model")
GROUPVIT_SIDE, GROUPVIT_PATCH = 448, 16
CLIP_ATTENTION = "naclip"  # bare CLIP weights name no variant; this one localises better than `value` on OpenAI's
BROKEN = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)  # what loaders raise on damaged files

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the fix."""


@dataclass
class LoadedCheckpoint:
    """A model in eval mode with its processor; share it between threads through `running`."""

    model: PreTrainedModel
    processor: SegmentationProcessor | BaselineProcessor
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _check: Callable[[], None] | None = None

    def __post_init__(self):
        for module in self.model.modules():
            module.register_forward_pre_hook(self._before_layer)

    def _before_layer(self, *_) -> None:
        if self._check is not None:
            self._check()

    @property
    def num_bytes(self) -> int:
        """Of the weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.model.state_dict().values())

    @contextmanager
    def running(
        self, attention_variant: str | None = None, check: Callable[[], None] | None = None
    ) -> Iterator[PreTrainedModel]:
        """The model, for one caller at a time, with this attention in its last block where the method has that choice.

        Args:
            check: called while waiting for the model and before each of its layers; what it raises ends the run.
        """
        while not self._lock.acquire(timeout=0.1):
            if check is not None:
                check()
        config = self.model.config
        original = getattr(config, "attention_variant", None)
        try:
            self._check = check
            if attention_variant is not None and original is not None:
                config.attention_variant = attention_variant
            yield self.model
        finally:
            self._check = None
            if original is not None:
                config.attention_variant = original
            self._lock.release()


def find_checkpoints(folder: str | os.PathLike = SHIPPED) -> list[Checkpoint]:
    """The checkpoints of this package's methods among the sub-folders of `folder`, by name; damaged ones are logged."""
    model_types = {config_class.model_type for config_class in METHODS}
    found = []
    for config_file in sorted(Path(folder).glob("*/config.json")):
        try:
            if json.loads(config_file.read_text(encoding="utf-8")).get("model_type") in model_types:
                found.append(describe_checkpoint(config_file.parent))
        except ValueError as error:
            logger.warning("Left out %s: %s", config_file.parent, error)
    return found


def describe_checkpoint(source: str | os.PathLike) -> Checkpoint:
    """Reads the configuration and the card of a folder; a Hub id is not looked up.

    Raises:
        CheckpointError: neither a checkpoint folder nor a Hub id.
    """
    source = os.fspath(source)
    folder = Path(source)
    if not folder.is_dir():
        check_hub_id(source)
        return Checkpoint(source, source, source)
    config = read_config(source)
    title, description = read_card(folder / "README.md")
    method = METHODS.get(type(config))
    is_open = getattr(config, "has_text_encoder", True) and getattr(method, "open_vocabulary", True)
    if method is None and is_closed_baseline(config):
        is_open = False
    class_names = getattr(config, "class_names", None)
    if class_names is None and not is_open:
        class_names = [[label] for label in config.id2label.values()]
    name = run_name(folder)
    return Checkpoint(source, name, title or name, description, class_names, is_open, config.model_type)


def fetch_checkpoint(source: str | os.PathLike) -> None:
    """Brings a model of the Hub into the local cache; does nothing for a folder, or for what is there already.

    Raises:
        CheckpointError: the Hub does not answer, or has no such model.
    """
    source = os.fspath(source)
    if Path(source).is_dir() or is_cached(source):
        return
    check_hub_id(source)
    if not hub_answers():
        raise CheckpointError(
            f"{source} is on the Hugging Face Hub, which did not answer within {HUB_TIMEOUT:g} s, and it is not in the "
            "local cache. Connect to the network, or choose a checkpoint that is on this machine."
        )
    try:
        snapshot_download(source, allow_patterns=[*MODEL_FILES, WEIGHT_FILES[0]])
        if not is_cached(source):  # no safetensors
            snapshot_download(source, allow_patterns=[*MODEL_FILES, WEIGHT_FILES[1]])
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{source} cannot be fetched from the Hub ({first_line(error)}). Check its name and try again."
        ) from error


def load_checkpoint(source: str | os.PathLike, device: str | torch.device = "cpu") -> LoadedCheckpoint:
    """Model and processor of a folder or Hub id: any method of this package, or a plain CLIP to run MaskCLIP on.

    Raises:
        CheckpointError: see the module docstring.
    """
    source = os.fspath(source)
    if Path(source).is_dir():
        check_weight_files(Path(source))
    fetch_checkpoint(source)
    hub_options: dict[str, Any] = {"local_files_only": True}
    config = read_config(source, **hub_options)
    try:
        if config.model_type == "clip":
            model = MaskClipForSemanticSegmentation.from_clip(source, attention_variant=CLIP_ATTENTION, clip_kwargs=hub_options)
            processor = SegmentationProcessor.from_clip(source, **hub_options)
        elif config.model_type == "groupvit":
            model = CocuForSemanticSegmentation.from_groupvit(source, groupvit_kwargs=hub_options)
            processor = groupvit_processor(source, **hub_options)
        elif type(config) not in METHODS and baseline_class(config) is not None:
            model, processor = load_baseline(config, source, **hub_options)
        else:
            model = load_method(config, source, hub_options)
            processor = SegmentationProcessor.from_pretrained(source, **hub_options)
    except CheckpointError:
        raise
    except NotWholeError as error:
        raise CheckpointError(str(error)) from error
    except Exception as error:  # damaged files make loaders raise anything: division by zero, errors of unpickling, ...
        raise CheckpointError(
            f"{source} cannot be loaded ({first_line(error)}). Download or save it again, weights and processor files both."
        ) from error
    return LoadedCheckpoint(model.to(device, torch.float32).eval(), processor)


def groupvit_processor(source: str, **hub_options) -> SegmentationProcessor:
    """For a plain GroupViT: images and templates as its authors evaluate it."""
    image_processor = SegmentationImageProcessor(
        size={"shortest_edge": GROUPVIT_SIDE, "longest_edge": 4 * GROUPVIT_SIDE}, size_divisor=GROUPVIT_PATCH
    )
    return SegmentationProcessor(image_processor, AutoTokenizer.from_pretrained(source, **hub_options), templates="photo")


def load_method(config: PreTrainedConfig, source: str, hub_options: dict) -> PreTrainedModel:
    """transformers fills weights that are missing with random numbers; here they are an error."""
    if type(config) not in METHODS:
        expected = sorted(["clip", "groupvit", *(config_class.model_type for config_class in METHODS)])
        raise CheckpointError(f"{source} is a {config.model_type!r} model; this package runs {', '.join(expected)}.")
    model, report = METHODS[type(config)].from_pretrained(source, output_loading_info=True, **hub_options)
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"The weights of {source} lack {len(missing)} tensors, {missing[0]} among them: they do not belong to its "
            "config.json. Save model and configuration together, with save_pretrained."
        )
    return model


def read_config(source: str, **hub_options) -> PreTrainedConfig:
    """The configuration of a folder or Hub id. Raises CheckpointError where there is none that can be read."""
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise CheckpointError(
            f"{source} is no checkpoint: it has no config.json. Choose a folder that save_pretrained has written."
        )
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **hub_options)
    except BROKEN as error:
        raise CheckpointError(
            f"{source} is no checkpoint of this package ({first_line(error)}). Choose a folder that save_pretrained has "
            "written, or the id of a model on the Hub."
        ) from error


def check_weight_files(folder: Path) -> None:
    weights = [file for pattern in WEIGHT_FILES for file in folder.glob(pattern)]
    if not weights:
        raise CheckpointError(
            f"The checkpoint folder {folder} has no weights (model.safetensors). Copy them into it, or save the model again "
            "with save_pretrained."
        )
    for file in weights:
        with file.open("rb") as stream:
            if stream.read(20) == b"version https://git-":
                raise CheckpointError(f"{file} is a Git LFS pointer, not the weights. Run: git lfs pull")


def check_hub_id(source: str) -> None:
    try:
        validate_repo_id(source)
    except HFValidationError as error:
        raise CheckpointError(f"There is no folder {source}, and it is no Hub id (owner/name) either.") from error


def is_cached(repo_id: str) -> bool:
    """Whether configuration and weights of a Hub model are on this machine. Never touches the network."""
    try:
        config_file = try_to_load_from_cache(repo_id, "config.json")
    except HFValidationError:
        return False
    return isinstance(config_file, str) and any(any(Path(config_file).parent.glob(pattern)) for pattern in WEIGHT_FILES)


def hub_answers(timeout: float = HUB_TIMEOUT) -> bool:
    """Whether the Hub answers at all. In a thread, because name resolution knows no timeout."""
    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()  # an answer, if not a friendly one
        except (OSError, http.client.HTTPException):
            logger.info("%s does not answer", constants.ENDPOINT)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()


def first_line(error: Exception) -> str:
    if type(error).__name__ == "UnpicklingError":  # whose text explains how to run what the file holds
        return "its pickled weights hold more than tensors, and unpickling them could run anything: ask for safetensors"
    return str(error).strip().split("\n")[0][:200].rstrip(".")
