"""From class names to text embeddings: templates, synonyms, prompt ensembles, and the cache.

A class has one or more names (synonyms), a name is put into one or more templates. Templates are averaged per name on the
unit sphere (Radford et al. 2021, arXiv 2103.00020, section 3.1.4); names of a class compete by maximum later, on the
similarity maps (`similarity.max_over_synonyms`).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .clip_templates import CLIP_80
from .text_files import FEWEST_PROMPTS, TextFiles, content_key

ClassName = str | Sequence[str]

TEMPLATES: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "photo": ("a photo of a {}",),
    "clip_es": ("a clean origami {}.",),
    "ensemble": (
        "a {}",
        "the {}",
        "a photo of a {}",
        "a picture of the {}",
        "there is a {} in the scene",
        "a close-up of a {}",
        "{} in the background",
        "a photo of many {}",
    ),
    "clip_80": CLIP_80,
}
"""Named template lists; `{}` stands for the class name."""


@dataclass(frozen=True)
class ClassPrompts:
    """Sentences for a list of classes.

    Args:
        class_names: display name of each class.
        texts: all P sentences.
        name_ids: the name (0 .. N - 1) of each sentence, length P.
        class_ids: the class (0 .. C - 1) of each name, length N.
    """

    class_names: tuple[str, ...]
    texts: tuple[str, ...]
    name_ids: tuple[int, ...]
    class_ids: tuple[int, ...]


def normalise_class_names(class_names: Sequence[ClassName]) -> list[list[str]]:
    """Every class as a list of its names, the display name first.

    Two classes may share a synonym, as published lists have it: they tie there, and the first of them wins.

    Raises:
        ValueError: no class, an empty name, two classes with one display name, or a name that a class has twice.
    """
    if isinstance(class_names, str) or not len(class_names):
        raise ValueError(f"class_names must be a non-empty list such as ['sky', 'boat'], got {class_names!r}.")
    for name in class_names:
        if not isinstance(name, (str, list, tuple)) or not all(isinstance(synonym, str) for synonym in name):
            raise ValueError(f"A class is a name or a list of names, such as 'sky' or ['boat', 'ship'], got {name!r:.60}.")
    classes = [[name] if isinstance(name, str) else list(name) for name in class_names]
    displayed: set[str] = set()
    for names in classes:
        if not names:
            raise ValueError("A class has an empty list of names; give it at least one.")
        folded = [_fold(name) for name in names]
        if "" in folded:
            raise ValueError("A class name is empty or only white space; remove it from the list.")
        if folded[0] in displayed or len(set(folded)) < len(folded):
            _refuse_repeated(names[0] if folded[0] in displayed else max(names, key=lambda name: folded.count(_fold(name))))
        displayed.add(folded[0])
    return [[" ".join(name.split()) for name in names] for names in classes]


def _fold(name: str) -> str:
    return " ".join(name.lower().split())


def _refuse_repeated(name: str) -> None:
    raise ValueError(
        f"The class name {' '.join(name.split())!r} is given twice; remove one, or make both synonyms of one class: "
        "['ship', 'boat']."
    )


def class_ids_of_names(class_names: Sequence[ClassName]) -> dict[str, int]:
    """Lower-case name -> class id; display names come before synonyms, a synonym of several classes stands for none."""
    classes = normalise_class_names(class_names)
    owners: dict[str, set[int]] = {}
    for class_id, names in enumerate(classes):
        for name in names:
            owners.setdefault(name.lower(), set()).add(class_id)
    return {name: min(ids) for name, ids in owners.items() if len(ids) == 1} | {
        names[0].lower(): class_id for class_id, names in enumerate(classes)
    }


def parse_class_names(text: str) -> list[list[str]]:
    """Read what a person types: classes parted by commas or new lines, synonyms of a class by `|`; every name once.

    >>> parse_class_names("sky, boat|ship")
    [['sky'], ['boat', 'ship']]
    """
    fields = [field for line in text.splitlines() for field in line.split(",") if field.strip(" |")]
    classes = normalise_class_names([[name for name in field.split("|") if name.strip()] for field in fields])
    seen: set[str] = set()
    for name in (name for names in classes for name in names):
        if _fold(name) in seen:
            _refuse_repeated(name)
        seen.add(_fold(name))
    return classes


def resolve_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """A preset's name, one template, or a list of templates, as a tuple of checked templates."""
    if isinstance(templates, str):
        templates = TEMPLATES.get(templates, (templates,))
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"The template {template!r} must hold '{{}}' exactly once, or be one of the presets {sorted(TEMPLATES)}."
            )
    if not templates:
        raise ValueError("Give at least one template, such as 'a photo of a {}'.")
    return tuple(templates)


