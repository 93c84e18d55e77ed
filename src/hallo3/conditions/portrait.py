"""Framing: a picture of any shape → the model's canvas, and frames on it → the picture's shape (spec section 6)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError

Box = tuple[float, float, float, float]
Mode = Literal["auto", "pad", "crop"]
MODES = ("auto", "pad", "crop")
SAME_SHAPE = 0.1  # aspect ratios this close are treated as one: such a picture is cropped to the canvas
SQUARE = 0.02
MIN_SIDE = 32  # pixels of the canvas that the picture must cover both ways


@dataclass(frozen=True)
class Framing:
    """Where the picture lies on the canvas, and how to get back to it.

    mode: what was done, "pad" or "crop". picture: its width and height in its own pixels. canvas: width and height of
    the canvas. box: x, y, width and height of the whole picture in canvas pixels; a cropped one reaches over it.
    """

    mode: Literal["pad", "crop"]
    picture: tuple[int, int]
    canvas: tuple[int, int]
    box: Box

    @property
    def scale(self) -> float:
        """Canvas pixels per picture pixel."""
        return self.box[2] / self.picture[0]

    @property
    def visible(self) -> tuple[int, int, int, int]:
        """x, y, width and height of the part of the canvas that the result shows; width and height are even."""
        if self.mode == "crop":
            return 0, 0, self.canvas[0] // 2 * 2, self.canvas[1] // 2 * 2
        x, y, w, h = (int(value) for value in self.box)
        return x, y, w, h

    def to_canvas(self, box: Box) -> Box:
        """A box (x, y, width, height) in picture pixels → the same box in canvas pixels."""
        across, down = self.box[2] / self.picture[0], self.box[3] / self.picture[1]
        x, y, w, h = box
        return self.box[0] + x * across, self.box[1] + y * down, w * across, h * down

    def restore(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Frames on the canvas (..., H, W, 3) → frames of the picture's shape: black borders are cut off again."""
        x, y, w, h = self.visible
        return frames[..., y : y + h, x : x + w, :]

    @property
    def report(self) -> str:
        """One line for people: what was done with the picture."""
        (width, height), (_, _, w, h) = self.picture, self.visible
        canvas = f"{self.canvas[0]}×{self.canvas[1]}"
        if self.mode == "crop":
            kept = min(1.0, self.canvas[0] / self.box[2]) * min(1.0, self.canvas[1] / self.box[3])
            return f"portrait {width}×{height}: scaled to cover {canvas} and cut at the edges ({kept:.0%} is kept)"
        return f"portrait {width}×{height}: scaled to {w}×{h}, black around it up to {canvas}; the video is {w}×{h}"


def frame_portrait(
    image: Image.Image, height: int, width: int, mode: str = "auto"
) -> tuple[NDArray[np.uint8], Framing]:
    """Puts a picture onto the model's canvas.

    Args:
        image: Any size and shape; turned to RGB.
        height, width: The canvas in pixels.
        mode: "crop" scales it to cover the canvas and cuts the edges evenly; "pad" scales it to fit whole, black around
            it, and the result is cut back to the picture's shape; "auto" as published: a square is padded, a picture of
            about the canvas' shape (within 10 %) is cropped; anything else is padded: 9:16 comes out 9:16.

    Returns:
        The canvas, (height, width, 3) uint8, and how the picture lies on it.

    Raises:
        UserError: unknown mode, or a picture so narrow that less than 32 pixels of it would be left.
    """
    if mode not in MODES:
        raise UserError(f"--framing {mode}: no such framing; use {', '.join(MODES)}")
    if mode == "auto":
        mode = _automatic(image.width / image.height, width / height)
    return (_pad if mode == "pad" else _crop)(image.convert("RGB"), height, width)


def _automatic(picture: float, canvas: float) -> Literal["pad", "crop"]:
    if abs(picture - 1) <= SQUARE:
        return "pad"
    return "crop" if abs(picture / canvas - 1) <= SAME_SHAPE else "pad"


def _pad(image: Image.Image, height: int, width: int) -> tuple[NDArray[np.uint8], Framing]:
    scale = min(width / image.width, height / image.height)
    w, h = _even(image.width * scale, width), _even(image.height * scale, height)
    if min(w, h) < min(MIN_SIDE, width, height):
        size = f"{image.width}×{image.height}"
        raise UserError(f"portrait: {size} pixels is too narrow; cut it to the person, or use --framing crop")
    x, y = (width - w) // 2, (height - h) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[y : y + h, x : x + w] = np.asarray(image.resize((w, h), Image.Resampling.LANCZOS))
    return canvas, Framing("pad", image.size, (width, height), (x, y, w, h))


def _even(side: float, limit: int) -> int:
    """An even number, because H.264's colour planes have half the size."""
    return min(2 * round(side / 2), limit // 2 * 2)


def _crop(image: Image.Image, height: int, width: int) -> tuple[NDArray[np.uint8], Framing]:
    scale = max(width / image.width, height / image.height)
    w, h = image.width * scale, image.height * scale
    x, y = (width - w) / 2, (height - h) / 2
    left, top = max(0.0, -x / scale), max(0.0, -y / scale)
    source = left, top, min(image.width, left + width / scale), min(image.height, top + height / scale)
    canvas = np.array(image.resize((width, height), Image.Resampling.LANCZOS, box=source))
    return canvas, Framing("crop", image.size, (width, height), (x, y, w, h))
