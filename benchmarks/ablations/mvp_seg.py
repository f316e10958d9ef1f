"""Every figure of the cards of MVP-SEG and MVP-SEG+ that is a mean over seeds.

    python -m benchmarks.ablations.mvp_seg --output_dir runs/mvp-seg-ablations           # train and score; skips what is done
    python -m benchmarks.ablations.mvp_seg --output_dir runs/mvp-seg-ablations --tables  # mean and deviation, as Markdown

Every run is `training.train_mvp_seg` (or `..._plus`) with the options below, on features that are computed once, and is scored
on the same Toyscapes test scenes at full resolution. A finished run leaves one JSON file; a run without one is done again.
Standard deviations are over seeds (n - 1).
"""

import argparse
import json
import logging
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from hf_clipseg import MaskClipForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.clip.multi_view import pairwise_overlap
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

logger = logging.getLogger(__name__)

IMAGE_SIZE = 128
TRAIN_IMAGES = 1200
TEST_IMAGES = 400
OTHER_TEMPLATE = "there is a {} in the scene"
VOCABULARIES = ("names", "synonyms", "other template")
BASELINE_TEMPLATES = {**TEMPLATES, "noun": NOUN_TEMPLATES}

FIRST_WORDS = ("a photo of a", "a picture of the", "a drawing of a", "a view of the")

# Options that differ from the defaults of training.train_mvp_seg. `default` is the shipped model.
VARIANTS: dict[str, list[str]] = {
    "default": [],
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
    ],
    "no anchor": ["--anchor_weight", "0"],
    "GPR no threshold, full BCE": ["--global_refinement", "paper", "--presence_loss", "multilabel"],
    "4 tokens from words": ["--num_prompt_tokens", "4", "--prompt_words", *FIRST_WORDS],
}  # fmt: skip

PLUS_VARIANTS: dict[str, list[str]] = {
    "MVP-SEG+": [],
    "MVP-SEG+ without self-training": ["--teacher_steps", "1000000"],
}


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
    def score(self, predict) -> dict:
        """`summarise` of the label maps that `predict(encoded) -> (batch, classes, h, w)` leads to."""
        confusion = ConfusionMatrix(len(self.vocabulary.ids))
        for first in range(0, len(self.cache), self.batch_size):
            encoded = torch.from_numpy(self.cache.encoded[first : first + self.batch_size]).float()
            masks = self.vocabulary.number[torch.from_numpy(self.cache.labels[first : first + self.batch_size]).long()]
            for logits, mask in zip(predict(encoded), masks, strict=True):
                confusion.update(upsample_argmax(logits, mask.shape), mask)
        return summarise(confusion, self.vocabulary.unseen)


def first_synonyms(class_names: Sequence[str]) -> list[str]:
    return [SYNONYMS[name][0] for name in class_names]


def three_vocabularies(class_names: Sequence[str], templates) -> dict[str, dict]:
    """Arguments of the processor for: the training names, the first synonym of each, another template."""
    return {
        "names": {"class_names": class_names, "templates": templates},
        "synonyms": {"class_names": first_synonyms(class_names), "templates": templates},
        "other template": {"class_names": class_names, "templates": OTHER_TEMPLATE},
    }


