"""Pictures as rows of tables that other programs divide among machines: Ray Data, Spark, or `datasets.map`.

    rows = ray.data.read_parquet("photos.parquet")                                      # columns key, image (bytes)
    rows = rows.map_batches(SegmentRows, fn_constructor_args=["runs/mine/final"], concurrency=8, num_gpus=1, batch_size=32)
    rows.write_parquet("labels")

Nothing here knows Ray (the extra `ray`): the class is loaded once per worker, and is called with columns and returns columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .bulk.label_rows import label_row
from .bulk.picture_columns import undecoded
from .bulk.picture_stream import segment_many
from .checkpoints import load_checkpoint
from .clip.text_bank import ClassName, normalise_class_names

NO_RESULT = {"label_map": b"", "height": 0, "width": 0, "ids": [], "names": [], "areas": []}


class SegmentRows:
    """Adds to a batch of rows what `segment_many` finds.

    Args:
        checkpoint: folder or Hub id, as `load_checkpoint` takes it.
        class_names: as in `segment`; the model's own where left out.
        device: of the model.
        image_column: pictures: paths, bytes, arrays, or what `datasets` keeps of them.
        options: as in `segment_many`.

    Raises:
        ValueError: no such checkpoint, or neither it nor the call has classes.
    """

    def __init__(
        self,
        checkpoint: str,
        class_names: Sequence[ClassName] | None = None,
        device: str = "cpu",
        image_column: str = "image",
        **options,
    ):
        self.loaded = load_checkpoint(checkpoint, device)
        self.class_names, self.image_column, self.options = class_names, image_column, options
        known = getattr(self.loaded.model.config, "class_names", None) if class_names is None else class_names
        if known is None:
            raise ValueError(f"{checkpoint} has no classes of its own; pass class_names=[...].")
        self.names = [names[0] for names in normalise_class_names(known)]

    def __call__(self, columns: Mapping[str, Sequence]) -> dict[str, Sequence]:
        """All columns but the pictures, and those of `label_row`; `error` says why a picture has no result, or is empty."""
        pictures = enumerate(undecoded(value) for value in columns[self.image_column])
        model, processor = self.loaded.model, self.loaded.processor
        found = segment_many(model, processor, pictures, self.class_names, finish=self._row, **self.options)
        rows = [NO_RESULT | {"error": str(row)} if isinstance(row, ValueError) else row | {"error": ""} for _, row in found]
        kept = {name: values for name, values in columns.items() if name != self.image_column}
        return kept | {name: [row[name] for row in rows] for name in (*NO_RESULT, "error")}

    def _row(self, place: int, _, label_map: np.ndarray) -> dict[str, Any]:
        row = label_row(str(place), label_map, self.names)
        return {name: row[name] for name in NO_RESULT}
