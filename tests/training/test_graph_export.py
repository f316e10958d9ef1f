"""Graphs against the models they were made from, at sizes that the trace did not see, the example that runs them alone, and the
evaluator that scores them."""

import copy
import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from hf_clipseg.models.mta_clip.modeling_mta_clip import semantic_logits
from hf_clipseg.processing.inference import segment
from training import evaluate, graph_export
from training.evaluation.graph_model import graph_runner, load_graph
from training.export import main
from training.graph_export import OPSET, TraceableForms, export_graph, preprocessing, without_text_encoder

from ..shipped_label_maps import CARDS, load, scenes
from ..test_remote_code import build
from ..tiny import save_tiny_clip
from ..tiny_segmenter import CLASS_NAMES, tiny_segmenter

UNSEEN_CELLS = [(5, 11), (16, 7), (13, 13)]
SYNONYMS = [["sky"], ["boat", "ship"], ["sea"]]

is_old = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7)
needs_new_torch = pytest.mark.skipif(is_old, reason="torch 2.6's compiler stops at code of transformers and at `X | None`")
missing = [name for name in ("onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(
    is_old or bool(missing), reason="torch 2.6 cannot write bicubic resizing to an open size, or the extra `export` is missing"
)


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


@needs_onnx
@pytest.mark.parametrize("name", ["cocu-toyscapes", "mvp-seg-toyscapes", "vpl-toyscapes"])
def test_shipped_checkpoints_as_onnx(tmp_path, name):
    model, processor = load(name)
    before = model.config.to_dict()
    export_graph(model, processor, tmp_path / "out", "onnx")
    assert_same(graph_runner(tmp_path / "out" / "model.onnx"), model.eval(), processor.image_processor.size_divisor)
    assert model.config.to_dict() == before


@needs_onnx
def test_small_scores_keep_their_logarithm(tmp_path):
    """What MTA-CLIP ends with: onnxruntime's own sigmoid is wrong by 3e-6 there, which the logarithm makes 0.7."""

    class Scores(nn.Module):
        def forward(self, class_logits, mask_logits):
            with TraceableForms():
                return semantic_logits(class_logits, mask_logits)

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 5, 4, generator=generator), 6 * torch.randn(1, 5, 9, 11, generator=generator) - 8
    file = tmp_path / "scores.onnx"
    torch.onnx.export(Scores().eval(), inputs, file, dynamo=True, opset_version=OPSET, input_names=["k", "m"], verbose=False)
    session = onnx_session(file)
    (found,) = session.run(None, {"k": inputs[0].numpy(), "m": inputs[1].numpy()})
    expected = semantic_logits(*(values.double() for values in inputs))
    assert expected.min() < -11
    torch.testing.assert_close(torch.from_numpy(found).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("variant", "class_names"), [("sclip", CLASS_NAMES), ("naclip", SYNONYMS), ("proxy", SYNONYMS)])
def test_attention_variants_and_synonyms_as_torch_programs(tmp_path, variant, class_names):
    model, processor = tiny_variant(variant, tmp_path)
    model.set_classes(class_names, processor)
    export_graph(model, processor, tmp_path / "out", "torch")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.pt2", "preprocessing.json"}
    assert_same(graph_runner(tmp_path / "out" / "model.pt2"), model, processor.image_processor.size_divisor)


def tiny_variant(variant, folder):
    if variant != "proxy":
        return tiny_segmenter(attention_variant=variant)
    model, processor = tiny_segmenter()
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8)
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder / "dino")
    model.load_proxy(str(folder / "dino"))
    with pytest.raises(ValueError, match="size_divisor in the processor's configuration to 8, from 4"):
        preprocessing(with_classes(model, processor), processor)
    processor.image_processor.size_divisor = 8
    return model.eval(), processor


def with_classes(model, processor):
    model.set_classes(CLASS_NAMES, processor)
    return model


@needs_onnx
def test_the_command_writes_a_graph_that_equals_the_model(mask_clip_folder):
    model, processor = load("mask-clip-toyscapes")
    assert_same(graph_runner(mask_clip_folder / "model.onnx"), model.eval(), processor.image_processor.size_divisor)
    settings = json.loads((mask_clip_folder / "preprocessing.json").read_text())
    assert settings["labels"] == [names[0] for names in model.config.class_names]
    inputs = onnx_session(mask_clip_folder / "model.onnx").get_inputs()
    assert len(inputs) == 1 and not any(isinstance(side, int) for side in inputs[0].shape[2:])


def onnx_session(file):
    import onnxruntime

    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def example_of(folder):
    spec = importlib.util.spec_from_file_location("exported_segment", folder / "segment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.segment


@needs_onnx
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
    model.config.position_interpolation = "scale_factor"
    with pytest.raises(ValueError, match="position_interpolation='size'"):
        preprocessing(model, processor)
    model.config.position_interpolation = "size"
    processor.image_processor.do_center_crop = True
    with pytest.raises(ValueError, match="no center crop"):
        preprocessing(model, processor)
    with pytest.raises(SystemExit, match="^error: .*exists already"):
        main([str(CARDS / "mask-clip-toyscapes"), "--output", str(tmp_path), "--format", "onnx"])


@needs_onnx
def test_the_evaluator_scores_a_graph_as_its_model(mask_clip_folder, tmp_path):
    """A batch of several pictures, though the graph takes one."""
    options = ["--limit", "12", "--scene_size", "96", "64"]
    expected, found = (
        evaluate.evaluate(evaluate.parse_arguments([str(folder), *options]))
        for folder in (CARDS / "mask-clip-toyscapes", mask_clip_folder)
    )
    assert expected["mIoU"] > 0.2
    assert abs(found["mIoU"] - expected["mIoU"]) < 1e-3 and found["grid_limit"] == expected["grid_limit"]
    for wrong in ("--classes=sky,sea", "--templates=photo"):
        with pytest.raises(SystemExit, match="^error: The classes of an exported graph are fixed"):
            evaluate.main([str(mask_clip_folder), *options, wrong])


def test_a_folder_without_its_graph_is_refused(tmp_path):
    (tmp_path / "preprocessing.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has a preprocessing.json but no model.onnx or model.pt2"):
        load_graph(tmp_path)


@needs_new_torch
@pytest.mark.parametrize("name", ["cocu", "mta_clip", "mvp_seg", "naclip", "pixel_text_clip", "proxy", "vpl"])
def test_nothing_breaks_the_graph_of_torch_compile(tmp_path, name):
    if name in ("naclip", "proxy"):
        model, processor = tiny_variant(name, tmp_path)
        model.set_classes(CLASS_NAMES, processor)
    else:
        model, processor = build(name, save_tiny_clip(tmp_path / "clip"), tmp_path / "other")
    model = without_text_encoder(model).model
    pixel_values = torch.randn(1, 3, *(cells * processor.image_processor.size_divisor for cells in (6, 5)))
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")(pixel_values=pixel_values).logits
        torch.testing.assert_close(compiled, model(pixel_values=pixel_values).logits, atol=1e-5, rtol=0)
