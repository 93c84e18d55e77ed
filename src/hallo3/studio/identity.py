"""Who is drawn: appearance of one character as plain values, drawn from a random generator."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

RGB = tuple[float, float, float]

SKINS: dict[str, RGB] = {
    "pale": (0.96, 0.80, 0.72),
    "fair": (0.93, 0.73, 0.62),
    "light": (0.89, 0.67, 0.54),
    "olive": (0.80, 0.60, 0.44),
    "tan": (0.73, 0.51, 0.36),
    "brown": (0.57, 0.37, 0.25),
    "dark": (0.42, 0.265, 0.185),
    "deep": (0.30, 0.19, 0.14),
}
HAIRS: dict[str, RGB] = {
    "black": (0.10, 0.085, 0.085),
    "dark brown": (0.22, 0.145, 0.10),
    "brown": (0.36, 0.23, 0.14),
    "auburn": (0.45, 0.20, 0.12),
    "red": (0.66, 0.27, 0.12),
    "blond": (0.80, 0.62, 0.36),
    "light blond": (0.90, 0.78, 0.56),
    "grey": (0.58, 0.58, 0.59),
    "white": (0.87, 0.87, 0.86),
    "pink": (0.88, 0.42, 0.58),
    "blue": (0.22, 0.38, 0.66),
}
EYES: dict[str, RGB] = {
    "brown": (0.33, 0.19, 0.10),
    "dark": (0.17, 0.10, 0.07),
    "hazel": (0.45, 0.34, 0.15),
    "green": (0.28, 0.48, 0.28),
    "blue": (0.26, 0.46, 0.68),
    "grey": (0.42, 0.50, 0.55),
}
CLOTH_COLOURS: dict[str, RGB] = {
    "white": (0.90, 0.89, 0.86),
    "black": (0.11, 0.11, 0.12),
    "grey": (0.48, 0.49, 0.51),
    "navy": (0.13, 0.18, 0.33),
    "blue": (0.22, 0.41, 0.68),
    "light blue": (0.58, 0.74, 0.86),
    "green": (0.22, 0.47, 0.32),
    "olive": (0.42, 0.43, 0.25),
    "red": (0.70, 0.17, 0.17),
    "burgundy": (0.40, 0.11, 0.17),
    "orange": (0.86, 0.47, 0.18),
    "yellow": (0.90, 0.74, 0.28),
    "pink": (0.88, 0.58, 0.64),
    "purple": (0.42, 0.27, 0.54),
    "teal": (0.14, 0.46, 0.48),
    "beige": (0.80, 0.70, 0.56),
    "brown": (0.44, 0.29, 0.19),
}
CLOTHES = ("t-shirt", "shirt", "sweater", "turtleneck", "jacket", "hoodie", "blouse")
PATTERNS = ("plain", "striped", "checked", "dotted", "knitted")
MEN_HAIR = ("short", "crew cut", "side part", "quiff", "curly", "afro", "bald", "balding", "shoulder", "man bun")
WOMEN_HAIR = ("long", "wavy", "bob", "bangs", "bun", "ponytail", "curly", "afro", "pixie", "headscarf", "pigtails")

SHAPE_RANGES: dict[str, tuple[float, float]] = {
    "head_width": (0.93, 1.07),
    "jaw_width": (0.84, 1.10),
    "jaw_length": (0.90, 1.08),
    "cheeks": (0.0, 1.0),
    "chin": (0.0, 1.0),
    "forehead": (-1.0, 1.0),
    "nose_length": (0.85, 1.15),
    "nose_width": (0.80, 1.30),
    "nose_height": (0.75, 1.25),
    "eye_size": (0.92, 1.12),
    "eye_spacing": (0.94, 1.06),
    "eye_tilt": (-0.5, 1.0),
    "brow_weight": (0.7, 1.3),
    "brow_height": (-1.0, 1.0),
    "brow_arch": (0.0, 1.0),
    "lip_fullness": (0.75, 1.30),
    "mouth_width": (0.90, 1.12),
    "ear_size": (0.88, 1.12),
    "neck_width": (0.90, 1.08),
    "shoulders": (0.92, 1.06),
}


@dataclass(frozen=True)
class Identity:
    """The looks of one character. Colours are sRGB in 0..1, `shape` holds the multipliers of `SHAPE_RANGES`."""

    sex: str
    age: str
    skin: str
    skin_rgb: RGB
    hair: str
    hair_colour: str
    hair_rgb: RGB
    eye_colour: str
    eye_rgb: RGB
    shape: dict[str, float] = field(default_factory=dict)
    beard: str = "none"
    glasses: str = "none"
    glasses_rgb: RGB = (0.1, 0.1, 0.1)
    hat: str = "none"
    hat_colour: str = "black"
    clothes: str = "t-shirt"
    clothes_colour: str = "blue"
    clothes_rgb: RGB = CLOTH_COLOURS["blue"]
    second_rgb: RGB = CLOTH_COLOURS["white"]
    pattern: str = "plain"
    earrings: bool = False
    makeup: float = 0.0
    freckles: float = 0.0
    wrinkles: float = 0.0
    texture_seed: int = 0

    @property
    def noun(self) -> str:
        """The plain word for the person: woman, man, girl or boy."""
        if self.age == "child":
            return "girl" if self.sex == "woman" else "boy"
        return self.sex

    def to_dict(self) -> dict[str, Any]:
        """All values as plain types, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Identity:
        """The inverse of `to_dict` (lists become the tuples that colours are)."""
        fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fixed)

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Identity:
        """Draw a character; the same generator state gives the same character."""
        sex = _pick(rng, ("woman", "man"))
        age = _pick(rng, ("child", "young", "adult", "elderly"), (0.10, 0.42, 0.33, 0.15))
        skin = _pick(rng, tuple(SKINS), (0.12, 0.17, 0.17, 0.13, 0.12, 0.12, 0.10, 0.07))
        hair = _hair_style(rng, sex, age)
        hair_colour = _hair_colour(rng, skin, age)
        eye_colour = _pick(rng, ("brown", "dark", "hazel") if skin in ("tan", "brown", "dark", "deep") else tuple(EYES))
        clothes = _pick(rng, CLOTHES)
        if sex == "man" and clothes == "blouse":
            clothes = "shirt"
        colour, second = (_pick(rng, tuple(CLOTH_COLOURS)) for _ in range(2))
        return cls(
            sex=sex,
            age=age,
            skin=skin,
            skin_rgb=_vary(rng, SKINS[skin], 0.025),
            hair=hair,
            hair_colour=hair_colour,
            hair_rgb=_vary(rng, HAIRS[hair_colour], 0.03),
            eye_colour=eye_colour,
            eye_rgb=_vary(rng, EYES[eye_colour], 0.03),
            shape=_shape(rng, sex, age),
            beard=_beard(rng, sex, age),
            glasses=_pick(rng, ("none", "round", "square"), (0.74, 0.13, 0.13)),
            glasses_rgb=_pick(rng, ((0.06, 0.06, 0.07), (0.30, 0.15, 0.07), (0.62, 0.52, 0.30), (0.45, 0.08, 0.10))),
            hat=_hat(rng, hair),
            hat_colour=_pick(rng, tuple(CLOTH_COLOURS)),
            clothes=clothes,
            clothes_colour=colour,
            clothes_rgb=_vary(rng, CLOTH_COLOURS[colour], 0.03),
            second_rgb=_vary(rng, CLOTH_COLOURS[second], 0.03),
            pattern=_pick(rng, PATTERNS, (0.5, 0.16, 0.12, 0.08, 0.14)),
            earrings=bool(sex == "woman" and age != "child" and rng.random() < 0.35),
            makeup=float(rng.uniform(0.3, 1.0)) if sex == "woman" and age != "child" and rng.random() < 0.6 else 0.0,
            freckles=float(rng.uniform(0.4, 1.0)) if skin in ("pale", "fair", "light") and rng.random() < 0.25 else 0.0,
            wrinkles=float({"child": 0.0, "young": 0.0, "adult": rng.uniform(0, 0.4), "elderly": 1.0}[age]),
            texture_seed=int(rng.integers(1 << 30)),
        )


