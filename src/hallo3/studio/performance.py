"""What a character does over time: mouth, lids, gaze, brows, head and camera, one value per frame.

Heads, brows and lids follow the speech, as people's do (Munhall et al. 2004, "Visual prosody …"):
they nod with the stress, sway with the vowels and blink in pauses. So a network that hears the speech and sees the
first frame can tell how a clip goes on, and need not show the mean of all that could happen, which is a blur. What the
speech does not tell, gestures of its own will, is left small; of a camera that moves the caption tells.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields, replace

import numpy as np

from hallo3.studio.raster import PIVOT

FPS = 25.0
# What one in how many clips does. A share is split where a style was added: whoever had the other styles keeps them.
_SHARES = {
    "calm": 0.30,
    "conversation": 0.36,
    "lively": 0.16,
    "profile": 0.04,
    "full profile": 0.04,
    "high": 0.025,
    "higher": 0.025,
    "low": 0.025,
    "lower": 0.025,
    "side": 0.0,
}
STYLES = tuple(_SHARES)
CAMERAS = ("drift", "pan", "push", "hand-held")
"""How the camera moves: hardly, or a little in one clip of four; slowly to the side; closer or away; or shaking."""


@dataclass(frozen=True)
class Performance:
    """One value per frame in every array (F,).

    opening, width, blink, smile: 0..1 (width: 0 rounded as /u/, 1 spread as /i/; blink: 1 closed). gaze_x, gaze_y,
    brow: -1..1 (right, up, raised). yaw, pitch, roll: radians (positive: towards the picture's right, up, clockwise).
    body_yaw, body_pitch: of the body likewise; with its pitch, which is the camera's height, the surroundings are seen
    from above or below too. head_x, head_y: shift in head units of about 0.43 head heights (right, up). time: seconds
    of the surroundings. camera_x, camera_y: how far a camera that moves shifts the person in the picture, in heights of
    the frame (right, down); what lies behind moves less. turn_x, turn_y: likewise of a camera that turns, which shifts
    all alike. zoom: size of the picture, 1 as framed, about the frame's middle.
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
    body_pitch: np.ndarray
    head_x: np.ndarray
    head_y: np.ndarray
    time: np.ndarray
    camera_x: np.ndarray
    camera_y: np.ndarray
    turn_x: np.ndarray
    turn_y: np.ndarray
    zoom: np.ndarray

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.opening)

    def __getitem__(self, frames: slice) -> Performance:
        """A part of the performance; rendering it gives the same frames as rendering the whole."""
        return Performance(**{f.name: getattr(self, f.name)[frames] for f in fields(self)})


def performance(
    rng: np.random.Generator,
    opening: np.ndarray,
    width: np.ndarray,
    style: str | None = None,
    camera: str = "drift",
) -> Performance:
    """Natural motion around a given mouth.

    Args:
        rng: source of all chance.
        opening: (F,) 0..1.
        width: (F,) 0..1.
        style: one of `STYLES`; None draws one, but never `side`. `profile` turns by 40 to 72 degrees, `side` by 65 to
            75, `full profile` by 80 to 90. `high` and `low` are heads bent and raised by 10 to 20 degrees, `higher` and
            `lower` views of the whole person from 24 to 32 degrees above and below. The others look within 35 degrees
            of the camera. What a person does while talking comes on top.
        camera: one of `CAMERAS`. All else is the same for each.

    Raises:
        ValueError: for arrays of unequal length, an unknown style or camera.
    """
    opening, width = np.asarray(opening, np.float32), np.asarray(width, np.float32)
    if opening.ndim != 1 or opening.shape != width.shape or not len(opening):
        raise ValueError(f"opening and width must be equally long and not empty, not {opening.shape} and {width.shape}")
    chosen = style or str(rng.choice(STYLES, p=list(_SHARES.values())))
    if chosen not in STYLES:
        raise ValueError(f"unknown style {chosen!r}, expected one of {', '.join(STYLES)}")
    count = len(opening)
    if camera not in CAMERAS:
        raise ValueError(f"unknown camera {camera!r}, expected one of {', '.join(CAMERAS)}")
    energy = {"calm": 0.6, "lively": 1.5}.get(chosen, 1.0)
    yaw0, pitch0 = _view(rng, chosen)
    stress = _smooth(np.maximum(opening - 0.35, 0), 9) * 1.6
    vowels = 2 * np.asarray(width, np.float64) - 1
    nod = _follow(opening, 5) - _follow(opening, 25)
    silent = np.clip(1 - _follow(opening, 8) / 0.12, 0, 1)
    # Who turned any further than full profile would hide the mouth.
    free = 0.4 if chosen == "full profile" else 1.0
    yaw = yaw0 + free * energy * (0.30 * _follow(vowels, 10) + 0.10 * (_follow(opening, 20) - 0.3))
    pitch = pitch0 - energy * 0.17 * nod
    roll = 0.04 * float(rng.normal()) + energy * 0.45 * (_follow(vowels, 15) - _follow(vowels, 40))
    wandering = float(rng.random() < 0.25) * rng.uniform(0.5, 1.5)
    side = float(np.sign(yaw0))
    tilt = 0.9 * pitch0 if chosen in ("higher", "lower") else 0.0
    acted = Performance(
        opening=np.clip(opening, 0, 1),
        width=np.clip(width, 0, 1),
        blink=_blinks(rng, opening),
        gaze_x=_f32(np.clip(-0.8 * yaw - 0.4 * side * silent + float(rng.normal(0, 0.1)), -1, 1)),
        gaze_y=_f32(np.clip(np.full(count, -1.2 * pitch0 + float(rng.normal(0, 0.1))), -1, 1)),
        brow=_f32(np.clip(0.7 * stress * energy + float(rng.normal(0, 0.15)), -0.6, 1)),
        smile=_f32(np.full(count, rng.uniform(0.0, 0.7))),
        yaw=_f32(yaw),
        pitch=_f32(pitch),
        roll=_f32(roll),
        body_yaw=_f32(0.65 * yaw0 + 0.15 * (yaw - yaw0)),
        head_x=_f32(0.25 * (yaw - yaw0)),
        body_pitch=_f32(np.full(count, tilt)),
        head_y=_f32(-energy * 0.05 * nod + lift(pitch0 if tilt else 0.0)),
        time=_f32(float(rng.uniform(0, 40)) + np.arange(count) / FPS),
        camera_x=_f32(wandering * _drift(rng, count, 0.012, 45)),
        camera_y=_f32(wandering * _drift(rng, count, 0.008, 40)),
        turn_x=_f32(np.zeros(count)),
        turn_y=_f32(np.zeros(count)),
        zoom=_f32(np.ones(count)),
    )
    return replace(acted, **_filmed(camera, acted.time))


