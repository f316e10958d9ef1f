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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from tqdm.auto import tqdm
from transformers.hf_argparser import HfArg

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
from .data.openers import caption_options
from .engine.provenance import write_json
from .settings.arguments import (
    CaptionArguments,
    CaptionImageArguments,
    CommandParser,
    DataArguments,
    DataSeedArguments,
    config_arguments,
    config_values,
    run_command,
)
from .settings.dataset_defaults import CLIP, warn_of_drawn_clip

logger = logging.getLogger(__name__)


CurationArguments = config_arguments(
    CurationSettings,
    ("output_dir", "num_neighbours", "index", "num_probes", "over_fetch", "train_size", "shard_size", "seed", "batch_size",
     "num_workers"),
    "curation; see CurationSettings",
)  # fmt: skip


@dataclass
class VocabularyArguments:
    """Concepts, and who computes."""

    _argument_group_name = "concepts and work"

    model_name_or_path: str = HfArg(default=CLIP, help="any CLIP checkpoint")
    vocabulary: str | None = HfArg(
        default=None, help="one concept per line, synonyms parted by commas; default: mined from the captions"
    )
    min_count: int = HfArg(default=20, help="captions a mined concept must head")
    max_concepts: int = HfArg(default=2000, help="size of a mined vocabulary")
    engine: str = HfArg(default="local", metadata={"choices": ("local", "ray")}, help="loop or Ray Data")
    ray_workers: int = HfArg(default=2, help="actors per stage")


GROUPS = (
    VocabularyArguments, CurationArguments, DataArguments, CaptionArguments, CaptionImageArguments,
    DataSeedArguments,
)  # fmt: skip


def build_parser() -> CommandParser:
    return CommandParser(GROUPS, __doc__)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    return build_parser().parse_for_dataset(arguments, "curate_concepts")


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


def run(args: argparse.Namespace) -> None:
    # A process may wait for hours for the slowest shard.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))])
    logging.basicConfig(level=logging.INFO if accelerator.is_main_process else logging.WARNING, format="%(message)s")
    warn_of_drawn_clip(args)
    settings = CurationSettings(
        dataset_name=args.dataset_name,
        split=args.split,
        source_options=caption_options(args, args.image_size, args.data_seed, args.limit),
        model_name_or_path=args.model_name_or_path,
        device=str(accelerator.device),
        **config_values(args, CurationArguments),
    )
    engine = run_locally(accelerator)
    if args.engine == "ray":
        from .curation.concept_ray import run_on_ray

        engine = run_on_ray(args.ray_workers, settings.device)
    summary = curate(settings, args, accelerator, engine)
    if accelerator.is_main_process:
        for entry in summary.pop("skipped")[:20]:
            logger.warning("skipped row %d, %s: %s", entry["row"], entry["key"], entry["error"])
        logger.info(json.dumps(summary, indent=2))


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(run, parse_arguments, arguments)


if __name__ == "__main__":
    main()
