"""How far prototypes could get: prototypes fitted with ground truth for the very read-out that is scored.

Centroids of true regions are no upper bound, although they are made of ground truth: texts score as well (VPL's card). A likely
reason, not tested by itself: they minimise the distance to a class's own patches, one class at a time, while a mask is decided
between the classes that share an image. The probe here minimises the cross-entropy of the softmax over an image's own classes,
patch by patch, which is what the read-out computes; how strongly it is held to its start is chosen on scenes that it was not
fitted on.
"""

from dataclasses import replace

import torch
from torch.nn import functional as F

from hf_clipseg.localization.localization import LocalizationSettings

from .vpl_scenes import FrozenScenes

HOLDS = (0.0, 0.003, 0.03, 0.1, 0.3)
"""Weights of the squared distance to the start."""


def fit_probe(scenes: FrozenScenes, settings: LocalizationSettings, start: torch.Tensor, hold: float) -> torch.Tensor:
    """Prototypes `(prototypes, dim)`, L2-normalised: mean over labelled patches of the cross-entropy of the softmax read-out,
    plus `hold` times the squared distance to `start`, minimised by L-BFGS."""
    features = torch.cat([scenes.features(batch, settings).flatten(1, 2) for batch in scenes.batches()])
    shares, labels = scenes.truth_on_grid(), scenes.protocol.labels_of_rows()
    members = F.one_hot(labels, scenes.protocol.num_labels).float()  # (prototypes, labels)
    background = torch.ones(len(scenes), len(start) - scenes.labels.shape[1], dtype=torch.bool)
    allowed = torch.cat([scenes.labels, background], dim=1)[:, None]
    directions = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([directions], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        cosines = features @ F.normalize(directions, dim=1).T
        rows = (cosines / settings.read_out_temperature).masked_fill(~allowed, float("-inf")).softmax(-1)
        loss = -(shares * (rows @ members).clamp(min=1e-12).log()).sum() / shares.sum()
        loss = loss + hold * (directions - start).square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return F.normalize(directions.detach(), dim=1)


def fit_oracles(
    fitted: FrozenScenes, chosen: FrozenScenes, read_outs: dict[str, LocalizationSettings], start: torch.Tensor
) -> dict[str, tuple[torch.Tensor, float]]:
    """Per read-out the probe that scores best on `chosen`, and its hold. For another read-out than `"softmax"` the candidates
    are the same, so that there it is not fitted for what it is scored by."""
    plain = replace(next(iter(read_outs.values())), affinity_layers=0)
    probes = {hold: fit_probe(fitted, plain, start, hold) for hold in HOLDS}
    best = {}
    for name, settings in read_outs.items():
        scores = {hold: chosen.score(chosen.pseudo_masks(probe, settings)[0]) for hold, probe in probes.items()}
        hold = max(scores, key=scores.get)
        best[name] = (probes[hold], hold)
    return best
