"""Every figure of the cards of MVP-SEG and MVP-SEG+ that is a mean over seeds.

    python -m benchmarks.ablations.mvp_seg --output_dir runs/mvp-seg-ablations           # train and score; skips what is done
    python -m benchmarks.ablations.mvp_seg --output_dir runs/mvp-seg-ablations --tables  # mean and deviation, as Markdown
    python -m benchmarks.ablations.mvp_seg --clip openai/clip-vit-base-patch16 --keep_residual --image_size 224 \\
        --dataset_name my-photos --validation_fraction 0.2 --split validation --unseen cow,boat --output_dir runs/photos

Every run is `training.train_mvp_seg` (or `..._plus`) with the options below, on features that are computed once, and is scored
on the same images: Toyscapes test scenes at full resolution, of other data the centred square of `--image_size` pixels. A
finished run leaves one JSON file; a run without one is done again. Standard deviations are over seeds (n - 1).
"""

import argparse
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from torch.nn import functional as F

from hf_clipseg import MaskClipForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.clip.multi_view import centre_classes, class_spread, pairwise_overlap
from hf_clipseg.clip.text_bank import TEMPLATES
from hf_clipseg.constants import IGNORE_INDEX
from hf_clipseg.evaluation.metrics import ConfusionMatrix, summarise
from hf_clipseg.processing.upsampling import upsample_argmax
from hf_clipseg.toyscapes import SYNONYMS
from training import train_mvp_seg, train_mvp_seg_plus
from training.curation.tokenization import NOUN_TEMPLATES
from training.data.feature_cache import CropCache, CropSettings, cache_features, cache_pixels
from training.data.sources import load_source
from training.data.zero_shot import ZeroShotLabels, choose_split
from training.engine.provenance import provenance, write_json
from training.evaluation.oracle import fit_linear_probe, grid_shares

from .mvp_seg_tables import COLUMNS, DROPPED, VOCABULARIES, draw, tables

logger = logging.getLogger(__name__)

OTHER_TEMPLATE = "there is a {} in the scene"
BASELINE_TEMPLATES = {**TEMPLATES, "noun": NOUN_TEMPLATES}

FIRST_WORDS = ("a photo of a", "a picture of the", "a drawing of a", "a view of the")

# Options that differ from the defaults of training.train_mvp_seg. `default` is the shipped model.
VARIANTS: dict[str, list[str]] = {
    "default": [],
    "OCLoss centred, spread bounded": ["--orthogonality", "centred", "--spread_weight", "1"],
    "k=1": ["--num_views", "1"],
    "k=2": ["--num_views", "2"],
    "k=4": ["--num_views", "4"],
    "OCLoss off": ["--orthogonality", "none"],
    "OCLoss prompt (paper)": ["--orthogonality", "prompt"],
    "GPR off": ["--global_refinement", "none"],
    "GPR paper": ["--global_refinement", "paper", "--presence_loss", "positive"],
    "GPR threshold, positives only": ["--global_refinement", "threshold", "--presence_loss", "positive"],
    "fusion renormalised sum": ["--fusion", "renormalised_sum"],
    "fusion max": ["--fusion", "max"],
    "fusion logsumexp": ["--fusion", "logsumexp"],
    "all as in the paper": [
        "--orthogonality", "prompt", "--global_refinement", "paper", "--presence_loss", "positive", "--anchor_weight", "0",
        "--spread_weight", "0",
    ],
    "no anchor": ["--anchor_weight", "0"],
    "GPR no threshold, full BCE": ["--global_refinement", "paper", "--presence_loss", "multilabel"],
    "4 tokens from words": ["--num_prompt_tokens", "4", "--prompt_words", *FIRST_WORDS],
}  # fmt: skip

PLUS_VARIANTS: dict[str, list[str]] = {
    "MVP-SEG+": [],
    "MVP-SEG+ without self-training": ["--teacher_steps", "1000000"],
}

RUNS = (*VARIANTS, *PLUS_VARIANTS)


class Vocabulary:
    """The classes that are scored, and which of them were withheld in training.

    Tuning leaves the true unseen classes out altogether: their pixels are ignored, and nothing is chosen by them.
    """

    def __init__(self, split: ZeroShotLabels, left_out: Sequence[int] = ()):
        self.ids = [index for index in range(len(split.class_names)) if index not in left_out]
        self.names = [split.class_names[index] for index in self.ids]
        self.unseen = [self.ids.index(index) for index in split.unseen_ids if index in self.ids]
        self.number = torch.full((IGNORE_INDEX + 1,), IGNORE_INDEX)
        self.number[self.ids] = torch.arange(len(self.ids))


