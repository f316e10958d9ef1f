"""Models in memory: loaded once, bounded by their bytes, and nobody waits for a stranger's download."""

import shutil
import threading

import pytest

from hf_clipseg import checkpoint_cache
from hf_clipseg.checkpoint_cache import CheckpointCache
from hf_clipseg.checkpoints import CheckpointError, load_checkpoint

from .demo_checkpoints import save_demo_checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_demo_checkpoints(tmp_path_factory.mktemp("checkpoints"))


def test_memory_is_bounded_by_bytes(folder):
    sources = [str(folder / name) for name in ("open", "closed", "with-groups")]
    sizes = [load_checkpoint(source).num_bytes for source in sources]
    assert sizes[0] == sum(tensor.numel() * 4 for tensor in load_checkpoint(sources[0]).model.state_dict().values())
    cache = CheckpointCache(capacity=sizes[0] + sizes[1])
    first, second = cache.get(sources[0]), cache.get(sources[1])
    assert cache.bytes_in_use() == sizes[0] + sizes[1]
    assert cache.get(sources[0]) is first  # used last now
    cache.get(sources[2])
    assert cache.bytes_in_use() <= max(sizes[0] + sizes[1], sizes[2])
    assert cache.get(sources[1]) is not second


def test_a_checkpoint_above_the_capacity_is_kept_alone(folder):
    cache = CheckpointCache(capacity=1)
    loaded = cache.get(str(folder / "open"))
    assert cache.get(str(folder / "open")) is loaded
    cache.get(str(folder / "closed"))
    assert cache.get(str(folder / "open")) is not loaded


def test_failures_are_not_remembered(folder, tmp_path):
    copy = shutil.copytree(folder / "open", tmp_path / "open")
    cache = CheckpointCache()
    weights = (copy / "model.safetensors").rename(copy / "away")
    with pytest.raises(CheckpointError, match="has no weights"):
        cache.get(str(copy))
    weights.rename(copy / "model.safetensors")
    assert cache.get(str(copy)) is cache.get(str(copy))


def test_many_threads_share_one_load(folder, monkeypatch):
    loads, got = [], []
    real = checkpoint_cache.load_checkpoint
    monkeypatch.setattr(checkpoint_cache, "load_checkpoint", lambda *args: loads.append(args) or real(*args))
    cache = CheckpointCache()
    threads = [threading.Thread(target=lambda: got.append(cache.get(str(folder / "closed")))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 6 and len({id(loaded) for loaded in got}) == 1 and len(loads) == 1


def test_a_stalled_download_blocks_nobody_else(folder, monkeypatch):
    """The one who asked may give up waiting; others are served meanwhile; when it arrives at last, it is there."""
    arrived = threading.Event()
    stalled = str(folder / "closed")
    monkeypatch.setattr(checkpoint_cache, "fetch_checkpoint", lambda source: arrived.wait() if source == stalled else None)
    cache = CheckpointCache()

    def give_up():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        cache.get(stalled, give_up)
    assert cache.get(str(folder / "open")).model is not None
    waiting = threading.Thread(target=cache.get, args=(stalled,))
    waiting.start()
    arrived.set()
    waiting.join()
    assert cache.bytes_in_use() > load_checkpoint(folder / "open").num_bytes


def test_preloading_goes_on_after_a_failure(folder, caplog):
    cache = CheckpointCache()
    cache.preload([str(folder / "without-weights"), str(folder / "open")]).join()
    assert cache.bytes_in_use() == cache.get(str(folder / "open")).num_bytes
    assert "not preloaded" in caplog.text


def test_preloading_stops_when_memory_is_full(folder):
    cache = CheckpointCache(capacity=1)
    cache.preload([str(folder / "open"), str(folder / "closed")]).join()
    assert cache.bytes_in_use() == cache.get(str(folder / "open")).num_bytes
