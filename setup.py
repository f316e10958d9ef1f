"""What pyproject.toml cannot say: the dependencies are read from the requirements files, so that they are stated once."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def requirements(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("#", "-"))]


package, app = map(requirements, (ROOT / "requirements.txt").read_text(encoding="utf-8").split("# for app.py only\n"))
curation = requirements((ROOT / "training" / "curation" / "requirements.txt").read_text(encoding="utf-8"))
dev = requirements((ROOT / "tests" / "requirements.txt").read_text(encoding="utf-8"))

setup(
    install_requires=package,
    extras_require={
        "app": app,
        "mcp": [line.replace("gradio", "gradio[mcp]") for line in app],
        "curation": curation,
        "ray": ["ray[data]>=2.40"],
        "timm": ["timm>=1.0"],
        "lora": [line for line in dev if line.startswith("peft")],
        "export": ["onnx>=1.19", "onnxscript>=0.5", "onnxruntime>=1.23"],
        "dev": app + curation + dev,
    },
)
