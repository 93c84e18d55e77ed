"""The tracker finds a face to a fraction of a pixel, in frames it has not seen, and says when there is none."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from hallo3.evaluation.tracking import FaceTracker

FACE = np.array([30.0, 12.0, 28.0, 36.0])


def picture(seed: int = 0) -> np.ndarray:
    """A cloudy face on a flat wall, (64, 96), 0…255."""
    random = np.random.default_rng(seed)
    values = np.full((64, 96), 128.0)
    clouds = gaussian_filter(random.standard_normal((36, 28)), 2)
    values[12:48, 30:58] += 90 * clouds / np.abs(clouds).max()
    return values


def wandering(places: np.ndarray, mouths: int = 0, seed: int = 0) -> np.ndarray:
    """Frames with the face moved by places (F, 2) x, y; mouths: seed of what the lower face shows."""
    random, face = np.random.default_rng(mouths), picture(seed)
    frames = []
    for x, y in places:
        shown = face.copy()
        shown[37:46, 36:52] = random.uniform(40, 220)
        frames.append(shift(shown, (y, x), order=1, mode="nearest"))
    return np.repeat(np.stack(frames)[..., None], 3, -1).round().astype(np.uint8)


@pytest.fixture(scope="module")
def places() -> np.ndarray:
    steps = np.random.default_rng(1).normal(0, 1.2, (40, 2))
    steps[0] = 0
    return np.clip(np.cumsum(steps, axis=0), [-28, -11], [36, 14])


def test_a_face_is_followed_to_a_fraction_of_a_pixel(places: np.ndarray) -> None:
    still = wandering(np.zeros((5, 2)))
    tracker = FaceTracker(still, np.tile(FACE, (5, 1)), templates=2)
    found = tracker(wandering(places, mouths=3))
    assert np.abs(found.shift - places).max() < 0.35
    assert found.likeness.min() > 0.9
    boxes = found.carry(np.tile([38.0, 38.0, 12.0, 8.0], (5, 1)))
    assert np.allclose(boxes[:, 2:], [12, 8])
    assert np.abs(boxes[:, :2] - places - [38, 38]).max() < 0.35


def test_the_true_frame_that_looks_most_alike_is_told() -> None:
    poses = np.concatenate([wandering(np.zeros((1, 2)), seed=seed) for seed in (0, 1, 2)])
    tracker = FaceTracker(poses, np.tile(FACE, (3, 1)), templates=3)
    assert tracker(poses[[0, 2, 1, 1]]).like.tolist() == [0, 2, 1, 1]


def test_a_face_that_is_gone_is_like_none() -> None:
    tracker = FaceTracker(wandering(np.zeros((3, 2))), np.tile(FACE, (3, 1)))
    other = tracker(wandering(np.zeros((3, 2)), seed=7))
    flat = tracker(np.full((3, 64, 96, 3), 128, np.uint8))
    assert other.likeness.max() < 0.6 and np.abs(flat.likeness).max() < 1e-6


def test_faces_at_the_edge_are_looked_for_inside_the_picture() -> None:
    frames = wandering(np.array([[-30.0, -12.0]] * 3))
    tracker = FaceTracker(frames, np.tile([0.0, 0.0, 28.0, 36.0], (3, 1)))
    assert np.abs(tracker(frames).shift).max() < 0.1
