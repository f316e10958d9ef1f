"""Windows and scales against direct evaluation of functions whose answer is known everywhere."""

import pytest
import torch
import torch.nn.functional as F

from hf_clipseg.processing.sliding_window import multi_scale_logits, sliding_window_logits, window_starts


@pytest.mark.parametrize(
    ("length", "window", "stride", "expected"),
    [
        (10, 4, 3, [0, 3, 6]),
        (11, 4, 3, [0, 3, 6, 7]),
        (12, 4, 4, [0, 4, 8]),
        (5, 4, 4, [0, 1]),
        (4, 4, 2, [0]),
        (3, 4, 2, [0]),
    ],
)
def test_window_starts(length, window, stride, expected):
    assert window_starts(length, window, stride) == expected


def test_windows_of_a_pointwise_function_equal_the_function():
    pixels = torch.randn(2, 3, 37, 21)

    def predict(crops):
        return torch.stack([crops.sum(1), crops[:, 0] * 2], dim=1)

    result = sliding_window_logits(predict, pixels, window=8, stride=5, batch_size=3, output_stride=1)
    torch.testing.assert_close(result, predict(pixels), atol=1e-5, rtol=0)


def test_every_cell_is_the_mean_over_the_windows_that_saw_it():
    """Each window answers with its number, so the result can be predicted from the layout alone."""
    calls = iter(range(100))

    def predict(crops):
        numbers = torch.tensor([float(next(calls)) for _ in crops])
        return numbers.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)

    height, width, window, stride = 9, 12, 4, 3
    result = sliding_window_logits(predict, torch.zeros(1, 3, height, width), window, stride, 4, output_stride=1)
    total, count = torch.zeros(height, width), torch.zeros(height, width)
    places = [(y, x) for y in window_starts(height, window, stride) for x in window_starts(width, window, stride)]
    for number, (y, x) in enumerate(places):
        total[y : y + window, x : x + window] += number
        count[y : y + window, x : x + window] += 1
    assert count.min() == 1 and count.max() > 2
    torch.testing.assert_close(result[0, 0], total / count)
    assert next(calls) == len(places)  # no window twice


@pytest.mark.parametrize("size", [(64, 64), (50, 97), (16, 200), (7, 5)])
def test_constant_function_stays_constant_on_a_coarse_canvas(size):
    def predict(crops):
        assert max(crops.shape[-2:]) <= 32
        return torch.tensor([3.0, -1.0]).view(1, 2, 1, 1).expand(len(crops), 2, 3, 5)

    result = sliding_window_logits(predict, torch.rand(1, 3, *size), window=32, stride=16, output_stride=4)
    assert result.shape == (1, 2, -(-size[0] // 4), -(-size[1] // 4))
    torch.testing.assert_close(result, torch.tensor([3.0, -1.0]).view(1, 2, 1, 1).expand_as(result))


def test_batches_of_windows_equal_one_by_one():
    convolution = torch.nn.Conv2d(3, 4, 3, stride=4, padding=1)
    pixels = torch.randn(3, 3, 40, 28)
    together = sliding_window_logits(convolution, pixels, 16, 8, batch_size=7)
    alone = torch.cat([sliding_window_logits(convolution, image[None], 16, 8, batch_size=1) for image in pixels])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
    assert not together.requires_grad


def test_one_window_that_holds_the_image_is_a_direct_call():
    convolution = torch.nn.Conv2d(3, 4, 4, stride=4)
    pixels = torch.randn(2, 3, 24, 32)
    with torch.no_grad():
        torch.testing.assert_close(sliding_window_logits(convolution, pixels, 64, 32), convolution(pixels))


def test_rectangular_windows():
    seen = []

    def predict(crops):
        seen.append(tuple(crops.shape[-2:]))
        return crops

    sliding_window_logits(predict, torch.rand(1, 3, 40, 40), window=(16, 24), stride=(8, 12), batch_size=100)
    assert seen == [(16, 24)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 16, "stride": 24}, "stride 24 is larger than window 16"),
        ({"window": 18, "stride": 9}, "try window 20 and stride 12"),
        ({"window": 0, "stride": 4}, "window is 0"),
        ({"window": 16, "stride": 8, "batch_size": 0}, "batch_size is 0"),
    ],
)
def test_impossible_windows_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sliding_window_logits(lambda crops: crops, torch.rand(1, 3, 32, 32), **arguments)


def test_scales_and_mirror_images_equal_the_written_out_average():
    convolution = torch.nn.Conv2d(3, 2, 4, stride=4)
    pixels = torch.randn(1, 3, 32, 48)
    result = multi_scale_logits(convolution, pixels, scales=(0.5, 1.0), flip=True)
    half = F.interpolate(pixels, scale_factor=0.5, mode="bilinear", antialias=True)
    with torch.no_grad():
        small = [convolution(half), convolution(half.flip(-1)).flip(-1)]
        views = [F.interpolate(logits, size=(8, 12), mode="bilinear") for logits in small]
        views += [convolution(pixels), convolution(pixels.flip(-1)).flip(-1)]
    torch.testing.assert_close(result, torch.stack(views).mean(0))


def test_flip_makes_the_result_mirror_symmetric():
    convolution = torch.nn.Conv2d(3, 2, 4, stride=4)
    pixels = torch.randn(1, 3, 32, 48)
    result = multi_scale_logits(convolution, pixels, flip=True)
    torch.testing.assert_close(multi_scale_logits(convolution, pixels.flip(-1), flip=True), result.flip(-1))


def test_one_plain_scale_changes_nothing_and_no_scale_is_refused():
    pixels = torch.randn(1, 3, 5, 9)
    assert torch.equal(multi_scale_logits(lambda x: x * 2, pixels), pixels * 2)
    with pytest.raises(ValueError, match="at least one factor"):
        multi_scale_logits(lambda x: x, pixels, scales=())
