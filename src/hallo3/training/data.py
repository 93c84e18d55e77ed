"""What training reads: clips of the studio's dataset, and photographs as stills."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hallo3.studio.dataset import open_dataset


class Photographs:
    """Photographs as stills of the canvas, cropped, padded, mirrored and recoloured at random.

    Args:
        folder: Images; files that are none are left out.
        height, width: Canvas in pixels.
    """

    def __init__(self, folder: Path, height: int = 128, width: int = 192):
        self.height, self.width = height, width
        self.images: list[Image.Image] = []
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
                image = Image.open(path).convert("RGB")
                image.thumbnail((400, 400), Image.Resampling.LANCZOS)
                self.images.append(image)

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """One still, `(H, W, 3)` uint8."""
        image = self.images[int(random.integers(len(self.images)))]
        if random.random() < 0.4:
            result = self._padded(image)
        else:
            scale = max(self.height / image.height, self.width / image.width) * float(np.exp(random.uniform(0, 0.4)))
            w, h = self.width / scale, self.height / scale
            x, y = random.uniform(0, image.width - w + 1e-6), random.uniform(0, image.height - h + 1e-6)
            box = (x, y, x + w, y + h)
            result = image.resize((self.width, self.height), Image.Resampling.LANCZOS, box=box)
        pixels = np.asarray(result)
        return pixels[:, ::-1] if random.random() < 0.5 else pixels

    def _padded(self, image: Image.Image) -> Image.Image:
        scale = min(self.height / image.height, self.width / image.width)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        canvas = Image.new("RGB", (self.width, self.height))
        canvas.paste(
            image.resize(size, Image.Resampling.LANCZOS), ((self.width - size[0]) // 2, (self.height - size[1]) // 2)
        )
        return canvas


@dataclass(frozen=True)
class Sample:
    """One clip of the studio's dataset; frames stay on disk until they are read.

    Attributes:
        frames: `(F, H, W, 3)` uint8, memory-mapped.
        mouth_box, face_box: `(F, 4)` x, y, w, h in pixels. opening: `(F,)` 0…1.
    """

    folder: Path
    frames: np.ndarray
    mouth_box: np.ndarray
    face_box: np.ndarray
    opening: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> "Sample":
        """Reads the truth of a sample folder and maps its frames."""
        with np.load(folder / "truth.npz") as truth:
            tables = {name: truth[name].astype(np.float32) for name in ("mouth_box", "face_box", "opening")}
        return cls(folder, np.load(folder / "frames.npy", mmap_mode="r"), **tables)

    @property
    def travel(self) -> float:
        """RMS distance, in pixels, of the face box's middle from where it is in the first frame."""
        middle = self.face_box[:, :2] + self.face_box[:, 2:] / 2
        return float(np.sqrt(((middle - middle[0]) ** 2).sum(1).mean()))


def open_samples(folder: Path) -> list[Sample]:
    """All samples of a dataset of the studio. Raises UserError when there are none."""
    return [Sample.open(stored.folder) for stored in open_dataset(folder)]


def box_mask(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes `(F, 4)` x, y, w, h in pixels → `(F, height, width)` float32, the share of each pixel inside the box."""

    def cover(start: np.ndarray, length: np.ndarray, size: int) -> np.ndarray:
        edges = np.arange(size, dtype=np.float32)
        begin, end = start[:, None], (start + length)[:, None]
        return np.clip(np.minimum(edges + 1, end) - np.maximum(edges, begin), 0, 1)

    rows, columns = cover(boxes[:, 1], boxes[:, 3], height), cover(boxes[:, 0], boxes[:, 2], width)
    return (rows[:, :, None] * columns[:, None, :]).astype(np.float32)


def cut_clip(
    sample: Sample, frames: int, height: int, width: int, random: np.random.Generator, aim: float = 0.0
) -> tuple[Tensor, Tensor]:
    """A random part of a sample in time and place, `(3, frames, height, width)`, and its mouth `(1, frames, …)`.

    aim: Chance that the part lies around the mouth.
    """
    count, full_height, full_width = sample.frames.shape[:3]
    start = int(random.integers(count - frames + 1))
    span = slice(start, start + frames)
    top, left = int(random.integers(full_height - height + 1)), int(random.integers(full_width - width + 1))
    if random.random() < aim:
        x, y, w, h = sample.mouth_box[start]
        jitter = random.uniform(-0.3, 0.3, 2)
        top = int(np.clip(y + h / 2 - height * (0.5 + jitter[0]), 0, full_height - height))
        left = int(np.clip(x + w / 2 - width * (0.5 + jitter[1]), 0, full_width - width))
    pixels = to_pixels(np.array(sample.frames[span, top : top + height, left : left + width]))
    mouth = box_mask(sample.mouth_box[span] - np.array([left, top, 0, 0], np.float32), height, width)
    if random.random() < 0.5:
        return pixels.flip(-1), torch.from_numpy(mouth[:, :, ::-1].copy())[None]
    return pixels, torch.from_numpy(mouth)[None]


def to_pixels(frames: np.ndarray) -> Tensor:
    """`(F, H, W, 3)` uint8 → `(3, F, H, W)` in [-1, 1]."""
    return torch.from_numpy(np.array(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1
