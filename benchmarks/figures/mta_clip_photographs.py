"""Fine-tunes MTA-CLIP on real photographs from a plain folder, and compares it with two baselines that know no image content.

    python -m benchmarks.figures.mta_clip_photographs DATA --output_dir runs/mta-clip-photographs

DATA is a folder with `images/`, `masks/` (255 = ignore) and `classes.json` (`{"classes": [...]}` or a list), such as MSRC v2. A
random 80 % of it becomes a folder for `training.train_mta_clip`, the rest is the test. The baselines are fitted on the same
80 %: the most frequent class everywhere, and a logistic regression per pixel on colour and position, with products of two.
Nothing that is trained here is kept in this repository.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from hf_clipseg import SegmentationProcessor
from hf_clipseg.constants import IGNORE_INDEX
from hf_clipseg.evaluation.metrics import ConfusionMatrix, summarise
from training import train_mta_clip
from training.data.sources import load_source
from training.engine.provenance import provenance, write_json
from training.evaluation.scoring import score

TEST_SHARE = 0.2
PIXELS_PER_IMAGE = 200


def make_folders(data: Path, folder: Path, seed: int = 0) -> None:
    """`folder/train` and `folder/test` with links to the files of `data`, and the class file."""
    classes = json.loads((data / "classes.json").read_text())
    names = classes["classes"] if isinstance(classes, dict) else classes
    masks = sorted(path for path in (data / "masks").iterdir())
    images = {path.stem: path for path in (data / "images").iterdir()}
    order = np.random.default_rng(seed).permutation(len(masks))
    num_test = round(TEST_SHARE * len(masks))
    for rank, index in enumerate(order):
        split = folder / ("test" if rank < num_test else "train")
        for part, source in (("images", images[masks[index].stem]), ("masks", masks[index])):
            (split / part).mkdir(parents=True, exist_ok=True)
            link = split / part / source.name
            link.unlink(missing_ok=True)
            link.symlink_to(source.resolve())
    (folder / "classes.txt").write_text("\n".join(names))


def pixel_features(image) -> np.ndarray:
    """Colour and position of every pixel, `(pixels, 5)` in [0, 1]."""
    colours = np.asarray(image, dtype=np.float64) / 255
    height, width = colours.shape[:2]
    rows, columns = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    return np.concatenate([colours, rows[..., None], columns[..., None]], axis=2).reshape(-1, 5)


def fit_baselines(train) -> tuple[int, object]:
    """The most frequent class, and the regression, from the training images."""
    counts, features, labels = np.zeros(IGNORE_INDEX, dtype=np.int64), [], []
    random = np.random.default_rng(0)
    for index in range(len(train)):
        sample = train[index]
        mask = sample["mask"].ravel()
        known = np.flatnonzero(mask != IGNORE_INDEX)
        counts += np.bincount(mask[known], minlength=IGNORE_INDEX)
        chosen = random.choice(known, min(PIXELS_PER_IMAGE, len(known)), replace=False)
        features.append(pixel_features(sample["image"])[chosen])
        labels.append(mask[chosen])
    regression = make_pipeline(PolynomialFeatures(2, include_bias=False), StandardScaler(), LogisticRegression(max_iter=500))
    return int(counts.argmax()), regression.fit(np.concatenate(features), np.concatenate(labels))


def score_baselines(train, test, num_classes: int) -> dict[str, dict]:
    majority, regression = fit_baselines(train)
    confusions = {"majority class": ConfusionMatrix(num_classes), "colour and position": ConfusionMatrix(num_classes)}
    for index in range(len(test)):
        sample = test[index]
        predicted = regression.predict(pixel_features(sample["image"])).reshape(sample["mask"].shape)
        confusions["majority class"].update(np.full_like(sample["mask"], majority), sample["mask"])
        confusions["colour and position"].update(predicted, sample["mask"])
    return {name: summarise(confusion) for name, confusion in confusions.items()}


def run(data: Path, output_dir: Path, options: Sequence[str]) -> dict[str, dict]:
    """Figures of the baselines and of the fine-tuned model, by name."""
    folder = output_dir / "data"
    make_folders(data, folder)
    train, test = (load_source(str(folder), split) for split in ("train", "test"))
    num_classes = len(train.class_names)
    figures = score_baselines(train, test, num_classes)
    arguments = ["--dataset_name", str(folder), "--preset", "toyscapes", "--output_dir", str(output_dir / "run"), *options]
    model = train_mta_clip.run(train_mta_clip.parse_arguments(arguments))
    processor = SegmentationProcessor.from_pretrained(output_dir / "run" / "final")
    scores = score(model, processor, test, None, num_classes, Accelerator())
    figures["MTA-CLIP"] = scores.figures(list(train.class_names))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Any further option goes to the training.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--output_dir", type=Path, required=True)
    args, options = parser.parse_known_args()
    figures = run(args.data, args.output_dir, options)
    for name, line in figures.items():
        print(f"{name:22} pixel accuracy {line['pixel_accuracy']:.3f}   mIoU {line['mIoU']:.3f}")
    write_json(args.output_dir / "figures.json", {**figures, **provenance("benchmarks.figures.mta_clip_photographs", options)})


if __name__ == "__main__":
    main()
