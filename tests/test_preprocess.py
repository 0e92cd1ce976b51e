"""Preprocessing: what part of a picture becomes input, how it is scaled, and which specifications are refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_cl.errors import UsageError
from edge_cl.preprocess import Preprocess


def ramps(width: int, height: int) -> Image.Image:
    """Return a picture whose red is the column and whose green is the row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "crop", "left", "top", "side"),
    [
        ((200, 100), 1.0, 50, 0, 100),
        ((100, 200), 1.0, 0, 50, 100),
        ((200, 100), 0.8, 60, 10, 80),
        ((121, 64), 0.5, 44.5, 16, 32),
        ((64, 64), 1.0, 0, 0, 64),
        ((20, 30), 1.0, 0, 5, 20),  # enlarged
    ],
)
def test_centre_is_the_centred_square(
    size: tuple[int, int], crop: float, left: float, top: float, side: float, interpolation: str
) -> None:
    pixels = Preprocess(32, interpolation=interpolation, crop_fraction=crop).centre(ramps(*size))
    assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)
    # Interpolation keeps straight lines: an output pixel is the coordinate that its middle falls on.
    at = (np.arange(32) + 0.5) * side / 32 - 0.5
    inside = slice(4, -4)  # filters are cut at the picture's edge
    for channel, expected in ((0, left + at), (1, top + at[:, None])):
        wanted = np.broadcast_to(expected, (32, 32))[inside, inside]
        np.testing.assert_allclose(pixels[inside, inside, channel], wanted, atol=0.75)


def test_interpolation_is_pillow_s() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    square = image.crop((10, 0, 60, 50))
    for name, filter in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        expected = np.asarray(square.resize((16, 16), filter))
        inside = slice(2, -2)  # a box's filter reaches over its edge, a cut picture's cannot
        assert np.array_equal(Preprocess(16, interpolation=name).centre(image)[:, inside], expected[:, inside])


@pytest.mark.parametrize("shape", [(4, 4, 3), (2, 4, 4, 3), (0, 4, 4, 3)])
def test_normalise_against_numpy(shape: tuple[int, ...]) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    result = Preprocess(4, mean, std).normalise(pixels)
    expected = np.moveaxis((pixels / 255.0 - np.array(mean)) / np.array(std), -1, -3)
    assert (result.dtype, result.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_allclose(result, expected, atol=2e-6)


def test_normalise_by_hand() -> None:
    pixels = np.array([[[0, 255, 51]]], np.uint8)
    result = Preprocess(1, (0.5, 0.25, 0.0), (0.5, 0.25, 0.1)).normalise(pixels)
    np.testing.assert_allclose(result, [[[-1]], [[3]], [[2]]], rtol=1e-6)


def test_view_depends_on_its_generator_alone() -> None:
    spec, image = Preprocess(16), ramps(90, 60)
    views = [spec.view(image, np.random.default_rng((1, number)), scale=(0.2, 1.0)) for number in (0, 1, 0)]
    assert np.array_equal(views[0], views[2])
    assert not np.array_equal(views[0], views[1])
    assert all((v.shape, v.dtype, v.flags.c_contiguous) == ((16, 16, 3), np.uint8, True) for v in views)


def test_views_cover_scales_aspects_and_places_and_flip_half_of_the_time() -> None:
    spec, image = Preprocess(32), ramps(200, 200)
    areas, aspects, flipped, places = [], [], [], []
    for i in range(300):
        view = spec.view(image, np.random.default_rng(i), scale=(0.25, 0.6)).astype(float)
        # The slope of a ramp, between two inner pixels, is the crop's side over 32.
        w, h = (32 * (view[16, 27, 0] - view[16, 4, 0]) / 23), 32 * (view[27, 16, 1] - view[4, 16, 1]) / 23
        areas.append(abs(w) * h / 200**2)
        aspects.append(abs(w) / h)
        flipped.append(w < 0)
        middle = view[15:17, 15:17].mean((0, 1)) + 0.5
        places.append([(middle[0] - abs(w) / 2) / (200 - abs(w)), (middle[1] - h / 2) / (200 - h)])
    assert 0.24 < min(areas) < 0.27
    assert 0.57 < max(areas) < 0.62
    assert 0.73 < min(aspects) < 0.78
    assert 1.28 < max(aspects) < 1.37
    assert 0.4 < np.mean(flipped) < 0.6
    quartiles = np.quantile(places, [0.25, 0.5, 0.75], axis=0)  # of left and top, as shares of the room there is
    np.testing.assert_allclose(quartiles, np.broadcast_to([[0.25], [0.5], [0.75]], (3, 2)), atol=0.08)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 1000), st.floats(0.01, 1), st.floats(0.01, 1))
def test_any_picture_has_views(width: int, height: int, seed: int, smallest: float, crop: float) -> None:
    spec, image = Preprocess(8, crop_fraction=crop), Image.new("RGB", (width, height), (10, 20, 30))
    for pixels in (spec.centre(image), spec.view(image, np.random.default_rng(seed), scale=(smallest, 1.0))):
        assert np.array_equal(pixels, np.broadcast_to(np.uint8([10, 20, 30]), (8, 8, 3)))


def test_view_of_a_narrow_picture_is_its_largest_square() -> None:
    view = Preprocess(16).view(ramps(10, 200), np.random.default_rng(0), scale=(1.0, 1.0)).astype(float)
    assert view[:, :, 0].min() <= 1
    assert view[:, :, 0].max() >= 8  # all columns
    assert 5 < view[15, 8, 1] - view[0, 8, 1] < 11  # as many rows


@pytest.mark.parametrize(
    "spec", [Preprocess(224), Preprocess(160, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", 0.875)]
)
def test_json_round_trip(spec: Preprocess) -> None:
    again = Preprocess.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.to_json() == spec.to_json()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interpolation": "bicubik"}, "Unknown interpolation 'bicubik'.\nDid you mean bicubic"),
        ({"interpolation": ""}, "Unknown interpolation ''.\nKnown: bilinear, bicubic"),
        ({"image_size": 0}, "Bad preprocessing: .*image_size=0.*\nSizes are positive, fractions in"),
        ({"image_size": -8}, "Bad preprocessing: .*image_size=-8"),
        ({"crop_fraction": 0.0}, "Bad preprocessing: .*crop_fraction=0.0"),
        ({"crop_fraction": 1.01}, "Bad preprocessing: .*crop_fraction=1.01"),
        ({"crop_fraction": float("nan")}, "Bad preprocessing: .*crop_fraction=nan"),
    ],
)
def test_bad_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocess(**{"image_size": 32, **values})
    with pytest.raises(UsageError, match=message):
        Preprocess.from_json({**Preprocess(32).to_json(), **values})
