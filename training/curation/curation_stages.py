"""The four stages of curation as functions of one shard: embed, match, search, rank.

Each stage is a class whose constructor loads what all shards share and whose call does one shard, so that the same code runs
in a loop (`curate_concepts`) and as an actor of Ray Data (`concept_ray`). A call writes the shard's files, or does nothing
where they exist. Nothing depends on the order of shards or on who does them.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer

from hf_clipseg import SegmentationImageProcessor
from hf_clipseg.clip.clip_checkpoint import load_whole
from hf_clipseg.clip.text_bank import weights_fingerprint

from ..data.caption_sources import key_of
from ..data.sources import load_captions
from ..engine.provenance import write_json
from .concept_search import EXACT, load_index, nearest
from .concepts import cluster, expand, random_for, rank
from .curation_store import CurationStore
from .tokenization import NounVocabulary

logger = logging.getLogger(__name__)

CONCEPT_TEMPLATE = "a photo of a {}"
RANK_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class CurationSettings:
    """What decides the result, and what only decides how it is computed (`batch_size` and below).

    Args:
        output_dir: sidecars go to <output_dir>/concepts, a summary to summary.json
        dataset_name, split, source_options: what `load_captions` opens
        model_name_or_path: any CLIP checkpoint
        num_neighbours: images whose concepts are added
        index: `flat` (exact) or what FAISS shall build, such as IVF1024,SQfp16
        num_probes: IVF cells searched per image
        over_fetch: IVF candidates scored exactly, per neighbour
        train_size: images that IVF cells are learnt from
        shard_size: images per file
        seed: of k-means and of the images an index learns from
        batch_size: images per forward pass
        num_workers: processes that decode images, per process
        device: where CLIP runs
    """

    output_dir: str
    dataset_name: str
    split: str
    source_options: dict[str, Any]
    model_name_or_path: str
    num_neighbours: int = 8
    index: str = EXACT
    num_probes: int = 32
    over_fetch: int = 4
    train_size: int = 500_000
    shard_size: int = 10_000
    seed: int = 0
    batch_size: int = 64
    num_workers: int = 0
    device: str = "cpu"

    def open_source(self):
        return load_captions(self.dataset_name, self.split, **self.source_options)

    def store(self, num_rows: int) -> CurationStore:
        return CurationStore(self.output_dir, -(-num_rows // self.shard_size))


class ClipEncoder:
    """Image and text embeddings of any CLIP checkpoint, `(n, dim)` float32, L2-normalised."""

    def __init__(self, model_name_or_path: str, device: str):
        self.device = torch.device(device)
        self.model = load_whole(model_name_or_path).eval().to(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(model_name_or_path)
        side = self.model.config.vision_config.image_size
        self.image_processor = SegmentationImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_center_crop=True, size_divisor=1
        )

    def fingerprint(self) -> str:
        return weights_fingerprint(self.model)

    @torch.inference_mode()
    def images(self, images: list) -> np.ndarray:
        pixel_values = self.image_processor(images, return_tensors="pt")["pixel_values"].to(self.device)
        return F.normalize(self.model.get_image_features(pixel_values).pooler_output.float(), dim=-1).cpu().numpy()

    @torch.inference_mode()
    def texts(self, texts: list[str], batch_size: int = 256) -> np.ndarray:
        embeds = []
        for start in range(0, len(texts), batch_size):
            inputs = self.tokenizer(texts[start : start + batch_size], padding=True, truncation=True, return_tensors="pt")
            features = self.model.get_text_features(input_ids=inputs["input_ids"].to(self.device)).pooler_output
            embeds.append(F.normalize(features.float(), dim=-1).cpu().numpy())
        return np.concatenate(embeds)


class ReadRows(Dataset):
    """Rows of a source by number; one whose image cannot be read is `{"row", "key", "error"}`."""

    def __init__(self, source, start: int, stop: int):
        self.source, self.rows = source, range(start, stop)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        try:
            return {"row": row, **self.source[row]}
        except ValueError as error:
            return {"row": row, "key": key_of(self.source, row), "error": str(error)}


class EmbedShard:
    """Stage 1: image embeddings, keys and captions."""

    def __init__(self, settings: CurationSettings):
        self.settings, self.source = settings, settings.open_source()
        self.store = settings.store(len(self.source))
        self.encoder = ClipEncoder(settings.model_name_or_path, settings.device)

    def __call__(self, shard: int) -> None:
        done = self.store.path("embeddings", shard, ".parquet")
        if done.is_file():
            return
        size = self.settings.shard_size
        rows = ReadRows(self.source, shard * size, min((shard + 1) * size, len(self.source)))
        embeds, kept, skipped = [np.empty((0, self.encoder.model.config.projection_dim), np.float32)], [], []
        for batch in self.batches(rows):
            skipped += [row for row in batch if "error" in row]
            readable = [row for row in batch if "error" not in row]
            if readable:
                embeds.append(self.encoder.images([row["image"] for row in readable]))
            kept += [(row["key"], row["captions"], row["row"]) for row in readable]
        keys, captions, numbers = zip(*kept, strict=True) if kept else ((), (), ())
        self.store.write_array(self.store.path("embeddings", shard, ".npy"), np.concatenate(embeds).astype(np.float16))
        write_json(self.store.path("skipped", shard, ".json"), {"rows": skipped})
        columns = {
            "key": pa.array(keys, pa.string()),
            "captions": pa.array(captions, pa.list_(pa.string())),
            "row": pa.array(numbers, pa.int64()),
        }
        self.store.write_table(done, columns)  # last: it says that the shard is complete

    def batches(self, rows: ReadRows) -> Iterator[list[dict]]:
        return iter(DataLoader(rows, self.settings.batch_size, num_workers=self.settings.num_workers, collate_fn=list))


class MatchShard:
    """Stage 2: which concepts of the vocabulary the captions name."""

    def __init__(self, settings: CurationSettings, num_rows: int):
        self.store = settings.store(num_rows)
        self.vocabulary = NounVocabulary(self.store.read_vocabulary())

    def __call__(self, shard: int) -> None:
        done = self.store.path("matches", shard, ".offsets.npy")
        if done.is_file():
            return
        rows = [sorted(self.find(captions)) for captions in self.store.captions(shard)]
        values = np.array([concept for row in rows for concept in row], np.int32)
        self.store.write_array(self.store.path("matches", shard, ".values.npy"), values)
        self.store.write_array(done, np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64))

    def find(self, captions: list[str]) -> set[int]:
        return set().union(*(self.vocabulary.find(" ".join(caption.split())) for caption in captions))


class SearchShard:
    """Stage 3: the nearest images."""

    def __init__(self, settings: CurationSettings, num_rows: int):
        self.settings, self.store = settings, settings.store(num_rows)
        exact = settings.index == EXACT
        self.index = None if exact else load_index(self.store.folder / "index.faiss")

    def __call__(self, shard: int) -> None:
        done = self.store.path("neighbours", shard, ".npy")
        if done.is_file():
            return
        found = nearest(self.store, shard, self.settings.num_neighbours, self.index, self.settings.over_fetch)
        self.store.write_array(done, found)


class RankShard:
    """Stage 4: archives, scores and clusters; writes the sidecar."""

    def __init__(self, settings: CurationSettings, num_rows: int):
        self.settings, self.store = settings, settings.store(num_rows)
        self.names = [words[0] for words in self.store.read_vocabulary()]
        self.text_embeds = np.load(self.store.folder / "text_embeds.npy")

    def __call__(self, shard: int) -> None:
        done = self.store.path("concepts", shard, ".parquet")
        if done.is_file():
            return
        keys, neighbours = self.store.keys(shard), np.load(self.store.path("neighbours", shard, ".npy"))
        own = np.arange(len(keys))[:, None] + self.store.starts[shard]
        images = np.concatenate([own, neighbours], axis=1)
        rows: list[tuple] = []
        for start in range(0, len(keys), RANK_BLOCK):
            block = images[start : start + RANK_BLOCK]
            vectors = self.store.vectors(np.maximum(block, 0))
            rows += [self.rank_image(*row) for row in zip(keys[start:], block, vectors, strict=False)]
        caption_concepts, concepts, scores, clusters = zip(*rows, strict=True) if rows else ((), (), (), ())
        columns = {
            "key": pa.array(keys, pa.string()),
            "caption_concepts": pa.array(caption_concepts, pa.list_(pa.string())),
            "concepts": pa.array(concepts, pa.list_(pa.string())),
            "scores": pa.array(scores, pa.list_(pa.float32())),
            "clusters": pa.array(clusters, pa.list_(pa.int16())),
        }
        self.store.write_table(done, columns)

    def rank_image(self, key: str, images: np.ndarray, vectors: np.ndarray) -> tuple[list, list, list, list]:
        """Caption concepts, archive, scores and clusters of one image; `images` are its own number and its neighbours'."""
        vectors = vectors[images >= 0]
        own, *others = (self.store.matches(int(number)) for number in images[images >= 0])
        archive, member = expand(own, others)
        embeds = self.text_embeds[archive]
        scores = rank(embeds @ vectors.T, member)
        order = np.lexsort((archive, -scores))
        clusters = cluster(embeds[order], random_for(key, self.settings.seed))
        return [self.names[c] for c in own], [self.names[c] for c in archive[order]], scores[order].tolist(), clusters.tolist()


def summarise(store: CurationStore) -> dict[str, Any]:
    """Counts of a finished curation."""
    vocabulary = json.loads((store.folder / "vocabulary.json").read_text(encoding="utf-8"))
    named, sizes = [], []
    for shard in range(store.num_shards):
        named.append(np.diff(np.load(store.path("matches", shard, ".offsets.npy"))))
        sizes.append(read_archive_sizes(store, shard))
    named, sizes, skipped = np.concatenate(named), np.concatenate(sizes), store.skipped()
    return {
        "images": len(named),
        "skipped_images": len(skipped),
        "skipped": skipped,
        "vocabulary": vocabulary["origin"],
        "concepts": len(vocabulary["concepts"]),
        "captions_without_a_concept": int((named == 0).sum()),
        "concepts_per_caption": float(named.mean()) if len(named) else 0.0,
        "concepts_per_archive": float(sizes.mean()) if len(sizes) else 0.0,
    }


def read_archive_sizes(store: CurationStore, shard: int) -> np.ndarray:
    column = parquet.read_table(store.path("concepts", shard, ".parquet"), columns=["concepts"])["concepts"]
    return compute.list_value_length(column).to_numpy()
