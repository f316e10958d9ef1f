"""What VPL costs: learning prototypes, and making pseudo masks in batches against one image at a time.

    python -m benchmarks.timings.vpl --output runs/bench-vpl.json
    accelerate launch --num_processes 2 -m benchmarks.timings.vpl --output runs/bench-vpl-2.json     # one thread per process

Both ways of pseudo-labelling run the same code on the same images, in turn, several times; the figure is the ratio of the best
times. With more than one process, the batched way shares its images out, and the loop is run by one process alone.
"""

import argparse
import statistics
import sys
import time

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from hf_clipseg.localization.prototype_rules import PrototypeSettings, Regions, learn_prototypes
from training.data.pseudo_masks import label_images
from training.data.tagged_images import load_tagged_images
from training.engine.provenance import provenance, write_json

from ..ablations.vpl_scenes import open_clip


def bench_prototypes(regions: int, classes: int, dim: int) -> dict[str, float]:
    """Seconds of processor time per rule (all threads together, so that other work on the machine does not count), on regions
    around random class centres, tagged with 3 classes each."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(classes, dim, generator=generator), dim=1)
    class_ids = torch.randint(classes, (regions,), generator=generator)
    noise = 1.5 * torch.randn(regions, dim, generator=generator) / dim**0.5
    embeds = F.normalize(centres[class_ids] + noise, dim=1)
    text = F.normalize(centres + 2 * torch.randn(classes, dim, generator=generator) / dim**0.5, dim=1)
    allowed = torch.rand(regions, classes, generator=generator) < 3 / classes
    allowed[torch.arange(regions), class_ids] = True
    seconds = {}
    for rule in ("centroid", "step", "adam"):
        started = time.process_time()
        learn_prototypes(Regions(embeds, class_ids, allowed), text, PrototypeSettings(rule, centred=rule == "centroid"))
        seconds[rule] = time.process_time() - started
    return seconds


def images_per_second(model, processor, source, refinement: str, batch_size: int, indices: range) -> float:
    started = time.perf_counter()
    chunk = 4 * batch_size
    for first in range(0, len(indices), chunk):
        for _ in label_images(model, processor, source, indices[first : first + chunk], refinement, batch_size):
            pass
    return len(indices) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", default="model_cards/clip-toyscapes")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    accelerator = Accelerator()
    processes, rank = accelerator.num_processes, accelerator.process_index
    model, processor = open_clip(args.clip)
    source = load_tagged_images("toyscapes", limit=args.images)
    model.set_classes(source.class_names, processor)
    results = {"processes": processes, "threads per process": torch.get_num_threads()}
    if processes == 1:
        results["prototypes, 10,000 x 100 x 512, processor seconds"] = bench_prototypes(10_000, 100, 512)
    share = range(rank * args.images // processes, (rank + 1) * args.images // processes)
    for refinement in ("none", "pamr", "crf"):
        rates = {"one by one": [], "batched": []}
        for _ in range(args.repeats):
            accelerator.wait_for_everyone()
            if rank == 0:
                rates["one by one"].append(images_per_second(model, processor, source, refinement, 1, range(args.images // 2)))
            accelerator.wait_for_everyone()
            started = time.perf_counter()
            images_per_second(model, processor, source, refinement, args.batch_size, share)
            accelerator.wait_for_everyone()
            rates["batched"].append(args.images / (time.perf_counter() - started))
        if rank == 0:
            row = {name: max(values) for name, values in rates.items()}
            pairs = zip(rates["batched"], rates["one by one"], strict=True)
            row["ratio, median of the repeats"] = statistics.median(batched / single for batched, single in pairs)
            results[f"pseudo masks, refinement {refinement}, images/s"] = row
    if accelerator.is_main_process:
        print(results)
        write_json(args.output, {**results, "provenance": provenance("benchmarks.timings.vpl", sys.argv[1:])})


if __name__ == "__main__":
    main()
