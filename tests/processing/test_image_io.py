"""Limits of reading images: what is refused before it is decoded, and that threads do not disturb each other."""

import threading

import numpy as np
import pytest
from PIL import Image

from hf_clipseg.processing.image_io import MAX_PIXELS, load_image


def test_pillows_own_limit_is_left_alone(tmp_path):
    """Many threads at once; a limit that is swapped without a lock ends up off."""
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    before = Image.MAX_IMAGE_PIXELS
    threads = [threading.Thread(target=lambda: [load_image(tmp_path / "small.png") for _ in range(100)]) for _ in range(8)]
    seen = set()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.add(Image.MAX_IMAGE_PIXELS)
    assert seen | {Image.MAX_IMAGE_PIXELS} == {before}


@pytest.mark.parametrize("side", [12_500, 30_000])
def test_too_many_pixels_are_refused_before_decoding(tmp_path, side):
    """The larger one is beyond Pillow's own limit, too."""
    Image.new("1", (side, side)).save(tmp_path / "huge.png")
    Image.core.reset_stats()
    with pytest.raises(ValueError, match=f"My picture has .*at most {MAX_PIXELS:,} are read. Resize it first."):
        load_image(tmp_path / "huge.png", name="My picture")
    assert Image.core.get_stats()["allocated_blocks"] == 0


def test_a_smaller_limit_spares_what_is_decoded_small(tmp_path):
    """A JPEG of 12 million pixels is decoded at an eighth of its size; a PNG of that size is decoded whole, and refused."""
    picture = Image.new("RGB", (4000, 3000), "teal")
    picture.save(tmp_path / "photo.jpg")
    picture.save(tmp_path / "photo.png")
    assert load_image(tmp_path / "photo.jpg", 256, max_pixels=1_000_000).size == (256, 192)
    with pytest.raises(ValueError, match=r"4000 x 3000 pixels; at most 1,000,000"):
        load_image(tmp_path / "photo.png", 256, max_pixels=1_000_000)


def test_a_name_takes_the_place_of_the_path(tmp_path):
    path = tmp_path / "secret-place.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:400])
    for content in (path.read_bytes(), b"no image"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="^The picture is") as caught:
            load_image(path, name="The picture")
        assert "secret" not in str(caught.value)


def test_programs_are_no_images(tmp_path):
    """Decoding PostScript would run Ghostscript on a stranger's program."""
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="PostScript program"):
        load_image(tmp_path / "a.eps")
