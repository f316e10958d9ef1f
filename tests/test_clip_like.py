"""The table of how much a CLIP is like CLIP: its figures against numpy, and the command from end to end."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.ablations.clip_like import gap, geometry, main, share_in_span
from hf_clipseg.clip.text_bank import TEMPLATES


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_figures_by_numpy():
    images, captions, patches = (unit(9, 5, seed=seed) for seed in range(3))
    a, b = images.numpy(), captions.numpy()
    pairs = [a[i] @ a[j] for i in range(9) for j in range(9) if i != j]
    assert gap(images, captions) == pytest.approx(np.linalg.norm(a.mean(0) - b.mean(0)), abs=1e-6)
    banks = {name: unit(4, 5, seed=9 + number) for number, name in enumerate(TEMPLATES)}
    table = geometry(images, captions, patches, banks)
    assert table["mean cosine of different images"] == pytest.approx(np.mean(pairs), abs=1e-6)
    assert table["mean cosine of an image and its caption"] == pytest.approx(
        np.mean([x @ y for x, y in zip(a, b, strict=True)])
    )
    expected = np.mean(np.argmax(a @ b.T, axis=1) == np.arange(9))
    assert table["recall at 1, image to caption"] == pytest.approx(expected)
    cosines = (banks["name"].numpy() * banks["ensemble"].numpy()).sum(1)
    assert table["cosine of the bare name and `ensemble`"] == pytest.approx(cosines.mean(), abs=1e-6)


def test_share_of_the_span():
    patches = torch.zeros(20, 4)
    patches[:, 0], patches[:2, 1] = 1.0, 1.0  # two directions hold everything; one holds less than 99 %
    vectors = F.normalize(torch.tensor([[3.0, 0.0, 4.0, 0.0], [0.0, 1.0, 0.0, 0.0]]), dim=-1)
    assert share_in_span(vectors, patches) == pytest.approx((0.36 + 1) / 2)


def test_command_prints_and_writes_every_figure(tmp_path, capsys):
    main(["--limit", "4", "--oracle_images", "4", "--image_size", "64", "--output", str(tmp_path / "table.json")])
    printed, figures = capsys.readouterr().out, json.loads((tmp_path / "table.json").read_text())["figures"]
    assert all(f"| {name} | {value:.3f} |" in printed for name, value in figures.items())
    assert {"grid limit", "oracle, linear probe", "MaskCLIP mIoU, templates `photo`"} <= figures.keys()
    with pytest.raises(SystemExit, match="error: "):
        main(["--clip", "nowhere/at-all"])
