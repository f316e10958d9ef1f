"""Scores while training: every so many steps, by windows where asked, per class, and with pictures from all over the set."""

from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_clipseg.drawing.overlay import contact_sheet, overlay
from hf_clipseg.evaluation.metrics import ConfusionMatrix, summarise
from hf_clipseg.processing.inference import segment
from training.engine.loop import make_accelerator
from training.engine.metrics_log import MetricsLog
from training.evaluation.pictures import spread
from training.evaluation.validation import MaskValidation
from training.settings.training_settings import TrainingSettings

from ...tiny_segmenter import CLASS_NAMES, tiny_segmenter


class Photos(list):
    class_names = CLASS_NAMES


def photos(count=5):
    generator = np.random.default_rng(0)
    return Photos(
        {
            "image": Image.fromarray(generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)),
            "mask": generator.integers(0, 2, (40, 60)),  # no boat
            "key": f"photo {index}",
        }
        for index in range(count)
    )


def validation(folder, source, report_to="none", **options):
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = TrainingSettings(str(folder), report_to=report_to, mixed_precision="no")
    accelerator = make_accelerator(settings)
    given = {
        "output_dir": str(folder), "max_train_steps": 10, "validation_steps": 4, "validation_pictures": 3,
        "validation_window": None, "validation_stride": None,
    }  # fmt: skip
    args = SimpleNamespace(**given | options)
    model, processor = tiny_segmenter()
    model.set_classes(CLASS_NAMES, processor)
    return MaskValidation(args, accelerator, processor, source, CLASS_NAMES), model, MetricsLog(accelerator, settings, 1)


def test_every_so_many_steps_and_after_the_last_one(tmp_path):
    validate, model, _ = validation(tmp_path, photos(2))
    assert [step for step in range(1, 11) if validate(step, model)] == [4, 8, 10]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        f"step-{step:06d}.png" for step in (4, 8, 10)
    ]  # fmt: skip
    count, seconds = validate.ahead(4, model)
    assert count == 2 and seconds > 0 and validate.ahead(10, model) == (0, 0.0)


@pytest.mark.parametrize(
    ("options", "windows"),
    [({}, {}), ({"validation_window": 32}, {"window": 32, "stride": 16}),
     ({"validation_window": 32, "validation_stride": 8}, {"window": 32, "stride": 8})],
)  # fmt: skip
def test_scores_are_those_of_the_windows(tmp_path, options, windows):
    source = photos()
    validate, model, _ = validation(tmp_path, source, **options)
    values = validate(4, model)
    confusion = ConfusionMatrix(3)
    for sample, label_map in zip(
        source, segment(model, validate.processor, [sample["image"] for sample in source], **windows), strict=True
    ):
        confusion.update(label_map, sample["mask"])
    expected = summarise(confusion)
    assert values["mIoU"] == expected["mIoU"] and values["IoU/sea"] == expected["per_class_iou"][1]
    assert {name for name in values if name.startswith("IoU/")} == {f"IoU/{name}" for name in validate.class_scores}


def test_a_stride_without_a_window(tmp_path):
    with pytest.raises(ValueError, match="pass --validation_window, too"):
        validation(tmp_path, photos(), validation_stride=8)


def test_the_pictures_are_a_spread_over_the_set(tmp_path):
    assert spread(367, 4) == [0, 122, 244, 366] and spread(2, 4) == [0, 1] and spread(5, 3) == [0, 2, 4]
    source = photos()
    validate, model, log = validation(tmp_path, source, report_to="tensorboard")
    log(4, validate(4, model))
    validate.accelerator.end_training()
    chosen = [source[index] for index in (0, 2, 4)]
    maps = segment(model, validate.processor, [sample["image"] for sample in chosen])
    cells = [overlay(s["image"], m, CLASS_NAMES) for s, own in zip(chosen, maps, strict=True) for m in (s["mask"], own)]
    captions = [text for sample in chosen for text in (f"{sample['key']}: mask", "model")]
    expected = np.asarray(contact_sheet(cells, captions, columns=4, cell_width=320))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "pictures" / "step-000004.png")), expected)

    (events,) = [path.parent for path in tmp_path.rglob("events.out*") if "IoU" not in path.parent.name][:1]
    board = EventAccumulator(str(events), size_guidance={"images": 0}).Reload()
    assert board.Images("predictions")[0].step == 4 and board.Images("predictions")[0].width == expected.shape[1]
    assert board.Scalars("IoU/sea")[0].value == pytest.approx(validate.class_scores["sea"])


def test_without_pictures_and_without_masks(tmp_path):
    validate, model, _ = validation(tmp_path, photos(1), validation_pictures=0)
    assert validate(4, model) and not (tmp_path / "pictures").exists()
    validate, model, _ = validation(tmp_path / "none", None)
    assert validate(4, model) is None and validate.ahead(0, model) == (0, 0.0)
