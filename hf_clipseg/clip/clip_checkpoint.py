"""Reading a CLIP checkpoint whole, or not at all.

transformers takes almost any folder for a CLIP: what the configuration does not say gets default values, what the weights lack
gets random ones. Here a checkpoint of another architecture, or one that lacks weights, is an error whose text names the fix.
"""

import os
from pathlib import Path

from transformers import CLIPModel, PreTrainedConfig, PreTrainedModel

OPEN_CLIP_CONFIG = "open_clip_config.json"
EXAMPLES = {"clip": "openai/clip-vit-base-patch16", "groupvit": "nvidia/groupvit-gcc-yfcc"}
HALVES = {"clip_vision_model": "vision", "clip_text_model": "text"}
OPEN_CLIP_FIX = (
    "Use the same model in transformers' format: repositories of LAION hold it beside open_clip's, such as "
    "laion/CLIP-ViT-B-16-laion2B-s34B-b88K."
)


class NotWholeError(ValueError):
    """A checkpoint is none of the wanted architecture, or not all of it; the message names the fix."""


def load_whole(source: str | os.PathLike, model_class: type[PreTrainedModel] = CLIPModel, **kwargs) -> PreTrainedModel:
    """A checkpoint of `model_class`, every weight of which comes from its files.

    Args:
        source: Hub id or folder.
        model_class: `CLIPModel` or `GroupViTModel`.
        kwargs: arguments for `from_pretrained` (`revision`, `token`, `dtype`, ...).

    Raises:
        NotWholeError: a ValueError; another architecture, half a model, open_clip's own format, or weights that are missing, of
            other sizes, or not readable.
        OSError: a Hub that does not answer, in the words of transformers.
    """
    check_architecture(source, model_class, **kwargs)
    try:
        model, report = model_class.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )  # mismatches are refused below, in our words
    except Exception as error:  # damaged files raise whatever their format's reader raises
        if isinstance(error, OSError) and not Path(source).exists():
            raise
        first_line = str(error).strip().split("\n")[0][:200].rstrip(".")
        raise NotWholeError(
            f"The weights of {source} cannot be read ({first_line}). Download them again, or save them with "
            f"{model_class.__name__}.save_pretrained."
        ) from error
    check_weights(source, model, report)
    return model


def check_architecture(source: str | os.PathLike, model_class: type[PreTrainedModel] = CLIPModel, **kwargs) -> None:
    """Reads the configuration of `source` alone; arguments and errors as in `load_whole`."""
    wanted = model_class.config_class.model_type
    folder = Path(source)
    if folder.is_file() or ((folder / OPEN_CLIP_CONFIG).is_file() and not (folder / "config.json").is_file()):
        raise NotWholeError(f"{source} holds weights in OpenAI's or open_clip's format, not transformers'. {OPEN_CLIP_FIX}")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise NotWholeError(
            f"{source} is no checkpoint: it has no config.json. Choose a folder that {model_class.__name__}.save_pretrained "
            "has written, or the id of a model on the Hub."
        )
    config, _ = PreTrainedConfig.get_config_dict(source, **kwargs)
    found = config.get("model_type")
    if found == wanted and not config.get("auto_map"):
        return
    if found in HALVES:
        raise NotWholeError(
            f"{source} is the {HALVES[found]} half of a CLIP, and segmentation needs both encoders. Use the full checkpoint, "
            "saved by CLIPModel.save_pretrained."
        )
    if "clip_config" in config:
        raise NotWholeError(f"{source} is a finished {found!r} model: load it with from_pretrained instead of building on it.")
    names = config.get("architectures") or ["unknown architecture"]
    own_code = " with code of its own" if config.get("auto_map") else ""
    raise ValueError(
        f"{source} is a {found!r} model{own_code} ({names[0]}), whose layers are not those of {model_class.__name__}. Use a "
        f"checkpoint of model_type {wanted!r}, such as {EXAMPLES[wanted]}."
    )


def check_weights(source: str | os.PathLike, model: PreTrainedModel, report: dict) -> None:
    """Refuses what `from_pretrained` has filled up with random numbers, or left out of an encoder."""
    unexpected = sorted(report["unexpected_keys"])
    if any(name.startswith("visual.") for name in unexpected):
        raise NotWholeError(f"{source} holds weights under the names of OpenAI or open_clip. {OPEN_CLIP_FIX}")
    foreign = [name for name in unexpected if name.startswith(("vision_model.", "text_model."))]
    foreign = [name for name in foreign if not name.endswith("position_ids")]  # a constant that old versions saved
    mismatched = [entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"]]
    for problem, names in (
        ("lack", sorted(report["missing_keys"])),
        ("have other sizes than config.json says for", sorted(mismatched)),
        ("hold more than config.json says, namely", foreign),
    ):
        if names:
            raise NotWholeError(
                f"The weights of {source} {problem} {len(names)} tensors ({names[0]}, ...) of {len(model.state_dict())}: they "
                f"are not those of a whole {type(model).__name__}. Use the full checkpoint, as its save_pretrained writes it."
            )
