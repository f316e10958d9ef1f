"""Concept curation over real photographs and their captions, end to end, and a sheet that shows the archives of some images.

    python -m benchmarks.figures.cocu_photographs FOLDER ... --clip openai/clip-vit-base-patch32 \\
        --output_dir runs/cocu-photographs

Each FOLDER has `captions.csv` (columns image, caption) and `images/`, as Flickr8k, or `annotations/captions_*.json` with
`images/SPLIT/`, as COCO; all of them become one folder, which `training.curate_concepts` reads with a mined vocabulary. Without
`--clip` a ViT-B/32 with random weights curates: everything runs, and what it finds means nothing.
"""

import argparse
import csv
import json
import logging
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from hf_clipseg.drawing.overlay import contact_sheet
from training import curate_concepts
from training.curation.concept_table import ConceptTable
from training.curation.tokenization import build_word_tokenizer
from training.data.caption_files import read_caption_file
from training.engine.provenance import provenance, write_json

SHOWN = 8


def read_folder(folder: Path) -> dict[Path, list[str]]:
    """Image file -> captions."""
    if (folder / "captions.csv").is_file():
        return {folder / "images" / name: captions for name, captions in read_caption_file(folder / "captions.csv").items()}
    found = {}
    for path in sorted(folder.glob("annotations/captions_*.json")):
        images = folder / "images" / path.stem.removeprefix("captions_")
        found |= {images / name: captions for name, captions in read_caption_file(path).items() if (images / name).is_file()}
    if not found:
        raise SystemExit(f"error: {folder} has neither captions.csv nor annotations/captions_*.json with images.")
    return found


def merge(folders: list[Path], target: Path) -> dict[str, list[str]]:
    """One folder of links and one caption file; returns name -> captions."""
    (target / "images").mkdir(parents=True, exist_ok=True)
    captions: dict[str, list[str]] = {}
    for folder in folders:
        for path, texts in read_folder(folder).items():
            name = f"{folder.name}-{path.name}"
            link = target / "images" / name
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve())
            captions[name] = texts
    with (target / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        rows.writerows([name, text] for name, texts in captions.items() for text in texts)
    return captions


def save_random_clip(folder: Path, captions: dict[str, list[str]]) -> None:
    """A ViT-B/32 of random weights that reads the words of these captions."""
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer([text for texts in captions.values() for text in texts], max_length=77)
    config = CLIPConfig()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config.text_config.update({"vocab_size": len(tokenizer), **ids})
    for part in (CLIPModel(config), tokenizer, CLIPImageProcessor()):
        part.save_pretrained(folder)


def draw(captions: dict[str, list[str]], images: Path, table: ConceptTable, output: Path) -> None:
    """Some images, each under the best concepts of its archive that its captions do not name."""
    names = list(captions)[:: max(1, len(captions) // SHOWN)][:SHOWN]
    titles = []
    for name in names:
        row = table.rows.slice(table.row_of[name], 1).to_pylist()[0]
        ranked = sorted(zip(row["scores"], row["concepts"], strict=True), reverse=True)
        added = [concept for _, concept in ranked if concept not in row["caption_concepts"]]
        titles.append(", ".join(added[:6]) or "nothing added")
        print(f"{name}\n  captions name: {', '.join(row['caption_concepts'])}\n  added: {', '.join(added)}")
    contact_sheet([Image.open(images / name) for name in names], titles, columns=4, cell_width=320).save(output)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--clip", help="default: random weights, which show that everything runs and nothing else")
    parser.add_argument("--min_count", type=int, default=10, help="captions a mined concept must head (%(default)s)")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    data, clip = args.output_dir / "data", args.clip
    captions = merge(args.folders, data)
    if clip is None:
        clip = args.output_dir / "random-clip"
        if not (clip / "config.json").is_file():
            save_random_clip(clip, captions)
    concepts = args.output_dir / "concepts"
    curate_concepts.main([
        "--dataset_name", str(data), "--model_name_or_path", str(clip), "--min_count", str(args.min_count),
        "--shard_size", "200", "--output_dir", str(concepts),
    ])  # fmt: skip
    draw(captions, data / "images", ConceptTable(concepts), args.output_dir / "archives.png")
    summary = json.loads((concepts / "summary.json").read_text())
    write_json(args.output_dir / "figures.json", {**summary, **provenance("benchmarks.figures.cocu_photographs", sys.argv[1:])})


if __name__ == "__main__":
    main()
