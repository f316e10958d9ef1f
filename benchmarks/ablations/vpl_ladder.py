"""VPL's first two stages for the driver: localisation maps rung by rung, on the fitted scenes and on unseen ones."""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from hf_clipseg.clip.text_bank import TEMPLATES, resolve_templates
from hf_clipseg.localization.localization import READ_OUTS
from hf_clipseg.localization.prototype_rules import PrototypeSettings, learn_prototypes, modality_gap, objective
from training import train_vpl

from .vpl_oracles import fit_oracles
from .vpl_scenes import FrozenScenes, Protocol, SceneSource, oracle_prototypes, without_affinity

ROLES = ("unseen", "fitted")


class Experiment:
    """What all parts share: the options, a frozen CLIP, the scenes, and the settings of `training.train_vpl`."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.folder = args, Path(args.output_dir)
        self.chosen = self.train_arguments(self.folder, 0, [])
        """The defaults of `training.train_vpl` for this data set, with which a model is trained."""
        self.model, self.processor = train_vpl.build_localizer(self.chosen)
        self.templates = list(self.processor.templates)
        fraction = None if args.has_validation_split else args.validation_fraction
        self.source = SceneSource(args.dataset_name, self.chosen.image_size, fraction)
        self.localization = train_vpl.localization_settings(self.chosen)
        self.read_outs = {name: replace(self.localization, read_out=name) for name in READ_OUTS}
        self.ours = train_vpl.prototype_settings(self.chosen)

    def train_arguments(self, folder: Path, seed: int, options: list[str]) -> argparse.Namespace:
        """The options of `training.train_vpl` for one run; those of `--train_options` come last."""
        size = [] if self.args.image_size is None else ["--image_size", str(self.args.image_size)]
        return train_vpl.parse_arguments(
            ["--output_dir", str(folder), "--model_name_or_path", self.args.clip, "--dataset_name", self.args.dataset_name,
             "--seed", str(seed), "--checkpointing_steps", "100000", *size, *options, *self.args.train_options]
        )  # fmt: skip

    def protocol(self, name: str) -> Protocol:
        return self.source.protocol(name, self.args.background_words or ())

    def scenes(self, role: str, seed: int, count: int, protocol: str = "full") -> FrozenScenes:
        layers = max(1, self.localization.affinity_layers)
        samples = self.source.samples(role, seed, count)
        return FrozenScenes(self.model, self.processor, self.protocol(protocol), samples, layers)


def rules(ours: PrototypeSettings, rounds: int) -> dict[str, tuple[PrototypeSettings, int]]:
    """Name -> (settings, rounds of maps and prototypes)."""
    bare = replace(ours, rule="step", centred=False, learning_rate=None)
    return {
        "L-BFGS to convergence": (replace(bare, rule="lbfgs"), rounds),
        "closed-form step, stops early": (bare, rounds),
        "closed-form step, rate 10 (InMaP)": (replace(bare, learning_rate=10.0), rounds),
        "Adam": (replace(bare, rule="adam"), rounds),
        "centroid": (replace(bare, rule="centroid"), rounds),
        "centroid, centred": (replace(bare, rule="centroid", centred=True), rounds),
        "ours, regions from unrefined maps": (replace(ours, region_maps="cam"), rounds),
        "ours, soft targets from text": (replace(ours, targets="text"), rounds),
        "ours, one more round": (ours, rounds + 1),
        "centroid, regions from similarity maps, 4 rounds": (
            replace(bare, rule="centroid", region_maps="similarity", sharpness=3.0), 4,
        ),
    }  # fmt: skip


def vision_prototypes(
    scenes: FrozenScenes, text: torch.Tensor, experiment: Experiment, settings: PrototypeSettings | None = None, rounds: int = 0
):
    """`VisionPrototypes.fit` on cached activations: (prototypes, the regions of the last round)."""
    settings, embeds = settings or experiment.ours, text
    for _ in range(rounds or experiment.chosen.rounds):
        regions = scenes.regions(embeds, experiment.localization, settings)
        embeds = learn_prototypes(regions, text, settings)
    return embeds, regions


def chosen_templates(experiment: Experiment, chosen: FrozenScenes) -> dict[str, float]:
    """Sets the template preset whose text maps score best on the chosen scenes, and returns all scores."""
    processor, scores = experiment.processor, {}
    for name in TEMPLATES:
        processor.templates = list(resolve_templates(name))
        plain = without_affinity(experiment.localization)
        scores[name] = chosen.score(chosen.pseudo_masks(chosen.text(), plain)[0])
    processor.templates = list(resolve_templates(max(scores, key=scores.get)))
    return scores


def best_read_out(experiment: Experiment, chosen: FrozenScenes, prototypes: torch.Tensor, refinement: str) -> str:
    """The read-out whose refined maps score best on the chosen scenes."""
    scores = {
        name: chosen.score(chosen.pseudo_masks(prototypes, settings, refinement)[0])
        for name, settings in experiment.read_outs.items()
    }
    return max(scores, key=scores.get)


def measure_ladder(experiment: Experiment, protocol: str, seed: int) -> dict:
    """mIoU of every prototype by read-out, refinement and role, and the modality gap before and after.

    Returns:
        `scores[prototypes][read-out, or "read-out + crf"][role]`, the role "unseen" first; what has a refinement also has the
        role "chosen", by which a read-out may be chosen. `rules` has the same, unrefined, with gap and objective.
    """
    count = experiment.args.ladder_scenes
    scenes = {role: experiment.scenes(role, seed, count, protocol) for role in (*ROLES, "chosen")}
    templates, fitted = chosen_templates(experiment, scenes["chosen"]), scenes["fitted"]
    plain = {name: without_affinity(settings) for name, settings in experiment.read_outs.items()}
    text = fitted.text()
    vision, regions = vision_prototypes(fitted, text, experiment)
    read_out = experiment.localization.read_out
    image_level = learn_prototypes(fitted.image_level_regions(plain[read_out], len(text)), text, experiment.ours)
    oracles = fit_oracles(fitted, scenes["chosen"], plain, text)
    num_classes = len(fitted.protocol.class_names)

    def scores_of(prototypes, names=READ_OUTS, refinement="none", roles=ROLES, settings=plain) -> dict:
        return {
            name if refinement == "none" else f"{name} + {refinement}": {
                role: scenes[role].score(scenes[role].pseudo_masks(prototypes, settings[name], refinement)[0]) for role in roles
            }
            for name in names
        }

    def with_refinement(prototypes, names=READ_OUTS) -> dict:
        roles = (*ROLES, "chosen")
        return scores_of(prototypes, names, roles=roles) | scores_of(prototypes, names, "crf", roles)

    scores = {"text": with_refinement(text), "image-level prototypes": scores_of(image_level)}
    if len(text) > num_classes:
        scores["region prototypes, text background"] = scores_of(torch.cat([vision[:num_classes], text[num_classes:]]))
    scores["region prototypes"] = with_refinement(vision)
    true_regions = fitted.true_regions(plain[read_out])
    for name, centred in (("centroids of true regions", False), ("centroids of true regions, centred", True)):
        scores[name] = scores_of(oracle_prototypes(true_regions, centred))
    scores["oracle"] = {}
    for name, (oracle, _) in oracles.items():
        scores["oracle"] |= with_refinement(oracle, [name])
    if experiment.localization.affinity_layers == 0:
        spread = {name: replace(settings, affinity_layers=1) for name, settings in plain.items()}
        scores["text + affinity"] = scores_of(text, settings=spread)
        scores["region prototypes + affinity"] = scores_of(vision, settings=spread)
    result = {
        "scenes": {role: len(part) for role, part in scenes.items()},
        "templates on chosen scenes": templates,
        "hold of the oracles": {name: hold for name, (_, hold) in oracles.items()},
        "read_out": read_out,
        "scores": scores,
        "gap": {"text": modality_gap(regions, text), "region prototypes": modality_gap(regions, vision)},
        "cosine to text": (vision * text).sum(1).mean().item(),
        "rules": {},
    }
    for name, (settings, rounds) in rules(experiment.ours, experiment.chosen.rounds).items() if protocol == "full" else ():
        embeds, _ = vision_prototypes(fitted, text, experiment, settings, rounds)
        lowered = objective(regions, embeds, text, settings)
        result["rules"][name] = {**scores_of(embeds), **modality_gap(regions, embeds), "objective": lowered}
    return result
