"""What moves: planted speeds, seams, flicker and light are found; a still or smooth video shows none."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from hallo3.evaluation.motion import (
    clip_borders,
    dynamics,
    flicker,
    flow_speed,
    frame_change,
    light_error,
    mouth_motion,
    seam_ratio,
    sharpness,
)

LEFT = np.zeros((48, 64), bool)
LEFT[:, :32] = True


def texture(seed: int = 0) -> np.ndarray:
    """Cloudy noise, (48, 64), 0…255."""
    values = gaussian_filter(np.random.default_rng(seed).standard_normal((48, 64)), 2)
    return 128 + 100 * values / np.abs(values).max()


def sliding(speed: float, frames: int = 8) -> np.ndarray:
    """The left half slides to the right, the right half stands still: (F, 48, 64, 3) uint8."""
    picture = texture()
    moved = [np.where(LEFT, shift(picture, (0, speed * i), mode="wrap"), picture) for i in range(frames)]
    return np.repeat(np.stack(moved)[..., None], 3, -1).astype(np.uint8)


def test_flow_finds_what_moves_and_how_fast() -> None:
    frames = sliding(1.0)
    inside, outside = np.zeros_like(LEFT), np.zeros_like(LEFT)
    inside[8:40, 8:24], outside[8:40, 44:60] = True, True
    assert dynamics(frames, inside) == pytest.approx(1, rel=0.25)
    assert dynamics(frames, outside) < 0.1
    assert dynamics(frames, inside, every=3) == pytest.approx(1, rel=0.25)
    assert flow_speed(frames, every=3).shape == (3, 24, 32)


def test_faster_is_more_and_still_is_none() -> None:
    assert dynamics(sliding(0), LEFT) == pytest.approx(0, abs=1e-6)
    assert dynamics(sliding(0.5), LEFT) < dynamics(sliding(1.5), LEFT)


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="mask is empty"):
        dynamics(sliding(1), np.zeros_like(LEFT))


def test_a_mouth_moves_where_its_face_does_not() -> None:
    mouth, still = np.zeros_like(LEFT), np.zeros_like(LEFT)
    mouth[28:40, 8:24], still[4:20, 8:24] = True, True
    frames = np.full((6, 48, 64, 3), 200, np.uint8)
    assert mouth_motion(frames, mouth, still).tolist() == [0] * 5
    talking = frames.copy()
    talking[2:4, 30:36, 10:22] = 60
    assert (mouth_motion(talking, mouth, still) > 20).tolist() == [False, True, False, True, False]
    # Light that flashes, and a head that goes to and fro, move the whole face.
    flashing = frames.copy()
    flashing[3] -= 40
    assert mouth_motion(flashing, mouth, still) == pytest.approx(0, abs=1e-9)
    assert abs(mouth_motion(sliding(1.0), mouth, still).mean()) < 0.5 * frame_change(sliding(1.0)[:, 8:40, 8:24]).mean()


def test_seams_are_seen_at_borders_only() -> None:
    frames = sliding(1.0, 40)
    borders = clip_borders(40, 9, 2)
    assert borders == [7, 14, 21, 28, 35]
    assert seam_ratio(frames, borders) == pytest.approx(1, abs=0.15)
    jumping = frames.astype(int)
    for number, border in enumerate(borders):
        jumping[border:] += 12 * (-1) ** number
    assert seam_ratio(jumping.clip(0, 255).astype(np.uint8), borders) > 2
    with pytest.raises(ValueError, match="both sides"):
        seam_ratio(frames, [])


def test_change_counts_grey_levels() -> None:
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    frames[1:] = 6
    assert frame_change(frames).tolist() == [6, 0]


def test_flicker_is_trembling_and_not_movement() -> None:
    steady = np.zeros((6, 48, 64, 3), np.uint8) + np.arange(10, 70, 10, dtype=np.uint8)[:, None, None, None]
    assert flicker(steady) == 0
    trembling = steady.copy()
    trembling[::2, :, 32:] += 5
    assert flicker(trembling) == pytest.approx(5) and flicker(trembling, LEFT) == 0
    with pytest.raises(ValueError, match="three frames"):
        flicker(steady[:2])


def test_flashes_and_drifts_are_wrong_light() -> None:
    truth = sliding(1.0, 10)
    assert light_error(truth, truth) == 0
    flashing = truth.copy()
    flashing[4:6] = np.clip(flashing[4:6].astype(int) + 30, 0, 255)
    assert light_error(flashing, truth) == pytest.approx(6, rel=0.05)
    changed = truth.copy()
    changed[:, :, 32:] //= 2
    assert light_error(changed, truth, LEFT) == 0


def test_a_blur_takes_sharpness_away_where_it_is() -> None:
    sharp = np.repeat(texture()[..., None], 3, axis=-1)
    soft = np.where(LEFT[..., None], gaussian_filter(sharp, (3, 3, 0)), sharp)
    sharp, soft = sharp.astype(np.uint8)[None], soft.astype(np.uint8)[None]
    inside, outside = LEFT.copy(), ~LEFT
    inside[:, 30:] = outside[:, :34] = False
    assert sharpness(soft, inside) < 0.6 * sharpness(sharp, inside)
    assert sharpness(soft, outside) == pytest.approx(sharpness(sharp, outside))
    assert sharpness(np.concatenate([sharp, sharp]), inside) == pytest.approx(sharpness(sharp, inside))
