"""Code that travels with a model: files of any room side by side, imports rewritten, nothing registered."""

import ast
import importlib
import inspect
import json
import shutil
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, CLIPModel, dynamic_module_utils

from hf_clipseg import METHODS, SegmentationImageProcessor, SegmentationProcessor
from hf_clipseg.hub_export import copy_flat, save_with_code

from .tiny import tiny_clip_config, tiny_tokenizer
from .tiny_segmenter import tiny_segmenter

FILES = {
    "__init__.py": "",
    "models/__init__.py": "",
    "models/toy/__init__.py": "",
    "models/toy/configuration_toy.py": """
        from transformers import PreTrainedConfig

        class ToyConfig(PreTrainedConfig):
            model_type = "toy_of_rooms"
        """,
    "models/toy/modeling_toy.py": """
        import torch
        from transformers import PreTrainedModel

        from ...tools.scale import SCALE
        from ..shared.blocks import (
            Block,
        )
        from .configuration_toy import ToyConfig


        class ToyForSemanticSegmentation(PreTrainedModel):
            config_class = ToyConfig

            def __init__(self, config):
                super().__init__(config)
                self.block = Block()
                self.post_init()

            def forward(self, pixel_values):
                from ...tools.late import shift
                return shift(self.block(pixel_values) * SCALE)
        """,
    "models/shared/__init__.py": "",
    "models/shared/blocks.py": """
        from torch import nn


        class Block(nn.Linear):
            def __init__(self):
                super().__init__(1, 1)
        """,
    "tools/__init__.py": "",
    "tools/scale.py": "SCALE = 3.0\n",
    "tools/late.py": "def shift(value):\n    return value + 1\n",
}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A package with rooms, whose name is new for every test."""
    name = f"toy_{tmp_path.name}"
    for file, source in FILES.items():
        path = tmp_path / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source).lstrip("\n"))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return tmp_path / name


def test_files_of_all_rooms_lie_side_by_side_with_imports_of_one_level(toy, tmp_path):
    (tmp_path / "flat").mkdir()
    copy_flat([toy / "models/toy/modeling_toy.py"], tmp_path / "flat")
    sources = {path.name: path.read_text() for path in (tmp_path / "flat").iterdir()}
    assert sorted(sources) == ["blocks.py", "configuration_toy.py", "late.py", "modeling_toy.py", "scale.py"]
    expected = (toy / "models/toy/modeling_toy.py").read_text()
    for old, new in (("...tools.scale", ".scale"), ("..shared.blocks", ".blocks"), ("...tools.late", ".late")):
        expected = expected.replace(f"from {old} import", f"from {new} import")
    assert sources["modeling_toy.py"] == expected
    assert sources["blocks.py"] == (toy / "models/shared/blocks.py").read_text()


def test_a_model_of_rooms_runs_without_its_package(toy, tmp_path, monkeypatch):
    modeling = importlib.import_module(f"{toy.name}.models.toy.modeling_toy")
    model = modeling.ToyForSemanticSegmentation(modeling.ToyConfig())
    save_with_code(model, tiny_segmenter()[1], tmp_path / "saved")
    for name in [name for name in sys.modules if name.partition(".")[0] == toy.name]:
        monkeypatch.delitem(sys.modules, name)
    shutil.rmtree(toy)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    loaded = AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert type(loaded).__name__ == "ToyForSemanticSegmentation" and type(loaded) is not type(model)
    torch.testing.assert_close(loaded(torch.ones(1, 1)), model.block(torch.ones(1, 1)) * 3 + 1, rtol=0, atol=0)


@pytest.mark.parametrize("line", ["from ...tools import scale", "from . import blocks", "from ..shared import blocks"])
def test_an_import_that_names_no_file_is_refused_with_its_line(toy, tmp_path, line):
    (toy / "models/toy/modeling_toy.py").write_text(f"import torch\n{line}\n")
    with pytest.raises(ValueError, match="modeling_toy.py, line 2: .*from .file import X"):
        copy_flat([toy / "models/toy/modeling_toy.py"], tmp_path)


def test_two_files_of_one_name_are_refused_also_where_different_classes_reach_them(toy, tmp_path):
    (toy / "models/shared/scale.py").write_text("")
    sources = [toy / "models/toy/modeling_toy.py", toy / "models/shared/scale.py"]
    with pytest.raises(ValueError, match="'scale'.*needs a name of its own"):
        copy_flat(sources, tmp_path)


def test_every_auto_class_finds_its_own_and_nothing_is_registered(tmp_path):
    model, processor = tiny_segmenter()
    save_with_code(model, processor, tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_mask_clip.MaskClipConfig",
        "AutoModel": "modeling_mask_clip.MaskClipForSemanticSegmentation",
        "AutoModelForSemanticSegmentation": "modeling_mask_clip.MaskClipForSemanticSegmentation",
    }
    content = json.loads((tmp_path / "processor_config.json").read_text())
    image = {"AutoImageProcessor": "image_processing_segmentation.SegmentationImageProcessor"}
    expected = {"AutoProcessor": "processing_segmentation.SegmentationProcessor", **image}
    assert content["auto_map"] == content["image_processor"]["auto_map"] == expected
    for own in (type(model), type(model.config), SegmentationProcessor, SegmentationImageProcessor):
        assert own._auto_class is None
    model.save_pretrained(tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "plain" / "config.json").read_text())


@pytest.mark.parametrize("model_class", METHODS.values(), ids=lambda method: method.__name__)
def test_the_files_of_every_method_are_complete(model_class, tmp_path):
    """What a copied file imports from beside itself is beside it, and knows neither the package nor another method."""
    exported = (model_class, model_class.config_class, SegmentationProcessor)
    copy_flat([Path(inspect.getfile(cls)) for cls in exported], tmp_path)
    for path in tmp_path.iterdir():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and (tmp_path / f"{node.module}.py").is_file(), (path.name, node.module)
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert not node.module.startswith("hf_clipseg"), (path.name, node.module)
    modeling = [path.name for path in tmp_path.glob("modeling_*.py")]
    assert modeling == [Path(inspect.getfile(model_class)).name]


def test_transformers_own_models_travel_without_code(tmp_path):
    model = CLIPModel(tiny_clip_config())
    save_with_code(model, [tiny_tokenizer(), SegmentationImageProcessor()], tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert (tmp_path / "tokenizer.json").is_file() and (tmp_path / "preprocessor_config.json").is_file()
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
