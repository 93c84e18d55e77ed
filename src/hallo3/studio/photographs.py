"""Makes a still photograph talk by bending it: real faces for training, with the mouth's movement known.

The head turns, tilts and sways a little, the lips part over a dark mouth, lids close. The labels
(`data/portrait_boxes.csv`) were drawn by hand over the pictures: the oval of the face, the lips' middle and width, the
eyes' centres.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from hallo3.errors import UserError

from .performance import Performance
from .skeleton import KEYPOINTS
from .voices import Split
from .warping import FRAME_FIELDS, GAP, UPPER, bend, mouth_stretch


@dataclass(frozen=True)
class FaceLabel:
    """A face in a picture; every number is a fraction of the picture's width or height.

    box: x, y, width, height of the oval from forehead to chin and cheek to cheek. teeth: the still's mouth is open.
    source: the repository the picture is from; the splits share none.
    """

    file: str
    sha256: str
    box: tuple[float, float, float, float]
    mouth: tuple[float, float]
    mouth_width: float
    left_eye: tuple[float, float]
    right_eye: tuple[float, float]
    teeth: bool
    source: str
    split: Split

    def mirrored(self) -> FaceLabel:
        """The label of the picture seen in a mirror."""
        x, y, w, h = self.box
        return FaceLabel(
            self.file, self.sha256, (1 - x - w, y, w, h), (1 - self.mouth[0], self.mouth[1]), self.mouth_width,
            (1 - self.right_eye[0], self.right_eye[1]), (1 - self.left_eye[0], self.left_eye[1]),
            self.teeth, self.source, self.split,
        )  # fmt: skip


@dataclass(frozen=True)
class Photograph:
    """A labelled picture on this machine."""

    path: Path
    label: FaceLabel


@dataclass(frozen=True)
class Animated:
    """Frames of a talking photograph and where things are in them; fields as `renderer.Rendered` names them.

    frames: (F,H,W,3) uint8. face_box, mouth_box: (F,4) float32 x, y, w, h in pixels. subject_mask: (F,H,W) uint8,
    roughly head and shoulders; foreground_mask: zeros, what stands before a person in a photograph is not known. yaw,
    pitch, roll: (F,) radians relative to the photograph. keypoints: (F,K,2) float32 as `skeleton.KEYPOINTS`; eyes,
    mouth and chin are known, the others NaN. lip_gap: (F,) pixels. light: (F,4) NaN, it is not known. camera: (F,3)
    shift of the picture in heights of the frame (right, down), and 1.
    """

    frames: np.ndarray
    face_box: np.ndarray
    mouth_box: np.ndarray
    subject_mask: np.ndarray
    foreground_mask: np.ndarray
    yaw: np.ndarray
    pitch: np.ndarray
    roll: np.ndarray
    keypoints: np.ndarray
    lip_gap: np.ndarray
    light: np.ndarray
    camera: np.ndarray


@cache
def face_labels() -> tuple[FaceLabel, ...]:
    """All labels that come with the package."""
    text = resources.files("hallo3.studio").joinpath("data/portrait_boxes.csv").read_text(encoding="utf-8")
    labels = []
    for row in csv.DictReader(text.splitlines()):
        f = {name: float(row[name]) for name in row if name not in ("file", "sha256", "source", "split", "teeth")}
        labels.append(
            FaceLabel(
                file=row["file"],
                sha256=row["sha256"],
                box=(f["x"], f["y"], f["width"], f["height"]),
                mouth=(f["mouth_x"], f["mouth_y"]),
                mouth_width=f["mouth_width"],
                left_eye=(f["left_eye_x"], f["left_eye_y"]),
                right_eye=(f["right_eye_x"], f["right_eye_y"]),
                teeth=row["teeth"] == "1",
                source=row["source"],
                split="test" if row["split"] == "test" else "train",
            )
        )
    return tuple(labels)


def find_photographs(folder: str | Path) -> list[Photograph]:
    """The pictures below `folder` that have a label, known by name and content, in the order of the labels.

    Raises UserError when there are none.
    """
    folder = Path(folder)
    by_name: dict[str, list[FaceLabel]] = {}
    for label in face_labels():
        by_name.setdefault(label.file, []).append(label)
    found = {}
    for path in sorted(folder.rglob("*.jpg")):
        if path.name in by_name:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found.update({label.sha256: path for label in by_name[path.name] if label.sha256 == digest})
    if not found:
        raise UserError(f"{folder}: none of the labelled portraits is here; give the folder they were downloaded to")
    return [Photograph(found[label.sha256], label) for label in face_labels() if label.sha256 in found]


@dataclass(frozen=True)
class Framing:
    """How a picture lies on the canvas.

    step: picture pixels per canvas pixel. origin: picture coordinates (x, y) of the canvas's corner. window: left, top,
    right, bottom of the visible picture on the canvas; outside it the canvas is black.
    """

    step: float
    origin: tuple[float, float]
    window: tuple[float, float, float, float]


def draw_framing(rng: np.random.Generator, label: FaceLabel, size: tuple[int, int], height: int, width: int) -> Framing:
    """A random framing of a picture of `size` (w, h): padded like square portraits, or a crop that holds the face.

    The picture is enlarged a little where possible, so that the camera may drift without showing its edge.
    """
    picture_width, picture_height = size
    x, y, w, h = label.box
    face_height, face_x, face_y = h * picture_height, (x + w / 2) * picture_width, (y + h / 2) * picture_height
    largest = 0.94 * min(picture_width / width, picture_height / height)  # step of the largest crop
    smallest = face_height / (0.8 * height)
    if smallest >= largest or rng.random() < 0.3:
        # The whole picture, or its square around the face, between black bars.
        step = 0.94 * min(picture_width, picture_height) / height
        step = max(step, min(smallest, 0.97 * picture_height / height))
        visible = min(width, 0.97 * picture_width / step)
        left, right = round((width - visible) / 2), round((width + visible) / 2)
        window = (float(left), 0.0, float(right), float(height))
    else:
        step = float(np.exp(rng.uniform(np.log(smallest), np.log(min(largest, 2.6 * smallest)))))
        window = (0.0, 0.0, float(width), float(height))
    middle_x = face_x + float(rng.normal(0, 0.10)) * step * (window[2] - window[0])
    middle_y = face_y + float(rng.normal(0.04, 0.05)) * step * height
    origin_x = _between(middle_x - step * width / 2, -step * window[0], picture_width - step * window[2], 0.015)
    origin_y = _between(middle_y - step * height / 2, 0.0, picture_height - step * height, 0.015)
    return Framing(step, (origin_x, origin_y), window)


def _between(value: float, low: float, high: float, margin: float) -> float:
    """`value` clipped to the range, a margin (share of the range's ends' sizes) away from its ends if there is room."""
    room = min(margin * abs(high + low + 1), max(high - low, 0.0) / 2)
    return float(np.clip(value, low + room, max(high - room, low + room)))


def face_parameters(label: FaceLabel, picture: np.ndarray) -> np.ndarray:
    """The (20,) face description that `warping.bend` reads, in the pixels of `picture` (h, w, 3)."""
    height, width = picture.shape[:2]
    x, y, w, h = label.box
    scale = np.array([width, height], np.float64)
    mouth, left, right = (np.array(point) * scale for point in (label.mouth, label.left_eye, label.right_eye))
    between = (left + right) / 2
    unit = float(np.linalg.norm(mouth - between))
    axis = (right - left) / np.linalg.norm(right - left)
    local = between - mouth
    chin = float(((y + h) * height - mouth[1]) / unit)
    patch = picture[_rows((between[1] + mouth[1]) / 2, unit * 0.25, height), _rows(mouth[0], unit * 0.5, width)]
    skin = patch.reshape(-1, 3).mean(axis=0) if patch.size else np.array([150.0, 120.0, 110.0])
    light = 0.35 * float(np.quantile(patch, 0.95)) + 0.65 * float(skin.max()) if patch.size else 150.0
    numbers = [
        (x + w / 2) * width, (y + h * 0.42) * height, 0.62 * w * width, 0.64 * h * height,
        mouth[0], (y + h * 1.05) * height, mouth[0], mouth[1], axis[0], axis[1],
        label.mouth_width * width / (2 * unit), unit, float(np.clip(chin, 0.35, 1.0)),
        float(np.linalg.norm(right - left)) / unit, float(-axis[1] * local[0] + axis[0] * local[1]) / unit,
        float(axis @ local) / unit, light, *skin,
    ]  # fmt: skip
    return np.array(numbers, np.float64)


def _rows(middle: float, reach: float, size: int) -> slice:
    return slice(max(int(middle - reach), 0), min(int(middle + reach) + 1, size))


def animate(
    picture: np.ndarray, label: FaceLabel, framing: Framing, motion: Performance, height: int, width: int
) -> Animated:
    """The photograph performs `motion`, seen through `framing`.

    picture: (h, w, 3) uint8. Head turns are taken relative to the clip's mean and damped to what a bent picture bears.
    """
    # Sampling needs two picture pixels per canvas pixel and no more.
    shrink = min(1.0, 2.0 / framing.step)
    size = (max(round(picture.shape[1] * shrink), 2), max(round(picture.shape[0] * shrink), 2))
    small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS), np.float32)
    ratio = size[0] / picture.shape[1]
    face = face_parameters(label, small)
    unit = face[11]
    step = framing.step * ratio
    canvas = np.array([framing.origin[0] * ratio, framing.origin[1] * ratio, step, *framing.window], np.float64)
    frames = _frame_parameters(motion, step * height / unit, framing)
    return Animated(
        frames=bend(small, canvas, face, frames, height, width),
        yaw=frames[:, 4].astype(np.float32),
        pitch=frames[:, 5].astype(np.float32),
        roll=frames[:, 2].astype(np.float32),
        keypoints=_keypoints(label, face, frames, canvas, size),
        lip_gap=(GAP * frames[:, 8] * unit / step).astype(np.float32),
        light=np.full((len(frames), 4), np.nan, np.float32),
        # `bend` moves the camera over the picture: the picture goes the other way.
        camera=np.stack([*(-frames[:, 6:8].T * unit / (step * height)), np.ones(len(frames))], 1).astype(np.float32),
        **_truth(label, face, frames, canvas, (size[0], size[1]), height, width),
    )


def _frame_parameters(motion: Performance, canvas_units: float, framing: Framing) -> np.ndarray:
    """(F, 11) parameters for `bend`; canvas_units: the canvas's height in face units."""

    def around(values: np.ndarray, most: float) -> np.ndarray:
        moved = np.asarray(values, np.float64) - float(np.mean(values))
        return most * np.tanh(moved / most)

    padded = framing.window[0] > 0
    drift = 0.0 if padded else canvas_units
    columns = {
        "shift_x": around(motion.head_x, 0.12) * 1.4,
        "shift_y": -around(motion.head_y, 0.10) * 1.4,
        "roll": around(motion.roll, 0.07),
        "zoom": 1 + around(motion.pitch, 0.05) * 0.4,
        "yaw": around(motion.yaw, 0.13),
        "pitch": around(motion.pitch, 0.08),
        "drift_x": np.clip(motion.camera_x, -0.012, 0.012) * drift,
        "drift_y": np.clip(motion.camera_y, -0.012, 0.012) * drift,
        "opening": motion.opening,
        "width": motion.width,
        "blink": motion.blink,
    }
    return np.stack([np.asarray(columns[name], np.float64) for name in FRAME_FIELDS], axis=1)


