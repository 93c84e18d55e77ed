"""Whether a face stays who it is: features of faces, and the slope of a track over time."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from .meters import Floats, crops, luminance
from .statistics import Interval

FEATURES = (48, 40)  # rows and columns of a face that is described


def face_features(frames: NDArray[np.uint8], boxes: Floats) -> Floats:
    """What faces look like `(F, c)`: histograms of oriented gradients (Dalal and Triggs 2005), zero mean, deviation 1.

    No network has learned them, so they favour none. They tell shape and sharpness, not colours.

    Args:
        frames: `(F, H, W, 3)`. boxes: `(F, 4)` x, y, w, h of the faces, in pixels.
    """
    from skimage.feature import hog

    pictures = luminance(crops(frames, boxes, FEATURES))
    found = np.stack(
        [hog(picture, orientations=8, pixels_per_cell=(8, 8), cells_per_block=(2, 2)) for picture in pictures]
    )
    return (found - found.mean(axis=1, keepdims=True)) / np.maximum(found.std(axis=1, keepdims=True), 1e-6)


def slope(track: Floats, fps: float = 25.0, rounds: int = 500, block: float = 1.0, seed: int = 0) -> Interval:
    """The slope of a track `(F,)` a second, with its 95 % interval.

    Neighbouring frames are alike, so whole blocks of residuals are drawn again (moving block bootstrap).

    Args:
        block: Seconds of a block.

    Raises:
        ValueError: for a track shorter than two blocks.
    """
    time, size = np.arange(len(track)) / fps, max(1, round(block * fps))
    if len(track) < 2 * size:
        raise ValueError(f"a slope needs {2 * size} frames, not {len(track)}")
    line_of = partial(np.polyfit, time, deg=1)
    line = np.polyval(line_of(track), time)
    rest, random = np.asarray(track) - line, np.random.default_rng(seed)
    count = -(-len(track) // size)
    values = []
    for _ in range(rounds):
        starts = random.integers(0, len(track) - size + 1, count)
        drawn = np.concatenate([rest[start : start + size] for start in starts])[: len(track)]
        values.append(float(line_of(line + drawn)[0]))
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(line_of(np.asarray(track))[0]), float(low), float(high))
