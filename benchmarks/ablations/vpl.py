"""Every figure of VPL's card that is a mean over seeds, on any CLIP and any data set with masks.

    python -m benchmarks.ablations.vpl --output_dir runs/vpl-ablations            # measures; skips what is done
    python -m benchmarks.ablations.vpl --output_dir runs/vpl-ablations --tables   # mean and deviation, as Markdown
    python -m benchmarks.ablations.vpl --output_dir runs/photos --clip openai/clip-vit-base-patch16 --dataset_name photos

A seed draws its own training and unseen scenes, initial weights and data order; the segmenters' test scenes are the same for
all. Figures of unseen scenes come first, then those of the scenes that prototypes were fitted on. A finished part leaves one
JSON file; a part without one is done again. Standard deviations are over seeds (n - 1). Masks score, choose templates and
read-outs on scenes of their own, and make tags, the oracles and the fully supervised ceiling. The settings are the defaults of
`training.train_vpl` for the data set; `--train_options` changes them.
"""

import argparse
import json
import logging
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from training.engine.provenance import provenance, write_json
from training.settings.arguments import run_command

from .vpl_ladder import Experiment, measure_ladder
from .vpl_segmenters import SEGMENTERS, measure_segmenters

logger = logging.getLogger(__name__)


def file_name(part: str, name: str, seed: int) -> str:
    return f"{part}-{name.replace(' ', '_').replace(',', '')}-{seed}.json"


def record(folder: Path, part: str, name: str, seed: int, result: dict, command_line: list[str]) -> None:
    write_json(
        folder / file_name(part, name, seed),
        {**result, "seed": seed, "provenance": provenance("benchmarks.ablations.vpl", command_line)},
    )
    logger.info("%s, %s, seed %d: %s", part, name, seed, json.dumps(result))


def read_results(folder: Path, part: str, name: str) -> list[dict]:
    return [
        json.loads(path.read_text()) for path in sorted(folder.glob(file_name(part, name, 0).replace("-0.json", "-*.json")))
    ]