class TestSet:
    """Cached scenes: scores of anything that turns encoded crops into logits."""

    def __init__(self, cache: CropCache, vocabulary: Vocabulary, batch_size: int = 40):
        self.cache, self.vocabulary, self.batch_size = cache, vocabulary, batch_size

    @torch.no_grad()
    def score(self, predict, classes_known: bool = False) -> dict:
        """`summarise` of the label maps that `predict(encoded) -> (batch, classes, h, w)` leads to.

        Args:
            classes_known: the ground truth says which classes an image shows, and only these are chosen from.
        """
        confusion = ConfusionMatrix(len(self.vocabulary.ids))
        for first in range(0, len(self.cache), self.batch_size):
            encoded = torch.from_numpy(self.cache.encoded[first : first + self.batch_size]).float()
            masks = self.vocabulary.number[torch.from_numpy(self.cache.labels[first : first + self.batch_size]).long()]
            for logits, mask in zip(predict(encoded), masks, strict=True):
                if classes_known:
                    absent = torch.isin(torch.arange(len(logits)), mask, invert=True)
                    logits = logits.masked_fill(absent[:, None, None], -1e4)
                confusion.update(upsample_argmax(logits, mask.shape), mask)
        return summarise(confusion, self.vocabulary.unseen)


def first_synonyms(class_names: Sequence[str]) -> list[str]:
    return [SYNONYMS[name][0] for name in class_names]


def vocabularies_of(class_names: Sequence[str], templates, has_synonyms: bool) -> dict[str, dict]:
    """Arguments of the processor for: the training names, the first synonym of each (Toyscapes), another template."""
    synonyms = {"synonyms": {"class_names": first_synonyms(class_names), "templates": templates}} if has_synonyms else {}
    return {
        "names": {"class_names": class_names, "templates": templates},
        **synonyms,
        "other template": {"class_names": class_names, "templates": OTHER_TEMPLATE},
    }