def _truth(
    label: FaceLabel,
    face: np.ndarray,
    frames: np.ndarray,
    canvas: np.ndarray,
    size: tuple[int, int],
    height: int,
    width: int,
) -> dict[str, np.ndarray]:
    """Boxes and mask of every frame, on the canvas."""
    unit, (x, y, w, h) = face[11], label.box
    box = np.array([x * size[0], y * size[1], w * size[0], h * size[1]])
    jaw = GAP * 0.82 * frames[:, 8] * unit
    middle = _moved(np.array([box[0] + box[2] / 2, box[1] + box[3] / 2]), face, frames, canvas)
    mouth = _moved(np.array([face[6] - face[9] * 0.12 * unit, face[7] + face[8] * 0.12 * unit]), face, frames, canvas)
    face_size = np.stack([np.full(len(frames), box[2]), box[3] + 0.9 * jaw], axis=1) / canvas[2]
    middle[:, 1] += 0.45 * jaw / canvas[2]
    mouth_size = np.array([2 * face[10] * unit * 1.5, 0.95 * unit]) / canvas[2]
    rows, columns = np.mgrid[:height, :width] + 0.5
    mask = np.zeros((len(frames), height, width), np.uint8)
    for index in range(len(frames)):
        dx = (columns - middle[index, 0]) / face_size[index, 0]
        dy = (rows - middle[index, 1]) / face_size[index, 1]
        head = (dx / 0.72) ** 2 + ((dy + 0.1) / 0.72) ** 2 < 1
        body = (dy > 0.4) & (np.abs(dx) < 0.55 + 1.6 * np.clip(dy - 0.45, 0, 0.6))
        mask[index] = head | body
    mask[:, :, : int(canvas[3])] = 0
    mask[:, :, int(np.ceil(canvas[5])) :] = 0
    return {
        "face_box": _clipped(middle, face_size, height, width),
        "mouth_box": _clipped(mouth, np.broadcast_to(mouth_size, middle.shape), height, width),
        "subject_mask": mask,
        "foreground_mask": np.zeros_like(mask),
    }


