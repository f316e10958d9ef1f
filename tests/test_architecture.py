"""The import directions of the package, read from the source with `ast`."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_clipseg"
LEAVES = {"atomic", "constants", "outputs", "palette", "image_io"}
TOOLS = {"similarity", "losses", "refinement", "metrics", "sliding_window", "upsampling"} | {
    "contrastive",
    "crf",
    "distributed",
    "group_segmentation",
    "multi_view",
    "prototype_rules",
    "vpl_losses",
}
BLOCKS = {"clip_backbone", "text_bank", "prompt_learner", "localization", "prototypes", "pseudo_labels", "vpl_decoder"} | {
    "groupvit_backbone",
    "class_files",
    "feature_pyramid",
    "timm_pyramid",
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports; relative imports keep their dot."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def siblings(path: Path) -> set[str]:
    return {name.lstrip(".") for name in imports(path) if name.startswith(".")}


def modules() -> dict[str, Path]:
    return {path.stem: path for path in PACKAGE.glob("*.py")}


def test_the_package_is_flat_and_relative():
    assert not [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    for name, path in modules().items():
        for imported in imports(path):
            assert not imported.startswith("hf_clipseg"), f"{name} imports {imported}: write `from .name import X`"
            assert not imported.startswith(".."), f"{name} imports {imported}: one level only"


def test_lower_floors_do_not_know_upper_ones():
    allowed = {**{name: set() for name in LEAVES}, **{name: LEAVES | TOOLS for name in TOOLS}}
    allowed.update({name: LEAVES | TOOLS | BLOCKS for name in BLOCKS})
    for name, path in modules().items():
        if name in allowed:
            assert siblings(path) <= allowed[name], f"{name} imports {siblings(path) - allowed[name]}"
    for name in TOOLS & modules().keys():
        outside = {imported.split(".")[0] for imported in imports(modules()[name]) if not imported.startswith(".")}
        assert outside <= {"torch", "math", "collections", "dataclasses"}, f"{name} imports {outside}"


def test_methods_do_not_know_each_other():
    for name, path in modules().items():
        if name.startswith("modeling_"):
            others = {other for other in siblings(path) if other.startswith(("modeling_", "processing_"))}
            assert not others, f"{name} imports {others}"
        if name.startswith(("processing_", "image_processing_")):
            assert not {other for other in siblings(path) if other.startswith("modeling_")}


def test_scripts_and_app_stay_outside():
    for name, path in modules().items():
        top = {imported.split(".")[0] for imported in imports(path)}
        assert not top & {"training", "app", "gradio", "tests", "accelerate"}, f"{name} imports {top}"
    for path in (ROOT / "training").glob("*.py"):
        assert not {imported.split(".")[0] for imported in imports(path)} & {"gradio", "app", "tests"}, path.name


def test_only_its_own_modules_know_toyscapes():
    for name, path in modules().items():
        if not name.startswith("toyscapes"):
            assert not {other for other in siblings(path) if other.startswith("toyscapes")}, name


def test_nothing_is_pickled():
    for path in [*PACKAGE.glob("*.py"), *(ROOT / "training").glob("*.py"), ROOT / "app.py"]:
        if path.exists():
            assert not {"pickle", "joblib", "dill"} & imports(path), path.name
            assert "torch.save(" not in path.read_text(), f"{path.name} pickles"
