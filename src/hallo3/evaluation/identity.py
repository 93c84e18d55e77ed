"""Whether a face stays who it is: distances of embeddings, and their slope over time."""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .meters import Floats
from .statistics import Interval

BATCH = 32


def face_embeddings(encoder: Any, frames: NDArray[np.uint8], boxes: Floats) -> Floats:
    """Embeddings `(F, c)` of unit length of the faces in boxes `(F, 4)` x, y, w, h of frames `(F, H, W, 3)`.

    encoder: the embedded bundle's `FaceEncoder`, or anything that takes `(B, 3, S, S)` in [-1, 1].
    """
    import torch

    from ..conditions.motion import to_tensor
    from ..networks.faces import crop_face

    found = []
    with torch.no_grad():
        for start in range(0, len(frames), BATCH):
            crops = [
                crop_face(to_tensor(frame)[0], (float(x), float(y), float(w), float(h)))
                for frame, (x, y, w, h) in zip(frames[start : start + BATCH], boxes[start : start + BATCH], strict=True)
            ]
            found.append(encoder(torch.stack(crops)).float().numpy())
    vectors = np.concatenate(found)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def distances(vectors: Floats, to: Floats) -> Floats:
    """Cosine distances `(F,)`, 0…2, of embeddings `(F, c)` to one embedding `(c,)`, all of unit length."""
    return 1 - vectors @ to


def matched_distances(vectors: Floats, gallery: Floats) -> Floats:
    """Cosine distances `(F,)` of embeddings `(F, c)` to the nearest of a gallery `(n, c)`, all of unit length.

    A gallery that shows a person in many poses takes the pose out of the comparison.
    """
    return (1 - vectors @ gallery.T).min(axis=1)


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
