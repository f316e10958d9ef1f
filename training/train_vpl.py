"""Trains VPL from image tags, in three stages that can be run apart.

Command:   python -m training.train_vpl --output_dir runs/vpl-toyscapes
           python -m training.train_vpl --output_dir runs/photos --model_name_or_path openai/clip-vit-base-patch16 \\
               --dataset_name photos --labels_csv tags.csv --attention_variant plain

1. `prototypes`: vision prototypes from tagged images -> `prototypes.safetensors`, and `localizer/`, a checkpoint with them.
2. `pseudo_labels`: its localisation maps, refined -> `pseudo_labels/` (the work of `make_pseudo_labels`, resumable).
3. `segmenter`: the decoder on the pseudo masks, with regional semantic contrast -> `final/`.

`--stages` chooses some of them; a later stage reads what an earlier one wrote. With the defaults this trains the shipped
`model_cards/vpl-toyscapes`. No mask of the data set is read.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from hf_clipseg import SegmentationProcessor, VisionPrototypes, VplForSemanticSegmentation
from hf_clipseg.clip.text_bank import weights_fingerprint
from hf_clipseg.localization.localization import PLAIN, LocalizationSettings
from hf_clipseg.localization.prototype_rules import REGION_MAPS, RULES, TARGETS, PrototypeSettings
from hf_clipseg.localization.pseudo_labels import REFINEMENTS

from .data.feature_cache import CropCache, CropSettings
from .data.pseudo_masks import PseudoMasks, write_pseudo_labels
from .data.tagged_images import TaggedImages
from .engine.loop import SampleKey, TrainingSettings, add_training_arguments, make_accelerator, train
from .engine.optim import make_schedule, parameter_groups
from .make_pseudo_labels import add_data_arguments, open_source

logger = logging.getLogger(__name__)

STAGES = ("prototypes", "pseudo_labels", "segmenter")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default="model_cards/clip-toyscapes", help="any CLIP checkpoint (%(default)s)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--image_size", type=int, default=128, help="short side that images are resized to (%(default)s)")
    add_data_arguments(parser)
    found = parser.add_argument_group("localisation and prototypes")
    found.add_argument("--background_words", help="what background is made of, parted by commas; none: every pixel has a class")
    found.add_argument("--templates", default="ensemble", help="of the text prototypes (%(default)s)")
    found.add_argument("--attention_variant", default="value", help=f"of the last block; CLIP-ES: {PLAIN} (%(default)s)")
    found.add_argument("--keep_residual", choices=("yes", "no"), default="no", help="of a variant (%(default)s)")
    found.add_argument("--cam_scale", type=float, default=1.0, help="of the gradient maps; 25 for OpenAI's CLIP (%(default)s)")
    found.add_argument("--affinity_layers", type=int, default=0, help="CLIP-ES: 8; 0: no affinity (%(default)s)")
    found.add_argument("--affinity_threshold", type=float, default=0.4, help="(%(default)s)")
    found.add_argument("--rule", choices=RULES, default="step", help="(%(default)s)")
    found.add_argument("--centred", choices=("yes", "no"), default="no", help="with --rule centroid (%(default)s)")
    found.add_argument("--region_maps", choices=REGION_MAPS, default="refined", help="what pools regions (%(default)s)")
    found.add_argument("--targets", choices=TARGETS, default="own", help="what regions stand for (%(default)s)")
    found.add_argument("--rounds", type=int, default=1, help="of maps and prototypes (%(default)s)")
    masks = parser.add_argument_group("pseudo masks")
    masks.add_argument("--refinement", choices=sorted(REFINEMENTS), default="crf", help="(%(default)s)")
    masks.add_argument("--localization_batch_size", type=int, default=16, help="(%(default)s)")
    masks.add_argument("--confidence", type=float, default=0.95, help="pixels below it are ignored in training (%(default)s)")
    segmenter = parser.add_argument_group("segmenter")
    segmenter.add_argument("--decoder_dim", type=int, default=96, help="(%(default)s; WeCLIP: 256)")
    segmenter.add_argument("--decoder_layers", type=int, default=2, help="(%(default)s; WeCLIP: 3)")
    segmenter.add_argument("--decoder_heads", type=int, default=8, help="(%(default)s)")
    segmenter.add_argument("--crops_per_image", type=int, default=1, help="features are cached for so many crops (%(default)s)")
    segmenter.add_argument("--label_size", type=int, default=64, help="side of the label maps of a crop (%(default)s)")
    segmenter.add_argument("--affinity_loss_weight", type=float, default=0.1, help="(%(default)s)")
    segmenter.add_argument("--contrast_loss_weight", type=float, default=0.1, help="0: no regional contrast (%(default)s)")
    segmenter.add_argument("--contrast_warmup_steps", type=int, default=100, help="its weight rises linearly (%(default)s)")
    segmenter.add_argument("--learning_rate", type=float, default=1e-3, help="(%(default)s; WeCLIP: 2e-3)")
    segmenter.add_argument("--weight_decay", type=float, default=0.01, help="(%(default)s)")
    segmenter.add_argument("--warmup_steps", type=int, default=50, help="(%(default)s)")
    segmenter.add_argument("--cache_dir", help="folder for cached features (default: memory)")
    add_training_arguments(parser, max_train_steps=400, train_batch_size=8, checkpointing_steps=200, logging_steps=50)
    return parser.parse_args(arguments)


def build_localizer(args: argparse.Namespace) -> tuple[VplForSemanticSegmentation, SegmentationProcessor]:
    """A model without classes on the CLIP checkpoint, and its processor."""
    model = VplForSemanticSegmentation.from_clip(
        args.model_name_or_path,
        attention_variant=args.attention_variant,
        keep_residual=args.keep_residual == "yes",
        affinity_layers=args.affinity_layers,
        affinity_threshold=args.affinity_threshold,
        decoder_dim=args.decoder_dim,
        decoder_layers=args.decoder_layers,
        decoder_heads=args.decoder_heads,
        affinity_loss_weight=args.affinity_loss_weight,
        contrast_loss_weight=args.contrast_loss_weight,
    )
    size = {"shortest_edge": args.image_size, "longest_edge": 4 * args.image_size}
    return model, SegmentationProcessor.from_clip(args.model_name_or_path, templates=args.templates, size=size)


def fit_prototypes(args: argparse.Namespace, model, processor, source: TaggedImages) -> VisionPrototypes:
    """Stage 1: prototypes of the classes of `source`, set in `model` and written beside it."""
    words = [word.strip() for word in (args.background_words or "").split(",") if word.strip()]
    prototypes = VisionPrototypes.fit(
        source.images, source.labels, source.class_names, model.clip, processor, words,
        LocalizationSettings(
            args.attention_variant, args.keep_residual == "yes", args.cam_scale, args.affinity_layers, args.affinity_threshold
        ),
        PrototypeSettings(args.rule, args.region_maps, targets=args.targets, centred=args.centred == "yes"),
        args.rounds, args.localization_batch_size,
    )  # fmt: skip
    model.set_prototypes(prototypes)
    folder = Path(args.output_dir)
    prototypes.save(folder / "prototypes.safetensors")
    model.save_pretrained(folder / "localizer")
    processor.save_pretrained(folder / "localizer")
    logger.info("%d regions; modality gap %s", prototypes.details["num_regions"], prototypes.details["modality_gap"])
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
    """List of samples -> batch; the weight of the contrast rises over `warmup_steps`."""

    def __init__(self, warmup_steps: int):
        self.warmup_steps = warmup_steps

    def __call__(self, samples: list) -> dict[str, Any]:
        states, labels, steps = zip(*samples, strict=True)
        factor = min(1.0, steps[0] / max(1, self.warmup_steps))
        return {"block_states": torch.stack(states), "labels": torch.stack(labels), "contrast_factor": factor}


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


def train_segmenter(args: argparse.Namespace, accelerator, settings: TrainingSettings, model, cache: CropCache):
    """Stage 3: the decoder of `model` on cached crops; returns the trained model."""
    optimizer = torch.optim.AdamW(parameter_groups(model, args.learning_rate, args.weight_decay))
    warmup = min(args.warmup_steps, settings.max_train_steps)
    scheduler = make_schedule(optimizer, "poly", warmup, settings.max_train_steps)
    collate = Collate(args.contrast_warmup_steps)
    return train(accelerator, settings, model, optimizer, scheduler, CachedCrops(cache), collate, compute_losses)


def save(model, processor, settings: TrainingSettings) -> None:
    folder = Path(settings.output_dir) / "final"
    model.drop_text_encoder()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if settings.push_to_hub:
        repository = settings.hub_model_id or Path(settings.output_dir).name
        model.push_to_hub(repository)
        processor.push_to_hub(repository)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    settings = TrainingSettings.from_arguments(args)
    accelerator = make_accelerator(settings)
    folder = Path(args.output_dir)
    source = open_source(args)

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
        with accelerator.main_process_first():
            cache = cache_blocks(args, model, processor, masks)
        model = train_segmenter(args, accelerator, settings, model, cache)
        if accelerator.is_main_process:
            save(model, processor, settings)


if __name__ == "__main__":
    main()
