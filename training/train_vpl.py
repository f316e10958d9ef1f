"""Trains VPL from image tags, in three stages that can be run apart.

Command:   python -m training.train_vpl --output_dir runs/vpl-toyscapes
           python -m training.train_vpl --output_dir runs/photos --model_name_or_path openai/clip-vit-base-patch16 \\
               --dataset_name photos --labels_csv tags.csv

1. `prototypes`: vision prototypes from tagged images -> `prototypes.safetensors`, and `localizer/`, a checkpoint with them.
2. `pseudo_labels`: its localisation maps, refined -> `pseudo_labels/` (the work of `make_pseudo_labels`, resumable).
3. `segmenter`: the decoder on the pseudo masks, with regional semantic contrast -> `final/`. With `--online_refinement`
   the second half of its steps moves the labels along the decoder's own affinities, as WeCLIP does.

`--stages` chooses some of them; a later stage reads what an earlier one wrote. With the defaults this trains the shipped
`model_cards/vpl-toyscapes`, by `--rule step`, which stops before it has converged; on other data they are the paper's. No mask
of the training data is read; `--validation_split` scores on masks, where there are some.
"""

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers.hf_argparser import HfArg

from hf_clipseg import SegmentationProcessor, VisionPrototypes, VplConfig, VplForSemanticSegmentation
from hf_clipseg.clip.text_bank import weights_fingerprint
from hf_clipseg.localization.localization import LocalizationSettings
from hf_clipseg.localization.prototype_rules import PrototypeSettings
from hf_clipseg.refinement.refinements import REFINEMENTS

from .data.feature_cache import CropCache, CropSettings
from .data.openers import check_held_out, open_tags, open_validation
from .data.pseudo_masks import PseudoMasks, write_pseudo_labels
from .data.tagged_images import TaggedImages
from .engine.loop import SampleKey, make_accelerator, train
from .engine.optim import make_schedule, parameter_groups
from .engine.publish import check_hub_access, publish
from .engine.run_card import run_card
from .evaluation.validation import MaskValidation
from .settings.arguments import (
    ClassArguments,
    CommandParser,
    DataArguments,
    DataSeedArguments,
    MaskArguments,
    MaskValidationArguments,
    PresetArguments,
    TagArguments,
    ValidationArguments,
    config_arguments,
    config_values,
    run_command,
)
from .settings.dataset_defaults import CLIP, warn_of_drawn_clip
from .settings.training_settings import TrainingSettings

logger = logging.getLogger(__name__)

STAGES = ("prototypes", "pseudo_labels", "segmenter")


MODEL_FIELDS = (
    "attention_variant", "keep_residual", "cam_scale", "affinity_layers", "affinity_threshold", "read_out",
    "read_out_temperature", "decoder_dim", "decoder_layers", "decoder_heads", "affinity_loss_weight", "contrast_loss_weight",
)  # fmt: skip
ModelArguments = config_arguments(VplConfig, MODEL_FIELDS, "model; see VplConfig")
PROTOTYPE_FIELDS = (
    "rule", "region_maps", "sharpness", "targets", "centred", "text_temperature", "image_temperature", "max_iterations",
    "tolerance", "confident", "sinkhorn", "shrinkage",
)  # fmt: skip
PrototypeArguments = config_arguments(PrototypeSettings, PROTOTYPE_FIELDS, "prototypes; see PrototypeSettings")


@dataclass
class VplArguments:
    """What neither the model nor the prototypes are configured by."""

    _argument_group_name = "stages"

    model_name_or_path: str = HfArg(default=CLIP, help="any CLIP checkpoint")
    stages: list[str] = HfArg(default_factory=lambda: list(STAGES), metadata={"choices": STAGES}, help="what is done")
    image_size: int = HfArg(default=320, help="short side that images are resized to, and side of the crops")
    background_words: str | None = HfArg(
        default=None, help="what background is made of, parted by commas; none: every pixel has a class"
    )
    templates: str = HfArg(default="ensemble", help="of the text prototypes")
    prototype_learning_rate: float | None = HfArg(
        default=None, help="of the prototypes, not for lbfgs; default: 1 for the rule step, 0.01 for adam; InMaP: 10"
    )
    rounds: int = HfArg(default=1, help="of maps and prototypes")
    refinement: str = HfArg(default="crf", metadata={"choices": sorted(REFINEMENTS)}, help="of the pseudo masks")
    localization_batch_size: int = HfArg(default=16, help="images per forward pass of the first two stages")
    confidence: float = HfArg(default=0.95, help="pixels of pseudo masks below it are ignored in training")
    crops_per_image: int = HfArg(default=1, help="features are cached for so many crops")
    label_size: int = HfArg(default=80, help="side of the label maps of a crop")
    contrast_warmup_steps: int = HfArg(default=100, help="the weight of the regional contrast rises linearly")
    online_refinement: bool = HfArg(
        default=False, help="stage 3 moves its pseudo labels along the affinities of its decoder, as WeCLIP does"
    )
    online_start_step: int | None = HfArg(default=None, help="of that refinement; default: half of the steps, as in WeCLIP")
    online_confidence: float = HfArg(default=0.6, help="refined pixels whose best label has a smaller share are ignored")
    learning_rate: float = HfArg(default=1e-3, help="WeCLIP: 2e-3")
    weight_decay: float = HfArg(default=0.01, help="of matrices")
    warmup_steps: int = HfArg(default=50, help="the learning rate rises linearly")
    cache_dir: str | None = HfArg(default=None, help="folder for cached features; default: memory")


