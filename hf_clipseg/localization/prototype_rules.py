"""From region embeddings to one prototype per class: the objective, its gradient, and the rules that lower it.

Papers: VPL, Xu et al., AAAI 2025, arXiv 2412.19650, for prototypes in vision space; InMaP, Qian et al., NeurIPS 2023, arXiv
2310.19752, for the objective. With x_i a region, t_k and w_k the text and vision prototypes,

    p_ik = softmax_k(x_i . t_k / text_temperature)      over the classes the image is tagged with, and background
    q_ik = softmax_k(x_i . w_k / image_temperature)
    loss = mean_i KL(p_i || q_i),     d loss / d W = (Q - P)^T X / (N image_temperature)

VPL's own code is not public. What is decided here: how regions are pooled (`REGION_MAPS`, `sharpness`) and that p may be the
class whose map made the region (`targets="own"`), which on Toyscapes is right more often than its text; classes with few
regions are shrunk towards their text prototype, carried over the modality gap; and `centroid`, a rule without iterations.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import nn

RULES = ("step", "adam", "lbfgs", "centroid")
REGION_MAPS = ("refined", "cam", "similarity")
TARGETS = ("own", "text")


@dataclass(frozen=True)
class PrototypeSettings:
    """How prototypes are learnt from regions.

    Args:
        rule: `"step"`: gradient descent in closed form, projected to the sphere, the rate halved whenever the gradient grows;
            `"adam"`: the same objective with Adam; `"lbfgs"`: the same objective to convergence, by L-BFGS with a line search;
            `"centroid"`: the mean of the regions, weighted by p.
        region_maps: what pools patches to regions: `"refined"`, the gradient maps after the dense CRF; `"cam"`, before it; or
            `"similarity"`, cosines scaled to [0, 1] per class.
        sharpness: power of the maps as weights of the pooling.
        targets: `"own"`: a region stands for the class whose map made it; `"text"`: for what text_temperature and p say.
        centred: subtract the mean region from the centroids, so that prototypes hold what tells the classes apart.
            Only with `rule="centroid"`.
        text_temperature, image_temperature: see the module docstring.
        learning_rate: of the first step (InMaP: 10); None takes 1 for `"step"`, 0.01 for `"adam"`.
        max_iterations, tolerance: of `"step"` and `"adam"`, which stop when 20 iterations change the loss by less, and of
            `"lbfgs"`, which stops when no entry of the gradient on the sphere is larger than a hundredth of it.
        confident: rows of p above it become one-hot.
        sinkhorn: balance p to a uniform class marginal. Wrong for most real data, where classes are not equally frequent.
        shrinkage: as many regions as the text prototype counts for.
    """

    rule: str = "lbfgs"
    region_maps: str = "refined"
    sharpness: float = 1.0
    targets: str = "own"
    centred: bool = False
    text_temperature: float = 0.01
    image_temperature: float = 0.04
    learning_rate: float | None = None
    max_iterations: int = 2000
    tolerance: float = 1e-3
    confident: float = 0.6
    sinkhorn: bool = False
    shrinkage: float = 2.0

    def __post_init__(self):
        for name, known in (("rule", RULES), ("region_maps", REGION_MAPS), ("targets", TARGETS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}.")
        if self.centred and self.rule != "centroid":
            raise ValueError(f"centred=True belongs to rule='centroid', the rule is {self.rule!r}.")
        if self.learning_rate is not None and self.rule == "lbfgs":
            raise ValueError(f"rule='lbfgs' finds its own steps: leave out learning_rate, which is {self.learning_rate}.")
        for name in ("text_temperature", "image_temperature", "sharpness"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.shrinkage < 0:
            raise ValueError(f"shrinkage must be >= 0, got {self.shrinkage}.")


@dataclass(frozen=True)
class Regions:
    """What prototypes are learnt from; one row per (image, class), and per (image, background word) that wins some patches.

    Args:
        embeds: `(regions, dim)`, L2-normalised.
        class_ids: `(regions,)`, the prototype whose map made the region; background words count on after the classes.
        allowed: `(regions, prototypes)` bool, the rows that p may be positive for: the image's classes and background.
    """

    embeds: torch.Tensor
    class_ids: torch.Tensor
    allowed: torch.Tensor

    @classmethod
    def concatenate(cls, parts: list["Regions"]) -> "Regions":
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("embeds", "class_ids", "allowed")))

    def __len__(self) -> int:
        return len(self.embeds)


def learn_prototypes(regions: Regions, text_embeds: torch.Tensor, settings: PrototypeSettings) -> torch.Tensor:
    """Vision prototypes `(prototypes, dim)`, L2-normalised, in fp32.

    Args:
        regions: of all images.
        text_embeds: `(prototypes, dim)` text prototypes of the classes, then of the background words.
        settings: the rule.

    Raises:
        ValueError: no region, or shapes that do not belong together.
    """
    if not len(regions) or regions.allowed.shape != (len(regions), len(text_embeds)):
        raise ValueError(
            f"expected at least one region and allowed (regions, {len(text_embeds)}), got {len(regions)} regions and "
            f"{tuple(regions.allowed.shape)}."
        )
    embeds, text_embeds = regions.embeds.float(), text_embeds.float()
    targets = region_targets(regions, embeds, text_embeds, settings)
    if settings.rule == "centroid":
        learnt = soft_centroids(embeds, targets, settings.centred)
    elif settings.rule == "lbfgs":
        learnt = converge(embeds, targets, text_embeds, settings)
    elif settings.rule == "step":
        learnt = descend(embeds, targets, text_embeds, settings)
    else:
        learnt = descend_with_adam(embeds, targets, text_embeds, settings)
    return shrink(learnt, targets.sum(0), text_embeds, settings.shrinkage)


def region_targets(regions: Regions, embeds, text_embeds: torch.Tensor, settings: PrototypeSettings) -> torch.Tensor:
    """p `(regions, prototypes)`."""
    if settings.targets == "own":
        return nn.functional.one_hot(regions.class_ids, len(text_embeds)).float()
    return text_targets(embeds, text_embeds, regions.allowed, settings)


def text_targets(embeds, text_embeds, allowed: torch.Tensor, settings: PrototypeSettings) -> torch.Tensor:
    """p `(regions, prototypes)`: the text prototypes' opinion among the rows a region may belong to."""
    logits = (embeds @ text_embeds.T / settings.text_temperature).masked_fill(~allowed, float("-inf"))
    targets = logits.softmax(1)
    if settings.sinkhorn:
        targets = balance(targets)
    best, winner = targets.max(1)
    return torch.where((best > settings.confident)[:, None], nn.functional.one_hot(winner, len(text_embeds)).float(), targets)


