"""Training of the face locator: faces, drawn and photographed, put anywhere on a canvas at any size.

The heat map learns a Gaussian around each face's centre by the penalty-reduced focal loss of CenterNet
(arXiv 1904.07850, equation 1); the box is learned at the cells near the centre by generalised IoU (arXiv 1902.09630).
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hallo3.conditions.motion import to_tensor
from hallo3.networks.faces import STRIDE, FaceLocator, box_iou
from hallo3.training.encoders_images import FaceImage, backdrop, cover, recolour, similarity, warp
from hallo3.training.encoders_run import train_encoder, write_metrics
from hallo3.training.loop import Log, LoopSettings, StepRandom


def place_face(face: FaceImage, random: np.random.Generator, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Puts a face on a canvas: as framing would, or of any size and anywhere; turned a little, maybe mirrored.

    Returns:
        `(3, height, width)` in [-1, 1] and the box's corners `(4,)` on it, cut to the canvas; at least 0.7 of the face
        is on it.
    """
    assert face.box is not None
    x, y, w, h = face.box
    rows, columns = face.pixels.shape[:2]
    middle = (x + w / 2, y + h / 2)
    while True:
        if random.random() < 0.5:  # the whole image as framing places it, or about so
            zoom = max(rows / height, columns / width) * math.exp(random.normal(-0.1, 0.2))
            sides = zip(middle, (columns, rows), (width, height), strict=True)
            centre = tuple(out / 2 + (at - side / 2) / zoom + random.normal(0, 0.06) * out for at, side, out in sides)
        else:
            zoom = h / (height * math.exp(random.uniform(math.log(0.13), math.log(0.85))))
            centre = (random.uniform(0, width), random.uniform(0, height))
        angle = float(random.normal(0, math.radians(11)))
        mirror = -1.0 if random.random() < 0.5 else 1.0
        stretched = (zoom * mirror * math.exp(random.normal(0, 0.09)), zoom)
        matrix = similarity(middle, centre, stretched, angle)
        # The box of an upright ellipse after turning, as a face is one.
        half_w = math.hypot(w / 2 * math.cos(angle), h / 2 * math.sin(angle)) / abs(stretched[0])
        half_h = math.hypot(h / 2 * math.cos(angle), w / 2 * math.sin(angle)) / zoom
        whole = np.array([centre[0] - half_w, centre[1] - half_h, centre[0] + half_w, centre[1] + half_h])
        seen = np.clip(whole, 0, [width, height, width, height])
        if (seen[2:] > seen[:2]).all() and np.prod(seen[2:] - seen[:2]) > 0.7 * np.prod(whole[2:] - whole[:2]):
            break
    around = None if random.random() < 0.25 else backdrop(height, width, random)
    return warp(face, matrix, height, width, around), torch.from_numpy(seen.astype(np.float32))


def without_face(face: FaceImage, random: np.random.Generator, height: int, width: int) -> Tensor:
    """A part of an image that does not show its face, or a plain backdrop, `(3, height, width)`."""
    rows, columns = face.pixels.shape[:2]
    x, y, w, h = face.box or (-2.0, -2.0, 0.0, 0.0)
    for _ in range(8):
        seen_w = columns * random.uniform(0.25, 0.8)
        seen_h = seen_w * height / width
        left, top = random.uniform(0, max(columns - seen_w, 1)), random.uniform(0, max(rows - seen_h, 1))
        if left > x + w or left + seen_w < x or top > y + h or top + seen_h < y:
            zoom = (seen_w / width, seen_h / height)
            centre_in = (left + seen_w / 2, top + seen_h / 2)
            return warp(face, similarity(centre_in, (width / 2, height / 2), zoom, 0.0), height, width)
    return backdrop(height, width, random)


