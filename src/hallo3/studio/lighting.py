"""Light over time: what a swinging lamp, passing lights and light that fades do to the person and the surroundings."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from hallo3.studio.scene import Scene
from hallo3.studio.shading import Light

CHANGING = frozenset({"lamp", "passing", "fading"})
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
_TURN = 2 * np.pi


class _Moment(NamedTuple):
    """A changing light at some time.

    azimuth, elevation: radians, None as the scene has them. key, ambient: of the scene's. beam: where its middle falls
    on the surroundings, in heights of the frame from the middle, with its strength there.
    """

    azimuth: float | None
    elevation: float | None
    key: float
    ambient: float
    beam: tuple[float, float] = (0.0, 0.0)


class Lighting:
    """The light of a scene at any time; the same time gives the same light."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.seed = float(scene.texture_seed % 9973) * 0.0137
        rng = np.random.default_rng([zlib.crc32(b"changing light"), scene.texture_seed])
        self.pace, self.phase, self.way = float(rng.uniform(0.8, 1.25)), float(rng.random()), float(rng.choice([-1, 1]))

    def __call__(self, time: float) -> Light:
        """The light at a time in seconds."""
        s, moment = self.scene, self._moment(time)
        key, ambient, flicker = moment.key, moment.ambient, 1.0
        if s.flicker:
            flicker = 1.0 + 0.16 * np.sin(11.0 * time + self.seed) * np.sin(5.3 * time) + 0.10 * np.sin(23.0 * time)
        return Light(
            _direction(s, moment),
            np.asarray(s.key, np.float32) * np.float32(flicker * key),
            np.asarray(s.fill, np.float32) * np.float32(ambient),
            np.asarray(s.bounce, np.float32) * np.float32(flicker * ambient),
            np.asarray(s.fill, np.float32) * np.float32(1.1 * s.rim * ambient),
            np.float32(s.hardness),
        )

    def on_surroundings(self, background: np.ndarray, time: float) -> np.ndarray:
        """The surroundings (H,W,3), linear, in the light at a time."""
        if self.scene.lighting not in CHANGING:
            return background
        height, width = background.shape[:2]
        moment = self._moment(time)
        across = (np.arange(width) + 0.5 - 0.5 * width) / height
        where, strength = moment.beam
        gain = moment.ambient + strength * np.exp(-(((across - where) / 0.38) ** 2))
        return background * gain.astype(np.float32)[None, :, None]

    def _moment(self, time: float) -> _Moment:
        turn = time * self.pace + 10 * self.phase
        if self.scene.lighting == "lamp":
            swing = self.way * float(np.sin(_TURN * turn / 2.8))
            return _Moment(1.15 * swing, 0.62 - 0.15 * swing * swing, 1.15, 0.55, (-0.75 * swing, 0.75))
        if self.scene.lighting == "passing":
            # Dark where one light has passed and the next comes: there its direction may jump.
            passed = turn / 2.1 % 1.0
            bright = float(np.sin(np.pi * passed)) ** 2
            place = self.way * (2 * passed - 1)
            return _Moment(1.35 * place, 0.2, 1.6 * bright, 0.7, (-1.1 * place, 0.9 * bright))
        if self.scene.lighting == "fading":
            bright = 0.65 + 0.45 * float(np.sin(_TURN * turn / 3.2))
            return _Moment(None, None, bright, bright)
        return _Moment(None, None, 1.0, 1.0)


def track(light: Light) -> np.ndarray:
    """(4,) float32: x right, y up and z to the viewer of the key light's direction, and its luminance."""
    return np.array([*light.direction, _LUMINANCE @ light.key], np.float32)


def _direction(scene: Scene, moment: _Moment) -> np.ndarray:
    if moment.azimuth is None or moment.elevation is None:
        return np.asarray(scene.light, np.float32)
    turned, height = moment.azimuth, moment.elevation
    x, z = np.sin(turned) * np.cos(height), np.cos(turned) * np.cos(height)
    return np.array([x, np.sin(height), z], np.float32)