def balance(targets: torch.Tensor, iterations: int = 20) -> torch.Tensor:
    """Sinkhorn: scale columns to equal mass and rows to 1, in turn; columns without mass stay empty."""
    for _ in range(iterations):
        mass = targets.sum(0)
        targets = torch.where(mass > 0, targets / mass.clamp(min=1e-12), 0)
        targets = targets / targets.sum(1, keepdim=True).clamp(min=1e-12)
    return targets


def alignment_loss(embeds, targets, prototypes: torch.Tensor, image_temperature: float) -> torch.Tensor:
    """mean_i KL(p_i || q_i); differentiable in `prototypes`."""
    log_predictions = (embeds @ prototypes.T / image_temperature).log_softmax(1)
    entropy = torch.special.entr(targets).sum(1)
    return -(entropy + (targets * log_predictions).sum(1)).mean()


def alignment_gradient(embeds, targets, prototypes: torch.Tensor, image_temperature: float) -> torch.Tensor:
    """The gradient of `alignment_loss` in the prototypes, `(prototypes, dim)`."""
    predictions = (embeds @ prototypes.T / image_temperature).softmax(1)
    return (predictions - targets).T @ embeds / (len(embeds) * image_temperature)


def descend(embeds, targets, start: torch.Tensor, settings: PrototypeSettings) -> torch.Tensor:
    """Full-batch gradient descent on the sphere with the closed-form gradient; the rate is halved whenever its norm rises."""
    rate = 1.0 if settings.learning_rate is None else settings.learning_rate
    plateau, last_norm, prototypes = Plateau(embeds, targets, settings), float("inf"), start
    for _ in range(settings.max_iterations):
        gradient = alignment_gradient(embeds, targets, prototypes, settings.image_temperature)
        norm = gradient.norm().item()
        if norm > last_norm:
            rate /= 2
        last_norm = norm
        prototypes = nn.functional.normalize(prototypes - rate * gradient, dim=1)
        if plateau.reached(prototypes):
            break
    return prototypes


