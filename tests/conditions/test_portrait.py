"""Framing of pictures of any shape on canvases of any size, and the way back."""

import numpy as np
import pytest
from PIL import Image

from hallo3.conditions.portrait import frame_portrait
from hallo3.errors import UserError


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards: a pixel's colour says where in the picture it is from."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.uint8(np.stack([x, y, np.full_like(x, 200)], axis=-1).round()))


def test_square_portraits_as_published():
    canvas, framing = frame_portrait(gradient(1000, 1000), 480, 720)
    assert canvas.shape == (480, 720, 3)
    assert framing.mode == "pad"
    assert framing.visible == (120, 0, 480, 480)
    assert not canvas[:, :120].any()
    assert not canvas[:, 600:].any()
    assert framing.restore(canvas[None]).shape == (1, 480, 480, 3)
    expected = np.asarray(gradient(1000, 1000).resize((480, 480), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(framing.restore(canvas), expected)


def test_landscape_portraits_as_published():
    canvas, framing = frame_portrait(gradient(1600, 1000), 480, 720)
    assert framing.mode == "crop"
    assert framing.visible == (0, 0, 720, 480)
    assert framing.restore(canvas).shape == (480, 720, 3)
    # 1500 of 1600 columns are kept, evenly on both sides.
    np.testing.assert_allclose(canvas[0, 0, 0], 255 * 50 / 1600, atol=1.5)
    np.testing.assert_allclose(canvas[0, -1, 0], 255 * 1550 / 1600, atol=1.5)
    np.testing.assert_allclose(canvas[[0, -1], 0, 1], [0, 255], atol=1.5)


@pytest.mark.parametrize(
    ("size", "canvas", "mode", "result"),
    [
        ((1080, 1920), (480, 720), "pad", (270, 480)),
        ((900, 1600), (128, 192), "pad", (72, 128)),
        ((1200, 1600), (480, 720), "pad", (360, 480)),
        ((2000, 500), (480, 720), "pad", (720, 180)),
        ((60, 60), (128, 192), "pad", (128, 128)),
        ((1500, 1000), (480, 720), "crop", (720, 480)),
        ((1920, 1080), (480, 720), "pad", (720, 404)),
        ((1080, 1920), (720, 480), "pad", (404, 720)),
        ((1000, 1500), (720, 480), "crop", (480, 720)),
        ((1023, 1000), (480, 480), "crop", (480, 480)),
    ],
)
def test_auto_keeps_the_pictures_shape(size, canvas, mode, result):
    framed, framing = frame_portrait(gradient(*size), *canvas)
    assert framed.shape == (*canvas, 3)
    assert framing.mode == mode
    restored = framing.restore(np.repeat(framed[None], 3, axis=0))
    assert restored.shape == (3, result[1], result[0], 3)
    assert restored.shape[1] % 2 == restored.shape[2] % 2 == 0
    if mode == "pad":
        aspect = result[0] / result[1]
        assert abs(aspect / (size[0] / size[1]) - 1) < 0.02
        assert framed.astype(int).sum() == restored[0].astype(int).sum()  # all that is cut off is black


def test_pad_and_crop_on_demand():
    padded, pad = frame_portrait(gradient(1500, 1100), 480, 720, "pad")
    cropped, crop = frame_portrait(gradient(1000, 1000), 480, 720, "crop")
    assert pad.restore(padded).shape == (480, 654, 3)
    assert crop.restore(cropped).shape == (480, 720, 3)
    assert cropped.min(axis=(0, 1))[2] > 190  # no black anywhere
    np.testing.assert_allclose(cropped[[0, -1], 0, 1], [255 / 6, 255 * 5 / 6], atol=2)


@pytest.mark.parametrize(("size", "mode"), [((1000, 800), "pad"), ((800, 1000), "pad"), ((1600, 1000), "crop")])
def test_boxes_move_with_the_picture(size, mode):
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    picture[300:500, 400:600] = 255
    canvas, framing = frame_portrait(Image.fromarray(picture), 480, 720, mode)
    x, y, w, h = framing.to_canvas((400, 300, 200, 200))
    rows, columns = np.nonzero(canvas[..., 0] > 127)
    np.testing.assert_allclose([columns.min(), rows.min()], [x, y], atol=1)
    np.testing.assert_allclose([columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()], [w, h], atol=1.5)
    assert framing.scale == pytest.approx(w / 200)


def test_the_report_says_what_was_done():
    assert frame_portrait(gradient(100, 100), 480, 720)[1].report == (
        "portrait 100×100: scaled to 480×480, black around it up to 720×480; the video is 480×480"
    )
    assert (
        "cover 720×480 and cut at the edges (94% is kept)" in frame_portrait(gradient(1600, 1000), 480, 720)[1].report
    )


def test_grey_pictures_become_rgb():
    assert frame_portrait(Image.new("L", (300, 200), 77), 128, 192)[0][64, 96].tolist() == [77, 77, 77]


def test_hopeless_pictures_and_unknown_modes_are_refused():
    with pytest.raises(UserError, match="too narrow"):
        frame_portrait(gradient(2000, 20), 480, 720)
    with pytest.raises(UserError, match="--framing stretch"):
        frame_portrait(gradient(20, 20), 480, 720, "stretch")
    assert frame_portrait(gradient(2000, 20), 480, 720, "crop")[0].shape == (480, 720, 3)
