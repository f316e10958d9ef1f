"""Which regions of an image a GroupViT has put together, for people to look at."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ...clip.text_bank import ClassName
from ...processing.image_io import ImageSource, load_image
from .modeling_cocu import CocuForSemanticSegmentation


@torch.no_grad()
def segment_groups(
    model: CocuForSemanticSegmentation, processor, image: ImageSource, class_names: Sequence[ClassName] | None = None
) -> tuple[np.ndarray, list[str]]:
    """The group that each pixel belongs to most, and what each group shows.

    Args:
        model: in eval mode.
        processor: its `SegmentationProcessor`.
        image: path, bytes, PIL image or array.
        class_names: one name, or a list of synonyms, per class; the model's baked classes where left out.

    Returns:
        `(H, W)` int64 group ids in the image's own size, and a name per group: its number, from 1, and its best class.
    """
    image = load_image(image)
    inputs = processor(images=[image], class_names=class_names, return_tensors="pt").to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    outputs = model(**inputs)
    size = image.size[::-1]
    shares = nn.functional.interpolate(outputs.assignments.float(), size=size, mode="bilinear", align_corners=False)
    classes = model.config.class_names if class_names is None else class_names
    best = [classes[index] for index in outputs.group_scores[0].argmax(dim=0).tolist()]
    names = [name if isinstance(name, str) else name[0] for name in best]
    return shares[0].argmax(dim=0).cpu().numpy(), [f"{number}: {name}" for number, name in enumerate(names, start=1)]
