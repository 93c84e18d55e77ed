"""What moves in a video, and what should not: dynamics by optical flow, seams between clips, flicker, light."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .meters import Floats, luminance

FLOW_RADIUS = 5  # pixels of the window in which neighbours move alike
FLOW_ROUNDS = 3  # ten find the same speeds to a hundredth, and take three times as long


def flow_speed(frames: NDArray[np.uint8], every: int = 1) -> Floats:
    """How fast every place moves: `(n, H/2, W/2)` in pixels of the full frame per frame, at half size.

    Iterative Lucas–Kanade (Le Besnerais and Champagnat 2005), as scikit-image has it.

    Args:
        frames: `(F, H, W, 3)`, F > 1.
        every: Take only each so many frames, compared with the frame after it.
    """
    from skimage.registration import optical_flow_ilk
    from skimage.transform import downscale_local_mean

    small = [downscale_local_mean(luminance(frame), (2, 2)) for frame in frames]
    pairs = [(small[index], small[index + 1]) for index in range(0, len(small) - 1, every)]
    return np.stack([2 * np.hypot(*optical_flow_ilk(a, b, radius=FLOW_RADIUS, num_warp=FLOW_ROUNDS)) for a, b in pairs])


def dynamics(frames: NDArray[np.uint8], mask: NDArray[np.bool_], every: int = 1) -> float:
    """Mean speed inside a mask `(H, W)`, in pixels per frame: of the subject, or of what surrounds it.

    Raises ValueError for a mask that is empty at half size.
    """
    return mean_speed(flow_speed(frames, every), mask)


def mean_speed(speed: Floats, mask: NDArray[np.bool_]) -> float:
    """Mean of `flow_speed`'s `(n, H/2, W/2)` inside a mask `(H, W)`.

    Raises ValueError for a mask that is empty at half size.
    """
    small = mask[: mask.shape[0] // 2 * 2, : mask.shape[1] // 2 * 2]
    small = small.reshape(small.shape[0] // 2, 2, -1, 2).mean((1, 3)) > 0.5
    if not small.any():
        raise ValueError("the mask is empty: nothing can move in it")
    return float(speed[:, : small.shape[0], : small.shape[1]][:, small].mean())


def frame_change(frames: NDArray[np.uint8]) -> Floats:
    """Mean absolute difference of consecutive frames `(F − 1,)`, in grey levels of 255."""
    return np.array([np.abs(b.astype(np.int16) - a).mean() for a, b in pairwise(frames)])


def part_change(frames: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """How much a part `(H, W)` changes from one frame to the next, in grey levels, the median over the frames.

    For what is small or thin, such as leaves before a face: a flow is found in windows, and takes in what is beside it.
    """
    bright = np.stack([luminance(frame[mask]) for frame in frames])
    return float(np.median(np.abs(np.diff(bright, axis=0)).mean(axis=1)))


def sharpness(frames: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """Mean steepness of the brightness inside a mask `(H, W)`, in grey levels a pixel: what a blur takes away."""
    steep = [np.hypot(*np.gradient(luminance(frame)))[mask].mean() for frame in frames]
    return float(np.mean(steep))


def mouth_motion(frames: NDArray[np.uint8], mouth: NDArray[np.bool_], still: NDArray[np.bool_]) -> Floats:
    """How much more the mouth changes from frame to frame than the rest of its face: `(F − 1,)` in grey levels.

    A head that nods moves its mouth without saying anything.

    Args:
        mouth, still: `(H, W)` the mouth at any opening, and the part of the face above it.
    """
    bright = np.stack([luminance(frame) for frame in frames])
    change = np.abs(np.diff(bright, axis=0))
    return change[:, mouth].mean(1) - change[:, still].mean(1)


def seam_ratio(frames: NDArray[np.uint8], borders: Sequence[int]) -> float:
    """Median change across clip borders over the median change inside clips; 1 where borders can't be seen.

    Args:
        borders: Numbers of the frames that begin a clip, without 0.

    Raises:
        ValueError: when there is no border, or nothing but borders.
    """
    change = frame_change(frames)
    at = np.zeros(len(change), bool)
    at[[border - 1 for border in borders]] = True
    if not at.any() or at.all():
        raise ValueError("a seam needs frames on both sides of a border, and frames without one")
    return float(np.median(change[at]) / max(float(np.median(change[~at])), 1e-6))


def clip_borders(count: int, clip_frames: int, motion_frames: int) -> list[int]:
    """First frames of the clips after the first, in a video of `count` frames (spec section 6)."""
    step = clip_frames - motion_frames
    return list(range(step, count, step))


def flicker(frames: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None) -> float:
    """Mean absolute second difference in time inside a mask `(H, W)`, in grey levels: trembling, not movement.

    Raises ValueError for fewer than three frames.
    """
    if len(frames) < 3:
        raise ValueError(f"flicker needs three frames, not {len(frames)}")
    total = 0.0
    for before, here, after in zip(frames, frames[1:], frames[2:], strict=False):
        bend = np.abs(before.astype(np.int16) - 2 * here.astype(np.int16) + after)
        total += float(bend.mean() if mask is None else bend[mask].mean())
    return total / (len(frames) - 2)


def light_error(frames: NDArray[np.uint8], truth: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None) -> float:
    """Mean absolute difference of mean brightness, frame by frame, in grey levels: drifting or flashing light."""
    place = np.ones(frames.shape[1:3], bool) if mask is None else mask
    tracks = [np.array([luminance(frame)[place].mean() for frame in video]) for video in (frames, truth)]
    return float(np.abs(tracks[0] - tracks[1]).mean())