def spread_of(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "-"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def print_tables(folder: Path) -> None:
    for protocol in ("full", "things"):
        if results := read_results(folder, "ladder", protocol):
            print_ladder(protocol, results)
    rows = {name: results for name in SEGMENTERS if (results := read_results(folder, "segmenter", name))}
    if rows:
        print("\n### Segmenters\n\n| segmenter | test (unseen) | train | its masks, train | ignored % | minutes | seeds |")
        print("|---|---|---|---|---|---|---|")
    for name, results in rows.items():
        columns = [spread_of([r[key] for r in results]) for key in ("test", "train", "pseudo masks, train")]
        columns += [spread_of([100 * r["ignored"] for r in results]), spread_of([r["minutes"] for r in results])]
        print(f"| {name} | {' | '.join(columns)} | {len(results)} |")


def print_ladder(protocol: str, results: list[dict]) -> None:
    print(f"\n### Localisation maps, mIoU, protocol `{protocol}` ({len(results)} seeds)\n")
    print("| prototypes | read-out | unseen | fitted |\n|---|---|---|---|")
    for group in ("scores", "rules"):
        for name in results[0][group]:
            for key, value in results[0][group][name].items():
                if isinstance(value, dict):
                    columns = [spread_of([r[group][name][key][role] for r in results]) for role in ("unseen", "fitted")]
                    label = name if group == "scores" else f"rule: {name}"
                    print(f"| {label} | {key} | {' | '.join(columns)} |")
    print("\n| on unseen scenes | gain over text | distance text -> oracle | share of it closed, % |\n|---|---|---|---|")
    for key in results[0]["scores"]["text"]:
        print_gain(key, [key] * len(results), [key] * len(results), results)
    for ending in ("", " + crf"):
        print_gain(
            f"each by its own read-out, chosen on other scenes{ending}", [own_read_out(r, "text", ending) for r in results],
            [own_read_out(r, "region prototypes", ending) for r in results], results,
        )  # fmt: skip
    print("\n| prototypes | mean distance region to prototype | centroid distance | objective |\n|---|---|---|---|")
    for name in results[0]["gap"]:
        print(f"| {name} | {' | '.join(mean_of(r['gap'][name] for r in results))} | |")
    for name in results[0]["rules"]:
        print(f"| rule: {name} | {' | '.join(mean_of(r['rules'][name] for r in results))} |")
    print(f"\ncosine of the prototypes to their texts: {statistics.mean(r['cosine to text'] for r in results):.3f}")


def print_gain(label: str, text_keys: list[str], vision_keys: list[str], results: list[dict]) -> None:
    """Differences are paired by seed; a share of a distance below one point says nothing."""
    text = [r["scores"]["text"][key]["unseen"] for r, key in zip(results, text_keys, strict=True)]
    vision = [r["scores"]["region prototypes"][key]["unseen"] for r, key in zip(results, vision_keys, strict=True)]
    oracle = [r["scores"]["oracle"][key]["unseen"] for r, key in zip(results, vision_keys, strict=True)]
    gains = [after - before for after, before in zip(vision, text, strict=True)]
    distances = [far - before for far, before in zip(oracle, text, strict=True)]
    shares = [100 * gain / distance for gain, distance in zip(gains, distances, strict=True)]
    print(f"| {label} | {spread_of(gains)} | {spread_of(distances)} | {spread_of(shares) if min(distances) > 1 else '-'} |")


def own_read_out(result: dict, name: str, ending: str) -> str:
    keys = [key for key in result["scores"][name] if key.endswith(" + crf") == bool(ending)]
    return max(keys, key=lambda key: result["scores"][name][key]["chosen"])


def mean_of(rows) -> list[str]:
    rows = list(rows)
    return [
        f"{statistics.mean(row[key] for row in rows):.3f}"
        for key in ("region_distance", "centroid_distance", "objective")
        if key in rows[0]
    ]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", default="model_cards/clip-toyscapes", help="any CLIP checkpoint")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--dataset_name", default="toyscapes", help="'toyscapes', or any data set with masks")
    parser.add_argument("--validation_fraction", type=float, default=0.4, help="of such a data set: unseen and chosen images")
    parser.add_argument("--has_validation_split", action="store_true", help="it has a split 'validation': hold nothing out")
    parser.add_argument("--background_words", nargs="+", help="the data set's class 0 is background, made of these")
    parser.add_argument("--image_size", type=int, help="side of the square scenes; default: that of training.train_vpl")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ladder_scenes", type=int, default=160)
    parser.add_argument("--train_scenes", type=int, default=400)
    parser.add_argument("--test_scenes", type=int, default=300)
    parser.add_argument("--protocols", nargs="+", choices=("full", "things"), help="of the ladder; default: all")
    parser.add_argument("--parts", nargs="+", choices=("ladder", "segmenter"), default=["ladder", "segmenter"])
    parser.add_argument("--segmenters", nargs="+", choices=list(SEGMENTERS), default=list(SEGMENTERS), help="only these")
    parser.add_argument("--tables", action="store_true", help="only print what has been measured")
    parser.add_argument(
        "--train_options", nargs=argparse.REMAINDER, default=[], help="options of training.train_vpl, up to the end of the line"
    )
    return parser


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    args = build_parser().parse_args(arguments)
    args.command_line = sys.argv[1:] if arguments is None else list(arguments)
    args.protocols = args.protocols or (["full", "things"] if args.dataset_name == "toyscapes" else ["full"])
    return args


def run(args: argparse.Namespace) -> None:
    folder = Path(args.output_dir)
    if args.tables:
        print_tables(folder)
        return
    if "things" in args.protocols and args.dataset_name != "toyscapes":
        raise ValueError(f"--protocols things is of Toyscapes; {args.dataset_name} has the protocol full")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    experiment = Experiment(args)
    for seed in args.seeds:
        for protocol in args.protocols if "ladder" in args.parts else ():
            if not (folder / file_name("ladder", protocol, seed)).is_file():
                experiment.processor.templates = experiment.templates
                record(folder, "ladder", protocol, seed, measure_ladder(experiment, protocol, seed), args.command_line)
        wanted = [name for name in args.segmenters if not (folder / file_name("segmenter", name, seed)).is_file()]
        if "segmenter" in args.parts and wanted:

            def keep(name: str, result: dict, seed: int = seed) -> None:
                record(folder, "segmenter", name, seed, result, args.command_line)

            measure_segmenters(experiment, seed, wanted, keep)


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(run, parse_arguments, arguments)


if __name__ == "__main__":
    main()