def _keypoints(
    label: FaceLabel, face: np.ndarray, frames: np.ndarray, canvas: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """(F, K, 2) canvas positions of eyes, mouth and chin, as `warping.bend` puts them."""
    unit, half, chin = face[11], face[10], face[12]
    gap = GAP * frames[:, 8]
    corner = half * np.array([mouth_stretch(float(width)) for width in frames[:, 9]])
    none = np.zeros(len(frames))
    # Along the lips and towards the chin, in face units from the lips' middle.
    mouth = {
        "mouth_left": (-corner, none),
        "mouth_right": (corner, none),
        "lip_upper": (none, -UPPER * gap),
        "lip_lower": (none, (1 - UPPER) * gap),
        "chin": (none, chin + (1 - UPPER) * gap),
    }
    points = {
        name: np.stack([face[6] + unit * (face[8] * u - face[9] * v), face[7] + unit * (face[9] * u + face[8] * v)])
        for name, (u, v) in mouth.items()
    }
    for name, (x, y) in (("eye_left", label.left_eye), ("eye_right", label.right_eye)):
        points[name] = np.tile([[x * size[0]], [y * size[1]]], len(frames))
    found = np.full((len(frames), len(KEYPOINTS), 2), np.nan, np.float32)
    for name, point in points.items():
        reach = np.hypot((point[0] - face[0]) / face[2], (point[1] - face[1]) / face[3])
        depth = np.sqrt(1 - 0.85 * np.minimum(reach, 1) ** 2)
        found[:, KEYPOINTS.index(name)] = _moved(point, face, frames, canvas, depth)
    return found


def _moved(
    point: np.ndarray, face: np.ndarray, frames: np.ndarray, canvas: np.ndarray, depth: np.ndarray | float = 0.8
) -> np.ndarray:
    """(F, 2) canvas positions of a point of the still, (2,) or (2, F), that moves with the head.

    depth: How far before the head's axis it lies, 0…1: the middle of the face turns most.
    """
    unit = face[11]
    relative = point[0] - face[4], point[1] - face[5]
    cos, sin = np.cos(frames[:, 2]) * frames[:, 3], np.sin(frames[:, 2]) * frames[:, 3]
    x = face[4] + cos * relative[0] - sin * relative[1] + frames[:, 0] * unit + frames[:, 4] * depth * face[2]
    y = face[5] + sin * relative[0] + cos * relative[1] + frames[:, 1] * unit - frames[:, 5] * depth * face[3]
    x, y = x - frames[:, 6] * unit, y - frames[:, 7] * unit
    return np.stack([(x - canvas[0]) / canvas[2], (y - canvas[1]) / canvas[2]], axis=1)


def _clipped(middle: np.ndarray, size: np.ndarray, height: int, width: int) -> np.ndarray:
    low = np.clip(middle - size / 2, 0, [width, height])
    high = np.clip(middle + size / 2, 0, [width, height])
    return np.concatenate([low, high - low], axis=1).astype(np.float32)
