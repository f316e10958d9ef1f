"""Every figure of VPL's card that is a mean over seeds.

    python -m benchmarks.ablations.vpl --output_dir runs/vpl-ablations            # measures; skips what is done
    python -m benchmarks.ablations.vpl --output_dir runs/vpl-ablations --tables   # mean and deviation, as Markdown

A seed draws its own training scenes, initial weights and data order; test scenes are the same for all. A finished part leaves
one JSON file; a part without one is done again. Standard deviations are over seeds (n - 1). Masks score, and make the oracles
and the fully supervised ceiling; nothing else sees them. The settings are the defaults of `training.train_vpl`.
"""

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState

from hf_clipseg.clip.text_bank import TEMPLATES, resolve_templates
from hf_clipseg.constants import IGNORE_INDEX
from hf_clipseg.evaluation.metrics import ConfusionMatrix
from hf_clipseg.localization.localization import LocalizationSettings
from hf_clipseg.localization.prototype_rules import PrototypeSettings, learn_prototypes, modality_gap
from hf_clipseg.localization.prototypes import VisionPrototypes, vision_hash
from hf_clipseg.processing.upsampling import upsample_argmax
from training import train_vpl
from training.data.feature_cache import CropCache, crop
from training.engine.loop import TrainingSettings, make_accelerator
from training.engine.provenance import provenance, write_json

from .vpl_scenes import FrozenScenes, make_protocol, open_clip, oracle_prototypes, without_affinity

logger = logging.getLogger(__name__)

CHOSEN = train_vpl.parse_arguments(["--output_dir", "unused"])
"""The defaults of `training.train_vpl`, with which the shipped model is trained."""

ROUNDS = CHOSEN.rounds
REFINEMENT = CHOSEN.refinement

OURS = PrototypeSettings(CHOSEN.rule, CHOSEN.region_maps, targets=CHOSEN.targets, centred=CHOSEN.centred)
SIMILARITY = replace(OURS, rule="centroid", region_maps="similarity", sharpness=3.0)
RULES = {
    "closed-form step (ours)": (OURS, ROUNDS),
    "closed-form step, rate 10 (InMaP)": (replace(OURS, learning_rate=10.0), ROUNDS),
    "Adam": (replace(OURS, rule="adam"), ROUNDS),
    "centroid": (replace(OURS, rule="centroid"), ROUNDS),
    "centroid, centred": (replace(OURS, rule="centroid", centred=True), ROUNDS),
    "closed-form step, regions from unrefined maps": (replace(OURS, region_maps="cam"), ROUNDS),
    "closed-form step, soft targets from text": (replace(OURS, targets="text"), ROUNDS),
    "centroid, regions from similarity maps, 4 rounds": (SIMILARITY, 4),
}
"""Name -> (settings, rounds of maps and prototypes)."""

SEGMENTERS = {
    "text prototypes": ("text", ["--contrast_loss_weight", "0"]),
    "vision prototypes": ("vision", []),
    "vision prototypes, RSC off": ("vision", ["--contrast_loss_weight", "0"]),
    "fully supervised": ("truth", ["--contrast_loss_weight", "0"]),
}
"""Name -> (whose masks it learns from, options of `training.train_vpl`)."""


def chosen_localization() -> LocalizationSettings:
    return train_vpl.localization_settings(CHOSEN)


def vision_prototypes(scenes: FrozenScenes, text: torch.Tensor, settings: PrototypeSettings, rounds: int = ROUNDS):
    """`VisionPrototypes.fit` on cached activations: (prototypes, the regions of the last round)."""
    maps, embeds = chosen_localization(), text
    for _ in range(rounds):
        regions = scenes.regions(embeds, maps, settings)
        embeds = learn_prototypes(regions, text, settings)
    return embeds, regions


def best_text(scenes: FrozenScenes) -> tuple[str, torch.Tensor, dict[str, float]]:
    """The template preset whose maps score best on these very scenes: an advantage that only the baseline has."""
    scores, embeds = {}, {}
    kept = scenes.processor.templates
    for name in TEMPLATES:
        scenes.processor.templates = list(resolve_templates(name))
        embeds[name] = scenes.text()
        scores[name] = scenes.score(scenes.pseudo_masks(embeds[name], without_affinity(text_maps()))[0])
    scenes.processor.templates = kept
    winner = max(scores, key=scores.get)
    return winner, embeds[winner], scores


def text_maps() -> LocalizationSettings:
    """Text prototypes get the same scale: on the validation split it suits them better than CLIP's own, too."""
    return chosen_localization()


