"""Renders a character in its surroundings, frame by frame, with the truth about what is seen where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hallo3.errors import UserError
from hallo3.studio.backgrounds import paint_background, paint_foreground
from hallo3.studio.geometry import Model, build_model, eye_centre, mouth_half_width
from hallo3.studio.identity import CLOTH_COLOURS, CLOTHES, PATTERNS, Identity
from hallo3.studio.lighting import Lighting, track
from hallo3.studio.paint import Look
from hallo3.studio.performance import Performance
from hallo3.studio.raster import PIVOT, deform_face, fill_mouth, owner_bounds, pose, project, rasterise, vertex_normals
from hallo3.studio.scene import FOREGROUNDS, PLACES, Scene
from hallo3.studio.shading import SAMPLES, SHADOW_SIZE, Light, resolve, shadow_view, tone_table
from hallo3.studio.skeleton import KEYPOINTS
from hallo3.studio.surfaces import TWO_SIDED

HEAD_UNITS = 2.33
"""Crown to chin in head units."""
BEARDS = ("none", "stubble", "moustache", "goatee", "full")
_MIN_SIDE, _MAX_PIXELS = 16, 4096 * 4096


@dataclass(frozen=True)
class Rendered:
    """Frames and their truth. Boxes are (x, y, w, h) in pixels, origin top left, clipped to the frame.

    frames: (F,H,W,3) uint8. face_box: outline of the face without hair and ears. mouth_box: the mouth at any opening,
    with a margin. head_box: everything that turns with the head and is seen. subject_mask: (F,H,W) uint8, 1 where the
    character is seen, without what stands before it; foreground_mask: likewise, 1 where something dense stands before
    everything (blurred lights are not: one sees through them); the rest are surroundings. yaw, pitch, roll: (F,)
    radians. keypoints: (F,K,2) float32 x, y in pixels in the order of `skeleton.KEYPOINTS`, not clipped, NaN where the
    character has none.
    lip_gap: (F,) distance of the lips' inner edges in head units, times pixels per unit: pixels. light: (F,4) of the
    key light: x right, y up and z to the viewer of the direction towards it, then its luminance in linear light.
    camera: (F,3) how far it shifts the person, in heights of the frame (right, down), and how much it enlarges them.
    """

    frames: np.ndarray
    face_box: np.ndarray
    mouth_box: np.ndarray
    head_box: np.ndarray
    subject_mask: np.ndarray
    foreground_mask: np.ndarray
    yaw: np.ndarray
    pitch: np.ndarray
    roll: np.ndarray
    keypoints: np.ndarray
    lip_gap: np.ndarray
    light: np.ndarray
    camera: np.ndarray


def render(identity: Identity, scene: Scene, performance: Performance, height: int, width: int) -> Rendered:
    """Draw every frame of a performance.

    Args:
        identity: the character.
        scene: surroundings, light and framing.
        performance: one value per frame.
        height, width: the frame in pixels, at least 16 each.

    Raises:
        UserError: for a frame that is too small or too large.
    """
    results = list(stream(identity, scene, performance, height, width))
    columns = {name: np.stack([r[name] for r in results]) for name in results[0]}
    return Rendered(yaw=performance.yaw, pitch=performance.pitch, roll=performance.roll, **columns)


def stream(
    identity: Identity, scene: Scene, performance: Performance, height: int, width: int
) -> Iterator[dict[str, np.ndarray]]:
    """Like `render`, but one frame after the other in constant memory; yields the per-frame fields of `Rendered`."""
    if min(height, width) < _MIN_SIDE or height * width > _MAX_PIXELS:
        raise UserError(
            f"frame of {width}x{height} pixels: a side must have {_MIN_SIDE} pixels, all {_MAX_PIXELS} at most"
        )
    canvas = _Canvas(identity, scene, height, width)
    for i in range(performance.num_frames):
        yield canvas.draw(performance, i)


class _Canvas:
    """Buffers and constants of one clip."""

    def __init__(self, identity: Identity, scene: Scene, height: int, width: int) -> None:
        self.identity, self.scene, self.height, self.width = identity, scene, height, width
        self.model: Model = build_model(identity, scene.prop)
        count = len(self.model.rest)
        self.shaped = self.model.rest.copy()
        self.attributes = self.model.attributes.copy()
        self.world, self.screen, self.view, self.normals = (np.zeros((count, 3), np.float32) for _ in range(4))
        self.shape = (height * SAMPLES, width * SAMPLES)
        self.depth, self.owner, self.bary = _buffers(*self.shape)
        self.shadow = _buffers(SHADOW_SIZE, SHADOW_SIZE)
        self.background = np.zeros((height, width, 3), np.float32)
        self.painted: tuple[float, ...] | None = None
        self.tone = tone_table()
        self.two_sided = np.isin(self.model.materials, list(TWO_SIDED))
        self.all_sides = np.ones(len(self.two_sided), np.bool_)
        self.of_head = (self.model.head_weight[self.model.triangles] > 0.95).all(axis=1)
        self.palette = np.asarray(scene.palette, np.float32)
        self.seed = float(scene.texture_seed % 9973) * 0.0137
        self.lighting = Lighting(scene)
        self.framed = self.scale = scene.head_height * height / HEAD_UNITS
        self.look = _look(identity)

    def draw(self, p: Performance, i: int) -> dict[str, np.ndarray]:
        """Draw frame i and measure it."""
        head = self._place(p, i)
        light = self.lighting(float(p.time[i]))
        shadow_view(self.world, light.direction, self.view)
        rasterise(self.view, self.model.triangles, self.all_sides, *self.shadow)
        rasterise(self.screen, self.model.triangles, self.two_sided, self.depth, self.owner, self.bary)
        time = float(p.time[i]) if self.scene.dynamic else -1.0
        self._paint_background(time, p, i)
        frame = np.empty((self.height, self.width, 3), np.uint8)
        mask = np.empty((self.height, self.width), np.uint8)
        arrays = (self.model.triangles, self.model.materials, self.attributes, self.normals, self.view)
        resolve(
            self.owner, self.bary, arrays, self._moving_look(p, i, light), light, self.shadow[0],
            self.lighting.on_surroundings(self.background, float(p.time[i])), self.tone, frame, mask,
        )  # fmt: skip
        free = np.ones_like(mask)
        if self.scene.foreground != "none":
            kind = FOREGROUNDS.index(self.scene.foreground)
            shift_x = 1.3 * float(p.camera_x[i]) + float(p.turn_x[i])
            shift_y = 1.3 * float(p.camera_y[i]) + float(p.turn_y[i])
            paint_foreground(kind, time, self.seed, shift_x, shift_y, frame, free)
        masks = {"subject_mask": mask & free, "foreground_mask": 1 - free}
        return {"frames": frame, "light": track(light), "camera": self._camera(p, i), **masks, **self._truth(head)}

    def _paint_background(self, time: float, p: Performance, i: int) -> None:
        """Fill the background, unless it is what the last frame had. What is far moves less."""
        shift_x = 0.55 * float(p.camera_x[i]) + float(p.turn_x[i])
        # Seen from above, the horizon rises in the picture.
        shift_y = 0.55 * float(p.camera_y[i]) + float(p.turn_y[i]) + 0.5 * float(p.body_pitch[i])
        view = (time, shift_x, shift_y, float(p.zoom[i]) ** 0.55)
        if self.painted == view:
            return
        self.painted = view
        place = PLACES.index(self.scene.place)
        paint_background(place, time, self.palette, self.seed, self.scene.horizon, *view[1:], 0.28, self.background)

    def _place(self, p: Performance, i: int) -> np.ndarray:
        """Deform, pose and project all vertices; returns the head's rotation."""
        m = self.model
        n = m.head_count
        deform_face(
            m.rest[:n], m.lips_distance, m.lower, m.mouth_half_width,
            float(p.opening[i]), float(p.width[i]), float(p.smile[i]), self.shaped[:n],
        )  # fmt: skip
        fill_mouth(
            self.shaped, self.attributes, m.rest, m.mouth_top, m.mouth_bottom, m.mouth_start, m.mouth_rows,
            m.mouth_half_width,
        )  # fmt: skip
        head = rotation(float(p.yaw[i]), float(p.pitch[i]), float(p.roll[i]))
        body = rotation(float(p.body_yaw[i]), float(p.body_pitch[i]), 0.0)
        shift = np.array([p.head_x[i], p.head_y[i]], np.float32)
        pose(self.shaped, m.head_weight, head, body, shift, self.world)
        (x, y), zoom = self.scene.centre, float(p.zoom[i])
        shift_x, shift_y, _ = self._camera(p, i)
        self.scale = self.framed * zoom
        self.centre = (
            (x + (zoom - 1) * (x - 0.5)) * self.width + float(shift_x) * self.height,
            (y + (zoom - 1) * (y - 0.5) + float(shift_y)) * self.height,
        )
        project(self.world, self.scale * SAMPLES, self.centre[0] * SAMPLES, self.centre[1] * SAMPLES, self.screen)
        vertex_normals(self.world, m.triangles, m.upper_lip, m.lower_lip, self.normals)
        return head

    @staticmethod
    def _camera(p: Performance, i: int) -> np.ndarray:
        """(3,) shift of the person in heights of the frame (right, down), and zoom."""
        return np.array([p.camera_x[i] + p.turn_x[i], p.camera_y[i] + p.turn_y[i], p.zoom[i]], np.float32)

    def _moving_look(self, p: Performance, i: int, light: Light) -> Look:
        d = light.direction
        return self.look._replace(
            blink=float(p.blink[i]), gaze_x=float(p.gaze_x[i]), gaze_y=float(p.gaze_y[i]), brow=float(p.brow[i]),
            glint_x=float(np.clip(2.0 * d[0], -1, 1)), glint_y=float(np.clip(0.5 + d[1], 0.3, 1)),
        )  # fmt: skip

    def _truth(self, head: np.ndarray) -> dict[str, np.ndarray]:
        m = self.model
        pixels = self.screen[:, :2] / SAMPLES
        nowhere = np.full(2, np.nan, np.float32)
        marks = [pixels[m.keypoints[name]].mean(axis=0) if name in m.keypoints else nowhere for name in KEYPOINTS]
        seen = owner_bounds(self.owner, self.of_head) / SAMPLES
        half, y = m.mouth_half_width, float(m.rest[m.landmarks["lip_upper"], 1])
        z = float(m.rest[m.landmarks["lip_upper"], 2])
        corners = np.array(
            [[sx * 1.5 * half, y + dy, z - dz] for sx in (-1, 1) for dy in (0.17, -0.48) for dz in (0, 0.2)]
        )
        shift = self.world[m.landmarks["lip_upper"]] - head @ (self.shaped[m.landmarks["lip_upper"]] - PIVOT)
        world = ((corners - PIVOT) @ head.T + shift).astype(np.float32)
        screen = np.empty_like(world)
        project(world, self.scale, *self.centre, screen)
        # In full profile lips and their corners lie outside of that.
        lips = pixels[[m.landmarks[name] for name in ("mouth_left", "mouth_right", "lip_upper", "lip_lower")]]
        gap = self.shaped[m.landmarks["lip_upper"], 1] - self.shaped[m.landmarks["lip_lower"], 1]
        return {
            "face_box": self._box(pixels[m.oval]),
            "mouth_box": self._box(np.concatenate([screen[:, :2], lips])),
            "head_box": self._box(seen if seen[1, 0] > 0 else pixels[m.oval]),
            "keypoints": np.stack(marks).astype(np.float32),
            "lip_gap": np.asarray(max(0.0, gap) * self.scale, np.float32),
        }

    def _box(self, points: np.ndarray) -> np.ndarray:
        limit = np.array([self.width, self.height], np.float32)
        low = np.clip(points.min(axis=0), 0, limit)
        high = np.clip(points.max(axis=0), 0, limit)
        return np.concatenate([low, high - low]).astype(np.float32)


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Rotation (3,3) of a head: roll about its front, then pitch, then yaw about the vertical (radians)."""
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    about_z = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
    return (about_y @ about_x @ about_z).astype(np.float32)


def _buffers(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.zeros((height, width), np.float32),
        np.zeros((height, width), np.int32),
        np.zeros((height, width, 2), np.float32),
    )


def _linear(rgb: Any) -> np.ndarray:
    """Linear light (3,) of an sRGB colour."""
    c = np.asarray(rgb, np.float64)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _look(identity: Identity) -> Look:
    """The identity's part of what painting needs; what moves is filled in per frame."""
    shape = identity.shape
    skin = _linear(identity.skin_rgb)
    hair = _linear(identity.hair_rgb)
    lips = skin * np.array([0.86, 0.52, 0.52], np.float32)
    if identity.sex == "woman":
        lips = lips * np.array([1.0, 0.86, 0.90], np.float32)
    if identity.makeup > 0.5:
        lips = 0.45 * lips + 0.55 * _linear((0.74, 0.16, 0.22))
    brows = np.minimum(hair, _linear((0.45, 0.36, 0.28))) * np.float32(0.55)
    if identity.hair_colour in ("grey", "white"):
        brows = hair * np.float32(0.55)
    eye_x, _ = eye_centre(identity)
    return Look(
        skin=skin, lips=lips.astype(np.float32), hair=hair, brows=brows.astype(np.float32),
        iris=_linear(identity.eye_rgb) * np.float32(1.5), cloth=_linear(identity.clothes_rgb),
        second=_linear(identity.second_rgb), hat=_linear(CLOTH_COLOURS[identity.hat_colour]),
        rim=_linear(identity.glasses_rgb), makeup=identity.makeup, freckles=identity.freckles,
        wrinkles=identity.wrinkles, blush=0.35 + 0.5 * shape["cheeks"] + 0.3 * identity.makeup, eye_x=eye_x,
        eye_size=shape["eye_size"], eye_tilt=shape["eye_tilt"], brow_weight=shape["brow_weight"],
        brow_height=shape["brow_height"], brow_arch=shape["brow_arch"], lip_fullness=shape["lip_fullness"],
        half_width=mouth_half_width(identity), nose_y=-0.42 * shape["nose_length"], nose_width=shape["nose_width"],
        beard=BEARDS.index(identity.beard), clothes=CLOTHES.index(identity.clothes),
        pattern=PATTERNS.index(identity.pattern), hair_kind=1 if identity.hair in ("curly", "afro") else 0,
        seed=float(identity.texture_seed % 7919) * 0.0173, blink=0.0, gaze_x=0.0, gaze_y=0.0, brow=0.0,
        glint_x=0.0, glint_y=1.0,
    )  # fmt: skip
