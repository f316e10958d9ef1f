"""Graphs against the models they were made from, at sizes that the trace did not see, and the example that runs them alone."""

import copy
import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

from hf_clipseg.processing.inference import segment  # noqa: E402
from training import graph_export  # noqa: E402
from training.export import main  # noqa: E402
from training.graph_export import export_graph, graph_runner, preprocessing, traced_input, without_text_encoder  # noqa: E402

from ..shipped_label_maps import CARDS, load, scenes  # noqa: E402
from ..tiny_segmenter import CLASS_NAMES, tiny_segmenter  # noqa: E402

UNSEEN_CELLS = [(5, 11), (16, 7), (13, 13)]


def assert_same(run, model, divisor):
    """Within 1e-4, and where the model itself is further than that from double precision, about as far as the model."""
    exact_model = copy.deepcopy(model).double()
    for cells in UNSEEN_CELLS:
        pixel_values = torch.randn(1, 3, *(count * divisor for count in cells))
        with torch.no_grad():
            expected = model(pixel_values=pixel_values).logits
            rounding = (exact_model(pixel_values=pixel_values.double()).logits - expected).abs().max().item()
        found = run(pixel_values)
        torch.testing.assert_close(found, expected, atol=max(1e-4, 4 * rounding), rtol=0)
        assert rounding < 2e-3
        assert (found.argmax(dim=1) == expected.argmax(dim=1)).float().mean() >= 0.999


@pytest.fixture(scope="module")
def mask_clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph") / "onnx"
    main([str(CARDS / "mask-clip-toyscapes"), "--output", str(folder), "--format", "onnx"])
    return folder


@pytest.mark.parametrize("name", ["cocu-toyscapes", "mvp-seg-plus-toyscapes", "mvp-seg-toyscapes", "vpl-toyscapes"])
def test_shipped_checkpoints_as_onnx(tmp_path, name):
    model, processor = load(name)
    before = model.config.to_dict()
    export_graph(model, processor, tmp_path / "out", "onnx")
    assert_same(graph_runner(tmp_path / "out" / "model.onnx"), model.eval(), processor.image_processor.size_divisor)
    assert model.config.to_dict() == before


@pytest.mark.parametrize("variant", ["sclip", "naclip"])
@pytest.mark.parametrize("class_names", [CLASS_NAMES, [["sky"], ["boat", "ship"], ["sea"]]])
def test_attention_variants_and_synonyms_as_torch_programs(tmp_path, variant, class_names):
    model, processor = tiny_segmenter(attention_variant=variant)
    model.set_classes(class_names, processor)
    export_graph(model, processor, tmp_path / "out", "torch")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.pt2", "preprocessing.json"}
    assert_same(graph_runner(tmp_path / "out" / "model.pt2"), model, processor.image_processor.size_divisor)


def test_the_command_writes_a_graph_that_equals_the_model(mask_clip_folder):
    model, processor = load("mask-clip-toyscapes")
    assert_same(graph_runner(mask_clip_folder / "model.onnx"), model.eval(), processor.image_processor.size_divisor)
    settings = json.loads((mask_clip_folder / "preprocessing.json").read_text())
    assert settings["labels"] == [names[0] for names in model.config.class_names]
    inputs = onnxruntime.InferenceSession(mask_clip_folder / "model.onnx").get_inputs()
    assert len(inputs) == 1 and not any(isinstance(side, int) for side in inputs[0].shape[2:])


def example_of(folder):
    spec = importlib.util.spec_from_file_location("exported_segment", folder / "segment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.segment


@pytest.mark.parametrize("size", [(128, 128), (161, 90), (90, 161), (900, 100)])
@pytest.mark.parametrize("pad", [True, False])
def test_twenty_lines_of_numpy_give_the_labels_of_the_package(mask_clip_folder, size, pad):
    """Wide, tall and long pictures, padded to the patch grid and stretched to it."""
    model, processor = load("mask-clip-toyscapes")
    picture = Image.fromarray(np.asarray(scenes()[3].image)).resize(size)
    settings_file = mask_clip_folder / "preprocessing.json"
    settings = json.loads(settings_file.read_text())
    was_padded, processor.image_processor.do_pad = processor.image_processor.do_pad, pad
    try:
        expected = segment(model, processor, [picture])[0]
        settings_file.write_text(json.dumps({**settings, "pad": pad}))
        labels = example_of(mask_clip_folder)(picture, mask_clip_folder)
    finally:
        processor.image_processor.do_pad = was_padded
        settings_file.write_text(json.dumps(settings))
    assert labels.shape == size[::-1] and len(np.unique(labels)) > 2
    assert (labels == expected).mean() >= 0.999


def test_a_graph_that_differs_is_not_kept(tmp_path, monkeypatch):
    model, processor = tiny_segmenter()
    model.set_classes(CLASS_NAMES, processor)
    monkeypatch.setattr(graph_export, "graph_runner", lambda file: lambda pixel_values: model(pixel_values).logits + 0.1)
    with pytest.raises(ValueError, match="differs from the model"):
        export_graph(model, processor, tmp_path / "out", "torch")
    assert not list(tmp_path.iterdir())


def test_bad_requests_are_named(tmp_path, capsys):
    model, processor = tiny_segmenter()
    with pytest.raises(ValueError, match="needs classes"):
        export_graph(model, processor, tmp_path / "out", "torch")
    with pytest.raises(ValueError, match=r"one of \['onnx', 'torch'\], got 'tflite'"):
        export_graph(model, processor, tmp_path / "out", "tflite")
    with pytest.raises(ValueError, match="exists already"):
        export_graph(model, processor, tmp_path, "onnx")
    model.set_classes(CLASS_NAMES, processor)
    processor.image_processor.do_center_crop = True
    with pytest.raises(ValueError, match="no center crop"):
        preprocessing(model, processor)
    with pytest.raises(SystemExit, match="^error: .*exists already"):
        main([str(CARDS / "mask-clip-toyscapes"), "--output", str(tmp_path), "--format", "onnx"])


def test_nothing_breaks_the_graph_of_torch_compile():
    for variant in ("value", "naclip"):
        model, processor = tiny_segmenter(attention_variant=variant)
        model.set_classes(CLASS_NAMES, processor)
        example, _ = traced_input(processor.image_processor.size_divisor)
        report = torch._dynamo.explain(without_text_encoder(model).model)(pixel_values=example)
        assert report.graph_break_count == 0, report.break_reasons
