"""Hair and hats: shells that follow the head and hang from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hallo3.studio.identity import Identity
from hallo3.studio.surfaces import HAIR, HAT, Part, ball, grid_triangles, tube

if TYPE_CHECKING:
    from hallo3.studio.geometry import HeadSurface

_COLUMNS = 168
_ROWS = 44


class Style(NamedTuple):
    """How a shell of hair is shaped.

    line: where it ends, as (degrees from the front, height) pairs. volume: thickness at the top, sides and front edge.
    cling: 1 follows the head down to the nape, 0 hangs straight. rough: depth of locks. bumps: depth of curls.
    wave: sideways waves of long hair. flare: widening of hanging hair per unit of height.
    start: height above which the head is bare (balding), or none.
    """

    line: tuple[tuple[float, float], ...]
    top: float = 0.10
    sides: float = 0.06
    edge: float = 0.015
    cling: float = 1.0
    rough: float = 0.02
    bumps: float = 0.0
    wave: float = 0.0
    flare: float = 0.0
    start: float = 1.18
    ragged: float = 0.05
    lift: float = 0.0


_SHORT = ((0, 0.70), (25, 0.70), (42, 0.62), (54, 0.42), (62, 0.02), (72, -0.18), (82, -0.05), (97, 0.05), (112, -0.4),
          (140, -0.62), (180, -0.66))  # fmt: skip
_CROP = ((0, 0.76), (25, 0.77), (40, 0.66), (52, 0.44), (62, 0.06), (72, -0.10), (82, 0.0), (97, 0.1), (112, -0.35),
         (140, -0.58), (180, -0.62))  # fmt: skip
_BACK = ((0, 0.74), (25, 0.71), (42, 0.60), (54, 0.40), (64, 0.05), (74, -0.22), (84, -0.02), (97, 0.05), (112, -0.4),
         (140, -0.6), (180, -0.64))  # fmt: skip


def _hanging(end: float, bangs: float, open_at: float = 52.0) -> tuple[tuple[float, float], ...]:
    return ((0, bangs), (22, bangs - 0.02), (open_at - 12, bangs - 0.16), (open_at, 0.12), (open_at + 10, end * 0.55),
            (open_at + 20, end * 0.92), (100, end), (180, end * 1.04))  # fmt: skip


STYLES: dict[str, Style] = {
    "short": Style(_SHORT, 0.12, 0.06),
    "crew cut": Style(_CROP, 0.045, 0.02, rough=0.006, ragged=0.02),
    "side part": Style(_SHORT, 0.15, 0.06, edge=0.05, rough=0.012, lift=0.05),
    "quiff": Style(_CROP, 0.16, 0.03, edge=0.17, rough=0.025, lift=0.12),
    "curly": Style(_SHORT, 0.20, 0.13, edge=0.09, rough=0.02, bumps=0.07),
    "afro": Style(_SHORT, 0.42, 0.36, edge=0.16, rough=0.0, bumps=0.055),
    "balding": Style(_CROP, 0.03, 0.05, start=0.42),
    "shoulder": Style(_hanging(-1.25, 0.68), 0.10, 0.07, cling=0.2, rough=0.025, flare=0.02),
    "man bun": Style(_BACK, 0.05, 0.03, rough=0.012, ragged=0.02),
    "long": Style(_hanging(-1.95, 0.70), 0.10, 0.06, cling=0.05, rough=0.02, flare=0.05),
    "wavy": Style(_hanging(-1.75, 0.70), 0.14, 0.10, cling=0.05, rough=0.03, wave=0.06, flare=0.10),
    "bob": Style(_hanging(-0.88, 0.66, 54.0), 0.12, 0.09, cling=0.1, rough=0.015, flare=0.05, ragged=0.02),
    "bangs": Style(_hanging(-1.35, 0.33, 56.0), 0.12, 0.07, edge=0.05, cling=0.1, rough=0.012, ragged=0.03),
    "bun": Style(_BACK, 0.05, 0.03, rough=0.012, ragged=0.02),
    "ponytail": Style(_BACK, 0.06, 0.03, rough=0.012, ragged=0.02),
    "pixie": Style(((0, 0.42), (20, 0.34), (40, 0.44), (54, 0.30), (64, -0.2), (76, -0.30), (86, -0.1), (97, 0.0),
                    (112, -0.4), (180, -0.64)), 0.13, 0.06, edge=0.05, rough=0.03),
    "pigtails": Style(_BACK, 0.06, 0.03, rough=0.012, ragged=0.02),
}  # fmt: skip


def hair_parts(identity: Identity, surface: HeadSurface) -> list[Part]:
    """The meshes of the identity's hair; none for a bald head."""
    rng = np.random.default_rng(identity.texture_seed)
    if identity.hair == "bald":
        return []
    if identity.hair == "headscarf":
        return [_scarf(surface)]
    style = STYLES[identity.hair]
    if identity.hat != "none":
        style = style._replace(top=min(style.top, 0.03), lift=0.0, edge=0.012, sides=min(style.sides, 0.06), bumps=0.02)
    parts = [_shell(style, surface, rng)]
    if identity.hair in ("bun", "man bun"):
        parts.append(_knot((0.0, 0.98 if rng.random() < 0.5 else 0.55, -0.85), 0.34, rng))
    elif identity.hair == "ponytail":
        x = 0.35 * rng.choice([-1.0, 0.0, 1.0])
        curve = np.array([[0, 0.55, -1.0], [x, 0.45, -1.35], [1.6 * x, -0.5, -1.3], [1.9 * x, -1.5, -0.95]])
        parts.append(_lock(curve, np.array([0.10, 0.22, 0.24, 0.05])))
    elif identity.hair == "pigtails":
        for side in (-1.0, 1.0):
            curve = np.array([[side * 0.70, 0.35, -0.35], [side * 1.02, 0.28, -0.38], [side * 1.18, -0.5, -0.2],
                              [side * 1.1, -1.1, -0.05]])  # fmt: skip
            parts.append(_lock(curve, np.array([0.10, 0.20, 0.20, 0.04])))
    return parts


