"""What a character does over time: mouth, lids, gaze, brows, head and camera, one value per frame."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

FPS = 25.0
STYLES = ("calm", "conversation", "lively", "profile", "high", "low", "side")


@dataclass(frozen=True)
class Performance:
    """One value per frame in every array (F,).

    opening, width, blink, smile: 0..1 (width: 0 rounded as /u/, 1 spread as /i/; blink: 1 closed). gaze_x, gaze_y,
    brow: -1..1 (right, up, raised). yaw, pitch, roll, body_yaw: radians (positive: towards the picture's right, up,
    clockwise). head_x, head_y: shift in head units of about 0.43 head heights (right, up). time: seconds of the
    surroundings. camera_x, camera_y: shift of the picture in heights of the frame (right, down).
    """

    opening: np.ndarray
    width: np.ndarray
    blink: np.ndarray
    gaze_x: np.ndarray
    gaze_y: np.ndarray
    brow: np.ndarray
    smile: np.ndarray
    yaw: np.ndarray
    pitch: np.ndarray
    roll: np.ndarray
    body_yaw: np.ndarray
    head_x: np.ndarray
    head_y: np.ndarray
    time: np.ndarray
    camera_x: np.ndarray
    camera_y: np.ndarray

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.opening)

    def __getitem__(self, frames: slice) -> Performance:
        """A part of the performance; rendering it gives the same frames as rendering the whole."""
        return Performance(**{f.name: getattr(self, f.name)[frames] for f in fields(self)})


def performance(
    rng: np.random.Generator, opening: np.ndarray, width: np.ndarray, style: str | None = None
) -> Performance:
    """Natural motion around a given mouth.

    Args:
        rng: source of all chance.
        opening: (F,) 0..1.
        width: (F,) 0..1.
        style: one of `STYLES`; None draws one, but never `side`. `profile` turns by 40 to 75 degrees, `side` by 65 to
            75, `high` and `low` are views from above and below, the others look within 35 degrees of the camera.

    Raises:
        ValueError: for arrays of unequal length or an unknown style.
    """
    opening, width = np.asarray(opening, np.float32), np.asarray(width, np.float32)
    if opening.ndim != 1 or opening.shape != width.shape or not len(opening):
        raise ValueError(f"opening and width must be equally long and not empty, not {opening.shape} and {width.shape}")
    chosen = style or str(rng.choice(STYLES, p=[0.30, 0.36, 0.16, 0.08, 0.05, 0.05, 0.0]))
    if chosen not in STYLES:
        raise ValueError(f"unknown style {chosen!r}, expected one of {', '.join(STYLES)}")
    count = len(opening)
    energy = {"calm": 0.5, "lively": 1.7}.get(chosen, 1.0)
    yaw0, pitch0 = _view(rng, chosen)
    stress = _smooth(np.maximum(opening - 0.35, 0), 9) * 1.6
    nod = _smooth(opening, 7) - _smooth(opening, 35)
    away = _glances(rng, count)
    yaw = yaw0 + energy * _drift(rng, count, 0.10, 38) + 0.10 * away * energy
    pitch = pitch0 + energy * (_drift(rng, count, 0.05, 30) - 0.10 * nod)
    roll = energy * _drift(rng, count, 0.045, 45) + 0.10 * float(rng.normal(0, 0.4))
    camera = float(rng.random() < 0.4) * rng.uniform(0.5, 1.5)
    return Performance(
        opening=np.clip(opening, 0, 1),
        width=np.clip(width, 0, 1),
        blink=_blinks(rng, count),
        gaze_x=_f32(np.clip(-1.1 * (yaw * 0.75) + 0.8 * away + _drift(rng, count, 0.12, 12), -1, 1)),
        gaze_y=_f32(np.clip(-1.2 * pitch0 + _drift(rng, count, 0.15, 20), -1, 1)),
        brow=_f32(np.clip(stress * float(rng.uniform(0.3, 1.0)) * energy + _drift(rng, count, 0.2, 40), -0.6, 1)),
        smile=_f32(np.clip(float(rng.uniform(0.0, 0.6)) + _drift(rng, count, 0.15, 60), 0, 1)),
        yaw=_f32(yaw),
        pitch=_f32(pitch),
        roll=_f32(roll),
        body_yaw=_f32(0.65 * yaw0 + 0.15 * (yaw - yaw0) + _drift(rng, count, 0.02, 60)),
        head_x=_f32(energy * _drift(rng, count, 0.035, 50)),
        head_y=_f32(energy * (_drift(rng, count, 0.02, 40) - 0.03 * nod)),
        time=_f32(float(rng.uniform(0, 40)) + np.arange(count) / FPS),
        camera_x=_f32(camera * _drift(rng, count, 0.012, 45)),
        camera_y=_f32(camera * _drift(rng, count, 0.008, 40)),
    )


def _f32(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32)


def _view(rng: np.random.Generator, style: str) -> tuple[float, float]:
    sign = float(rng.choice([-1.0, 1.0]))
    if style == "profile":
        return sign * float(np.radians(rng.uniform(40, 72))), float(rng.normal(0, 0.05))
    if style == "side":
        return sign * float(np.radians(rng.uniform(65, 75))), float(rng.normal(0, 0.05))
    yaw = float(np.radians(np.clip(rng.normal(0, 15), -32, 32)))
    pitch = float(rng.normal(0, 0.06))
    if style == "high":
        pitch = -float(rng.uniform(0.18, 0.36))
    elif style == "low":
        pitch = float(rng.uniform(0.18, 0.34))
    return yaw, pitch


def _drift(rng: np.random.Generator, count: int, amount: float, period: int) -> np.ndarray:
    """Smooth wandering around zero: cubic-eased noise with a knot every `period` frames, at a random phase."""
    knots = rng.normal(0, amount, count // period + 4)
    x = (np.arange(count) + rng.uniform(0, period)) / period
    i = x.astype(int)
    f = x - i
    f = f**3 * (f * (6 * f - 15) + 10)
    return knots[i] * (1 - f) + knots[i + 1] * f


def _smooth(values: np.ndarray, length: int) -> np.ndarray:
    """A moving Hann average of the same length as the input."""
    window = np.hanning(length + 2)[1:-1]
    padded = np.pad(np.asarray(values, np.float64), length // 2, mode="edge")
    return np.convolve(padded, window / window.sum(), "valid")[: len(values)]


def _blinks(rng: np.random.Generator, count: int) -> np.ndarray:
    """Lids: a blink of about a quarter of a second every two to five seconds."""
    shape = np.array([0.35, 0.85, 1.0, 0.9, 0.6, 0.3, 0.1], np.float32)
    lids = np.zeros(count + len(shape), np.float32)
    at = int(rng.uniform(0.2, 4.0) * FPS)
    while at < count:
        lids[at : at + len(shape)] = shape
        at += int(rng.uniform(2.0, 5.0) * FPS)
    return lids[:count]


def _glances(rng: np.random.Generator, count: int) -> np.ndarray:
    """Looks to the side now and then: -1..1, mostly 0."""
    side = np.zeros(count)
    at = int(rng.uniform(1.0, 6.0) * FPS)
    while at < count:
        length = int(rng.uniform(0.4, 1.4) * FPS)
        side[at : at + length] = rng.choice([-1.0, 1.0]) * rng.uniform(0.3, 0.9)
        at += length + int(rng.uniform(2.0, 6.0) * FPS)
    return _smooth(side, 5)
