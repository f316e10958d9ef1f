"""Looks through a data set before anything is trained on it: `python -m training.check_dataset NAME`.

Prints the share of every stored label and what it becomes; what is wrong, per kind, with the files concerned; and the training
command with the options that the masks call for. Draws one picture with its mask. Ends with status 1 where something is wrong.
Folders whose images come with tags or captions are looked through alike, see `data.text_checks`.
"""

import argparse
import logging
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from hf_clipseg.atomic import replace_file
from hf_clipseg.clip.class_files import class_names_of_argument
from hf_clipseg.constants import IGNORE_INDEX
from hf_clipseg.drawing.overlay import overlay

from .data.file_checks import FileCheck, Finding, check_files, label_table, looks_binary, totals, twin_finding
from .data.layouts import find_validation
from .data.rows import split_names
from .data.sources import load_source
from .data.text_checks import (
    LAYOUTS,
    check_texts,
    find_supervision,
    open_texts,
    splits_of,
    text_command,
    text_findings,
    text_sheet,
    text_table,
)
from .settings.arguments import SuggestingParser

EXAMPLES = 5  # files named per kind of finding
UNLABELLED_NAMES = ("unlabeled", "unlabelled", "void", "ignore", "ignored", "_ignore_", "__ignore__")
IGNORE_16_BIT = 65_535  # what 255 is in masks of two bytes
DEFAULT_LIMIT = 50  # of drawn scenes, and of a stream