def _filmed(camera: str, time: np.ndarray) -> dict[str, np.ndarray]:
    """Tracks of a camera that pans, pushes or shakes, drawn from a generator of their own. time: (F,) seconds.

    Pans and pushes go to and fro, so that a long clip stays in the picture; they are fastest in a clip's middle.
    """
    own = np.random.default_rng([zlib.crc32(camera.encode()), int(time[0] * 1e6)])
    sign, period = float(own.choice([-1, 1])), float(own.uniform(7, 11))
    swing = sign * np.sin(2 * np.pi * (time - (time[0] + time[-1]) / 2) / period)
    if camera == "pan":
        return {"turn_x": _f32(own.uniform(0.09, 0.14) * swing)}
    if camera == "push":
        return {"zoom": _f32(np.exp(own.uniform(0.10, 0.16) * swing))}
    if camera == "hand-held":
        count = len(time)
        shake = [_drift(own, count, 0.009, 5) + _drift(own, count, 0.012, 22) for _ in range(2)]
        return {"turn_x": _f32(shake[0]), "turn_y": _f32(shake[1])}
    return {}


def _f32(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32)


def _view(rng: np.random.Generator, style: str) -> tuple[float, float]:
    sign = float(rng.choice([-1.0, 1.0]))
    if style == "profile":
        return sign * float(np.radians(rng.uniform(40, 72))), float(rng.normal(0, 0.05))
    if style == "side":
        return sign * float(np.radians(rng.uniform(65, 75))), float(rng.normal(0, 0.05))
    if style == "full profile":
        return sign * float(np.radians(rng.uniform(80, 90))), float(rng.normal(0, 0.05))
    yaw = float(np.radians(np.clip(rng.normal(0, 15), -32, 32)))
    pitch = float(rng.normal(0, 0.06))
    if style == "high":
        pitch = -float(rng.uniform(0.18, 0.36))
    elif style == "low":
        pitch = float(rng.uniform(0.18, 0.34))
    elif style in ("higher", "lower"):
        pitch = float(np.radians(rng.uniform(24, 32))) * (-1 if style == "higher" else 1)
    return yaw, pitch


def lift(pitch: float) -> float:
    """Shift, in head units, that keeps the middle of a pitched head where that of an upright one is."""
    _, up, forward = (-value for value in PIVOT)
    return up - (up * float(np.cos(pitch)) + forward * float(np.sin(pitch)))


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


def _follow(values: np.ndarray, frames: float) -> np.ndarray:
    """What lags behind a track by about so many frames.

    All that it was before is in where it is, so it can be told from one frame and the track from there on.
    """
    found, state = np.empty(len(values)), float(values[0])
    for index, value in enumerate(values):
        state += (float(value) - state) / frames
        found[index] = state
    return found


def _blinks(rng: np.random.Generator, opening: np.ndarray) -> np.ndarray:
    """Lids: a blink of about a quarter of a second where a pause begins, but every two to five seconds."""
    shape = np.array([0.35, 0.85, 1.0, 0.9, 0.6, 0.3, 0.1], np.float32)
    lids = np.zeros(len(opening) + len(shape), np.float32)
    heard = _follow(opening, 3)
    since = int(rng.uniform(0, 2) * FPS)
    for index in range(len(opening)):
        since += 1
        pause = index > 0 and heard[index] < 0.1 <= heard[index - 1]
        if since > 5 * FPS or (pause and since > 2 * FPS):
            lids[index : index + len(shape)] = shape
            since = 0
    return lids[: len(opening)]
