"""Curation on Ray Data, for corpora beyond one machine: the stages of `curation_stages` as actors, shards as rows.

`pip install ray` (the extra `ray` of this project). `--output_dir` must be on a file system that all machines share.
"""

from collections.abc import Callable

try:
    import ray
except ImportError as error:
    raise ImportError("--engine ray needs Ray: pip install 'hf_clipseg[ray]'") from error


def run_on_ray(num_workers: int, device: str) -> Callable:
    """An engine for `curate`: `num_workers` actors per stage, each with a GPU to itself in the first where there are GPUs."""
    if not ray.is_initialized():
        ray.init(logging_level="warning")

    def run(stage: Callable, arguments: tuple, num_shards: int) -> None:
        class Actor:
            def __init__(self):
                self.work = stage(*arguments)

            def __call__(self, row: dict) -> dict:
                self.work(int(row["shard"]))
                return row

        rows = ray.data.from_items([{"shard": shard} for shard in range(num_shards)], override_num_blocks=num_shards)
        resources = {"num_gpus": 1} if device.startswith("cuda") and stage.__name__ == "EmbedShard" else {"num_cpus": 1}
        done = rows.map(Actor, concurrency=min(num_workers, num_shards), **resources).materialize()
        if done.count() != num_shards:
            raise RuntimeError(f"Ray finished {done.count()} of {num_shards} shards of {stage.__name__}.")

    return run
