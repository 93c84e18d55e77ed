"""Meshes of one character: head, mouth, ears, neck, torso, hair, hat, glasses and props, built once per identity.

Head space: x to the viewer's right, y up, z towards the viewer; the eyes lie at y = 0, the crown at 1.18 and the chin
near -1.15. Every surface is a grid of rings around the y axis or along a curve.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.interpolate import PchipInterpolator

from hallo3.studio.hair import hair_parts, hat_parts
from hallo3.studio.identity import Identity
from hallo3.studio.surfaces import (
    CLOTH,
    DEVICE,
    HEAD,
    METAL,
    MOUTH,
    PALM,
    RIM,
    SKIN,
    Part,
    ball,
    grid_triangles,
    slab,
    tube,
)

LIPS_Y = -0.70
_COLUMNS = 104
# Rings of the head: height, half width, depth to the front, depth to the back, lift of the sides over the front.
_RINGS = np.array(
    [
        (1.18, 0.00, 0.00, 0.00, 0.00),
        (1.15, 0.27, 0.28, 0.36, 0.00),
        (1.05, 0.51, 0.53, 0.66, 0.00),
        (0.85, 0.69, 0.73, 0.90, 0.00),
        (0.55, 0.775, 0.85, 1.02, 0.00),
        (0.25, 0.785, 0.875, 1.05, 0.00),
        (0.00, 0.765, 0.845, 1.02, 0.00),
        (-0.22, 0.745, 0.835, 0.98, 0.02),
        (-0.45, 0.715, 0.825, 0.90, 0.07),
        (-0.68, 0.675, 0.815, 0.78, 0.17),
        (-0.88, 0.635, 0.80, 0.65, 0.30),
        (-1.03, 0.595, 0.79, 0.55, 0.42),
        (-1.12, 0.55, 0.74, 0.48, 0.50),
        (-1.17, 0.45, 0.60, 0.40, 0.52),
        (-1.16, 0.28, 0.38, 0.30, 0.45),
        (-1.12, 0.00, 0.00, 0.00, 0.40),
    ]
)


@dataclass
class Model:
    """Meshes of one character in one set of arrays, and the indices that the deformation and the truth need.

    keypoints: the vertices whose middle each of `skeleton.KEYPOINTS` is; those that the character lacks are missing.
    """

    rest: np.ndarray
    attributes: np.ndarray
    head_weight: np.ndarray
    triangles: np.ndarray
    materials: np.ndarray
    head_count: int
    lips_distance: np.ndarray
    lower: np.ndarray
    upper_lip: np.ndarray
    lower_lip: np.ndarray
    mouth_top: np.ndarray
    mouth_bottom: np.ndarray
    mouth_start: int
    mouth_rows: int
    mouth_half_width: float
    oval: np.ndarray
    landmarks: dict[str, int] = field(default_factory=dict)
    keypoints: dict[str, np.ndarray] = field(default_factory=dict)


def mouth_half_width(identity: Identity) -> float:
    """Half the width of the mouth at rest, in head units."""
    return 0.275 * identity.shape["mouth_width"]


def eye_centre(identity: Identity) -> tuple[float, float]:
    """Distance of an eye from the middle line and its height, in head units."""
    return 0.325 * identity.shape["eye_spacing"], 0.0


def build_model(identity: Identity, prop: str = "none") -> Model:
    """Build all meshes of a character.

    Args:
        identity: the looks.
        prop: what the character holds, one of `scene.PROPS`.
    """
    upper, lower, q_upper, q_lower = _head(identity)
    parts = [_head_part(upper, q_upper), _head_part(lower, q_lower)]
    columns = np.flatnonzero((np.abs(upper[-1, :, 0]) <= mouth_half_width(identity) * 1.02) & (upper[-1, :, 2] > 0))
    mouth_rows = 7
    parts.append(
        Part(
            np.zeros((mouth_rows * len(columns), 3)),
            grid_triangles(mouth_rows, len(columns)),
            MOUTH,
            np.zeros((mouth_rows * len(columns), 4)),
        )
    )
    surface = HeadSurface(identity)
    parts += _ears(identity) + _neck(identity) + _torso(identity)
    parts += hair_parts(identity, surface) + hat_parts(identity, surface)
    parts += _glasses(identity, surface) + _jewels(identity) + _props(prop)
    head_count = upper.shape[0] * upper.shape[1] + lower.shape[0] * lower.shape[1]
    first_lower = upper.shape[0] * upper.shape[1]
    model = _assemble(parts)
    model.head_count = head_count
    model.lips_distance = np.concatenate([q_upper.ravel(), q_lower.ravel()]).astype(np.float32)
    model.lower = (np.arange(head_count) >= first_lower).astype(np.float32)
    all_columns = np.arange(upper.shape[1])
    model.upper_lip = (first_lower - upper.shape[1] + all_columns).astype(np.int32)
    model.lower_lip = (first_lower + all_columns).astype(np.int32)
    model.mouth_start = head_count
    model.mouth_top, model.mouth_bottom = model.upper_lip[columns], model.lower_lip[columns]
    model.mouth_rows = mouth_rows
    model.mouth_half_width = mouth_half_width(identity)
    _mark(model, identity, columns)
    return model


def _assemble(parts: list[Part]) -> Model:
    offsets = np.cumsum([0] + [len(p.vertices) for p in parts])
    return Model(
        rest=np.concatenate([p.vertices for p in parts]).astype(np.float32),
        attributes=np.concatenate([p.attributes for p in parts]).astype(np.float32),
        head_weight=np.concatenate([p.head_weight for p in parts]).astype(np.float32),
        triangles=np.concatenate([p.triangles + o for p, o in zip(parts, offsets[:-1], strict=True)]).astype(np.int32),
        materials=np.concatenate([np.full(len(p.triangles), p.material) for p in parts]).astype(np.int32),
        head_count=0,
        lips_distance=np.zeros(0),
        lower=np.zeros(0),
        upper_lip=np.zeros(0),
        lower_lip=np.zeros(0),
        mouth_top=np.zeros(0),
        mouth_bottom=np.zeros(0),
        mouth_start=0,
        mouth_rows=0,
        mouth_half_width=0.0,
        oval=np.zeros(0),
        keypoints={n: own + o for p, o in zip(parts, offsets[:-1], strict=True) for n, own in p.keypoints.items()},
    )


def _mark(model: Model, identity: Identity, mouth_columns: np.ndarray) -> None:
    """Find the vertices of the face's outline and of the keypoints."""
    head = model.rest[: model.head_count]
    angle = np.arctan2(head[:, 0], np.maximum(head[:, 2], 1e-3) * 0.9)
    inside = (head[:, 2] > 0.05) & (np.abs(angle) < 1.30) & (head[:, 1] < 0.66)
    model.oval = np.flatnonzero(inside).astype(np.int32)
    ex, ey = eye_centre(identity)
    nose_y = -0.42 * identity.shape["nose_length"]

    def nearest(x: float, y: float) -> int:
        distance = (head[:, 0] - x) ** 2 + (head[:, 1] - y) ** 2 + 9.0 * (head[:, 2] < 0.2)
        return int(np.argmin(distance))

    middle = int(np.argmin(np.abs(head[model.upper_lip, 0]) + 9.0 * (head[model.upper_lip, 2] < 0)))
    model.landmarks = {
        "eye_left": nearest(-ex, ey),
        "eye_right": nearest(ex, ey),
        "nose": nearest(0.0, nose_y),
        "mouth_left": int(model.upper_lip[mouth_columns[0]]),
        "mouth_right": int(model.upper_lip[mouth_columns[-1]]),
        "lip_upper": int(model.upper_lip[middle]),
        "lip_lower": int(model.lower_lip[middle]),
        "chin": nearest(0.0, float(head[head[:, 2] > 0.6, 1].min())),
        "head_top": int(np.argmax(head[:, 1])),
    }
    model.keypoints |= {name: np.array([index]) for name, index in model.landmarks.items()}


