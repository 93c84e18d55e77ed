"""Where a character is drawn: surroundings, light, framing and props as plain values."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

RGB = tuple[float, float, float]

PLACES: tuple[str, ...] = (
    "backdrop", "room", "bookshelf", "sea", "foliage", "street", "snow", "fire", "rain", "sky",
)  # fmt: skip
STILL_ONLY = frozenset({"backdrop", "room", "bookshelf"})
"""Places in which nothing can move; all others are drawn either moving or frozen."""

LIGHTS = ("steady", "harsh", "lamp", "passing", "fading")
"""How light falls: soft and as ever; hard from the side; from a lamp that swings; in sweeps, as of passing cars; or now
bright, now dim. Only the last three change, and steady light by a moving fire, which flickers."""

PROPS = ("none", "phone", "microphone", "desk microphone")
FOREGROUNDS = ("none", "leaves", "lights")

_AMBIENT: dict[str, tuple[RGB, RGB, RGB]] = {
    # key light, sky fill, ground fill
    "backdrop": ((1.00, 0.96, 0.90), (0.50, 0.53, 0.58), (0.30, 0.27, 0.25)),
    "room": ((1.00, 0.90, 0.76), (0.50, 0.48, 0.46), (0.30, 0.25, 0.21)),
    "bookshelf": ((1.00, 0.88, 0.72), (0.46, 0.43, 0.41), (0.28, 0.22, 0.18)),
    "sea": ((1.05, 0.98, 0.86), (0.56, 0.66, 0.78), (0.40, 0.38, 0.33)),
    "foliage": ((1.00, 0.98, 0.84), (0.46, 0.58, 0.50), (0.24, 0.30, 0.18)),
    "street": ((0.90, 0.78, 0.66), (0.36, 0.38, 0.52), (0.30, 0.22, 0.24)),
    "snow": ((0.88, 0.92, 1.00), (0.66, 0.72, 0.82), (0.58, 0.62, 0.70)),
    "fire": ((1.10, 0.66, 0.34), (0.20, 0.22, 0.32), (0.42, 0.20, 0.09)),
    "rain": ((0.80, 0.84, 0.90), (0.46, 0.52, 0.60), (0.26, 0.27, 0.30)),
    "sky": ((1.08, 0.98, 0.84), (0.52, 0.64, 0.82), (0.36, 0.38, 0.30)),
}


@dataclass(frozen=True)
class Scene:
    """Surroundings, light and framing.

    `dynamic` says whether the surroundings move. Colours are linear light. `light` is the direction towards the key
    light (x right, y up, z to the viewer). `head_height` is crown to chin as a fraction of the frame's height;
    `centre` is the middle of the head in fractions of the frame's width and height. `lighting` is one of `LIGHTS`;
    `hardness` in 0..1 is how sharply light ends in shadow.
    """

    place: str
    dynamic: bool
    palette: tuple[RGB, RGB, RGB]
    light: RGB
    key: RGB
    fill: RGB
    bounce: RGB
    rim: float
    flicker: float
    head_height: float
    centre: tuple[float, float]
    horizon: float
    prop: str = "none"
    foreground: str = "none"
    texture_seed: int = 0
    lighting: str = "steady"
    hardness: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """All values as plain types, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scene:
        """The inverse of `to_dict` (lists become tuples)."""
        fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        fixed["palette"] = tuple(tuple(colour) for colour in fixed["palette"])
        return cls(**fixed)

    @classmethod
    def sample(
        cls, rng: np.random.Generator, dynamic: bool | None = None, place: str | None = None, lighting: str = "steady"
    ) -> Scene:
        """Draw surroundings.

        Args:
            rng: source of all chance.
            dynamic: moving (True) or still (False) ones; None leaves it to chance.
            place: one of `PLACES`; None draws one. Where both are given, all else is the same for either `dynamic`.
            lighting: one of `LIGHTS`. All that isn't light is the same for each.

        Raises:
            ValueError: for an unknown place or lighting, or a place that can't move as it should.
        """
        if lighting not in LIGHTS:
            raise ValueError(f"lighting {lighting!r}: expected one of {', '.join(LIGHTS)}")
        moving = bool(rng.random() < 0.6) if dynamic is None else bool(dynamic)
        places = [p for p in PLACES if not (moving and p in STILL_ONLY)]
        if place is None:
            place = places[int(rng.integers(len(places)))]
        elif place not in places:
            raise ValueError(f"place {place!r}: expected one of {', '.join(places)}")
        key, fill, bounce = (np.asarray(c) for c in _AMBIENT[place])
        warmth = rng.normal(0, 0.05) * np.array([1.0, 0.1, -1.0])
        strength = rng.uniform(0.85, 1.15)
        azimuth = float(rng.choice([-1, 1]) * rng.uniform(0.25, 1.0))
        elevation = float(rng.uniform(0.25, 0.85)) if place != "fire" else float(rng.uniform(-0.1, 0.2))
        ratio = rng.uniform(0.72, 1.1)
        light = (np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation))
        drawn = cls(
            place=place,
            dynamic=moving,
            palette=_palette(rng, place),
            light=_triple(light),
            key=_triple((key + warmth) * strength * 1.62),
            fill=_triple(fill * strength * ratio),
            bounce=_triple(bounce * strength * ratio),
            rim=float(rng.uniform(0.15, 0.9)),
            flicker=1.0 if place == "fire" and moving else 0.0,
            head_height=float(rng.uniform(0.54, 0.74)),
            centre=(float(np.clip(0.5 + rng.normal(0, 0.05), 0.38, 0.62)), float(rng.uniform(0.43, 0.50))),
            horizon=float(rng.uniform(0.38, 0.62)),
            prop=str(rng.choice(PROPS, p=[0.82, 0.06, 0.06, 0.06])),
            foreground=str(rng.choice(FOREGROUNDS, p=[0.88, 0.06, 0.06])),
            texture_seed=int(rng.integers(1 << 30)),
        )
        return drawn._lit(lighting)

    def _lit(self, lighting: str) -> Scene:
        """The scene in another light than the steady one that it was drawn with."""
        if lighting == "steady":
            return self
        if lighting != "harsh":
            return replace(self, lighting=lighting, flicker=0.0)
        rng = np.random.default_rng([zlib.crc32(b"harsh light"), self.texture_seed])
        azimuth, elevation = float(np.sign(self.light[0]) * rng.uniform(1.05, 1.4)), float(rng.uniform(0.15, 0.6))
        light = (np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation))
        key, fill, bounce = np.asarray(self.key) * 1.45, np.asarray(self.fill) * 0.2, np.asarray(self.bounce) * 0.2
        return replace(
            self, light=_triple(light), key=_triple(key), fill=_triple(fill), bounce=_triple(bounce), flicker=0.0,
            lighting="harsh", hardness=float(rng.uniform(0.75, 1.0)),
        )  # fmt: skip