def descend_with_adam(embeds, targets, start: torch.Tensor, settings: PrototypeSettings) -> torch.Tensor:
    """Adam on the same objective with the same gradient; prototypes go back to the sphere after every step."""
    prototypes = start.clone().requires_grad_()
    plateau = Plateau(embeds, targets, settings)
    optimizer = torch.optim.Adam([prototypes], lr=0.01 if settings.learning_rate is None else settings.learning_rate)
    for _ in range(settings.max_iterations):
        prototypes.grad = alignment_gradient(embeds, targets, prototypes.detach(), settings.image_temperature)
        optimizer.step()
        prototypes.data = nn.functional.normalize(prototypes.data, dim=1)
        if plateau.reached(prototypes.detach()):
            break
    return prototypes.detach()


@torch.enable_grad()
def converge(embeds, targets, start: torch.Tensor, settings: PrototypeSettings) -> torch.Tensor:
    """L-BFGS with a strong-Wolfe line search on the directions of the prototypes, until the gradient has vanished.

    The rate of `descend` is only ever halved, so that it comes to rest before the objective does.
    """
    directions = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [directions], max_iter=settings.max_iterations, max_eval=2 * settings.max_iterations, history_size=20,
        tolerance_grad=settings.tolerance / 100, tolerance_change=0.0, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = alignment_loss(embeds, targets, nn.functional.normalize(directions, dim=1), settings.image_temperature)
        loss.backward()
        return loss

    optimizer.step(closure)
    loss, largest = closure().item(), directions.grad.abs().max().item()
    iterations = optimizer.state[directions]["n_iter"]
    if iterations >= settings.max_iterations and largest > settings.tolerance / 100:
        warnings.warn(
            f"Prototypes have not converged in {iterations} iterations: the objective is {loss:.4f}, its largest gradient "
            f"{largest:.1e}. Raise max_iterations, or pass rule='step', which stops early.",
            stacklevel=2,
        )
    return nn.functional.normalize(directions.detach(), dim=1)


class Plateau:
    """Tells when 20 iterations have changed the loss by less than `settings.tolerance`."""

    def __init__(self, embeds, targets, settings: PrototypeSettings):
        self.data = embeds, targets
        self.settings = settings
        self.iteration, self.last = 0, float("inf")

    def reached(self, prototypes: torch.Tensor) -> bool:
        self.iteration += 1
        if self.iteration % 20:
            return False
        loss = alignment_loss(*self.data, prototypes, self.settings.image_temperature).item()
        change, self.last = abs(self.last - loss), loss
        return change < self.settings.tolerance


def soft_centroids(embeds: torch.Tensor, targets: torch.Tensor, centred: bool) -> torch.Tensor:
    """Mean region of every prototype, weighted by p; `centred`: minus the mean over the prototypes that have regions."""
    mass = targets.sum(0)
    means = targets.T @ embeds / mass.clamp(min=1e-6)[:, None]
    if centred:
        means = means - means[mass > 1e-6].mean(0)
    return nn.functional.normalize(means, dim=1)


def shrink(prototypes: torch.Tensor, mass: torch.Tensor, text_embeds: torch.Tensor, shrinkage: float) -> torch.Tensor:
    """Rows with little mass lean on their text prototype, moved by the mean offset of the rows that have regions.

    Unmoved, a text prototype would lose everywhere: vision-vision cosines are far above vision-text ones.
    """
    seen = mass > 1e-6
    offset = (prototypes[seen] - text_embeds[seen]).mean(0)
    moved = nn.functional.normalize(text_embeds + offset, dim=1)
    trust = (mass / (mass + shrinkage).clamp(min=1e-6))[:, None]
    return nn.functional.normalize(trust * prototypes + (1 - trust) * moved, dim=1)


@torch.no_grad()
def objective(regions: Regions, prototypes: torch.Tensor, text_embeds: torch.Tensor, settings: PrototypeSettings) -> float:
    """What the iterative rules lower, at `prototypes`; arguments as in `learn_prototypes`."""
    embeds, text_embeds = regions.embeds.float(), text_embeds.float()
    targets = region_targets(regions, embeds, text_embeds, settings)
    return alignment_loss(embeds, targets, prototypes.float(), settings.image_temperature).item()


def modality_gap(regions: Regions, prototypes: torch.Tensor) -> dict[str, float]:
    """How far prototypes are from the regions they stand for.

    Returns:
        `region_distance`: mean ||x_i - prototype of its class||. `centroid_distance`: ||mean x - mean prototype||, the mean
        taken over regions, each with the prototype of its class.
    """
    embeds, partners = regions.embeds.float(), prototypes[regions.class_ids].float()
    return {
        "region_distance": (embeds - partners).norm(dim=1).mean().item(),
        "centroid_distance": (embeds.mean(0) - partners.mean(0)).norm().item(),
    }