GROUPS = (
    VplArguments, PresetArguments, DataArguments, TagArguments, ClassArguments, DataSeedArguments, MaskArguments,
    ValidationArguments, MaskValidationArguments, ModelArguments, PrototypeArguments, TrainingSettings,
)  # fmt: skip


def prototype_settings(args: argparse.Namespace) -> PrototypeSettings:
    return PrototypeSettings(**config_values(args, PrototypeArguments), learning_rate=args.prototype_learning_rate)


def build_parser() -> CommandParser:
    parser = CommandParser(GROUPS, __doc__)
    parser.set_defaults(
        max_train_steps=400, train_batch_size=8, checkpointing_steps=200, logging_steps=50, validation_steps=200,
        mixed_precision="no",
    )  # fmt: skip
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    return build_parser().parse_for_dataset(arguments, "train_vpl")


def build_localizer(args: argparse.Namespace) -> tuple[VplForSemanticSegmentation, SegmentationProcessor]:
    """A model without classes on the CLIP checkpoint, and its processor."""
    model = VplForSemanticSegmentation.from_clip(args.model_name_or_path, **config_values(args, ModelArguments))
    size = {"shortest_edge": args.image_size, "longest_edge": 4 * args.image_size}
    return model, SegmentationProcessor.from_clip(args.model_name_or_path, templates=args.templates, size=size)


def localization_settings(args: argparse.Namespace) -> LocalizationSettings:
    return LocalizationSettings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(LocalizationSettings)})


def fit_prototypes(args: argparse.Namespace, model, processor, source: TaggedImages) -> VisionPrototypes:
    """Stage 1: prototypes of the classes of `source`, set in `model` and written beside it."""
    words = [word.strip() for word in (args.background_words or "").split(",") if word.strip()]
    prototypes = VisionPrototypes.fit(
        source.images, source.labels, source.class_names, model.clip, processor, words, localization_settings(args),
        prototype_settings(args), args.rounds, args.localization_batch_size,
    )  # fmt: skip
    model.set_prototypes(prototypes)
    folder = Path(args.output_dir)
    prototypes.save(folder / "prototypes.safetensors")
    model.save_pretrained(folder / "localizer")
    processor.save_pretrained(folder / "localizer")
    details = prototypes.details
    logger.info(
        "%d regions; objective %s; modality gap %s", details["num_regions"], details["objective"], details["modality_gap"]
    )
    return prototypes


class CachedCrops(Dataset):
    """Crops of a `CropCache`, with the step they are drawn for."""

    def __init__(self, cache: CropCache):
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, key: SampleKey) -> tuple[torch.Tensor, torch.Tensor, int]:
        return *self.cache[key.index], key.step


class Collate:
    """List of samples -> batch; the weight of the contrast rises over `warmup_steps`.

    Args:
        warmup_steps: of the contrast.
        online_start_step: from this step on labels are refined with `online_confidence`; None: never.
    """

    def __init__(self, warmup_steps: int, online_start_step: int | None = None, online_confidence: float = 0.0):
        self.warmup_steps = warmup_steps
        self.online_start_step, self.online_confidence = online_start_step, online_confidence

    def __call__(self, samples: list) -> dict[str, Any]:
        states, labels, steps = zip(*samples, strict=True)
        factor = min(1.0, steps[0] / max(1, self.warmup_steps))
        batch: dict[str, Any] = {"block_states": torch.stack(states), "labels": torch.stack(labels), "contrast_factor": factor}
        if self.online_start_step is not None and steps[0] >= self.online_start_step:
            batch["online_confidence"] = self.online_confidence
        return batch