def build_parser() -> argparse.ArgumentParser:
    parser = SuggestingParser(
        prog="python -m training.check_dataset", description="Checks every image and mask of a data set.", allow_abbrev=False
    )
    parser.add_argument("dataset_name", help="toyscapes, a preset (voc, ade20k, ...), a Hub id, or a folder")
    parser.add_argument(
        "--supervision", choices=sorted(LAYOUTS), help="what the images come with; default: what a folder looks like, or masks"
    )
    parser.add_argument("--split", help="default: every split")
    parser.add_argument("--dataset_config_name", help="configuration of a Hub data set")
    parser.add_argument("--image_column", help="where it cannot be guessed")
    parser.add_argument("--mask_column", help="where it cannot be guessed")
    parser.add_argument("--classes", help="names parted by commas, or a file with one class per line")
    parser.add_argument(
        "--reduce_labels", action=argparse.BooleanOptionalAction, default=False, help="0 is unlabelled, k -> k - 1"
    )
    parser.add_argument("--ignore_label", type=int, help="a label that means unlabelled")
    parser.add_argument("--id_map", help="JSON file, or pairs such as 255:1,rest:same: stored label -> class")
    parser.add_argument("--colour_map", help="file with a line per class: sky 128 128 128")
    parser.add_argument("--validation_fraction", type=float, help="divide a set without a validation split")
    parser.add_argument("--limit", type=int, help="look at so many images of each split; default: all")
    parser.add_argument("--streaming", action="store_true", help="read the first --limit rows without downloading the rest")
    parser.add_argument("--picture", default="dataset_check.png", help="where the overlay is written (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = vars(build_parser().parse_args(arguments))
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("training").setLevel(logging.INFO)
    try:
        fatal = run(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if fatal:
        sys.exit(1)


def run(options: dict) -> bool:
    """Whether something is wrong that training would stumble over."""
    kind = options.pop("supervision") or find_supervision(options["dataset_name"])
    if kind != "masks":
        return run_on_texts(kind, options)
    name, picture = options["dataset_name"], options["picture"]
    limit = options["limit"] or (DEFAULT_LIMIT if name == "toyscapes" or options["streaming"] else None)
    splits = choose_splits(options)
    reading = {
        key: value for key, value in options.items() if key not in ("picture", "split", "classes", "dataset_config_name")
    }
    reading |= {"classes_file": options["classes"], "config_name": options["dataset_config_name"], "limit": limit}
    sources, checks = {}, {}
    for split in splits:
        sources[split] = load_source(**reading, split=split)
        checks[split] = check_files(sources[split])
        print(f"\n{split}: " + "\n".join(label_table(sources[split], checks[split])))
    source = sources[splits[0]]
    findings = [finding for split in splits for finding in file_findings(split, checks[split])]
    findings += set_findings(source, checks)
    print("\nfound:" if findings else "\nnothing wrong was found")
    for finding in findings:
        print(f"- {finding}")
    broken = any(finding.fatal and not finding.options for finding in findings)
    print("\nto train on it" + (" once that is repaired:\n" if broken else ":\n") + training_command(options, splits, findings))
    draw(source, checks[splits[0]], Path(picture))
    return any(finding.fatal for finding in findings)


def run_on_texts(kind: str, options: dict) -> bool:
    """As `run`, for images with tags or captions."""
    options["class_names"] = class_names_of_argument(options["classes"]) if options["classes"] else None
    splits = (
        [options["split"]] if options["split"] else splits_of(kind, options["dataset_name"], options["dataset_config_name"])
    )
    sources, checks = {}, {}
    for split in splits:
        sources[split] = open_texts(kind, options, split, options["limit"])
        checks[split] = check_texts(kind, sources[split])
        print(f"\n{split}: " + "\n".join(text_table(kind, checks[split])))
    findings = text_findings(kind, checks)
    print("\nfound:" if findings else "\nnothing wrong was found")
    for finding in findings:
        print(f"- {finding}")
    fatal = any(finding.fatal for finding in findings)
    print(
        "\nto train on it"
        + (" once that is repaired:\n" if fatal else ":\n")
        + text_command(kind, options["dataset_name"], splits[0])
    )
    if sheet := text_sheet(sources[splits[0]], checks[splits[0]]):
        sheet.save(options["picture"])
        print(f"\nsome images with their {kind}: {options['picture']}")
    return fatal


def choose_splits(options: dict) -> list[str]:
    if options["split"]:
        return [options["split"]]
    if options["dataset_name"] == "toyscapes" or options["streaming"]:
        return ["train"]
    names = split_names(options["dataset_name"], options["dataset_config_name"])
    if options["validation_fraction"] is not None and len(names) == 1:
        return [names[0], "validation"]
    return names


def file_findings(split: str, checks: Sequence[FileCheck]) -> list[Finding]:
    """One finding per kind, with the first files concerned."""
    by_kind: dict[str, list[FileCheck]] = defaultdict(list)
    for check in checks:
        for kind in check.problems:
            by_kind[kind].append(check)
    findings = []
    for kind, found in by_kind.items():
        names = ", ".join(check.key for check in found[:EXAMPLES]) + (", ..." if len(found) > EXAMPLES else "")
        findings.append(Finding(f"{split}: {kind}, {len(found)} of {len(checks)}: {names} ({found[0].problems[kind]})"))
    empty = [check.key for check in checks if check.pixels and all(label == IGNORE_INDEX for label in check.becomes.values())]
    if empty:
        findings.append(
            Finding(f"{split}: {len(empty)} masks hold nothing but ignored pixels: {empty[:EXAMPLES]}", fatal=False)
        )
    return findings


def set_findings(source, checks: dict[str, list[FileCheck]]) -> list[Finding]:
    """What only shows when all masks are seen together."""
    everything = [check for of_split in checks.values() for check in of_split]
    pixels, becomes = totals(everything)
    if colours := sum((check.colours for check in everything), Counter()):
        return [colour_finding(colours)]
    findings = [binary_finding(pixels, becomes), class_finding(source.class_names, pixels, becomes, "training" in checks)]
    findings += [unused_finding(source.class_names, becomes), palette_finding(everything), twin_finding(checks)]
    return [finding for finding in findings if finding]


def colour_finding(colours: Counter) -> Finding:
    """Masks stored as colours without a map: a draft of one is written, the most frequent colour first."""
    if len(colours) > IGNORE_INDEX:
        return Finding(
            f"masks hold {len(colours)} colours: too many to be classes. Were they blurred by resizing or by JPEG compression, "
            "or is this the wrong --mask_column?"
        )
    draft = Path("colour_map.txt")
    if not draft.exists():
        lines = [f"class_{index} {red} {green} {blue}" for index, ((red, green, blue), _) in enumerate(colours.most_common())]
        with replace_file(draft) as partial:
            partial.write_text("\n".join(lines) + "\n")
    return Finding(
        f"masks hold {len(colours)} colours. Put the names of their classes in {draft}, which lists them, most frequent first "
        "(void for what is to be ignored), and check again with --colour_map",
        options={"colour_map": str(draft)},
    )


def binary_finding(pixels, becomes) -> Finding | None:
    if looks_binary(pixels, becomes):
        return Finding(
            "masks hold 0 and 255 only: 255 is read as unlabelled, so that the foreground would be ignored; --id_map "
            "0:0,255:1 makes it class 1",
            options={"id_map": "0:0,255:1"},
        )
    return None


def class_finding(class_names: Sequence[str] | None, pixels, becomes, like_ade20k: bool) -> Finding | None:
    """Labels that no class has; in folders that are called as in ADE20K, classes are taken to count from 1 as there."""
    labels = {stored: label for stored, label in becomes.items() if label != IGNORE_INDEX}
    if class_names is None:
        count = max([label for label in labels.values()], default=0) + 1
        return Finding(
            f"classes without names: write {count} names, one per line, to classes.txt in the folder, or pass --classes"
        )
    wrong = sorted(stored for stored, label in labels.items() if not 0 <= label < len(class_names))
    if not wrong:
        return None
    if pairs := gaps_closed(sorted(labels), len(class_names)):
        return Finding(
            f"masks hold {len(labels)} labels up to {max(labels)}, with gaps, for {len(class_names)} classes; where they are "
            f"in the order of the names, it is --id_map {pairs}",
            options={"id_map": pairs},
        )
    share = sum(pixels[stored] for stored in wrong) / sum(pixels.values())
    text = f"labels that no class has: {wrong[:10]} ({share:.2%} of the pixels; {len(class_names)} classes are named)"
    if wrong == [len(class_names)] and like_ade20k and 0 in pixels:
        text += "; as in ADE20K, 0 is unlabelled and they count from 1: --reduce_labels"
        return Finding(text, options={"reduce_labels": ""})
    if wrong == [len(class_names)] and 0 not in pixels:
        return Finding(f"{text}, and none has 0: they count from 1; --reduce_labels", options={"reduce_labels": ""})
    if len(wrong) == 1:
        text += f"; name them in classes.txt or --classes, or --ignore_label {wrong[0]} leaves them out"
        if labels[wrong[0]] == len(class_names) and 0 in pixels:
            text += "; where 0 is unlabelled and classes count from 1, it is --reduce_labels"
        return Finding(text, options={"ignore_label": str(wrong[0])})
    pairs = ",".join(f"{stored}:{IGNORE_INDEX}" for stored in wrong) + ",rest:same"
    return Finding(f"{text}; name them, or leave them out with --id_map {pairs}", options={"id_map": pairs})


def gaps_closed(stored: Sequence[int], classes: int) -> str | None:
    """The `--id_map` of labels with gaps in ascending order, where there are as many as classes, or one more that is 0 or the
    largest and means unlabelled; None where there are not."""
    if len(stored) == classes + 1:
        unlabelled = 0 if stored[0] == 0 and stored[-1] != IGNORE_16_BIT else stored[-1]
    elif len(stored) == classes:
        unlabelled = None
    else:
        return None
    kept = [label for label in stored if label != unlabelled]
    if kept[-1] - kept[0] < classes:  # they count from 1, or there is one name too few
        return None
    pairs = [f"{label}:{index}" for index, label in enumerate(kept)]
    return ",".join(pairs if unlabelled is None else [f"{unlabelled}:{IGNORE_INDEX}", *pairs])


def unused_finding(class_names: Sequence[str] | None, becomes) -> Finding | None:
    names = list(class_names or ())
    unused = [name for index, name in enumerate(names) if index not in becomes.values()]
    void = [name for name in names if name.lower() in UNLABELLED_NAMES and name not in unused]
    if void:
        index = names.index(void[0])
        stored = next(stored for stored, label in becomes.items() if label == index)
        return Finding(
            f"the class {void[0]!r} would be learnt like any other; --ignore_label {stored} leaves it out",
            fatal=False, options={"ignore_label": str(stored)},
        )  # fmt: skip
    if unused:
        return Finding(f"{len(unused)} classes occur in no mask: {', '.join(unused[:10])}", fatal=False)
    return None


def palette_finding(checks: Sequence[FileCheck]) -> Finding | None:
    """Indexed masks whose palettes give one label several colours: editors renumber them when they save."""
    first: dict[int, tuple[tuple, str]] = {}
    for check in checks:
        for label, colour in check.palette.items():
            seen, key = first.setdefault(label, (colour, check.key))
            if seen != colour:
                return Finding(
                    f"label {label} has the colour {seen} in {key} and {colour} in {check.key}: where the colours are the "
                    "classes, give them with --colour_map"
                )
    return None


def training_command(options: dict, splits: Sequence[str], findings: Sequence[Finding]) -> str:
    """The command that trains on the set as it was checked, with the flags that the findings call for."""
    flags = {name: options[name] for name in ("dataset_name", "dataset_config_name", "split")}
    train = next((split for split in splits if split.startswith("train")), splits[0])
    flags |= {"split": train, **validation_flags(options, splits, train)}
    flags |= {
        name: options[name] for name in ("image_column", "mask_column", "classes", "ignore_label", "id_map", "colour_map")
    }
    for finding in findings:
        flags |= {name: value for name, value in finding.options.items() if flags.get(name) is None}
    if not options["reduce_labels"] and flags.get("id_map") and flags.get("ignore_label") is not None:
        del flags["ignore_label"]  # the map says it
    words = [f"--{name} {shlex.quote(str(value))}".removesuffix(" ''") for name, value in flags.items() if value is not None]
    if options["reduce_labels"]:
        words.append("--reduce_labels")
    output = Path(options["dataset_name"]).resolve().name
    return " ".join(["python -m training.train_mta_clip", *words, f"--output_dir runs/{shlex.quote(output)}"])


def validation_flags(options: dict, splits: Sequence[str], train: str) -> dict:
    held_out = find_validation(split for split in splits if split != train)
    if options["validation_fraction"] is not None or held_out is None:
        return {"validation_fraction": options["validation_fraction"] or 0.1}
    return {"validation_split": held_out}


def draw(source, checks: Sequence[FileCheck], picture: Path) -> None:
    """The first image that has nothing wrong with it, with its mask over it."""
    for index, check in enumerate(checks):
        names = source.class_names
        fits = names is None or all(label == IGNORE_INDEX or 0 <= label < len(names) for label in check.becomes.values())
        if not check.problems and fits:
            sample = source[index]
            overlay(sample["image"], sample["mask"], names).save(picture)
            print(f"\n{check.key} with its mask: {picture}")
            return
    print("\nno image fits its mask: no picture is drawn")


if __name__ == "__main__":
    main()
