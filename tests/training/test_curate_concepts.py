"""Curation from end to end: search, sidecars, resuming, several processes, Ray, and input that is wrong."""

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from training.curate_concepts import main
from training.curation.concept_search import build_index, nearest
from training.curation.concepts import random_for
from training.curation.curation_store import CurationStore, claim_folder

from ..forked import as_rank, free_port, run_forked
from ..tiny import save_tiny_clip

WORDS = ["sky", "sea", "boat", "grass", "tree", "car", "person"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return str(save_tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """40 images with captions that are awkward in every way that a file allows."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    rows = []
    for number in range(40):
        name = f"photo {number:02d}.png"
        Image.fromarray(random.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)).save(folder / "images" / name)
        rows.append((name, f"a {WORDS[number % 7]} and a {WORDS[number * 3 % 7]}"))
    rows[3] = (rows[3][0], "")
    rows[4] = (rows[4][0], 'a "boat",\nin the sea')
    rows[5] = (rows[5][0], ("a car " * 900)[:5000])
    rows.append((rows[6][0], "the tree"))
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    (folder / "images" / "photo 07.png").write_bytes(b"not an image")
    return folder


def arguments(photos: Path, clip_folder: str, output: Path, *more: str) -> list[str]:
    return [
        "--dataset_name", str(photos), "--model_name_or_path", clip_folder, "--output_dir", str(output), "--min_count", "2",
        "--num_neighbours", "4", "--shard_size", "9", "--batch_size", "5", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def curated(photos, clip_folder, tmp_path_factory) -> Path:
    """An unbroken run, in a process like those it is compared with: with more threads, sums are rounded differently."""
    output = tmp_path_factory.mktemp("curated") / "run"
    assert run_forked(lambda rank: main(arguments(photos, clip_folder, output))) == [0]
    return output


def sidecars(folder: Path) -> dict[str, dict]:
    rows = [row for path in sorted((folder / "concepts").glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}


# -- search


def make_store(folder: Path, sizes: list[int], dim: int = 16) -> CurationStore:
    """Random embeddings, the last image a copy of the first."""
    vectors = np.random.default_rng(1).normal(size=(sum(sizes), dim))
    vectors[-1] = vectors[0]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    store, start = CurationStore(folder, len(sizes)), 0
    for shard, size in enumerate(sizes):
        store.write_array(store.path("embeddings", shard, ".npy"), vectors[start : start + size])
        keys = [f"{number:03d}" for number in range(start, start + size)]
        store.write_table(store.path("embeddings", shard, ".parquet"), {"key": keys, "captions": [["x"]] * size})
        start += size
    return store


@pytest.mark.parametrize("factory", [None, "IVF4,Flat", "IVF4,SQfp16", "IVF4,PQ8x4"])
def test_neighbours_are_those_of_brute_force(tmp_path, factory):
    """Over several shards, one of them empty; IVF looks into every cell and is scored exactly."""
    store = make_store(tmp_path, [70, 0, 50, 41])
    vectors = np.concatenate([store.embeddings(shard) for shard in range(4)]).astype(np.float32)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    expected = np.argsort(-similarity, axis=1, kind="stable")[:, :5]
    index = None if factory is None else build_index(store, factory, num_probes=4, train_size=160)
    found = np.concatenate([nearest(store, shard, 5, index, over_fetch=20) for shard in range(4)])
    assert found[0, 0] == 160 and found[160, 0] == 0  # the copy, but never the image itself
    np.testing.assert_array_equal(found, expected)


def test_fewer_images_than_neighbours(tmp_path):
    store = make_store(tmp_path, [2, 1])
    assert sorted(nearest(store, 1, 4, None)[0].tolist()) == [-1, -1, 0, 1]


def test_an_index_that_faiss_cannot_build(tmp_path):
    with pytest.raises(ValueError, match="IVFnonsense"):
        build_index(make_store(tmp_path, [10]), "IVFnonsense", 1, 10)


# -- the whole


def test_sidecars_hold_what_the_definitions_say(curated, photos):
    """One image, from the files of the stages, with loops."""
    rows = sidecars(curated)
    assert len(rows) == 39 and "photo 07.png" not in rows
    store = CurationStore(curated, 5)
    keys = [key for shard in range(5) for key in store.keys(shard)]
    names = [words[0] for words in store.read_vocabulary()]
    texts = np.load(curated / "text_embeds.npy")
    vectors = np.concatenate([store.embeddings(shard) for shard in range(5)]).astype(np.float32)
    for number in (0, 3, 17, 38):
        neighbours = np.argsort(-(vectors @ vectors[number]), kind="stable")
        neighbours = [other for other in neighbours if other != number][:4]
        named = {other: set(rows[keys[other]]["caption_concepts"]) for other in (number, *neighbours)}
        row = rows[keys[number]]
        assert set(row["concepts"]) == set().union(*named.values())
        assert row["scores"] == sorted(row["scores"], reverse=True)
        cosines = np.maximum(texts @ vectors.T, 1e-3)
        members = {c: [number, *(j for j in neighbours if c in named[j])] for c in row["concepts"]}
        largest = max(cosines[names.index(c), j] for c in members for j in members[c])
        for concept, score in zip(row["concepts"], row["scores"], strict=True):
            s = cosines[names.index(concept)]
            assert score == pytest.approx(s[number] / largest + s[number] / s[members[concept]].mean(), rel=1e-3)
        assert max(row["clusters"]) + 1 <= max(2, -(-len(row["concepts"]) // 2))


def test_captions_are_read_whole(curated):
    rows = sidecars(curated)
    assert rows["photo 03.png"]["caption_concepts"] == [] and rows["photo 03.png"]["concepts"]
    assert set(rows["photo 04.png"]["caption_concepts"]) == {"boat", "sea"}
    assert rows["photo 05.png"]["caption_concepts"] == ["car"]
    assert "tree" in rows["photo 06.png"]["caption_concepts"]  # its second caption


def test_the_summary_lists_what_was_skipped(curated):
    summary = json.loads((curated / "summary.json").read_text())
    assert summary["images"] == 39 and summary["skipped_images"] == 1 and summary["captions_without_a_concept"] == 1
    assert summary["skipped"][0]["key"] == "photo 07.png" and "no image" in summary["skipped"][0]["error"]


def test_killed_again_and_again_the_result_is_the_same(curated, photos, clip_folder, tmp_path):
    """Every process is killed with SIGKILL when it is about to finish its fourth file, through all stages."""

    def killed_at_the_fourth_file(rank: int) -> None:
        replace, count = os.replace, iter(range(1000))

        def replace_or_die(*paths):
            if next(count) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)

        os.replace = replace_or_die
        main(arguments(photos, clip_folder, tmp_path / "run"))

    deaths = 0
    while run_forked(killed_at_the_fourth_file) != [0]:
        deaths += 1
        assert deaths < 40
    assert deaths >= 8
    assert sidecars(tmp_path / "run") == sidecars(curated)


def test_two_processes_give_what_one_gives(curated, photos, clip_folder, tmp_path):
    port = free_port()

    def process(rank: int) -> None:
        as_rank(rank, 2, port)
        main(arguments(photos, clip_folder, tmp_path / "run"))

    assert run_forked(process, count=2) == [0, 0]
    assert sidecars(tmp_path / "run") == sidecars(curated)


def test_ray_gives_the_same(curated, photos, clip_folder, tmp_path):
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # a busy machine needs more than the usual 30 seconds
    ray = pytest.importorskip("ray", reason="Ray is an optional extra")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    try:
        main(arguments(photos, clip_folder, tmp_path / "run", "--engine", "ray", "--ray_workers", "2"))
    finally:
        ray.shutdown()
    own, other = sidecars(tmp_path / "run"), sidecars(curated)
    for key in other:  # Ray's workers have as many threads as they like, so sums may be rounded differently
        assert own[key].pop("scores") == pytest.approx(other[key].pop("scores"), rel=1e-5)
    assert own == other


def test_a_closed_vocabulary(photos, clip_folder, tmp_path):
    (tmp_path / "words.txt").write_text("boat, vessel\ncar\n")
    main(arguments(photos, clip_folder, tmp_path / "run", "--vocabulary", str(tmp_path / "words.txt"), "--index", "IVF2,Flat"))
    found = {concept for row in sidecars(tmp_path / "run").values() for concept in row["concepts"]}
    assert found == {"boat", "car"}


# -- input that is wrong


def test_another_data_set_is_refused(curated, photos, clip_folder):
    with pytest.raises(SystemExit, match="num_neighbours: 4 there, 3 now.*--output_dir"):
        main([*arguments(photos, clip_folder, curated), "--num_neighbours", "3"])


def test_duplicate_keys_are_named(tmp_path):
    store = make_store(tmp_path, [3, 2])
    store.write_table(store.path("embeddings", 1, ".parquet"), {"key": ["001", "004"], "captions": [["x"]] * 2})
    with pytest.raises(ValueError, match="1 keys occur more than once.*'001'"):
        store.check_keys()


def test_embeddings_and_keys_that_do_not_match(tmp_path):
    store = make_store(tmp_path, [3, 2])
    store.write_array(store.path("embeddings", 1, ".npy"), np.zeros((3, 16), np.float16))
    with pytest.raises(ValueError, match="00001.parquet lists 2 keys.*Delete"):
        _ = store.starts


def test_images_that_are_not_there(photos, clip_folder, tmp_path):
    (tmp_path / "captions.csv").write_text("image,caption\nnowhere.png,a boat\n")
    with pytest.raises(SystemExit, match="nowhere.png"):
        main(arguments(tmp_path, clip_folder, tmp_path / "run"))


def test_a_manifest_can_be_claimed_twice(tmp_path):
    claim_folder(tmp_path, {"sizes": (1, 2)})
    claim_folder(tmp_path, {"sizes": [1, 2]})  # a tuple comes back from JSON as a list: the same settings
    with pytest.raises(ValueError):
        claim_folder(tmp_path, {"sizes": [1, 3]})


def test_random_numbers_depend_on_the_key_alone():
    assert random_for("a", 0).random() == random_for("a", 0).random() != random_for("b", 0).random()