def _triple(values: Any) -> RGB:
    x, y, z = (float(v) for v in values)
    return (x, y, z)


def _hue(hue: float, saturation: float, value: float) -> RGB:
    """A linear-light colour from hue in turns, saturation and value."""
    ramp = np.clip(np.abs(((hue + np.array([0.0, 2 / 3, 1 / 3])) % 1.0) * 6 - 3) - 1, 0, 1)
    return _triple(value * (1 - saturation + saturation * ramp))


def _palette(rng: np.random.Generator, place: str) -> tuple[RGB, RGB, RGB]:
    hue, light = float(rng.random()), float(rng.uniform(0.75, 1.25))
    if place == "backdrop":
        base = _hue(hue, float(rng.uniform(0.1, 0.55)), 0.36 * light)
        return base, _triple(np.asarray(base) * 0.28), _hue(hue + 0.1, 0.4, 0.5)
    if place in ("room", "bookshelf"):
        wall = _hue(float(rng.choice([0.08, 0.1, 0.3, 0.55, 0.6])), float(rng.uniform(0.05, 0.35)), 0.38 * light)
        return wall, _triple(np.array([0.16, 0.085, 0.045]) * light), _hue(hue, 0.6, 0.35)
    if place == "sea":
        evening = float(rng.random() < 0.35)
        top, low = np.array([0.16, 0.36, 0.68]), np.array([0.62, 0.75, 0.86])
        low = low * (1 - evening) + evening * np.array([0.95, 0.50, 0.24])
        water = np.array([0.03, 0.16, 0.24]) + rng.uniform(0, 0.06, 3)
        return _triple(top * light * (1 - 0.4 * evening)), _triple(low), _triple(water)
    if place == "foliage":
        tint = _hue(float(rng.choice([0.22, 0.25, 0.28, 0.10])), 0.75, 0.26 * light)
        return tint, _triple(np.asarray(tint) * 0.13), (0.72, 0.80, 0.58)
    if place == "street":
        return _hue(0.62 + 0.15 * hue, 0.6, 0.05), _hue(hue, 0.7, 0.8), _hue(hue + 0.35, 0.7, 0.8)
    if place == "snow":
        return (0.42, 0.50, 0.60), (0.70, 0.75, 0.82), (0.07, 0.11, 0.11)
    if place == "fire":
        return (0.012, 0.014, 0.03), (1.0, 0.36, 0.06), (0.05, 0.025, 0.012)
    if place == "rain":
        return (0.16, 0.20, 0.25), (0.30, 0.35, 0.40), _hue(hue, 0.5, 0.7)
    return _triple(np.array([0.10, 0.27, 0.62]) * light), (0.60, 0.72, 0.86), (0.10, 0.20, 0.06)
