"""Many pictures through one model: read, segmented and finished side by side, with a bounded number of them in memory.

On a CPU every core takes whole pictures: one core then never waits for another within a layer, and what only one core can do
(decoding, normalising, compressing the result) is done for several pictures at once. On an accelerator the threads decode and
compress beside the batch that has the device.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from PIL import Image

from ..clip.text_bank import ClassName
from ..processing.image_io import ImageSource, load_image
from ..processing.inference import BatchSegmenter, evaluating

ACCELERATOR_BATCH, ACCELERATOR_WORKERS = 8, 4
AHEAD = 2
"""Batches per worker that are in memory, those that are worked on among them."""

Picture = tuple[int, Any, Image.Image]
"""Its place among all, its key, what `load_image` made of it."""


def segment_many(
    model,
    processor,
    pictures: Iterable[tuple[Any, ImageSource]],
    class_names: Sequence[ClassName] | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    finish: Callable[[Any, Image.Image, Any], Any] | None = None,
    **options,
) -> Iterator[tuple[Any, Any]]:
    """Segments any number of pictures of any sizes; labels are those of `segment` with one picture at a time.

    At most `2 * workers * batch_size` decoded pictures are in memory, however many there are.

    Args:
        model, processor, class_names: as in `segment`.
        pictures: pairs of a key and a path, bytes, PIL image or array. It is read by the caller's thread, and no further ahead
            than needed, so that it may be endless.
        batch_size: pictures of one size per forward pass; 1 on a CPU, which gains nothing from more, otherwise 8.
        workers: threads. By default as many as torch has on a CPU, one core each; 4 beside an accelerator.
        finish: what becomes of a picture, `(key, picture, label_map (H, W) int64) -> anything`, in a thread of
            the pool: compress or write here. The label map itself where left out.
        options: as in `segment` (`window`, `refinement`, `rule`, ...).

    Yields:
        `(key, what finish returned)` in the order given. For a picture that cannot be read, `(key, ValueError)`, whose text
        names the picture and the fix; the others go on.

    Raises:
        ValueError: options that exclude each other; at once, before a picture is read.
    """
    on_cpu = model.device.type == "cpu"
    batch_size = batch_size if batch_size is not None else 1 if on_cpu else ACCELERATOR_BATCH
    workers = workers if workers is not None else torch.get_num_threads() if on_cpu else ACCELERATOR_WORKERS
    if workers < 1:
        raise ValueError(f"workers is {workers}; at least one thread has to work.")
    segmenter = BatchSegmenter(model, processor, class_names, batch_size=batch_size, **options)
    return _Stream(segmenter, batch_size, workers, finish or (lambda _key, _picture, label_map: label_map)).run(pictures)


class _Stream:
    """Three stages in one pool of threads: read, then gather pictures of one size, then segment and finish a batch."""

    def __init__(self, segmenter: BatchSegmenter, batch_size: int, workers: int, finish: Callable):
        self.segmenter, self.batch_size, self.workers, self.finish = segmenter, batch_size, workers, finish
        self.capacity = AHEAD * workers * batch_size
        self.reading: deque[tuple[int, Any, Future]] = deque()
        self.gathered: dict[tuple[int, int], list[Picture]] = {}
        self.running: set[Future] = set()
        self.ready: dict[int, tuple[Any, Any]] = {}
        self.names_are_encoded = False

    def run(self, pictures: Iterable[tuple[Any, ImageSource]]) -> Iterator[tuple[Any, Any]]:
        source, admitted, given, exhausted = iter(pictures), 0, 0, False
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(self.workers, "segment", initializer=self._start_worker, initargs=(threads,))
        try:
            with evaluating(self.segmenter.model):
                while True:
                    while not exhausted and admitted - given < self.capacity:
                        pair = next(source, None)
                        exhausted = pair is None
                        if pair is not None:
                            self.reading.append((admitted, pair[0], pool.submit(load_image, pair[1])))
                            admitted += 1
                    self._advance(pool)
                    while given in self.ready:
                        yield self.ready.pop(given)
                        given += 1
                    if exhausted and given == admitted:
                        return
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(
                threads
            )  # of threads that start later; it is kept per thread, but inherited from the last call

    def _start_worker(self, threads: int) -> None:
        """On a CPU a worker has its share of the cores: the threads of torch are set per thread of Python."""
        if self.segmenter.model.device.type == "cpu":
            torch.set_num_threads(max(1, threads // self.workers))

    def _advance(self, pool: ThreadPoolExecutor) -> None:
        """One step of the way: the next picture that was read, or an incomplete batch where nothing else is to be done."""
        if self.reading:
            place, key, future = self.reading.popleft()
            try:
                picture = future.result()
            except ValueError as error:
                self.ready[place] = key, error
            else:
                group = self.gathered.setdefault(picture.size, [])
                group.append((place, key, picture))
                if len(group) == self.batch_size:
                    self._submit(pool, self.gathered.pop(picture.size))
        elif self.running:
            wait(self.running, return_when=FIRST_COMPLETED)
        elif self.gathered:
            self._submit(pool, self.gathered.pop(next(iter(self.gathered))))
        for future in [future for future in self.running if future.done()]:
            self.running.remove(future)
            self.ready.update(future.result())

    def _submit(self, pool: ThreadPoolExecutor, batch: list[Picture]) -> None:
        """The first batch is the caller's, with all its cores: it encodes the class names, which the model then remembers."""
        if self.names_are_encoded:
            self.running.add(pool.submit(self._segment, batch))
        else:
            self.ready.update(self._segment(batch))
            self.names_are_encoded = True

    def _segment(self, batch: list[Picture]) -> dict[int, tuple[Any, Any]]:
        label_maps = self.segmenter([picture for _, _, picture in batch])
        rows = zip(batch, label_maps, strict=True)
        return {place: (key, self.finish(key, picture, label_map)) for (place, key, picture), label_map in rows}
