"""Withholding the ground truth of unseen classes, and making sure that it stays withheld.

Label maps are cut in two on the way from the data to the loss: `labels`, in which unseen classes are ignored, and `withheld`,
the pixels of unseen classes without their class. MVP-SEG+ trains on withheld pixels, so it is told that they are unseen, as the
transductive setting of MaskCLIP+ (arXiv 2112.01071) and ZegCLIP (arXiv 2212.03588) has it; the class it must guess.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.hf_argparser import HfArg

from hf_clipseg.clip.text_bank import normalise_class_names, resolve_templates
from hf_clipseg.constants import IGNORE_INDEX

from .feature_cache import CropSettings
from .splits import SPLITS, unseen_class_ids


class ZeroShotLabels:
    """The seen and unseen classes of a data set.

    Args:
        class_names: all classes, by id.
        unseen_ids: ids of the classes whose masks are withheld.

    Raises:
        ValueError: fewer than two seen classes, or an id out of range.
    """

    def __init__(self, class_names: Sequence[str], unseen_ids: Sequence[int]):
        self.class_names = list(class_names)
        self.unseen_ids = sorted(set(unseen_ids))
        if self.unseen_ids and not 0 <= self.unseen_ids[0] <= self.unseen_ids[-1] < len(self.class_names):
            raise ValueError(f"unseen ids must be 0 to {len(self.class_names) - 1}, got {self.unseen_ids}.")
        self.seen_ids = [index for index in range(len(self.class_names)) if index not in self.unseen_ids]
        if len(self.seen_ids) < 2:
            raise ValueError(
                f"{len(self.seen_ids)} of {len(self.class_names)} classes are seen; training needs at least 2. "
                "Name fewer classes in --unseen."
            )
        self.seen_number = torch.full((IGNORE_INDEX + 1,), IGNORE_INDEX)
        self.seen_number[self.seen_ids] = torch.arange(len(self.seen_ids))
        self.is_unseen = torch.zeros(IGNORE_INDEX + 1, dtype=torch.bool)
        self.is_unseen[self.unseen_ids] = True

    @property
    def seen_names(self) -> list[str]:
        return [self.class_names[index] for index in self.seen_ids]

    @property
    def unseen_names(self) -> list[str]:
        return [self.class_names[index] for index in self.unseen_ids]

    def hide(self, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut a label map of all classes in two.

        Args:
            mask: integer class ids of any shape, 255 for void.

        Returns:
            `labels`: ids of all classes with unseen ones as 255, and `withheld`: bool, true where an unseen class was. Void
            pixels are 255 and not withheld.
        """
        mask = mask.long()
        withheld = self.is_unseen.to(mask.device)[mask]
        return mask.masked_fill(withheld, IGNORE_INDEX), withheld

    def to_seen_numbers(self, labels: torch.Tensor) -> torch.Tensor:
        """Ids of all classes -> positions among the seen classes; everything else becomes 255."""
        return self.seen_number.to(labels.device)[labels]

    def assert_hidden(self, labels: torch.Tensor) -> None:
        """Stop where a label of an unseen class is about to reach a loss.

        Raises:
            AssertionError: names the classes.
        """
        leaked = self.is_unseen.to(labels.device)[labels]
        if leaked.any():
            names = [self.class_names[index] for index in labels[leaked].unique().tolist()]
            raise AssertionError(f"ground truth of the unseen classes {names} reached the loss; call `hide` on the masks first")

    def fill_withheld(self, labels: torch.Tensor, withheld: torch.Tensor, guesses: torch.Tensor) -> torch.Tensor:
        """Targets for the loss: ground truth where it may be known, guesses where it is withheld.

        Args:
            labels: from `hide`.
            withheld: from `hide`.
            guesses: ids of all classes, or 255 for "no guess", of the same shape.

        Raises:
            AssertionError: `labels` hold an unseen class, or a withheld pixel has a label.
        """
        self.assert_hidden(labels)
        if (labels[withheld] != IGNORE_INDEX).any():
            raise AssertionError("a withheld pixel has a label; pass what `hide` returned, unchanged")
        return torch.where(withheld, guesses, labels)


def choose_split(class_names: Sequence[str] | None, unseen: str | None) -> ZeroShotLabels:
    """The split that `--unseen` names.

    Raises:
        ValueError: the data set names no classes, or `unseen` does not fit them (the message says how).
    """
    if class_names is None:
        raise ValueError(
            "The data set names no classes. Put classes.txt, one name per line, into its folder, or pass --classes."
        )
    return ZeroShotLabels(class_names, unseen_class_ids(unseen, class_names))


def check_prompts_fit(processor, class_names: Sequence, templates, num_prompt_tokens: int, limit: int) -> None:
    """Refuse class names that do not fit behind the learnable tokens, before training starts.

    Args:
        class_names: one name, or a list of synonyms, per class.
        templates: what the names are put into.
        num_prompt_tokens: learnable tokens in front of them.
        limit: tokens that the text encoder reads.

    Raises:
        ValueError: names the class and both lengths.
    """
    for name in (name for names in normalise_class_names(class_names) for name in names):
        for template in resolve_templates(templates):
            length = len(processor.tokenizer(template.format(name))["input_ids"])
            if length + num_prompt_tokens > limit:
                raise ValueError(
                    f"The class name {name!r} has {length} tokens with its start and end, and {num_prompt_tokens} learnable "
                    f"ones go in front of it: more than the {limit} that the text encoder reads. Shorten the name, or lower "
                    "--num_prompt_tokens."
                )


@dataclass
class ZeroShotArguments:
    """What both scripts of zero-shot segmentation are told about their data."""

    _argument_group_name = "zero-shot"

    unseen: str | None = HfArg(
        default=None, help=f"classes whose masks are withheld: names parted by commas, or one of {', '.join(SPLITS)}"
    )
    image_size: int = HfArg(default=224, help="side of the training crops in pixels")
    crops_per_image: int = HfArg(default=1, help="fixed crops of each image, the first centred")
    label_cells: int = HfArg(default=2, help="label cells per patch and side, for the loss")
    cache_dir: str | None = HfArg(default=None, help="keep the cache on disk, in this folder; default: in memory")


def crop_settings(args: argparse.Namespace, patch_size: int) -> CropSettings:
    label_size = args.label_cells * (-(-args.image_size // patch_size))
    return CropSettings(args.image_size, args.crops_per_image, label_size=label_size)