def measure_ladder(model, processor, protocol_name: str, seed: int, count: int) -> dict:
    """CAM seeds on training scenes, rung by rung, with the modality gap before and after."""
    protocol = make_protocol(protocol_name)
    scenes = FrozenScenes(model, processor, protocol, "train", 1000 + seed, count, max(1, CHOSEN.affinity_layers))
    maps, plain = chosen_localization(), without_affinity(chosen_localization())

    def seed_score(prototypes, settings, refinement="none") -> float:
        return scenes.score(scenes.pseudo_masks(prototypes, settings, refinement)[0])

    template, text, template_scores = best_text(scenes)
    own_text = scenes.text()
    image_level = learn_prototypes(scenes.image_level_regions(plain, len(text)), own_text, OURS)
    vision, regions = vision_prototypes(scenes, own_text, OURS)
    oracle_regions = scenes.true_regions(plain)
    oracles = {name: oracle_prototypes(oracle_regions, name == "centred") for name in ("centred", "not centred")}
    oracle_scores = {name: seed_score(oracle, plain) for name, oracle in oracles.items()}
    num_classes = len(protocol.class_names)
    with_affinity = replace(maps, affinity_layers=max(1, maps.affinity_layers))
    result = {
        "scenes": len(scenes),
        "templates": template_scores,
        "text": template_scores[template],
        "image-level prototypes": seed_score(image_level, plain),
        "region prototypes": seed_score(torch.cat([vision[:num_classes], own_text[num_classes:]]), plain),
        "+ joint background": seed_score(vision, plain) if protocol.background_words else None,
        "oracle": max(oracle_scores.values()),
        "oracles": oracle_scores,
        "text + affinity": seed_score(text, with_affinity),
        "vision + affinity": seed_score(vision, with_affinity),
    }
    for refinement in ("pamr", "crf"):
        result[f"text + {refinement}"] = seed_score(text, text_maps(), refinement)
        result[f"vision + {refinement}"] = seed_score(vision, maps, refinement)
    result["rules"] = {}
    for name, (settings, rounds) in RULES.items() if protocol_name == "full" else ():
        embeds = vision if settings == OURS else vision_prototypes(scenes, own_text, settings, rounds)[0]
        result["rules"][name] = {"seed": seed_score(embeds, plain), **modality_gap(regions, embeds)}
    result["gap"] = {"text": modality_gap(regions, own_text), "vision": modality_gap(regions, vision)}
    return result


class PseudoMaskSource:
    """Scenes with given masks, as `training.data.feature_cache` reads them."""

    def __init__(self, scenes: FrozenScenes, masks: np.ndarray, names: Sequence[str]):
        from PIL import Image

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
            for logits, truth in zip(
                model(block_states=self.states[batch].float()).logits, self.scenes.truth[batch], strict=True
            ):
                confusion.update(upsample_argmax(logits, truth.shape), truth)
        return 100 * confusion.mean_iou()


def measure_segmenters(clip_folder: str, seed: int, counts: tuple[int, int], folder: Path, variants: Sequence[str]) -> None:
    """Trains every variant on the same scenes and writes one JSON file for each."""
    wanted = [name for name in variants if not (folder / file_name("segmenter", name, seed)).is_file()]
    if not wanted:
        return
    protocol = make_protocol("full")
    localizer, processor = open_clip(clip_folder)
    scenes = FrozenScenes(localizer, processor, protocol, "train", 1000 + seed, counts[0], CHOSEN.affinity_layers)
    test = TestScenes(localizer, FrozenScenes(localizer, processor, protocol, "test", 0, counts[1], 0))
    train_states = TestScenes(localizer, scenes)
    text = scenes.text()
    vision, _ = vision_prototypes(scenes, text, OURS)
    masks, scores = {"truth": scenes.truth}, {"truth": 100.0}
    for name, prototypes, settings in (("text", text, text_maps()), ("vision", vision, chosen_localization())):
        labels, confidence = scenes.pseudo_masks(prototypes, settings, REFINEMENT)
        scores[name] = scenes.score(labels)
        masks[name] = labels.masked_fill(confidence < CHOSEN.confidence, IGNORE_INDEX).numpy()
    names = [names[0] for names in protocol.class_names]
    cache = None
    for name in wanted:
        teacher, options = SEGMENTERS[name]
        started = time.perf_counter()
        run_folder = folder / "runs" / file_name("segmenter", name, seed).removesuffix(".json")
        AcceleratorState._reset_state(True)
        args = train_vpl.parse_arguments(
            ["--output_dir", str(run_folder), "--model_name_or_path", clip_folder, "--seed", str(seed),
             "--checkpointing_steps", "100000", *options]
        )  # fmt: skip
        settings = TrainingSettings.from_arguments(args)
        accelerator = make_accelerator(settings)
        model, _ = train_vpl.build_localizer(args)
        model.set_prototypes(as_prototypes(model, protocol, text, vision))
        if cache is None:
            cache = train_vpl.cache_blocks(args, model, processor, PseudoMaskSource(scenes, masks["truth"], names))
        model = train_vpl.train_segmenter(args, accelerator, settings, model, relabelled(cache, masks[teacher]))
        result = {
            "test": test.score(model),
            "train": train_states.score(model),
            "pseudo masks, train": scores[teacher],
            "ignored": float((masks[teacher] == IGNORE_INDEX).mean()),
            "minutes": (time.perf_counter() - started) / 60,
        }
        record(folder, "segmenter", name, seed, result)