def online_start(args: argparse.Namespace) -> int | None:
    """The first step whose labels are refined online; None where none is.

    Raises:
        ValueError: a confidence that is no share.
    """
    if not 0 <= args.online_confidence <= 1:
        raise ValueError(f"--online_confidence is {args.online_confidence}; it is a share, from 0 to 1.")
    if not args.online_refinement:
        return None
    return args.max_train_steps // 2 if args.online_start_step is None else args.online_start_step


def cache_blocks(args: argparse.Namespace, model, processor, masks) -> CropCache:
    """CLIP's blocks and the labels of all crops of `masks`, computed once."""
    crops = CropSettings(args.image_size, args.crops_per_image, label_size=args.label_size, seed=args.seed)
    identity = {"blocks of": weights_fingerprint(model.clip.vision_model), "dtype": str(model.dtype)}

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return model.encode_blocks(pixels.to(model.device, model.dtype))

    return CropCache(masks, processor, crops, encode, identity, cache_dir=args.cache_dir)


def compute_losses(model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    outputs = model(**batch)
    return {**outputs.losses, "loss": outputs.loss}


def train_segmenter(
    args: argparse.Namespace, accelerator, settings: TrainingSettings, model, cache: CropCache, **options
) -> VplForSemanticSegmentation:
    """The decoder of `model` on cached crops; `options` are further arguments of `train`."""
    optimizer = torch.optim.AdamW(parameter_groups(model, args.learning_rate, args.weight_decay))
    warmup = min(args.warmup_steps, settings.max_train_steps)
    scheduler = make_schedule(optimizer, "poly", warmup, settings.max_train_steps)
    collate = Collate(args.contrast_warmup_steps, online_start(args), args.online_confidence)
    return train(accelerator, settings, model, optimizer, scheduler, CachedCrops(cache), collate, compute_losses, **options)


def run_segmenter(args: argparse.Namespace, accelerator, settings: TrainingSettings, model, processor, masks, held_out) -> None:
    """Stage 3: from pseudo masks to `final/`; `held_out` are the masks to score on, or None."""
    labels = list(model.config.id2label.values())
    validation = MaskValidation(args, accelerator, processor, held_out, labels)
    with accelerator.main_process_first():
        cache = cache_blocks(args, model, processor, masks)
    names = ("image_size", "label_size", "crops_per_image", "contrast_warmup_steps")
    identity = {
        "data": masks.description, "class_names": labels, **{name: getattr(args, name) for name in names},
        **({"online": [online_start(args), args.online_confidence]} if args.online_refinement else {}),
    }  # fmt: skip
    model = train_segmenter(
        args, accelerator, settings, model, cache, on_step=validation, processor=processor, identity=identity
    )
    if accelerator.is_main_process:
        model.drop_text_encoder()
        description = f"VPL, trained on {len(masks)} images with image tags of {len(labels)} labels; no mask was read."
        card = run_card(
            args, "train_vpl", "VPL", description, masks.description, validation,
            limits=["It knows the classes it was trained for and no others."], base_model=args.model_name_or_path,
        )  # fmt: skip
        publish(model, processor, settings, card)


def run(args: argparse.Namespace) -> None:
    settings = TrainingSettings.from_arguments(args)
    localization_settings(args)  # refused before anything is read
    prototype_settings(args)
    online_start(args)
    if "segmenter" in args.stages:
        check_hub_access(settings)
    warn_of_drawn_clip(args)
    accelerator = make_accelerator(settings)
    folder = Path(args.output_dir)
    source = open_tags(args)
    held_out = open_validation(args) if "segmenter" in args.stages else None  # refused before the stages that take long
    check_held_out(source, held_out, args.validation_fraction)

    model, processor = build_localizer(args)
    model.to(accelerator.device)
    if "prototypes" in args.stages:
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                fit_prototypes(args, model, processor, source)
    prototypes = VisionPrototypes.load(folder / "prototypes.safetensors", model.clip)
    prototypes.check_classes(source.class_names)
    model.set_prototypes(prototypes)
    if "pseudo_labels" in args.stages:
        write_pseudo_labels(
            model, processor, source, folder / "pseudo_labels", args.refinement, args.localization_batch_size, accelerator
        )
    if "segmenter" in args.stages:
        masks = PseudoMasks(source, folder / "pseudo_labels", list(model.config.id2label.values()), args.confidence)
        run_segmenter(args, accelerator, settings, model, processor, masks, held_out)


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(run, parse_arguments, arguments)


if __name__ == "__main__":
    main()
