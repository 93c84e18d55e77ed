"""Meters of talking video with known truth, as plain functions over arrays."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Frames = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]


def correlation(a: Floats, b: Floats) -> float:
    """Pearson's correlation of two tracks `(F,)`; 0 where one of them does not move."""
    a, b = np.asarray(a, np.float64) - np.mean(a), np.asarray(b, np.float64) - np.mean(b)
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / size) if size > 1e-9 else 0.0


def partial_correlation(a: Floats, b: Floats, given: Floats) -> float:
    """Correlation of what is left of two tracks `(F,)` after the straight-line part of others `(F, k)` is taken away.

    Lips that open are also drawn in or spread: a meter of their width must not be right for what the opening tells.
    """
    known = np.column_stack([np.ones(len(given)), given])
    rest = [track - known @ np.linalg.lstsq(known, np.asarray(track, np.float64), rcond=None)[0] for track in (a, b)]
    return correlation(*rest)


def crops(frames: Frames, boxes: Floats, size: tuple[int, int] = (12, 16)) -> Floats:
    """A part of every frame, brought to one size: `(F, rows, columns, 3)` float32 in 0…1.

    Args:
        frames: `(F, H, W, 3)`, or F frames `(H, W, 3)`.
        boxes: `(F, 4)` x, y, w, h in pixels.
        size: Rows and columns.
    """
    found = np.empty((len(frames), *size, 3), np.float32)
    for index, (frame, (x, y, w, h)) in enumerate(zip(frames, boxes, strict=True)):
        rows = y + (np.arange(size[0]) + 0.5) * h / size[0] - 0.5
        columns = x + (np.arange(size[1]) + 0.5) * w / size[1] - 0.5
        found[index] = _bilinear(frame, rows, columns)
    return found / 255


def _bilinear(image: NDArray[np.uint8], rows: Floats, columns: Floats) -> Floats:
    height, width = image.shape[:2]
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (rows - top)[:, None, None], (columns - left)[None, :, None]
    upper = image[top][:, left] * (1 - across) + image[top][:, right] * across
    lower = image[bottom][:, left] * (1 - across) + image[bottom][:, right] * across
    return upper * (1 - down) + lower * down


class CropMeter:
    """One number of a person in a frame, learned from true frames of the same person.

    A ridge regression from the pixels of a part of the picture to one true number a frame: how far a mouth opens or how
    wide it is, where a head turns, whether it is the person. It knows one person in one place, so it measures what a
    generated video of that person shows, whatever the colours of lips and skin. What it learned from must show numbers
    that don't go together with others (openings and widths, say), or it takes one for the other.
    """

    def __init__(
        self,
        frames: Frames,
        boxes: Floats,
        values: Floats,
        ridge: float = 1.0,
        size: tuple[int, int] = (12, 16),
    ):
        """Args: frames `(F, H, W, 3)`, boxes `(F, 4)` of the part and values `(F,)` or `(F, k)` of the truth; ridge:
        strength of the prior; size: of the crops."""
        self.size = size
        pixels = crops(frames, boxes, size).reshape(len(frames), -1).astype(np.float64)
        self.mean, self.level = pixels.mean(0), np.mean(values, axis=0)
        centred = pixels - self.mean
        kernel = centred @ centred.T
        weights = np.linalg.solve(kernel + ridge * np.eye(len(kernel)), np.asarray(values, np.float64) - self.level)
        self.weights = centred.T @ weights

    def __call__(self, frames: Frames, boxes: Floats) -> Floats:
        """The number `(F,)`, or numbers `(F, k)`, in frames `(F, H, W, 3)` whose part lies in `boxes`."""
        pixels = crops(frames, boxes, self.size).reshape(len(frames), -1)
        return (pixels - self.mean) @ self.weights + self.level


def luminance(frame: NDArray[np.uint8] | Floats) -> Floats:
    """Brightness `(…)`, 0…255 as the colours `(…, 3)` are (ITU-R BT.601)."""
    return frame @ np.array([0.299, 0.587, 0.114])


def structural_similarity(a: NDArray[np.uint8], b: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None) -> float:
    """SSIM of two pictures `(H, W, 3)` on luminance (Wang et al. 2004: Gaussian window of σ 1.5).

    Args:
        mask: `(H, W)`; only there the result is averaged. None: everywhere.
    """
    from skimage.metrics import structural_similarity as measure

    _, score = measure(
        luminance(a),
        luminance(b),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        full=True,
    )
    if mask is not None:
        if not mask.any():
            raise ValueError("the mask is empty: there is nothing to compare")
        return float(score[mask].mean())
    return float(score.mean())
