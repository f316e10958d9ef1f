"""`segment_many` against `segment` one picture at a time, from files to index PNGs at ViT-B/16 size; memory over many pictures.

    OMP_NUM_THREADS=2 python -m benchmarks.timings.many_pictures --size 640 480 --side 224 --pictures 6 --repeats 3
    python -m benchmarks.timings.many_pictures --memory 10000      # small pictures, a tiny model: MiB held on the way

The first asks for both cores and a machine that does nothing else; the labels of both ways are compared, bit for bit.
"""

import argparse
import io
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import CLIPConfig

from hf_clipseg import MaskClipConfig, MaskClipForSemanticSegmentation, SegmentationImageProcessor, segment, segment_many
from hf_clipseg.bulk.label_rows import label_row

from .pairs import Pair, as_table, machine, measure
from .run_all import command_of
from .steady import Watch, save

NAMES = [f"class {index}" for index in range(20)]


class ImagesOnly:
    """A processor for a model whose classes are baked in: no tokenizer."""

    def __init__(self, side: int):
        self.image_processor = SegmentationImageProcessor(size={"shortest_edge": side, "longest_edge": 4 * side})
        self.post_process_semantic_segmentation = self.image_processor.post_process_semantic_segmentation

    def __call__(self, images, **options):
        return self.image_processor(images, **options)


def random_model(**vision) -> MaskClipForSemanticSegmentation:
    clip = CLIPConfig(vision_config={"patch_size": 16, **vision}, text_config={"num_hidden_layers": 1}).to_dict()
    return MaskClipForSemanticSegmentation(MaskClipConfig(clip_config=clip, class_names=[[name] for name in NAMES])).eval()


def picture(seed: int, width: int, height: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def row(key, _, label_map) -> dict:
    return label_row(str(key), label_map, NAMES)


def compare_speed(size: tuple[int, int], side: int, pictures: int, repeats: int) -> None:
    model, processor = random_model(), ImagesOnly(side)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.jpg" for index in range(pictures)]
        for index, path in enumerate(paths):
            path.write_bytes(picture(index, *size))

        def one_by_one() -> list[dict]:
            return [row(path, None, segment(model, processor, [path])[0]) for path in paths]

        def many() -> list[dict]:
            return [found for _, found in segment_many(model, processor, zip(paths, paths, strict=True), finish=row)]

        words = "one picture at a time against `segment_many`"
        timing = measure(
            Pair(f"{pictures} pictures of {size[0]} x {size[1]}, short side {side}", one_by_one, many, words), repeats
        )
        print(as_table([timing]), "same labels" if one_by_one() == many() else "OTHER LABELS", sep="\n")


def small_pictures() -> Iterator[tuple[int, bytes]]:
    for seed in itertools.count():
        yield seed, picture(seed, *np.random.default_rng(seed).integers(40, 130, 2))


def watch_memory(pictures: int) -> Watch:
    model = random_model(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    stream = segment_many(model, ImagesOnly(64), itertools.islice(small_pictures(), pictures), finish=row)
    watch = Watch("pictures")
    for key, _ in stream:
        watch.note((key + 1) / pictures, key + 1)
    return watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--side", type=int, default=224, help="short side of the model's input")
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, metavar="PICTURES", help="watch the memory in place of the time")
    parser.add_argument("--json", type=Path, help="with --memory: write the readings here, for the page")
    args = parser.parse_args()
    print(machine())
    if args.memory:
        words = "many_pictures", "--memory", str(args.memory)
        save(args.json, "many-pictures-memory", command_of(*words), watch_memory(args.memory))
    else:
        compare_speed(tuple(args.size), args.side, args.pictures, args.repeats)


if __name__ == "__main__":
    main()
