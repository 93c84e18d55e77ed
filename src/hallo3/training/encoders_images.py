"""Face images for the face networks: drawn and photographed, moved, recoloured and covered at random."""

import csv
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import hallo3.studio
from hallo3.errors import UserError
from hallo3.networks.faces import Box
from hallo3.studio.identity import Identity
from hallo3.studio.performance import performance
from hallo3.studio.renderer import render
from hallo3.studio.scene import Scene
from hallo3.training.loop import Log

PORTRAIT_BOXES = Path(hallo3.studio.__file__).parent / "data" / "portrait_boxes.csv"
BOX_COLUMNS = ("x", "y", "width", "height")


@dataclass(frozen=True)
class FaceImage:
    """An image with one face in it, or with none.

    Attributes:
        pixels: `(H, W, 3)` uint8.
        box: `(x, y, w, h)` of the face in pixels; None where there is no face.
        identity: Number of the person: equal numbers, same person.
        source: Where the image comes from; images of one source are trained on or tested on, never both.
        name: What it is called in reports.
    """

    pixels: np.ndarray
    box: Box | None
    identity: int
    source: str
    name: str = ""
    levels: list[Tensor] = field(default_factory=list, compare=False, repr=False)

    def level(self, index: int) -> Tensor:
        """`(1, 3, H/2^index, W/2^index)` uint8: the image halved so often, so that shrinking it does not alias."""
        if not self.levels:
            image = torch.from_numpy(self.pixels.copy()).permute(2, 0, 1)[None].float()
            self.levels.append(image.byte())
            while min(image.shape[-2:]) >= 64:
                image = F.avg_pool2d(image, 2)
                self.levels.append(image.round().byte())
        return self.levels[min(index, len(self.levels) - 1)]


def load_photographs(folder: Path, boxes: Path = PORTRAIT_BOXES, longest: int = 512) -> dict[str, list[FaceImage]]:
    """Photographs with their face boxes, by split ("train", "test"; no source is in both).

    Args:
        folder: Images of `boxes`; those that are not there are left out.
        boxes: CSV with columns `file, x, y, width, height` (fractions of the image's sides), `source` and `split`.
        longest: Images are reduced to this longest side.
    """
    photographs: dict[str, list[FaceImage]] = {"train": [], "test": []}
    with boxes.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            if not (folder / row["file"]).is_file():
                continue
            image = Image.open(folder / row["file"]).convert("RGB")
            image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
            sides = (image.width, image.height, image.width, image.height)
            x, y, w, h = (float(row[name]) * side for name, side in zip(BOX_COLUMNS, sides, strict=True))
            face = FaceImage(np.asarray(image), (x, y, w, h), number, row["source"], row["file"])
            photographs[row["split"]].append(face)
    if not photographs["train"]:
        raise UserError(f"{folder}: none of the photographs named in {boxes.name}; give the folder that holds them")
    return photographs