def draw_canvas(faces: list[FaceImage], random: np.random.Generator, height: int, width: int) -> tuple[Tensor, Tensor]:
    """One training canvas `(3, height, width)` and the corners `(faces, 4)` of the none, one or two faces on it."""
    face = faces[int(random.integers(len(faces)))]
    kind = random.random()
    if kind < 0.12 or face.box is None:
        canvas, corners = without_face(face, random, height, width), torch.zeros(0, 4)
    elif kind < 0.22:
        half = width // 2
        second = faces[int(random.integers(len(faces)))]
        left, a = place_face(face, random, height, half)
        canvas, corners = left, a[None]
        if second.box is not None:
            right, b = place_face(second, random, height, width - half)
            corners = torch.stack([a, b + torch.tensor([half, 0, half, 0])])
        else:
            right = without_face(second, random, height, width - half)
        canvas = torch.cat([left, right], -1)
    else:
        canvas, box = place_face(face, random, height, width)
        corners = box[None]
    if random.random() < 0.25:
        canvas = cover(canvas, random, 0.3)
    if random.random() < 0.15:
        canvas = canvas[random.permutation(3)]  # a face is one in any colours
    return canvas, corners


class CanvasPool:
    """Canvases by number, each drawn when it is first asked for and then kept: drawing costs as much as learning.

    Args:
        faces: Groups of images; canvas `i` shows one of group `i mod groups`.
        seed: With the number, decides what a canvas shows.
        count: Canvases at most.
    """

    def __init__(self, faces: list[list[FaceImage]], seed: int, count: int, height: int, width: int):
        self.faces, self.seed, self.size = faces, seed, (height, width)
        self.kept: list[tuple[Tensor, Tensor] | None] = [None] * count

    def canvas(self, index: int) -> tuple[Tensor, Tensor]:
        """`(3, height, width)` uint8 and the corners `(faces, 4)` of the faces on it."""
        kept = self.kept[index]
        if kept is None:
            random = np.random.default_rng([self.seed, 1 << 22, index])
            canvas, corners = draw_canvas(self.faces[index % len(self.faces)], random, *self.size)
            kept = self.kept[index] = (((canvas + 1) * 127.5).round().byte(), corners)
        return kept


