"""Building blocks of meshes: grids, balls, tubes and slabs, and the materials that the shading knows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.interpolate import PchipInterpolator

HEAD, MOUTH, SKIN, HAIR, CLOTH, RIM, HAT, DEVICE, METAL, PALM = range(1, 11)
"""Materials. 0 is the background."""

TWO_SIDED = frozenset({HAIR, HAT})


@dataclass
class Part:
    """One surface: vertices (V,3), triangles (T,3), a material, attributes (V,4) and the share of the head's motion.

    keypoints: by name, the vertices whose middle one of `skeleton.KEYPOINTS` is.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    material: int
    attributes: np.ndarray
    head_weight: np.ndarray = field(default_factory=lambda: np.zeros(0))
    keypoints: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.head_weight):
            self.head_weight = np.ones(len(self.vertices))


def grid_triangles(rows: int, columns: int) -> np.ndarray:
    """Triangles of a grid whose rows go down and whose columns go to the right as seen from outside."""
    i = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)[None]).ravel()
    first = np.stack([i, i + columns, i + 1], axis=-1)
    second = np.stack([i + 1, i + columns, i + columns + 1], axis=-1)
    return np.concatenate([first, second])


def ball(centre: tuple, radii: tuple, material: int, rows: int, columns: int) -> Part:
    """An ellipsoid. Attributes: position over the radii, and 0."""
    theta = np.linspace(0, np.pi, rows)[:, None]
    phi = np.linspace(-np.pi, np.pi, columns)[None]
    unit = np.stack(
        np.broadcast_arrays(np.sin(theta) * np.sin(phi), np.cos(theta), np.sin(theta) * np.cos(phi)), axis=-1
    ).reshape(-1, 3)
    attributes = np.concatenate([unit, np.zeros((len(unit), 1))], axis=1)
    return Part(unit * np.asarray(radii) + np.asarray(centre), grid_triangles(rows, columns), material, attributes)


def tube(curve: np.ndarray, radius: float | np.ndarray, material: int, sides: int, steps: int = 0) -> Part:
    """A tube with rounded ends along a curve (n,3). Attributes: angle in turns, share of the length, 0, 0."""
    along = np.linspace(0, 1, len(curve))
    count = steps or (len(curve) if len(curve) > 8 else 6 * len(curve))
    t = np.linspace(0, 1, count)
    points = np.stack([PchipInterpolator(along, curve[:, k])(t) for k in range(3)], axis=-1)
    radii = np.interp(t, np.linspace(0, 1, np.size(radius)), np.atleast_1d(radius))
    tangent = np.gradient(points, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-9
    reference = np.array([0.0, 0.0, 1.0]) if abs(tangent[:, 2]).mean() < 0.8 else np.array([1.0, 0.0, 0.0])
    side = np.cross(tangent, reference)
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-9
    other = np.cross(side, tangent)
    closed = np.linalg.norm(points[0] - points[-1]) < 1e-6
    if not closed:
        points = np.concatenate([points[:1] - tangent[:1] * radii[0], points, points[-1:] + tangent[-1:] * radii[-1]])
        side, other = (np.concatenate([v[:1], v, v[-1:]]) for v in (side, other))
        radii = np.concatenate([[0], radii, [0]])
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    ring = np.cos(angle)[None, :, None] * side[:, None] + np.sin(angle)[None, :, None] * other[:, None]
    grid = points[:, None] + ring * radii[:, None, None]
    rows = len(points)
    turn = np.broadcast_to(angle / (2 * np.pi), (rows, sides + 1))
    share = np.broadcast_to(np.linspace(0, 1, rows)[:, None], (rows, sides + 1))
    attributes = np.stack([turn, share, np.zeros_like(share), np.zeros_like(share)], axis=-1).reshape(-1, 4)
    return Part(grid.reshape(-1, 3), grid_triangles(rows, sides + 1), material, attributes)


def slab(centre: tuple, half: tuple, material: int) -> Part:
    """A box with rounded edges. Attributes: position over the half sizes, and 0."""
    part = ball((0, 0, 0), (1, 1, 1), material, 18, 24)
    v = part.vertices
    v = np.sign(v) * np.abs(v) ** 0.35
    v /= np.maximum(np.abs(v).max(axis=1, keepdims=True), 1e-6) ** 0.8
    part.attributes[:, :3] = v
    part.vertices = v * np.asarray(half) + np.asarray(centre)
    return part