def _rings(identity: Identity) -> np.ndarray:
    """The head's rings with the identity's proportions."""
    shape = identity.shape
    rings = _RINGS.copy()
    y = rings[:, 0]
    jaw = np.clip((-y - 0.35) / 0.6, 0, 1)
    rings[:, 1] *= shape["head_width"] * (1 + (shape["jaw_width"] - 1) * jaw)
    rings[:, 1] += 0.03 * shape["cheeks"] * np.exp(-(((y + 0.35) / 0.25) ** 2)) * (rings[:, 1] > 0)
    rings[:, 2] += 0.03 * shape["forehead"] * np.exp(-(((y - 0.6) / 0.3) ** 2)) * (rings[:, 2] > 0)
    return rings


class HeadSurface:
    """Half widths and depths of the bare head by height, for whatever lies on it."""

    def __init__(self, identity: Identity) -> None:
        rings = _rings(identity)[:12][::-1]
        self._width, self._front, self._back = (PchipInterpolator(rings[:, 0], rings[:, k]) for k in (1, 2, 3))

    def radii(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Half width, depth to the front and depth to the back at height y (clamped to the head)."""
        inside = np.clip(y, -1.03, 1.18)
        return self._width(inside), self._front(inside), self._back(inside)

    def point(self, y: np.ndarray, phi: np.ndarray, offset: np.ndarray | float = 0.0) -> np.ndarray:
        """Points at height y and angle phi (0 front, positive to the viewer's right), moved outwards by offset."""
        width, front, back = self.radii(y)
        depth = np.where(np.cos(phi) > 0, front, back)
        up = np.clip((y - 0.25) / 0.93, 0, 1) ** 1.5
        out = offset * np.sqrt(1 - up * up)
        return np.stack([(width + out) * np.sin(phi), y + offset * up, (depth + out) * np.cos(phi)], axis=-1)


def _columns(count: int = _COLUMNS) -> np.ndarray:
    """Angles around the head, denser at the front."""
    s = np.linspace(-1, 1, count)
    return np.pi * np.sign(s) * (0.42 * np.abs(s) + 0.58 * np.abs(s) ** 2.4)


def _head(identity: Identity) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two grids (rows, columns, 3) above and below the line of the lips, and each vertex' height over that line."""
    rings = _rings(identity)
    path = np.concatenate([[0], np.cumsum(np.hypot(np.diff(rings[:, 0]), 0.6 * np.diff(rings[:, 2])))])
    curves = [PchipInterpolator(path, rings[:, k]) for k in range(5)]
    fine = np.linspace(0, path[-1], 2000)
    y = curves[0](fine)
    density = np.cumsum(0.45 + 1.0 * ((y < 0.30) & (y > -1.15)) + 1.2 * np.exp(-(((y - LIPS_Y) / 0.12) ** 2)))
    lips = float(fine[np.argmin(np.where(fine < path[-4], np.abs(y - LIPS_Y), 9))])
    middle = np.interp(lips, fine, density)
    above = np.interp(np.linspace(density[0], middle, 60), density, fine)
    below = np.interp(np.linspace(middle, density[-1], 36), density, fine)
    phi = _columns()
    grids = [_head_grid(identity, [c(s) for c in curves], phi) for s in (above, below)]
    line = grids[0][-1, :, 1]
    return grids[0], grids[1], grids[0][..., 1] - line, grids[1][..., 1] - line


def _head_grid(identity: Identity, curve: list[np.ndarray], phi: np.ndarray) -> np.ndarray:
    y, w, f, b, lift = (c[:, None] for c in curve)
    squareness = 0.88
    sin, cos = np.sin(phi)[None], np.cos(phi)[None]
    x = w * sin
    z = np.where(cos > 0, f * np.abs(cos) ** squareness, -b * np.abs(cos))
    height = y + lift * np.minimum(1, 1 - cos)
    frontal = np.clip(cos / 0.35, 0, 1)
    frontal = frontal * frontal * (3 - 2 * frontal)
    z = z + frontal * _relief(identity, x, height, height - (LIPS_Y + 0.17 * np.minimum(1, 1 - cos)))
    height = np.where(height < -0.45, -0.45 + (height + 0.45) * identity.shape["jaw_length"], height)
    return np.stack(np.broadcast_arrays(x, height, z), axis=-1)


def _relief(identity: Identity, x: np.ndarray, y: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Depth added to the front of the head: brows, sockets, nose, lips, cheeks and chin. q: height over the lips."""
    shape = identity.shape
    ax = np.abs(x)
    ex, ey = eye_centre(identity)
    male = 1.0 if identity.sex == "man" and identity.age != "child" else 0.35

    def bump(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
        return np.exp(-(dx**2) - dy**2)

    z = 0.035 * male * bump((ax - 0.30) / 0.24, (y - 0.20) / 0.08)
    z -= 0.085 * bump((ax - ex) / 0.19, (y - ey - 0.02) / 0.13)
    z += 0.045 * bump((ax - ex) / 0.12, (y - ey) / 0.085)
    tip = -0.42 * shape["nose_length"]
    height, width = shape["nose_height"], shape["nose_width"]
    along = np.clip((0.10 - y) / (0.10 - tip), 0, 1)
    edge = 1 / (1 + np.exp(-(y - tip + 0.055) / 0.016))
    ridge = (0.035 + 0.165 * along**1.3) * height * np.clip((0.28 - y) / 0.2, 0, 1)
    z += ridge * np.exp(-((ax / (0.075 + 0.035 * along * width)) ** 2)) * edge
    z += 0.055 * height * bump(ax / (0.095 * width), (y - tip) / 0.085) * (0.35 + 0.65 * edge)
    z += 0.085 * bump((ax - 0.125 * width) / (0.052 * width), (y - tip + 0.005) / 0.06) * (0.25 + 0.75 * edge)
    full = shape["lip_fullness"]
    mouth = np.exp(-((ax / (0.95 * mouth_half_width(identity))) ** 4))
    z += 0.07 * np.exp(-((ax / 0.34) ** 2) - ((q + 0.02) / 0.24) ** 2)
    z += mouth * full * (0.048 * np.exp(-(((q - 0.042) / 0.038) ** 2)) + 0.055 * np.exp(-(((q + 0.055) / 0.048) ** 2)))
    z -= 0.03 * bump(ax / 0.2, (q + 0.185) / 0.055)
    z -= 0.012 * bump(ax / 0.03, (q - 0.14) / 0.05)
    z += (0.02 + 0.035 * shape["cheeks"]) * bump((ax - 0.42) / 0.2, (y + 0.33) / 0.18)
    z += (0.02 + 0.055 * shape["chin"]) * bump(ax / 0.17, (y + 1.0) / 0.11)
    return z


def _head_part(grid: np.ndarray, q: np.ndarray) -> Part:
    rows, columns, _ = grid.shape
    attributes = np.concatenate([grid, q[..., None]], axis=-1).reshape(-1, 4)
    return Part(grid.reshape(-1, 3), grid_triangles(rows, columns), HEAD, attributes)


def _ears(identity: Identity) -> list[Part]:
    size = identity.shape["ear_size"]
    parts = []
    for side in (-1.0, 1.0):
        ear = ball((0, 0, 0), (0.055 * size, 0.235 * size, 0.145 * size), SKIN, 14, 18)
        v = ear.vertices
        local = v.copy()
        v[:, 2] += 0.035 * np.clip(v[:, 1] / 0.2, -1, 1)
        v[:, 2] *= 0.75 + 0.25 * np.clip(v[:, 1] / 0.15 + 0.6, 0, 1)
        turn = side * 0.45
        x = v[:, 0] * np.cos(turn) - v[:, 2] * np.sin(turn) * 1.0
        z = v[:, 0] * np.sin(turn) + v[:, 2] * np.cos(turn)
        head = 0.755 * identity.shape["head_width"]
        ear.vertices = np.stack([x + side * (head + 0.045), v[:, 1] - 0.10, z - 0.10], axis=-1)
        ear.attributes = np.concatenate([local / (0.235 * size), np.full((len(v), 1), 1.0)], axis=1)
        ear.keypoints["ear_left" if side < 0 else "ear_right"] = np.arange(len(v))
        parts.append(ear)
    return parts


def _ring_stack(keys: np.ndarray, rows: int, columns: int, corner: float) -> np.ndarray:
    """A grid through rings (y, half width, front, back, shift of z); corner < 1 makes them squarer."""
    path = np.linspace(0, 1, len(keys))
    y, w, f, b, dz = (PchipInterpolator(path, keys[:, k])(np.linspace(0, 1, rows))[:, None] for k in range(5))
    phi = np.linspace(-np.pi, np.pi, columns)[None]
    sin = np.sign(np.sin(phi)) * np.abs(np.sin(phi)) ** corner
    cos = np.sign(np.cos(phi)) * np.abs(np.cos(phi)) ** corner
    return np.stack(np.broadcast_arrays(w * sin, y, dz + np.where(cos > 0, f, b) * cos), axis=-1)


def _neck(identity: Identity) -> list[Part]:
    n = identity.shape["neck_width"]
    man = 1.08 if identity.sex == "man" else 0.98
    keys = np.array(
        [
            (-0.35, 0.44 * n, 0.34, 0.42, -0.28),
            (-0.80, 0.43 * n * man, 0.36, 0.42, -0.28),
            (-1.15, 0.43 * n * man, 0.37, 0.43, -0.27),
            (-1.40, 0.47 * n * man, 0.40, 0.45, -0.26),
            (-1.60, 0.62 * n, 0.42, 0.50, -0.25),
        ]
    )
    grid = _ring_stack(keys, 14, 40, 1.0)
    v = grid.reshape(-1, 3)
    attributes = np.concatenate([v, np.zeros((len(v), 1))], axis=1)
    weight = np.clip((v[:, 1] + 1.5) / 0.8, 0, 1)
    base = np.flatnonzero(v[:, 1] < -1.3)
    return [Part(v, grid_triangles(14, 40), SKIN, attributes, weight, {"neck": base})]


def _torso(identity: Identity) -> list[Part]:
    s = identity.shape["shoulders"]
    high = 0.22 if identity.clothes == "turtleneck" else (0.06 if identity.clothes in ("hoodie", "jacket") else 0.0)
    neck = 0.47 * identity.shape["neck_width"] + (0.03 if high else 0.0)
    keys = np.array(
        [
            (-1.36 + high, neck + 0.01, 0.42, 0.46, -0.26),
            (-1.42 + high * 0.5, neck + 0.06, 0.45, 0.48, -0.26),
            (-1.52, 0.86 * s, 0.50, 0.52, -0.26),
            (-1.64, 1.22 * s, 0.55, 0.56, -0.26),
            (-1.82, 1.50 * s, 0.60, 0.60, -0.25),
            (-2.15, 1.66 * s, 0.68, 0.64, -0.22),
            (-2.70, 1.68 * s, 0.76, 0.66, -0.18),
            (-4.40, 1.60 * s, 0.78, 0.66, -0.15),
        ]
    )
    grid = _ring_stack(keys, 34, 64, 0.92)
    v = grid.reshape(-1, 3)
    attributes = np.concatenate([v, np.zeros((len(v), 1))], axis=1)
    joints = {
        name: np.argmin(np.abs(v - [side * 1.3 * s, -1.72, -0.26]).sum(axis=1), keepdims=True)
        for name, side in (("shoulder_left", -1), ("shoulder_right", 1))
    }
    return [Part(v, grid_triangles(34, 64), CLOTH, attributes, np.zeros(len(v)), joints)]


def _glasses(identity: Identity, surface: HeadSurface) -> list[Part]:
    if identity.glasses == "none":
        return []
    ex, ey = eye_centre(identity)
    t = np.linspace(0, 2 * np.pi, 40)
    corner = 1.0 if identity.glasses == "round" else 0.55
    parts = []
    for side in (-1.0, 1.0):
        x = 0.235 * np.sign(np.cos(t)) * np.abs(np.cos(t)) ** corner
        y = 0.19 * np.sign(np.sin(t)) * np.abs(np.sin(t)) ** corner
        xs = side * ex * 1.03 + x
        curve = np.stack([xs, ey + y - 0.025, 0.99 - 0.30 * xs**2], axis=-1)
        parts.append(tube(curve, 0.02, RIM, 6))
        hinge = (ex * 1.03 + 0.235) * side
        arm = np.array([[hinge, 0.03, 0.99 - 0.30 * hinge**2], [side * 0.80, 0.05, 0.45], [side * 0.83, 0.06, -0.1]])
        parts.append(tube(arm, 0.018, RIM, 6))
    gap = ex * 1.03 - 0.235
    bridge = np.array([[-gap, 0.02, 0.985], [0, 0.055, 1.03], [gap, 0.02, 0.985]])
    return [*parts, tube(bridge, 0.018, RIM, 6)]


def _jewels(identity: Identity) -> list[Part]:
    if not identity.earrings:
        return []
    x = 0.755 * identity.shape["head_width"] + 0.07
    return [ball((side * x, -0.40, -0.08), (0.035, 0.05, 0.035), METAL, 8, 10) for side in (-1.0, 1.0)]


def _hand(origin: tuple[float, float, float], side: float) -> list[Part]:
    """A loose fist around something upright at origin: palm, four fingers, thumb and forearm."""
    x, y, z = origin
    parts = [ball((x + side * 0.10, y, z - 0.02), (0.13, 0.21, 0.12), PALM, 12, 14)]
    parts[0].keypoints["hand"] = np.arange(len(parts[0].vertices))
    for k in range(4):
        yk = y + 0.16 - 0.105 * k
        curve = np.array(
            [[x + side * 0.12, yk, z + 0.06], [x + side * 0.02, yk + 0.01, z + 0.14], [x - side * 0.10, yk, z + 0.09]]
        )
        parts.append(tube(curve, 0.052, PALM, 8))
    parts.append(tube(np.array([[x + side * 0.10, y + 0.08, z], [x, y + 0.24, z + 0.1]]), 0.05, PALM, 8))
    arm = np.array([[x + side * 0.14, y - 0.1, z - 0.05], [x + side * 0.55, y - 1.0, z - 0.1], [x + side, y - 2.2, z]])
    sleeve = tube(arm, 0.2, CLOTH, 14)
    sleeve.attributes[:, 3] = 1.0
    return [*parts, sleeve]


def _props(prop: str) -> list[Part]:
    if prop == "none":
        return []
    if prop == "phone":
        parts = [slab((0.93, -0.50, 0.22), (0.045, 0.46, 0.20), DEVICE), *_hand((0.95, -0.66, 0.16), 1.0)]
    elif prop == "microphone":
        stick = tube(np.array([[0.34, -2.05, 1.10], [0.16, -1.42, 1.25]]), 0.07, DEVICE, 10)
        parts = [stick, ball((0.13, -1.32, 1.27), (0.14, 0.14, 0.14), METAL, 12, 14), *_hand((0.25, -1.78, 1.16), 1.0)]
    else:
        stand = tube(np.array([[0.75, -4.0, 1.2], [0.70, -1.95, 1.3], [0.46, -1.60, 1.4]]), 0.035, DEVICE, 8)
        parts = [stand, ball((0.40, -1.52, 1.42), (0.17, 0.21, 0.17), METAL, 12, 16)]
    weight = 1.0 if prop == "phone" else 0.0
    for part in parts:
        part.head_weight = np.full(len(part.vertices), weight)
        if prop == "phone" and part.material == CLOTH:
            part.head_weight = np.clip((part.vertices[:, 1] + 2.6) / 1.8, 0, 1)
    return parts
