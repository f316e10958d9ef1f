"""The parity table of docs/protocols.md: every variant against the released procedure written out once more.

    python -m benchmarks.ablations.parity                       # full-size random ViT-B/16 and DINO ViT-B/8: about 15 minutes
    python -m benchmarks.ablations.parity --methods naclip sclip --layers 3

Two photographs, 336 x 497 and 504 x 336 after the resize rule, from the folder that HF_CLIPSEG_REAL_DATA names. CLIP is random
but for the position table, which is ViT-B/16's own. The procedure is `tests/released_procedure.py`, which shares nothing with
the package but the weights. The threshold for background is the median probability of each photograph: half of the pixels hang
on it.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from hf_clipseg import MaskClipForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.processing.inference import segment
from hf_clipseg.processing.sliding_window import sliding_window_logits
from tests import released_procedure as released
from tests.tiny import openai_tokenizer
from training.data.benchmarks import vocabulary
from training.evaluation.protocols import METHODS, Protocol, find_protocol

PHOTOGRAPHS = "coco_mini/images/val2017"
POSITIONS = "clip_refs/zegclip_vitb16/vit-b-16-pos_emb_197x768.npy"
DATASET = "voc21"


@dataclass(frozen=True)
class Row:
    """Agreement of one variant: largest differences, and shares of equal labels per photograph.

    Args:
        features: on a square of 224 pixels and on the landscape photograph's first window.
        windows: of the stitched cosines of all names, stride 1, landscape photograph.
        exact, fast: equal labels at output stride 1 and 4, per photograph.
        commonest: share of the commonest label in the reference: where it is 1, nothing was compared.
        seconds: that the row took.
    """

    method: str
    features: float
    windows: float
    exact: tuple[float, ...]
    fast: tuple[float, ...]
    commonest: tuple[float, ...]
    seconds: float

    def __str__(self) -> str:
        def shares(values):
            return ", ".join(f"{100 * value:.3f} %" for value in values)

        cells = (self.method, f"{self.features:.1e}", f"{self.windows:.1e}", shares(self.exact), shares(self.fast),
                 shares(self.commonest), f"{self.seconds:.0f}")  # fmt: skip
        return f"| {' | '.join(cells)} |"


def save_models(folder: Path, data: Path, layers: int) -> None:
    """A random ViT-B/16 with its real position table, and a random DINO ViT-B/8.

    DINO's weights are larger than usual, so that patches differ: where all are alike, ProxyCLIP's formula divides by zero.
    """
    torch.manual_seed(0)
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "patch_size": 16,
    }
    clip = CLIPModel(CLIPConfig(vision_config=vision)).eval()
    with torch.no_grad():
        clip.vision_model.embeddings.position_embedding.weight.copy_(torch.from_numpy(np.load(data / POSITIONS)).float())
    clip.save_pretrained(folder / "clip")
    openai_tokenizer(data / "clip_bpe/bpe_simple_vocab_16e6.txt.gz").save_pretrained(folder / "clip")
    ViTModel(ViTConfig(patch_size=8, num_hidden_layers=layers, initializer_range=0.2)).eval().save_pretrained(folder / "dino")


def photographs(data: Path) -> list[Image.Image]:
    """One of 640 x 433, one of 427 x 640 pixels: 336 x 497 and 504 x 336 under a short side of 336.

    Of each shape the one with most contrast, because random encoders find the patches of a flat one alike.
    """
    images = [Image.open(file).convert("RGB") for file in sorted((data / PHOTOGRAPHS).glob("*.jpg"))]
    landscapes = [image.crop((0, 0, 640, 433)) for image in images if image.width == 640 and image.height >= 433]
    portraits = [image.crop((0, 0, 427, 640)) for image in images if image.height == 640 and image.width >= 427]
    return [max(shape, key=lambda image: np.asarray(image).std()) for shape in (landscapes, portraits)]


class Comparison:
    """One method on both sides, with the weights in `folder`."""

    def __init__(self, method: str, folder: Path, images: list[Image.Image]):
        self.method, self.variant, self.images = method, method.removesuffix("-pamr"), images
        self.protocol: Protocol = replace(
            find_protocol(f"{method}-{DATASET}"),
            templates="photo",
            proxy=str(folder / "dino") if method == "proxyclip" else None,
        )
        self.clip = CLIPModel.from_pretrained(folder / "clip").eval()
        self.dino = ViTModel.from_pretrained(folder / "dino").eval() if method == "proxyclip" else None
        self.model = MaskClipForSemanticSegmentation.from_clip(folder / "clip")
        self.processor = SegmentationProcessor.from_clip(folder / "clip")
        self.protocol.apply(self.model, self.processor)
        # From the last to the first: the many words for background win most pixels, and the threshold then moves half of them
        self.names = vocabulary(self.protocol.vocabulary)[::-1]
        template = self.processor.templates[0]
        self.texts, self.class_ids = released.name_embeddings(self.clip, self.processor.tokenizer, self.names, template)

    def pixels(self, image: Image.Image) -> torch.Tensor:
        return self.processor(images=image, size_divisor=1)["pixel_values"][0]

    def row(self) -> Row:
        started = time.perf_counter()
        maps = [self.reference_maps(self.pixels(image)) for image in self.images]
        features, windows = self.feature_difference(), self.window_difference(maps[0])
        exact, fast, commonest = [], [], []
        for image, image_maps in zip(self.images, maps, strict=True):
            protocol = replace(self.protocol, prob_thd=self.median_probability(image_maps))
            picture, size = self.pixels(image), image.size[::-1]
            expected = released.labels_of(image_maps, self.class_ids, size, protocol, picture).numpy()
            commonest.append(float(np.bincount(expected.ravel()).max() / expected.size))
            for output_stride, shares in ((1, exact), (4, fast)):
                options = replace(protocol, output_stride=output_stride).options()
                (labels,) = segment(self.model, self.processor, [image], self.names, **options)
                shares.append(float((labels == expected).mean()))
        taken = time.perf_counter() - started
        return Row(self.method, features, windows, tuple(exact), tuple(fast), tuple(commonest), taken)

    def reference_maps(self, pixels: torch.Tensor) -> torch.Tensor:
        protocol = self.protocol
        return released.stitched(self.clip, pixels, self.texts, self.variant, protocol.window, protocol.stride, self.dino)

    def median_probability(self, maps: torch.Tensor) -> float:
        return float((self.protocol.logit_scale * maps).softmax(0).amax(0).median())

    def feature_difference(self) -> float:
        window = self.protocol.window
        differences = []
        for picture in (torch.randn(3, 224, 224), self.pixels(self.images[0])[:, :window, :window]):
            own = self.model.dense_features(picture[None])[0]
            differences.append(float((own - released.dense(self.clip, picture, self.variant, self.dino)).abs().max()))
        return max(differences)

    def window_difference(self, expected: torch.Tensor) -> float:
        """All names against all names: the model's own classes are these names, one each."""

        def predict(pixel_values: torch.Tensor) -> torch.Tensor:
            return (self.model.dense_features(pixel_values) @ self.texts.T).permute(0, 3, 1, 2)

        pixels = self.pixels(self.images[0])[None]
        own = sliding_window_logits(predict, pixels, self.protocol.window, self.protocol.stride, output_stride=1)
        return float((own[0] - expected).abs().max())


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="rows of the table (%(default)s)")
    parser.add_argument("--layers", type=int, default=12, help="blocks of both encoders (%(default)s)")
    options = parser.parse_args(arguments)
    data = os.environ.get("HF_CLIPSEG_REAL_DATA")
    if not data:
        sys.exit("error: set HF_CLIPSEG_REAL_DATA to the folder of photographs that CONTRIBUTING.md describes")
    print("| variant | features, max. difference | windows, max. difference | labels, stride 1 | labels, stride 4 "
          "| commonest label | s |\n|---|---|---|---|---|---|---|")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        save_models(Path(folder), Path(data), options.layers)
        for method in options.methods:
            print(Comparison(method, Path(folder), photographs(Path(data))).row(), flush=True)


if __name__ == "__main__":
    main()