def draw_faces(folder: Path, people: range, views: int, height: int = 144, width: int = 216, log: Log = print) -> None:
    """Draws people in several scenes, lights and poses: `folder/NNNNN.npz` with `frames` (views, H, W, 3) and `boxes`.

    What is already there is kept, so an interrupted run goes on. The same number gives the same person.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in people:
        path = folder / f"{number:05d}.npz"
        if path.exists():
            continue
        random = np.random.default_rng([zlib.crc32(b"faces"), number])
        identity = Identity.sample(random)
        drawn = []
        for _ in range(views):
            mouth = random.random((2, 1))
            moment = performance(random, mouth[0], mouth[1])
            drawn.append(render(identity, Scene.sample(random), moment, height, width))
        aside = path.with_suffix(".part")
        with aside.open("wb") as file:
            boxes = np.stack([result.face_box[0] for result in drawn])
            np.savez(file, frames=np.stack([result.frames[0] for result in drawn]), boxes=boxes)
        aside.rename(path)
        if number % 50 == 0:
            log(f"person {number} drawn")


def load_drawn(folder: Path, people: range) -> list[FaceImage]:
    """The drawn people of `draw_faces` that are there, one image per view."""
    faces = []
    for number in people:
        path = folder / f"{number:05d}.npz"
        if not path.exists():
            continue
        with np.load(path) as data:
            for frame, box in zip(data["frames"], data["boxes"], strict=True):
                x, y, w, h = (float(value) for value in box)
                faces.append(FaceImage(frame, (x, y, w, h), number, "drawn", path.stem))
    if not faces:
        raise UserError(f"{folder}: no drawn people there; draw them first (python -m hallo3.training.encoders draw)")
    return faces


def warp(face: FaceImage, matrix: np.ndarray, height: int, width: int, around: Tensor | None = None) -> Tensor:
    """The image seen through an affine map, `(3, height, width)`.

    Args:
        matrix: `(2, 3)`, from pixels of the result to pixels of the image.
        around: `(3, height, width)` shown where the image does not reach; None repeats the image's border.
    """
    shrink = math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))
    source = face.level(max(0, round(math.log2(max(shrink, 1e-3)) - 0.25)))
    rows, columns = source.shape[-2:]
    scale = torch.tensor([columns / face.pixels.shape[1], rows / face.pixels.shape[0]])
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    m = torch.from_numpy(np.asarray(matrix, np.float32))
    at = (torch.stack([x, y], -1) @ m[:, :2].T + m[:, 2]) * scale  # pixels of `source`
    # Only the part that is seen is made float: images are larger than what is cut from them.
    limit = torch.tensor([columns, rows])
    low = (at.amin((0, 1)).floor() - 1).clamp(min=0).long().minimum(limit - 1)
    high = (at.amax((0, 1)).ceil() + 1).long().clamp(min=1).minimum(limit).maximum(low + 1)
    part = source[..., low[1] : high[1], low[0] : high[0]].float() / 127.5 - 1
    grid = ((at - low) * 2 / (high - low) - 1)[None]
    seen = F.grid_sample(part, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
    if around is None:
        return seen
    inside = (at >= 0) & (at <= limit)
    return torch.where(inside.all(-1), seen, around)


def similarity(
    centre_in: tuple[float, float], centre_out: tuple[float, float], zoom: tuple[float, float], angle: float
) -> np.ndarray:
    """`(2, 3)` map from result to image: `zoom` image pixels per result pixel across and down, turned by `angle`."""
    cos, sin = math.cos(angle), math.sin(angle)
    linear = np.array([[cos * zoom[0], -sin * zoom[1]], [sin * zoom[0], cos * zoom[1]]])
    return np.concatenate([linear, (np.array(centre_in) - linear @ np.array(centre_out))[:, None]], axis=1)


def recolour(images: Tensor, random: np.random.Generator) -> Tensor:
    """Another light and camera for each of `(B, 3, H, W)`: gain, contrast, gamma, saturation, tint; some grey, blurred
    or noisy. All images together: one by one would take longer than the networks do."""
    count = len(images)

    def each(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).reshape(count, -1, 1, 1)

    images = ((images + 1) / 2).clamp(0, 1) ** each(np.exp(random.normal(0, 0.25, count)))
    images = images * each(np.exp(random.normal(0, 0.08, (count, 3)) + random.normal(0, 0.15, (count, 1))))
    grey = images.mean(1, keepdim=True)
    colour = np.where(random.random(count) < 0.12, 0.0, random.uniform(0.4, 1.4, count))
    images = grey + (images - grey) * each(colour)
    images = (images - 0.5) * each(np.exp(random.normal(0, 0.2, count))) + 0.5
    blurred = torch.from_numpy(random.random(count) < 0.3)
    if blurred.any():
        images[blurred] = blur(images[blurred], float(random.uniform(0.35, 0.9)))
    noisy = torch.from_numpy(random.random(count) < 0.3)
    if noisy.any():
        noise = torch.from_numpy(random.standard_normal(images[noisy].shape, np.float32))
        images[noisy] += noise * each(random.uniform(0.01, 0.06, count))[noisy]
    return images.clamp(0, 1) * 2 - 1


def blur(images: Tensor, factor: float) -> Tensor:
    """`(B, 3, H, W)` reduced to `factor` of its size and enlarged again."""
    small = F.interpolate(images, scale_factor=factor, mode="bilinear", antialias=True)
    return F.interpolate(small, size=images.shape[-2:], mode="bilinear")


def cover(image: Tensor, random: np.random.Generator, largest: float = 0.4) -> Tensor:
    """Hides a rectangle of up to `largest` of each side under a flat colour."""
    height, width = image.shape[-2:]
    h, w = (round(float(random.uniform(0.1, largest)) * side) for side in (height, width))
    top, left = int(random.integers(0, height - h + 1)), int(random.integers(0, width - w + 1))
    image = image.clone()
    image[:, top : top + h, left : left + w] = torch.from_numpy(random.uniform(-1, 1, (3, 1, 1)).astype(np.float32))
    return image


def backdrop(height: int, width: int, random: np.random.Generator) -> Tensor:
    """A faceless image `(3, height, width)`: black, a flat colour, or cloudy noise between colours at random scales."""
    kind = random.random()
    if kind < 0.4:
        return torch.full((3, height, width), -1.0)
    low = torch.from_numpy(random.uniform(-1, 1, (3, 1, 1)).astype(np.float32))
    if kind < 0.55:
        return low.expand(3, height, width).clone()
    total = torch.zeros(1, 1, height, width)
    for cells in (2, 5, 12, 30):
        grid = torch.from_numpy(random.standard_normal((1, 1, cells, cells * 3 // 2)).astype(np.float32))
        weight = float(random.uniform(0, 1)) / cells**0.4
        total += weight * F.interpolate(grid, size=(height, width), mode="bicubic")
    high = torch.from_numpy(random.uniform(-1, 1, (3, 1, 1)).astype(np.float32))
    return low + (high - low) * torch.sigmoid(2 * total[0])
