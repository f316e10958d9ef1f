"""VPL's third stage for the driver: segmenters on pseudo masks of text and vision prototypes, and on the truth."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from hf_clipseg.constants import IGNORE_INDEX
from hf_clipseg.evaluation.metrics import ConfusionMatrix
from hf_clipseg.localization.prototypes import VisionPrototypes, vision_hash
from hf_clipseg.processing.upsampling import upsample_argmax
from training import train_vpl
from training.data.feature_cache import CropCache, crop
from training.engine.loop import TrainingSettings, make_accelerator

from .vpl_ladder import Experiment, best_read_out, chosen_templates, vision_prototypes
from .vpl_scenes import FrozenScenes

NO_CONTRAST = ["--contrast_loss_weight", "0"]

SEGMENTERS = {
    "text prototypes": ("text", NO_CONTRAST),
    "vision prototypes": ("vision", []),
    "vision prototypes, RSC off": ("vision", NO_CONTRAST),
    "vision prototypes, online refinement": ("vision", ["--online_refinement"]),
    "fully supervised": ("truth", NO_CONTRAST),
}
"""Name -> (whose masks it learns from, options of `training.train_vpl`)."""


class PseudoMaskSource:
    """Scenes with given masks, as `training.data.feature_cache` reads them."""

    def __init__(self, scenes: FrozenScenes, masks: np.ndarray, names: Sequence[str]):
        self.images = [Image.fromarray(image) for image in scenes.images]
        self.masks, self.keys, self.class_names = masks, scenes.keys, list(names)
        self.description = {"scenes": scenes.keys}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index], "mask": self.masks[index], "key": self.keys[index]}


def relabelled(cache: CropCache, masks: np.ndarray) -> CropCache:
    """The same crops and features with other labels."""
    per_image = cache.settings.crops_per_image
    labels = [
        crop(cache.processor, cache.source[index]["image"], masks[index], cache.settings, index, number)[1]
        for index in range(len(cache.source))
        for number in range(per_image)
    ]
    cache.labels = torch.stack(labels).to(torch.uint8).numpy()
    return cache


class TestScenes:
    """Block states of the test scenes, computed once."""

    def __init__(self, model, scenes: FrozenScenes):
        self.scenes = scenes
        with torch.no_grad():
            states = [model.encode_blocks(scenes.pixel_values(batch)).half() for batch in scenes.batches()]
        self.states = torch.cat(states)

    @torch.no_grad()
    def score(self, model) -> float:
        """mIoU in percent at full resolution."""
        confusion = ConfusionMatrix(self.scenes.protocol.num_labels)
        for batch in self.scenes.batches():
            logits_of = model(block_states=self.states[batch].float()).logits
            for logits, truth in zip(logits_of, self.scenes.truth[batch], strict=True):
                confusion.update(upsample_argmax(logits, truth.shape), truth)
        return 100 * confusion.mean_iou()


def measure_segmenters(experiment: Experiment, seed: int, wanted: Sequence[str], record) -> None:
    """Trains every variant on the same scenes; `record(name, result)` after each.

    Masks of text and of vision prototypes are made by the read-out that suits each better on the chosen scenes.
    """
    args, localizer, processor = experiment.args, experiment.model, experiment.processor
    protocol = experiment.protocol("full")
    chosen = experiment.scenes("chosen", seed, args.ladder_scenes)
    chosen_templates(experiment, chosen)
    scenes = experiment.scenes("fitted", seed, args.train_scenes)
    unseen, train_states = (
        TestScenes(localizer, experiment.scenes("test", seed, args.test_scenes)),
        TestScenes(localizer, scenes),
    )
    text = scenes.text()
    prototypes = {"text": text, "vision": vision_prototypes(scenes, text, experiment)[0]}
    masks, scores, read_outs = {"truth": scenes.truth}, {"truth": 100.0}, {"truth": None}
    for name, embeds in prototypes.items():
        read_outs[name] = best_read_out(experiment, chosen, embeds, experiment.chosen.refinement)
        settings = experiment.read_outs[read_outs[name]]
        labels, confidence = scenes.pseudo_masks(embeds, settings, experiment.chosen.refinement)
        scores[name] = scenes.score(labels)
        masks[name] = labels.masked_fill(confidence < experiment.chosen.confidence, IGNORE_INDEX).numpy()
    cache = None
    for name in wanted:
        teacher, options = SEGMENTERS[name]
        started = time.perf_counter()
        run_folder = experiment.folder / "runs" / f"{name.replace(' ', '_').replace(',', '')}-{seed}"
        AcceleratorState._reset_state(True)
        run_args = experiment.train_arguments(run_folder, seed, options)
        settings = TrainingSettings.from_arguments(run_args)
        accelerator = make_accelerator(settings)
        model, _ = train_vpl.build_localizer(run_args)
        model.set_prototypes(as_prototypes(model, protocol, text, prototypes["vision"], experiment))
        if cache is None:
            source = PseudoMaskSource(scenes, masks["truth"], list(model.config.id2label.values()))
            cache = train_vpl.cache_blocks(run_args, model, processor, source)
        model = train_vpl.train_segmenter(run_args, accelerator, settings, model, relabelled(cache, masks[teacher]))
        record(name, {
            "test": unseen.score(model),
            "train": train_states.score(model),
            "pseudo masks, train": scores[teacher],
            "read-out": read_outs[teacher],
            "ignored": float((masks[teacher] == IGNORE_INDEX).mean()),
            "minutes": (time.perf_counter() - started) / 60,
        })  # fmt: skip


def as_prototypes(model, protocol, text: torch.Tensor, vision: torch.Tensor, experiment: Experiment) -> VisionPrototypes:
    details = {"localization": vars(experiment.localization)}
    return VisionPrototypes(vision, text, protocol.class_names, protocol.background_words, vision_hash(model.clip), details)