def templates_of_argument(preset_or_file: str) -> tuple[str, ...]:
    """What `--templates` means: a preset of `TEMPLATES`, one template, or a file with one template per line.

    Raises:
        ValueError: a file that is missing, empty, or has a line without `{}`.
    """
    path = Path(preset_or_file)
    if preset_or_file in TEMPLATES or "{}" in preset_or_file:
        return resolve_templates(preset_or_file)
    if not path.is_file():
        raise ValueError(
            f"--templates {preset_or_file} is no file, no preset ({', '.join(sorted(TEMPLATES))}) and no template with '{{}}'."
        )
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return resolve_templates([line for line in lines if line and not line.startswith("#")])


def class_prompts(class_names: Sequence[ClassName], templates: str | Sequence[str] = "photo") -> ClassPrompts:
    """All sentences for `class_names`, name by name, template by template."""
    classes = normalise_class_names(class_names)
    templates = resolve_templates(templates)
    names = [(class_id, name) for class_id, names in enumerate(classes) for name in names]
    return ClassPrompts(
        class_names=tuple(names[0] for names in classes),
        texts=tuple(template.format(name) for _, name in names for template in templates),
        name_ids=tuple(name_id for name_id in range(len(names)) for _ in templates),
        class_ids=tuple(class_id for class_id, _ in names),
    )


def average_templates(prompt_embeds: torch.Tensor, name_ids: torch.Tensor) -> torch.Tensor:
    """Mean over the templates of each name, back on the unit sphere.

    Args:
        prompt_embeds: `(prompts, dim)`, L2-normalised.
        name_ids: `(prompts,)`, covering 0 .. names - 1.

    Returns:
        `(names, dim)`, L2-normalised.
    """
    sums = prompt_embeds.new_zeros(int(name_ids.max()) + 1, prompt_embeds.shape[-1])
    return nn.functional.normalize(sums.index_add(0, name_ids, prompt_embeds), dim=-1)


class TextCache:
    """Remembers the name embeddings of the last few vocabularies.

    The key holds the token ids (hence names and templates) and the identity and version of every text weight, so that a
    training step, a loaded checkpoint or a move to another device never leaves a stale embedding behind.
    """

    def __init__(self, capacity: int = 8):
        self.capacity = capacity
        self._entries: dict[tuple, torch.Tensor] = {}

    def key(self, weights: Sequence[torch.Tensor], *token_tensors: torch.Tensor) -> tuple:
        """Key for these token tensors under these weights; cheap, no weight is read."""
        digest = hashlib.sha256()
        for tokens in token_tensors:
            digest.update(str(tuple(tokens.shape)).encode() + tokens.cpu().numpy().tobytes())
        versions = tuple((weight.data_ptr(), weight._version, weight.dtype) for weight in weights)
        return digest.hexdigest(), versions

    def get_or_compute(
        self,
        compute: Callable[[], torch.Tensor],
        weights: Sequence[torch.Tensor],
        *token_tensors: torch.Tensor,
        computation: str | None = None,
    ) -> torch.Tensor:
        """What `compute` makes of these token tensors with these weights, computed once, without gradients.

        In full precision under autocast too: the result is kept, and may be asked for without autocast next time.

        Args:
            computation: everything besides weights and tokens that the result depends on, in words. With it, large vocabularies
                are looked up on disk, and kept there: see `text_files`.
        """
        key = self.key(weights, *token_tensors)
        if key not in self._entries:
            with torch.no_grad(), torch.autocast(token_tensors[0].device.type, enabled=False):
                name_embeds = self._read_or_compute(compute, weights, token_tensors, computation)
            while len(self._entries) >= self.capacity:
                self._entries.pop(next(iter(self._entries)))
            self._entries[key] = name_embeds
        return self._entries[key]

    @staticmethod
    def _read_or_compute(compute, weights, token_tensors, computation: str | None) -> torch.Tensor:
        files = TextFiles.from_environment() if len(token_tensors[0]) >= FEWEST_PROMPTS else None
        if files is None or computation is None:
            return compute()
        key = content_key(weights, token_tensors, computation)
        name_embeds = files.get(key)
        if name_embeds is None:
            name_embeds = compute()
            files.put(key, name_embeds)
        return name_embeds.to(token_tensors[0].device)


def weights_fingerprint(module: nn.Module) -> str:
    """Content hash of all weights of `module`, for files that are only valid with exactly these weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