def _pick(rng: np.random.Generator, options: tuple, weights: tuple[float, ...] | None = None) -> Any:
    p = None if weights is None else np.asarray(weights) / np.sum(weights)
    return options[int(rng.choice(len(options), p=p))]


def _vary(rng: np.random.Generator, rgb: RGB, amount: float) -> RGB:
    shifted = np.clip(np.asarray(rgb) + rng.normal(0, amount * 0.4, 3) + rng.normal(0, amount), 0.03, 0.97)
    return (float(shifted[0]), float(shifted[1]), float(shifted[2]))


def _shape(rng: np.random.Generator, sex: str, age: str) -> dict[str, float]:
    shape = {name: float(rng.uniform(low, high)) for name, (low, high) in SHAPE_RANGES.items()}
    if sex == "woman":
        shape["jaw_width"] = 0.80 + 0.62 * (shape["jaw_width"] - 0.84)
        shape["brow_weight"] *= 0.72
        shape["neck_width"] *= 0.86
        shape["shoulders"] *= 0.88
        shape["lip_fullness"] *= 1.10
        shape["eye_size"] *= 1.05
        shape["nose_width"] *= 0.90
        shape["nose_height"] *= 0.90
    if age == "child":
        shape["jaw_length"] *= 0.90
        shape["eye_size"] *= 1.12
        shape["nose_height"] *= 0.75
        shape["nose_length"] *= 0.88
        shape["neck_width"] *= 0.80
        shape["shoulders"] *= 0.76
        shape["brow_weight"] *= 0.7
        shape["cheeks"] = 0.5 + 0.5 * shape["cheeks"]
    return shape