def hat_parts(identity: Identity, surface: HeadSurface) -> list[Part]:
    """The meshes of the identity's hat."""
    if identity.hat == "none":
        return []
    phi, t = np.linspace(-np.pi, np.pi, 72)[None], np.linspace(0, 1, 22)[:, None]
    front = 0.5 + 0.5 * np.cos(phi)
    low = {"beanie": 0.30 + 0.22 * front, "cap": 0.22 + 0.28 * front, "brim": 0.28 + 0.22 * front}[identity.hat]
    y = 1.18 - (1.18 - low) * t**2
    tall = {"beanie": 0.16, "cap": 0.12, "brim": 0.30}[identity.hat]
    thick = 0.085 + tall * np.clip((y - 0.55) / 0.6, 0, 1) ** 1.3
    if identity.hat == "beanie":
        thick = thick + 0.035 * (t > 0.80)
    grid = surface.point(y, phi, thick)
    kind = {"beanie": 0.0, "cap": 1.0, "brim": 2.0}[identity.hat]
    parts = [_hat_part(grid, np.broadcast_to(t, y.shape), np.broadcast_to(phi, y.shape), kind)]
    if identity.hat == "beanie":
        return parts
    reach = np.linspace(0, 1, 7)[:, None]
    if identity.hat == "cap":
        angle = np.linspace(-1.15, 1.15, 30)[None]
        length = 0.62 * np.cos(angle / 1.15 * np.pi / 2) ** 0.7
        droop = -0.10 * reach**2
    else:
        angle = np.linspace(-np.pi, np.pi, 72)[None]
        length = np.full_like(angle, 0.55)
        droop = -0.06 * reach**2 + 0.06 * reach * np.abs(np.sin(angle)) ** 2
    base = np.interp(angle.ravel(), phi.ravel(), low.ravel())[None]
    brim = surface.point(base + 0.0 * reach, angle + 0.0 * reach, 0.085 + reach * length)
    brim[..., 1] = base + droop + 0.02
    parts.append(_hat_part(brim, np.full(brim.shape[:2], 0.9), angle + 0.0 * reach, kind))
    return parts


def _hat_part(grid: np.ndarray, t: np.ndarray, phi: np.ndarray, kind: float) -> Part:
    attributes = np.stack([phi, t, np.full_like(t, kind), np.zeros_like(t)], axis=-1).reshape(-1, 4)
    return Part(grid.reshape(-1, 3), grid_triangles(*grid.shape[:2]), HAT, attributes)


def _smooth_noise(rng: np.random.Generator, count: int, period: int) -> np.ndarray:
    """Periodic noise in -1..1 with about `period` knots over `count` samples."""
    knots = rng.uniform(-1, 1, period)
    knots = np.concatenate([knots, knots[:1]])
    x = np.linspace(0, period, count)
    i = np.minimum(x.astype(int), period - 1)
    f = x - i
    f = f * f * (3 - 2 * f)
    return knots[i] * (1 - f) + knots[i + 1] * f