def as_prototypes(model, protocol, text: torch.Tensor, vision: torch.Tensor) -> VisionPrototypes:
    details = {"localization": vars(chosen_localization())}
    return VisionPrototypes(vision, text, protocol.class_names, protocol.background_words, vision_hash(model.clip), details)


def file_name(part: str, name: str, seed: int) -> str:
    return f"{part}-{name.replace(' ', '_').replace(',', '')}-{seed}.json"


def record(folder: Path, part: str, name: str, seed: int, result: dict) -> None:
    write_json(
        folder / file_name(part, name, seed),
        {**result, "seed": seed, "provenance": provenance("benchmarks.ablations.vpl", sys.argv[1:])},
    )
    logger.info("%s, %s, seed %d: %s", part, name, seed, json.dumps(result))


def read_results(folder: Path, part: str, name: str) -> list[dict]:
    return [
        json.loads(path.read_text()) for path in sorted(folder.glob(file_name(part, name, 0).replace("-0.json", "-*.json")))
    ]


def spread_of(values: list[float | None]) -> str:
    values = [value for value in values if value is not None]
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "-"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def print_tables(folder: Path) -> None:
    for protocol in ("full", "things"):
        results = read_results(folder, "ladder", protocol)
        if not results:
            continue
        print(f"\n### CAM seed mIoU on train scenes, protocol `{protocol}` ({len(results)} seeds)\n")
        rungs = [key for key, value in results[0].items() if value is None or isinstance(value, float)]
        for rung in rungs:
            print(f"| {rung} | {spread_of([result[rung] for result in results])} |")
        distances = [r["oracle"] - r["text"] for r in results]
        print(f"| distance text -> oracle | {spread_of(distances)} |")
        if min(distances) > 1:  # a share of next to nothing says nothing
            closed = [100 * (best(r) - r["text"]) / distance for r, distance in zip(results, distances, strict=True)]
            print(f"| share of it that is closed | {spread_of(closed)} % |")
        print(f"| gain over text | {spread_of([best(r) - r['text'] for r in results])} |")
        for rule in [rule for rule in results[0]["rules"] if all(rule in r["rules"] for r in results)]:
            row = [spread_of([r["rules"][rule]["seed"] for r in results])]
            for distance in ("region_distance", "centroid_distance"):
                row.append(f"{statistics.mean(r['rules'][rule][distance] for r in results):.3f}")
            print(f"| rule: {rule} | {' | '.join(row)} |")
        for which in ("text", "vision"):
            for distance in ("region_distance", "centroid_distance"):
                values = [r["gap"][which][distance] for r in results]
                print(f"| gap, {which}, {distance} | {statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}) |")
    print("\n### Segmenters, test mIoU\n")
    for name in SEGMENTERS:
        results = read_results(folder, "segmenter", name)
        columns = [spread_of([r[key] for r in results]) for key in ("pseudo masks, train", "train", "test", "minutes")]
        print(f"| {name} | {' | '.join(columns)} | {len(results)} seeds |")


def best(result: dict) -> float:
    return result["+ joint background"] or result["region prototypes"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", default="model_cards/clip-toyscapes")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ladder_scenes", type=int, default=160)
    parser.add_argument("--train_scenes", type=int, default=400)
    parser.add_argument("--test_scenes", type=int, default=300)
    parser.add_argument("--protocols", nargs="+", choices=("full", "things"), default=["full", "things"], help="of the ladder")
    parser.add_argument("--parts", nargs="+", choices=("ladder", "segmenter"), default=["ladder", "segmenter"])
    parser.add_argument("--tables", action="store_true", help="only print what has been measured")
    args = parser.parse_args(arguments)
    folder = Path(args.output_dir)
    if args.tables:
        print_tables(folder)
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for seed in args.seeds:
        for protocol in args.protocols:
            if "ladder" in args.parts and not (folder / file_name("ladder", protocol, seed)).is_file():
                model, processor = open_clip(args.clip)
                record(folder, "ladder", protocol, seed, measure_ladder(model, processor, protocol, seed, args.ladder_scenes))
        if "segmenter" in args.parts:
            measure_segmenters(args.clip, seed, (args.train_scenes, args.test_scenes), folder, list(SEGMENTERS))


if __name__ == "__main__":
    main()