class Study:
    """Data, caches and folders that all runs share."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, self.clip, self.folder = arguments, arguments.clip, Path(arguments.output_dir)
        self.cache_dir = str(self.folder / "cache")
        self.keep_residual, self.drawn = arguments.keep_residual, arguments.dataset_name == "toyscapes"
        self.processor = SegmentationProcessor.from_clip(self.clip, templates="name")
        self.mask_clip = MaskClipForSemanticSegmentation.from_clip(self.clip, keep_residual=self.keep_residual)
        self.source, self.settings = self.open(arguments.split, arguments.test_images), CropSettings(arguments.image_size)
        self.split = choose_split(self.source.class_names, arguments.unseen)
        if arguments.tuning and not self.drawn:
            raise ValueError("--tuning leaves out the unseen classes of toyscapes: leave it away with --dataset_name.")
        left_out = choose_split(self.source.class_names, "toyscapes").unseen_ids if arguments.tuning else ()
        self.vocabulary = Vocabulary(self.split, left_out)
        cache = cache_features(self.mask_clip, self.source, self.processor, self.settings, cache_dir=self.cache_dir)
        self.test = TestSet(cache, self.vocabulary)

    def open(self, split: str, limit: int):
        """Images and masks; Toyscapes scenes are always those of seed 0."""
        a = self.arguments
        return load_source(
            a.dataset_name, split, classes_file=a.classes, validation_fraction=a.validation_fraction, limit=limit, seed=0,
            size=(a.image_size, a.image_size),
        )  # fmt: skip

    def vocabularies(self, templates) -> dict[str, dict]:
        return vocabularies_of(self.vocabulary.names, templates, has_synonyms=self.drawn)

    def shared_options(self, seed: int, output_dir: Path) -> list[str]:
        a = self.arguments
        options = {
            "output_dir": output_dir, "seed": seed, "cache_dir": self.cache_dir, "dataset_name": a.dataset_name,
            "limit": a.train_images, "image_size": a.image_size, "unseen": ",".join(self.split.unseen_names),
            "resume_from_checkpoint": "latest",
        }  # fmt: skip
        if a.classes is not None:
            options["classes"] = a.classes
        if a.validation_fraction is not None:  # which images are trained on; the runs' own scores are not used
            options |= {"validation_fraction": a.validation_fraction, "validation_limit": 1, "validation_pictures": 0}
        if a.max_train_steps is not None:
            options["max_train_steps"] = a.max_train_steps
        return [word for name, value in options.items() for word in (f"--{name}", str(value))]

    def baselines(self) -> dict:
        """MaskCLIP with every template list, with synonyms and with another template, and the oracles.

        The probe sees a patch at a time and bounds what texts can do with it. Global Prompt Refining asks the whole image, and
        may pass it; what bounds that is the probe among the classes that the image shows.
        """
        model, figures = self.mask_clip, {}
        for name, templates in BASELINE_TEMPLATES.items():
            for vocabulary, arguments in self.vocabularies(templates).items():
                inputs = self.processor(**arguments)
                embeds = model.encode_names(inputs["input_ids"], inputs["name_ids"])
                figures[f"{name}, {vocabulary}"] = self.test.score(
                    lambda features, embeds=embeds: torch.einsum("bhwd,nd->bnhw", features, embeds)
                )
        probe = self.fit_oracle()

        def probed(features: torch.Tensor) -> torch.Tensor:
            return (features @ probe.weight.T + probe.bias).permute(0, 3, 1, 2)

        figures["oracle"] = self.test.score(probed)
        figures["oracle, classes known"] = self.test.score(probed, classes_known=True)
        return figures

    def fit_oracle(self, images: int = 500):
        """The linear probe of `training.evaluation.oracle`, fitted with the ground truth of all classes on training scenes."""
        source = self.open("train", images)
        cache = cache_features(self.mask_clip, source, self.processor, self.settings, cache_dir=self.cache_dir)
        features, shares = [], []
        for index in range(len(cache)):
            encoded, mask = cache[index]
            ids, present = grid_shares(self.vocabulary.number[mask].numpy(), encoded.shape[:2])
            row = torch.zeros(len(self.vocabulary.ids), *encoded.shape[:2])
            row[ids] = present
            features.append(encoded.flatten(0, 1))
            shares.append(row.flatten(1).T)
        return fit_linear_probe(torch.cat(features), torch.cat(shares))

    def score_prompts(self, model, vocabularies: Sequence[str]) -> dict:
        """Figures of a trained MVP-SEG model in some of the three vocabularies, and how far its views agree."""
        figures = {}
        for vocabulary in vocabularies:
            names = dict(self.processor(**self.vocabularies("name")[vocabulary]))
            figures[vocabulary] = self.test.score(lambda features, names=names: model(patch_embeds=features, **names).logits)
        if model.config.global_refinement != "none":
            figures[DROPPED] = self.test.score(self.without_refinement(model))
        views = model.class_embeds[1:]
        pairs = max(1, len(views) * (len(views) - 1) // 2)
        figures["text_overlap"] = float(pairwise_overlap(views)) / pairs
        figures["centred_overlap"] = float(pairwise_overlap(centre_classes(views))) / pairs
        figures["class_spread"] = self.class_spreads(model)
        figures["prompt_overlap"] = float(pairwise_overlap(model.prompts.contexts[1:].detach().mean(1))) / pairs
        return figures

    def without_refinement(self, model):
        """Global Prompt Refining in training only: `log g` is taken off again."""
        names = dict(self.processor(**self.vocabularies("name")["names"]))

        def predict(features: torch.Tensor) -> torch.Tensor:
            outputs = model(patch_embeds=features, **names)
            return outputs.logits - F.logsigmoid(outputs.presence_logits)[:, :, None, None]

        return predict

    def class_spreads(self, model) -> dict[str, float]:
        """Mean cosine of different classes: in each view, of the global prompt where it is used, of prompts by hand."""
        inputs = self.processor(class_names=self.split.class_names, templates=train_mvp_seg.HAND_WRITTEN)
        by_hand = self.mask_clip.encode_names(inputs["input_ids"], inputs["name_ids"])
        spreads = class_spread(model.class_embeds).tolist()
        named = {f"view {number}": spread for number, spread in enumerate(spreads) if number}
        if model.config.global_refinement != "none":
            named["global"] = spreads[0]
        return named | {"by hand": float(class_spread(by_hand))}

    def train_prompts(self, options: list[str], seed: int, output_dir: Path):
        return train_mvp_seg.run(
            train_mvp_seg.parse_arguments(
                [*self.shared_options(seed, output_dir), "--model_name_or_path", self.clip,
                 "--keep_residual" if self.keep_residual else "--no-keep_residual", *options]
            )
        )  # fmt: skip

    def run_variant(self, name: str, seed: int) -> dict:
        work = self.folder / "work" / f"{slug(name)}-{seed}"
        started = time.perf_counter()
        model = self.train_prompts(VARIANTS[name], seed, work)
        seconds = time.perf_counter() - started
        figures = self.score_prompts(model, self.vocabularies("name") if name == "default" else VOCABULARIES[:1])
        keep_only_final(work, keep=name == "default")
        return {"figures": figures, "train_seconds": seconds, "options": VARIANTS[name]}

    def run_plus(self, name: str, seed: int) -> dict:
        teacher = self.folder / "work" / f"default-{seed}" / "final"
        work = self.folder / "work" / f"{slug(name)}-{seed}"
        options = [*self.shared_options(seed, work), "--teacher", str(teacher), *PLUS_VARIANTS[name]]
        started = time.perf_counter()
        student = train_mvp_seg_plus.run(train_mvp_seg_plus.parse_arguments(options))
        seconds = time.perf_counter() - started
        cache = cache_pixels(self.source, self.processor, self.settings, cache_dir=self.cache_dir)
        figures = {}
        for vocabulary in self.vocabularies("name") if name == "MVP-SEG+" else VOCABULARIES[:1]:
            names = dict(self.processor(**self.vocabularies("name")[vocabulary]))
            figures[vocabulary] = TestSet(cache, self.vocabulary).score(
                lambda pixels, names=names: student(pixels, **names).logits
            )
        keep_only_final(work, keep=name == "MVP-SEG+" and seed == 0)
        return {"figures": figures, "train_seconds": seconds, "options": PLUS_VARIANTS[name]}


def slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def keep_only_final(folder: Path, keep: bool) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not (keep and path.name == "final"):
            shutil.rmtree(path)


def run_all(arguments: argparse.Namespace) -> None:
    """Every run that has no JSON file yet; the shipped models first, then the ablations one after the other."""
    study = Study(arguments)
    jobs = [("baselines", 0, lambda name, seed: {"figures": study.baselines()})]
    for name in ("default", *PLUS_VARIANTS, *VARIANTS):
        jobs += [(name, seed, study.run_plus if name in PLUS_VARIANTS else study.run_variant) for seed in arguments.seeds]
    for name, seed, run in jobs:
        path = study.folder / f"{slug(name)}-{seed}.json"
        if path.exists() or (arguments.only and name not in arguments.only):
            continue
        AcceleratorState._reset_state(reset_partial_state=True)  # every run is a new script to Accelerate
        result = {"name": name, "seed": seed, **run(name, seed), **provenance("benchmarks.ablations.mvp_seg", sys.argv[1:])}
        write_json(path, result)
        summary = result["figures"].get("names", {})
        logger.info("%s, seed %d: %s", name, seed, {column: summary.get(column) for column in COLUMNS})


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/mvp-seg-ablations")
    parser.add_argument("--clip", default="model_cards/clip-toyscapes")
    parser.add_argument("--keep_residual", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--dataset_name", default="toyscapes", help="any data set with masks, as of the training scripts")
    parser.add_argument("--classes", help="class names, as of the training scripts")
    parser.add_argument("--validation_fraction", type=float, help="scored part of a data set without splits")
    parser.add_argument("--split", default="test", help="images that are scored (%(default)s)")
    parser.add_argument("--unseen", default="toyscapes", help="names parted by commas, or a split (%(default)s)")
    parser.add_argument("--image_size", type=int, default=128, help="side of crops in pixels (%(default)s)")
    parser.add_argument("--train_images", type=int, default=1200)
    parser.add_argument("--test_images", type=int, default=400)
    parser.add_argument("--max_train_steps", type=int, help="of both stages; default: those of the scripts")
    parser.add_argument("--tuning", action="store_true", help="leave the unseen classes of Toyscapes out of the scores")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="names of runs")
    parser.add_argument("--tables", action="store_true", help="print the finished runs and stop")
    parser.add_argument("--figure", help="draw the finished runs to this PNG file and stop")
    arguments = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.tables:
        print(tables(Path(arguments.output_dir), RUNS))
    elif arguments.figure:
        draw(Path(arguments.output_dir), RUNS, Path(arguments.figure))
    else:
        run_all(arguments)


if __name__ == "__main__":
    main()