def _shell(style: Style, surface: HeadSurface, rng: np.random.Generator) -> Part:
    phi = np.linspace(-np.pi, np.pi, _COLUMNS)
    degrees = np.abs(np.degrees(phi))
    line = np.array(style.line)
    end = np.interp(degrees, line[:, 0], line[:, 1])
    end = np.convolve(np.pad(end, 2, mode="wrap"), np.ones(5) / 5, "valid")
    end = end + style.ragged * (_smooth_noise(rng, _COLUMNS, 40) * 0.6 + _smooth_noise(rng, _COLUMNS, 84) * 0.7)
    end = np.minimum(end, np.where(degrees < 56, style.start, 9.0)) if style.start < 1 else end
    t = np.linspace(0, 1, _ROWS)[:, None]
    y = style.start - (style.start - end[None]) * (t**2 if style.start > 1 else t)
    top = np.clip((y - 0.2) / 0.8, 0, 1)
    thick = style.sides + (style.top - style.sides) * top
    front = np.clip((np.cos(phi)[None] - 0.35) / 0.4, 0, 1)
    taper = np.clip((1 - t) / 0.22, 0, 1) ** 0.6
    hang = np.clip(1 - style.cling, 0, 1) * (degrees[None] > 55)
    thick = thick * np.maximum(taper, hang) + style.edge * (1 - taper) * (0.35 + 0.65 * front)
    thick = thick + style.lift * np.exp(-(((y - 0.95) / 0.3) ** 2)) * (0.4 + 0.6 * np.sin(phi + 0.8)[None]) * taper
    locks = _smooth_noise(rng, _COLUMNS, 36)[None] + 0.6 * _smooth_noise(rng, _COLUMNS, 72)[None]
    thick = thick + style.rough * locks * np.clip(t * 2.5, 0, 1)
    if style.bumps:
        wobble = rng.uniform(0, 6.28, 6)
        bump = np.sin(9 * phi + wobble[0])[None] * np.sin(9 * y + wobble[1]) + 0.7 * np.sin(
            17 * phi[None] + wobble[2] + 5 * y
        ) * np.sin(15 * y + wobble[3] + 3 * phi[None])
        thick = thick + style.bumps * bump * np.clip(t * 2, 0, 1)
    thick = np.maximum(thick, 0.008)
    if style.start < 1:
        thick = np.where(degrees[None] < 56, -0.1, thick)  # Nothing grows there: hide the columns in the head.
    grid = surface.point(_hold(y, style.cling), np.broadcast_to(phi, y.shape), thick)
    grid[..., 1] += y - _hold(y, style.cling)
    below = np.clip(-y, 0, None) * (1 - style.cling)
    grid[..., 0] *= 1 + style.flare * below
    grid[..., 2] -= 0.06 * below
    if style.wave:
        swing = style.wave * np.clip(below * 1.5, 0, 1) * np.sin(7.5 * y + 2.5 * np.sin(phi)[None])
        grid[..., 0] += swing * np.sign(np.sin(phi))[None]
        grid[..., 2] += 0.6 * swing
    attributes = np.stack(
        [np.broadcast_to(phi / (2 * np.pi), y.shape), y, t + 0 * y, np.full_like(y, style.bumps > 0.04)], axis=-1
    ).reshape(-1, 4)
    v = grid.reshape(-1, 3)
    return Part(v, grid_triangles(_ROWS, _COLUMNS), HAIR, attributes, np.clip((v[:, 1] + 2.3) / 1.5, 0, 1))


def _hold(y: np.ndarray, cling: float) -> np.ndarray:
    """The height at which hair takes its width from the head: below the temples hanging hair keeps that width."""
    low = -0.05
    return np.where(y < low, low + (y - low) * cling, y)


def _knot(centre: tuple[float, float, float], size: float, rng: np.random.Generator) -> Part:
    part = ball(centre, (size, size * 0.85, size * 0.85), HAIR, 20, 30)
    unit = part.attributes[:, :3]
    swirl = np.arctan2(unit[:, 0], unit[:, 2])
    part.vertices += (unit * (0.03 * np.sin(6 * swirl + 9 * unit[:, 1] + rng.uniform(0, 6)))[:, None]).astype(float)
    part.attributes = np.stack(
        [swirl / (2 * np.pi) + 0.25 * unit[:, 1], unit[:, 1], 0.5 + 0 * swirl, 0 * swirl], axis=-1
    )
    return part


def _lock(curve: np.ndarray, radii: np.ndarray) -> Part:
    part = tube(curve, radii, HAIR, 24, steps=30)
    part.attributes[:, 2] = part.attributes[:, 1]
    part.head_weight = np.clip((part.vertices[:, 1] + 2.3) / 1.5, 0, 1)
    return part


def _scarf(surface: HeadSurface) -> Part:
    """A headscarf: cloth over head, neck and shoulders that leaves the face free."""
    phi = np.linspace(-np.pi, np.pi, 96)
    degrees = np.abs(np.degrees(phi))
    end = np.interp(degrees, [0, 25, 45, 56, 64, 72, 180], [0.62, 0.58, 0.38, 0.0, -0.7, -1.75, -1.85])
    t = np.linspace(0, 1, 40)[:, None]
    y = 1.18 - (1.18 - end[None]) * t**2
    fold = 0.018 * np.sin(11 * phi)[None] * t * np.clip(0.6 - y, 0, 1)
    grid = surface.point(_hold(y, 0.1), np.broadcast_to(phi, y.shape), 0.10 - 0.055 * t**6 + fold)
    grid[..., 1] += y - _hold(y, 0.1)
    below = np.clip(-y, 0, None)
    grid[..., 0] *= 1 - 0.06 * np.sin(np.clip(below / 1.2, 0, 1) * np.pi)
    grid[..., 0] *= 1 + 0.35 * np.clip(below - 1.1, 0, 1)
    grid[..., 2] -= 0.1 * below
    attributes = np.stack(
        [np.broadcast_to(phi, y.shape), t + 0 * y, np.full_like(y, 3.0), np.zeros_like(y)], axis=-1
    ).reshape(-1, 4)
    v = grid.reshape(-1, 3)
    return Part(v, grid_triangles(40, 96), HAT, attributes, np.clip((v[:, 1] + 1.9) / 1.2, 0, 1))
