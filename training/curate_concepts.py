"""Adds to every caption of a data set the concepts that it leaves out: CoCu's curation, from images and captions to sidecars.

Paper: Xing et al., NeurIPS 2023, arXiv 2309.13505; the steps are in `curation_stages`, what each computes in `concepts`.
Command:   python -m training.curate_concepts --output_dir runs/concepts-toyscapes
           accelerate launch -m training.curate_concepts ...   (shards are shared out to the processes)
           python -m training.curate_concepts --engine ray ...   (see `concept_ray`)
Memory:    the CLIP model and one batch; 8 * dim * shard_size bytes for exact search (41 MB at the defaults and 512 channels);
           about 150 bytes an image while keys are checked. Embeddings and matches are memory-mapped.
Killed and started again with the same arguments it goes on where it was, and ends with the same files.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from tqdm.auto import tqdm

from .curation.concept_search import EXACT, build_index, save_index
from .curation.curation_stages import (
    CONCEPT_TEMPLATE,
    ClipEncoder,
    CurationSettings,
    EmbedShard,
    MatchShard,
    RankShard,
    SearchShard,
    summarise,
)
from .curation.curation_store import CurationStore, claim_folder
from .curation.tokenization import NounVocabulary
from .curation.vocabulary import mine_concepts
from .data.caption_sources import add_source_arguments, source_options
from .engine.provenance import write_json

logger = logging.getLogger(__name__)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="sidecars go to <output_dir>/concepts, a summary to summary.json")
    parser.add_argument("--model_name_or_path", default="model_cards/clip-toyscapes", help="any CLIP checkpoint (%(default)s)")
    add_source_arguments(parser)
    concepts = parser.add_argument_group("concepts")
    concepts.add_argument(
        "--vocabulary", help="one concept per line, synonyms parted by commas; default: mined from the captions"
    )
    concepts.add_argument("--min_count", type=int, default=20, help="captions a mined concept must head (%(default)s)")
    concepts.add_argument("--max_concepts", type=int, default=2000, help="size of a mined vocabulary (%(default)s)")
    concepts.add_argument("--num_neighbours", type=int, default=8, help="images whose concepts are added (%(default)s)")
    concepts.add_argument("--seed", type=int, default=0, help="of k-means and of the images an index learns from")
    search = parser.add_argument_group("search")
    search.add_argument(
        "--index", default=EXACT, help="'flat' (exact) or what FAISS shall build, e.g. IVF1024,SQfp16 (%(default)s)"
    )
    search.add_argument("--num_probes", type=int, default=32, help="IVF cells searched per image (%(default)s)")
    search.add_argument("--over_fetch", type=int, default=4, help="IVF candidates scored exactly, per neighbour (%(default)s)")
    search.add_argument("--train_size", type=int, default=500_000, help="images that IVF cells are learnt from (%(default)s)")
    work = parser.add_argument_group("work")
    work.add_argument("--engine", choices=("local", "ray"), default="local")
    work.add_argument("--ray_workers", type=int, default=2, help="actors per stage (%(default)s)")
    work.add_argument("--shard_size", type=int, default=10_000, help="images per file (%(default)s)")
    work.add_argument("--batch_size", type=int, default=64, help="images per forward pass (%(default)s)")
    work.add_argument("--num_workers", type=int, default=0, help="processes that decode images, per process (%(default)s)")
    return parser.parse_args(arguments)


def manifest(settings: CurationSettings, source, args: argparse.Namespace) -> dict:
    """What must be the same for files of two runs to belong together."""
    names = ("num_neighbours", "index", "num_probes", "over_fetch", "train_size", "shard_size", "seed")
    words = Path(args.vocabulary).read_text(encoding="utf-8") if args.vocabulary else None
    return {
        "rows": len(source),
        "source": source.description,
        "keyed_by": getattr(source, "key_column", "key") or "row number",
        "clip": ClipEncoder(settings.model_name_or_path, "cpu").fingerprint(),
        "vocabulary": {"min_count": args.min_count, "max_concepts": args.max_concepts} if words is None else words,
        **{name: getattr(settings, name) for name in names},
    }


def prepare_vocabulary(store: CurationStore, settings: CurationSettings, args: argparse.Namespace) -> None:
    """Concepts and their text embeddings, once for all shards."""
    if not (store.folder / "vocabulary.json").is_file():
        if args.vocabulary:
            concepts, origin = NounVocabulary.from_file(args.vocabulary).concepts, "closed list"
        else:
            captions = (caption for shard in range(store.num_shards) for texts in store.captions(shard) for caption in texts)
            concepts, origin = mine_concepts(captions, args.min_count, args.max_concepts), "mined from the captions"
        store.write_vocabulary(concepts, origin)
    if not (store.folder / "text_embeds.npy").is_file():
        texts = [CONCEPT_TEMPLATE.format(words[0]) for words in store.read_vocabulary()]
        encoder = ClipEncoder(settings.model_name_or_path, settings.device)
        store.write_array(store.folder / "text_embeds.npy", encoder.texts(texts))


def prepare_index(store: CurationStore, settings: CurationSettings) -> None:
    path = store.folder / "index.faiss"
    if settings.index != EXACT and not path.is_file():
        save_index(build_index(store, settings.index, settings.num_probes, settings.train_size, settings.seed), path)


def run_locally(accelerator: Accelerator) -> Callable:
    """An engine: every process does each `num_processes`-th shard of a stage, then waits for the others."""

    def run(stage: Callable, arguments: tuple, num_shards: int) -> None:
        shards = range(accelerator.process_index, num_shards, accelerator.num_processes)
        name = stage.__name__.removesuffix("Shard").lower()
        work = stage(*arguments)
        for shard in tqdm(shards, desc=name, unit="shard", disable=not accelerator.is_main_process):
            work(shard)
        accelerator.wait_for_everyone()

    return run


def curate(settings: CurationSettings, args: argparse.Namespace, accelerator: Accelerator, engine: Callable) -> dict:
    """All stages in order; returns the summary."""
    source = settings.open_source()
    num_rows, store = len(source), settings.store(len(source))
    if accelerator.is_main_process:
        claim_folder(settings.output_dir, manifest(settings, source, args))
    accelerator.wait_for_everyone()
    logger.info("%d images in %d shards, on %s", num_rows, store.num_shards, settings.device)
    engine(EmbedShard, (settings,), store.num_shards)
    if accelerator.is_main_process:
        store.check_keys()
        prepare_vocabulary(store, settings, args)
        prepare_index(store, settings)
    accelerator.wait_for_everyone()
    for stage in (MatchShard, SearchShard, RankShard):
        engine(stage, (settings, num_rows), store.num_shards)
    if accelerator.is_main_process:
        write_json(store.folder / "summary.json", summarise(store))
    accelerator.wait_for_everyone()
    return json.loads((store.folder / "summary.json").read_text(encoding="utf-8"))


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    # A process may wait for hours for the slowest shard.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))])
    logging.basicConfig(level=logging.INFO if accelerator.is_main_process else logging.WARNING, format="%(message)s")
    fields = {name: value for name, value in vars(args).items() if name in CurationSettings.__dataclass_fields__}
    settings = CurationSettings(
        split=args.train_split, source_options=source_options(args), device=str(accelerator.device), **fields
    )
    try:
        engine = run_locally(accelerator)
        if args.engine == "ray":
            from .curation.concept_ray import run_on_ray

            engine = run_on_ray(args.ray_workers, settings.device)
        summary = curate(settings, args, accelerator, engine)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if accelerator.is_main_process:
        for entry in summary.pop("skipped")[:20]:
            logger.warning("skipped row %d, %s: %s", entry["row"], entry["key"], entry["error"])
        logger.info(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
