"""Whether the models that options name can be had: asked before any data is read, so that the answer names the option."""

import argparse

from transformers import PreTrainedConfig

from .dataset_defaults import CLIP

MODEL_OPTIONS = ("model_name_or_path", "vision_backbone", "teacher", "backbone", "initial_checkpoint")
OF_TIMM = "timm/"


def check_models(args: argparse.Namespace) -> None:
    """Raises ValueError where an option names neither a folder with a `config.json` nor a model that the Hub gives."""
    for option in MODEL_OPTIONS:
        name = getattr(args, option, None)
        if name in (None, CLIP) or name.startswith(OF_TIMM):
            continue
        cause = None
        try:
            config, _ = PreTrainedConfig.get_config_dict(name)  # of a folder without the file an empty one
        except (OSError, ValueError) as error:
            config, cause = {}, error
        if "model_type" not in config:
            raise ValueError(
                f"--{option} is {name}: there is no such folder with a model's config.json here, and no such model can be had "
                "from the Hub. Give the folder of a saved model, or the id of one that the Hub can deliver now."
            ) from cause