class Study:
    """Data, caches and folders that all runs share."""

    def __init__(self, arguments: argparse.Namespace):
        self.clip, self.folder = arguments.clip, Path(arguments.output_dir)
        self.cache_dir = str(self.folder / "cache")
        self.keep_residual = arguments.keep_residual
        self.processor = SegmentationProcessor.from_clip(self.clip, templates="name")
        self.mask_clip = MaskClipForSemanticSegmentation.from_clip(self.clip, keep_residual=self.keep_residual)
        source = load_source("toyscapes", arguments.split, limit=TEST_IMAGES, seed=0)
        self.split = choose_split(source.class_names, arguments.unseen)
        true_unseen = choose_split(source.class_names, "toyscapes").unseen_ids
        self.vocabulary = Vocabulary(self.split, true_unseen if arguments.tuning else ())
        self.source, self.settings = source, CropSettings(IMAGE_SIZE)
        cache = cache_features(self.mask_clip, source, self.processor, self.settings, cache_dir=self.cache_dir)
        self.test = TestSet(cache, self.vocabulary)

    def shared_options(self, seed: int, output_dir: Path) -> list[str]:
        return [
            "--output_dir", str(output_dir), "--seed", str(seed), "--cache_dir", self.cache_dir,
            "--limit", str(TRAIN_IMAGES), "--unseen", ",".join(self.split.unseen_names),
            "--resume_from_checkpoint", "latest",
        ]  # fmt: skip

    def baselines(self) -> dict:
        """MaskCLIP with every template list, with synonyms and with another template, and the oracle."""
        model, figures = self.mask_clip, {}
        for name, templates in BASELINE_TEMPLATES.items():
            for vocabulary, arguments in three_vocabularies(self.vocabulary.names, templates).items():
                inputs = self.processor(**arguments)
                embeds = model.encode_names(inputs["input_ids"], inputs["name_ids"])
                figures[f"{name}, {vocabulary}"] = self.test.score(
                    lambda features, embeds=embeds: torch.einsum("bhwd,nd->bnhw", features, embeds)
                )
        probe = self.fit_oracle()
        figures["oracle"] = self.test.score(lambda features: (features @ probe.weight.T + probe.bias).permute(0, 3, 1, 2))
        return figures

    def fit_oracle(self, images: int = 500):
        """The linear probe of `training.evaluation.oracle`, fitted with the ground truth of all classes on training scenes."""
        source = load_source("toyscapes", "train", limit=images, seed=0)
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
            arguments = three_vocabularies(self.vocabulary.names, "name")[vocabulary]
            names = dict(self.processor(**arguments))
            figures[vocabulary] = self.test.score(lambda features, names=names: model(patch_embeds=features, **names).logits)
        views = model.class_embeds[1:]
        pairs = max(1, len(views) * (len(views) - 1) // 2)
        figures["text_overlap"] = float(pairwise_overlap(views)) / pairs
        figures["prompt_overlap"] = float(pairwise_overlap(model.prompts.contexts[1:].mean(1))) / pairs
        return figures

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
        figures = self.score_prompts(model, VOCABULARIES if name == "default" else VOCABULARIES[:1])
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
        for vocabulary in VOCABULARIES if name == "MVP-SEG+" else VOCABULARIES[:1]:
            names = dict(self.processor(**three_vocabularies(self.vocabulary.names, "name")[vocabulary]))
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


COLUMNS = ("mIoU", "mIoU_seen", "mIoU_unseen", "hIoU")


def cell(values: list[float]) -> str:
    """Mean and deviation in points."""
    mean = 100 * statistics.mean(values)
    return f"{mean:.1f}" if len(values) < 2 else f"{mean:.1f} ± {100 * statistics.stdev(values):.1f}"


def tables(folder: Path) -> str:
    """All finished runs as Markdown."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    lines = []
    for vocabulary in VOCABULARIES:
        lines += [f"\n### {vocabulary}\n", f"| run | n | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
        for result in results:
            if result["name"] == "baselines":
                rows = {
                    key: value for key, value in result["figures"].items() if key.endswith(f", {vocabulary}") or key == "oracle"
                }
                for key, figures in rows.items():
                    lines.append(f"| MaskCLIP {key} | 1 | {' | '.join(cell([figures[column]]) for column in COLUMNS)} |")
        for name in (*VARIANTS, *PLUS_VARIANTS):
            figures = [
                result["figures"][vocabulary]
                for result in results
                if result["name"] == name and vocabulary in result["figures"]
            ]
            if figures:
                cells = " | ".join(cell([figure[column] for figure in figures]) for column in COLUMNS)
                lines.append(f"| {name} | {len(figures)} | {cells} |")
    return "\n".join(lines)


def draw(folder: Path, picture: Path) -> None:
    """Seen and unseen mIoU of every variant with its deviation; lines mark MaskCLIP's best templates and the oracle."""
    import matplotlib.pyplot as plt  # for this figure only, so no requirement of the project

    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    names = [name for name in (*VARIANTS, *PLUS_VARIANTS) if any(result["name"] == name for result in results)]
    baselines = next(result["figures"] for result in results if result["name"] == "baselines")
    best = max((key for key in baselines if key.endswith(", names")), key=lambda key: baselines[key]["hIoU"])
    plot, axes = plt.subplots(1, 2, figsize=(10, 0.32 * len(names) + 1.2), sharey=True, layout="constrained")
    for axis, column in zip(axes, ("mIoU_seen", "mIoU_unseen"), strict=True):
        for row, name in enumerate(names):
            values = [100 * result["figures"]["names"][column] for result in results if result["name"] == name]
            deviation = statistics.stdev(values) if len(values) > 1 else 0
            axis.errorbar(statistics.mean(values), row, xerr=deviation, fmt="o", color="C0", capsize=3)
        axis.axvline(100 * baselines[best][column], color="C1", linestyle="--", label=f"MaskCLIP, {best.split(',')[0]}")
        axis.axvline(100 * baselines["oracle"][column], color="C2", linestyle="--", label="oracle probe")
        axis.set(title=column.replace("_", ", ") + " (points)", yticks=range(len(names)), yticklabels=names)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    axes[1].legend(loc="best", fontsize=8)
    plot.savefig(picture, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/mvp-seg-ablations")
    parser.add_argument("--clip", default="model_cards/clip-toyscapes")
    parser.add_argument("--keep_residual", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--split", default="test", help="scenes that are scored")
    parser.add_argument("--unseen", default="toyscapes")
    parser.add_argument("--tuning", action="store_true", help="leave the unseen classes of Toyscapes out of the scores")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="names of runs")
    parser.add_argument("--tables", action="store_true", help="print the finished runs and stop")
    parser.add_argument("--figure", help="draw the finished runs to this PNG file and stop")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.tables:
        print(tables(Path(arguments.output_dir)))
    elif arguments.figure:
        draw(Path(arguments.output_dir), Path(arguments.figure))
    else:
        run_all(arguments)


if __name__ == "__main__":
    main()