def targets(corners: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Heat `(rows, columns)`, box per cell `(4, rows, columns)` and its weight `(rows, columns)` for one canvas."""
    heat, weight = torch.zeros(rows, columns), torch.zeros(rows, columns)
    boxes = torch.zeros(4, rows, columns)
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    for box in corners:
        cx, cy = ((box[:2] + box[2:]) / 2 / STRIDE).tolist()
        size = ((box[2:] - box[:2]) / STRIDE).prod().sqrt().item()
        sigma = max(0.7, size / 8)
        near = torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
        row, column = min(int(cy), rows - 1), min(int(cx), columns - 1)
        near[row, column] = 1.0
        mine = near > weight
        boxes = torch.where(mine, box[:, None, None], boxes)
        weight = torch.where(mine, near, weight)
        heat = torch.maximum(heat, near)
    return heat, boxes, torch.where(weight > 0.3, weight, torch.zeros(()))


def heat_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """Penalty-reduced focal loss of heat maps `(B, rows, columns)`, per face."""
    p = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
    centre = heat == 1
    at_faces = (1 - p) ** 2 * p.log() * centre
    elsewhere = (1 - heat) ** 4 * p**2 * (1 - p).log() * ~centre
    return -(at_faces + elsewhere).sum() / centre.sum().clamp(min=1)


def box_loss(sides: Tensor, boxes: Tensor, weight: Tensor) -> Tensor:
    """1 − generalised IoU at the weighted cells; `sides` and `boxes` are `(B, 4, rows, columns)`."""
    rows, columns = sides.shape[-2:]
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    centre = torch.stack([x, y, x, y]).to(sides) * STRIDE
    predicted = (centre + sides * sides.new_tensor([-1, -1, 1, 1])[:, None, None]).permute(0, 2, 3, 1)[weight > 0]
    wanted = boxes.permute(0, 2, 3, 1)[weight > 0]
    hull_low, hull_high = torch.minimum(predicted, wanted)[:, :2], torch.maximum(predicted, wanted)[:, 2:]
    hull = (hull_high - hull_low).prod(-1)
    iou = box_iou(predicted, wanted)
    areas = (predicted[:, 2:] - predicted[:, :2]).prod(-1) + (wanted[:, 2:] - wanted[:, :2]).prod(-1)
    union = areas / (1 + iou)
    loss = 1 - iou + (hull - union) / hull.clamp(min=1e-6)
    weights = weight[weight > 0]
    return (loss * weights).sum() / weights.sum().clamp(min=1e-6)


def train_locator(
    faces: list[list[FaceImage]],
    held_out: dict[str, list[FaceImage]],
    out: Path,
    settings: LoopSettings,
    *,
    config: dict[str, Any] | None = None,
    batch: int = 16,
    canvases: int = 8000,
    device: str = "cpu",
    log: Log = print,
) -> dict[str, Any]:
    """Trains the face locator and writes `face_encoder/locator/` and its metrics.

    Args:
        faces: Groups of images to learn from (drawn, photographed); each gives the same share of every batch.
        held_out: Named groups to measure on.
        out: Folder of parts; the checkpoint lies in `out/checkpoints/locator`.
        canvases: Different canvases drawn; each is recoloured anew whenever it is used.
    """
    torch.manual_seed(settings.seed)
    locator = FaceLocator(**(config or {})).to(device)
    height, width = locator.config["height"], locator.config["width"]

    pool = CanvasPool(faces, settings.seed, canvases, height, width)

    def step_loss(step: int, random: StepRandom) -> tuple[Tensor, dict[str, float]]:
        drawn = [pool.canvas(int(index)) for index in random.numpy.integers(0, canvases, batch)]
        wanted = [targets(corners, height // STRIDE, width // STRIDE) for _, corners in drawn]
        heat, boxes, weight = (torch.stack(column).to(device) for column in zip(*wanted, strict=True))
        images = recolour(torch.stack([canvas for canvas, _ in drawn]).float() / 127.5 - 1, random.numpy)
        logits, sides = locator(images.to(device))
        heats, box = heat_loss(logits[:, 0], heat), box_loss(sides, boxes, weight)
        return heats + 2 * box, {"heat": float(heats.detach()), "box": float(box.detach())}

    train_encoder(locator, step_loss, out / "checkpoints" / "locator", settings, log)
    locator.eval().save_pretrained(out / "face_encoder" / "locator")
    metrics = {name: evaluate_locator(locator, group) for name, group in held_out.items()}
    write_metrics(out / "face_encoder" / "locator", metrics, log)
    return metrics


def evaluate_locator(locator: FaceLocator, faces: list[FaceImage], threshold: float = 0.3) -> dict[str, Any]:
    """Recall at IoU ≥ 0.5, mean IoU, detections too many per image, and the names of faces missed."""
    ious, surplus, missed = [], 0, []
    for face in faces:
        found = locator.locate(to_tensor(face.pixels).to(locator.device), threshold)[0]
        if face.box is None:
            surplus += len(found)
            continue
        wanted = torch.tensor([face.box[0], face.box[1], face.box[0] + face.box[2], face.box[1] + face.box[3]])
        boxes = [torch.tensor([x, y, x + w, y + h]) for (x, y, w, h), _ in found]
        best = max((float(box_iou(box, wanted)) for box in boxes), default=0.0)
        ious.append(best)
        surplus += len(found) - (best >= 0.5)
        if best < 0.5:
            missed.append(f"{face.name} ({best:.2f})")
    return {
        "faces": len(ious),
        "recall": sum(iou >= 0.5 for iou in ious) / max(1, len(ious)),
        "mean_iou": sum(ious) / max(1, len(ious)),
        "surplus_per_image": surplus / max(1, len(faces)),
        "missed": missed,
    }
