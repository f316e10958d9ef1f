"""The import directions between rooms, read from the source with `ast`."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_clipseg"
TRAINING = ROOT / "training"

LEAVES = {"atomic", "constants", "outputs"}
TENSOR_TOOLS = {
    "clip.contrastive",
    "clip.distributed",
    "clip.multi_view",
    "clip.similarity",
    "evaluation.edge_pixels",
    "evaluation.metrics",
    "localization.prototype_rules",
    "models.losses",
    "models.cocu.group_segmentation",
    "models.vpl.vpl_losses",
    "processing.sliding_window",
    "processing.upsampling",
    "refinement.crf",
    "refinement.pamr",
}
"""Files that know torch and no CLIP, no picture, no configuration."""
MAY_KNOW = {
    "clip": {"leaves", "clip"},
    "refinement": {"leaves", "refinement"},
    "evaluation": {"leaves", "evaluation"},
    "drawing": {"leaves", "drawing"},
    "toyscapes": {"leaves", "toyscapes", "drawing"},
    "bulk": {"leaves", "bulk", "clip", "drawing", "processing"},
    "processing": {"leaves", "processing", "clip", "refinement"},
    "localization": {"leaves", "localization", "clip", "refinement", "processing"},
    "models": {"leaves", "models", "clip", "localization", "processing"},
}
"""What each room may import; the files at the top of the package may import every room but `toyscapes`."""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module outside the package that a file imports, by its absolute name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    return found


def inner_imports(path: Path, root: Path = PACKAGE) -> set[str]:
    """The modules below `root` that a file imports relatively, by their dotted names below it; "" is the package itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].relative_to(root)
            found.add(".".join([*base.parts, *([node.module] if node.module else [])]))
    return found


def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(name: str) -> str:
    """Where a module is: a room, "leaves", or "top"."""
    if "." in name or (PACKAGE / name).is_dir():
        return name.split(".")[0]
    return "leaves" if name in LEAVES else "top"


def test_imports_within_the_package_are_relative():
    for name, path in modules().items():
        assert not {other for other in imports(path) if other.split(".")[0] == "hf_clipseg"}, name


def test_file_names_are_unique():
    """Code that is exported for the Hub lies side by side in one folder."""
    stems = [path.stem for path in modules().values() if path.stem not in ("__init__", "__main__")]
    assert not {stem for stem in stems if stems.count(stem) > 1}


def test_rooms_know_only_lower_ones():
    for name, path in modules().items():
        if room(name) not in ("top", "leaves") and name:
            unknown = {other for other in inner_imports(path) if room(other) not in MAY_KNOW[room(name)]}
            assert not unknown, f"{name} imports {unknown}"
        if room(name) == "leaves":
            assert not inner_imports(path), name


def test_tensor_tools_know_torch_alone():
    for name in TENSOR_TOOLS:
        path = modules()[name]
        assert inner_imports(path) <= LEAVES | TENSOR_TOOLS, f"{name} imports {inner_imports(path)}"
        outside = {imported.split(".")[0] for imported in imports(path)}
        unknown = outside - {"torch", "math", "collections", "dataclasses", "functools", "typing", "warnings"}
        assert not unknown, f"{name} imports {unknown}"


def test_methods_do_not_know_each_other():
    for name, path in modules().items():
        own = name.split(".")
        if own[0] != "models":
            continue
        methods = {other for other in inner_imports(path) if other.startswith("models.") and other.count(".") == 2}
        foreign = {other for other in methods if len(own) < 3 or other.split(".")[1] != own[1]}
        assert not foreign, f"{name} imports {foreign}"


def test_processing_knows_no_model_and_only_the_top_knows_all():
    for name, path in modules().items():
        if room(name) not in ("top", "models") and name:
            assert not {other for other in inner_imports(path) if room(other) in ("models", "top")}, name


def test_scripts_and_app_stay_outside():
    for name, path in modules().items():
        top = {imported.split(".")[0] for imported in imports(path)}
        assert not top & {"training", "app", "demo", "gradio", "tests", "accelerate"}, f"{name} imports {top}"
    for path in TRAINING.rglob("*.py"):
        assert not {imported.split(".")[0] for imported in imports(path)} & {"gradio", "app", "demo", "tests"}, path.name


def test_only_the_page_and_the_border_know_gradio():
    """What the demo computes can be tested without a server."""
    with_gradio = {path.stem for path in (ROOT / "demo").glob("*.py") if "gradio" in imports(path)}
    assert with_gradio == {"api", "desk", "guard", "page", "page_compare", "page_curate", "page_teach", "theme"}


def test_only_its_own_room_knows_toyscapes():
    for name, path in modules().items():
        if room(name) != "toyscapes":
            assert not {other for other in inner_imports(path) if other.startswith("toyscapes")}, name


def test_scripts_do_not_import_scripts():
    """A command at the top of `training/` is nobody's library: what two of them share lies in a room below."""
    scripts = {path.stem for path in TRAINING.glob("*.py") if "__main__" in path.read_text()}
    assert {"train_vpl", "evaluate", "export"} <= scripts
    for path in TRAINING.rglob("*.py"):
        if path.name == "__main__.py":  # another name of a command
            continue
        imported = inner_imports(path, TRAINING) | {other.removeprefix("training.") for other in imports(path)}
        assert not imported & scripts, f"{path.relative_to(ROOT)} imports {imported & scripts}"


def test_training_knows_toyscapes_in_its_sources_and_defaults_only():
    knowing = {
        path.relative_to(TRAINING).as_posix()
        for path in TRAINING.rglob("*.py")
        if {other for other in imports(path) if other.startswith("hf_clipseg.toyscapes")}
    }
    assert {path for path in knowing if not path.startswith("data/")} == {"settings/dataset_defaults.py"}


def test_nothing_is_pickled():
    for path in [*PACKAGE.rglob("*.py"), *TRAINING.rglob("*.py"), ROOT / "app.py"]:
        assert not {"pickle", "joblib", "dill"} & imports(path), path.name
        assert "torch.save(" not in path.read_text(), f"{path.name} pickles"