def _hair_style(rng: np.random.Generator, sex: str, age: str) -> str:
    if sex == "woman":
        return str(
            _pick(rng, WOMEN_HAIR, (16, 14, 12, 10, 10, 10, 9, 6, 6, 5 * (age != "child"), 2 + 8 * (age == "child")))
        )
    if age == "child":
        return str(_pick(rng, ("short", "crew cut", "side part", "curly", "afro")))
    bald = 3.0 if age == "elderly" else 1.0
    return str(_pick(rng, MEN_HAIR, (16, 10, 14, 12, 10, 5, 7 * bald, 4 * bald, 5, 4)))


def _hair_colour(rng: np.random.Generator, skin: str, age: str) -> str:
    if age == "elderly":
        return str(_pick(rng, ("grey", "white"), (0.55, 0.45)))
    if rng.random() < 0.03:
        return str(_pick(rng, ("pink", "blue")))
    if skin in ("brown", "dark", "deep"):
        return str(_pick(rng, ("black", "dark brown", "brown", "auburn"), (0.62, 0.25, 0.09, 0.04)))
    names = ("black", "dark brown", "brown", "auburn", "red", "blond", "light blond", "grey")
    return str(_pick(rng, names, (15, 18, 18, 10, 13, 14, 9, 3 * (age == "adult"))))


def _beard(rng: np.random.Generator, sex: str, age: str) -> str:
    if sex == "woman" or age == "child":
        return "none"
    return str(_pick(rng, ("none", "stubble", "moustache", "goatee", "full"), (0.5, 0.16, 0.08, 0.08, 0.18)))


def _hat(rng: np.random.Generator, hair: str) -> str:
    if hair in ("afro", "bun", "man bun", "headscarf", "pigtails", "quiff") or rng.random() > 0.14:
        return "none"
    return str(_pick(rng, ("beanie", "cap", "brim")))
