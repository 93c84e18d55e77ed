"""What training reads: clips of a dataset, drawn or imported, and photographs as stills."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hallo3.errors import UserError
from hallo3.studio.dataset import open_dataset
from hallo3.studio.speech_clips import SAMPLES_PER_FRAME
from hallo3.training.parallel import rank

PICTURES = (".jpg", ".jpeg", ".png", ".webp")


class Photographs:
    """Photographs as stills of the canvas, cropped, padded, mirrored and recoloured at random.

    Args:
        folder: Images; other files are left out, and those that can't be read are too, and named.
        height, width: Canvas in pixels.
        log: Told of what can't be read; by default lines on stderr, of the first process.

    Raises:
        UserError: for a folder that can't be read, or without an image that can.
    """

    def __init__(
        self, folder: Path, height: int = 128, width: int = 192, log: Callable[[str], None] | None = None
    ) -> None:
        self.height, self.width = height, width
        try:
            paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
        except OSError as error:
            raise UserError(f"{folder}: can't be read ({error.strerror}); give a folder of photographs") from None
        self.images: list[Image.Image] = []
        for path in paths:
            try:
                image = Image.open(path).convert("RGB")
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                reason = " ".join(str(error).split())[:200]
                (log or _complain)(f"left out: {path}: can't be read ({reason}); save it again")
                continue
            image.thumbnail((400, 400), Image.Resampling.LANCZOS)
            self.images.append(image)
        if not self.images:
            raise UserError(f"{folder}: no photographs that can be read; give a folder with .jpg, .png or .webp files")

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
    """One clip of a dataset; frames stay on disk until they are read.

    Attributes:
        size: Height and width of the frames, in pixels.
        mouth_box, face_box: `(F, 4)` x, y, w, h in pixels. opening: `(F,)` 0…1.
        video: What it was cut from, with others; the clip itself where it is all there is.
    """

    folder: Path
    size: tuple[int, int]
    mouth_box: np.ndarray
    face_box: np.ndarray
    opening: np.ndarray
    video: str

    @classmethod
    def open(cls, folder: Path) -> "Sample":
        """Reads the truth of a sample folder. Raises UserError for one that can't be used."""
        try:
            with np.load(folder / "truth.npz") as truth:
                tables = {name: truth[name].astype(np.float32) for name in ("mouth_box", "face_box", "opening")}
            frames, speech = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("frames", "speech"))
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            wrong = _misshapen(frames, speech, tables) + ["caption"] * (not isinstance(meta["caption"], str))
            video = meta.get("made_from", {}).get("video", folder.name)
        except Exception as error:  # Readers meet damaged files with almost any exception.
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{folder}: can't be read ({reason}); make this clip again") from None
        if wrong:
            raise UserError(f"{folder}: not what a clip has: {', '.join(wrong)}; make this clip again")
        return cls(folder, frames.shape[1:3], **tables, video=str(video))

    @property
    def frames(self) -> np.ndarray:
        """`(F, H, W, 3)` uint8, memory-mapped anew: a map holds its file open, and a dataset has more than may be."""
        return np.load(self.folder / "frames.npy", mmap_mode="r")

    @property
    def travel(self) -> float:
        """RMS distance, in pixels, of the face box's middle from where it is in the first frame."""
        middle = self.face_box[:, :2] + self.face_box[:, 2:] / 2
        return float(np.sqrt(((middle - middle[0]) ** 2).sum(1).mean()))


def _misshapen(frames: np.ndarray, speech: np.ndarray, tables: Mapping[str, np.ndarray]) -> list[str]:
    """Names of what has not the shape, the kind or the numbers that a clip's has."""
    count = len(frames)
    right = {
        "frames": frames.ndim == 4 and frames.shape[3] == 3 and frames.dtype == np.uint8,
        "speech": speech.shape == (count * SAMPLES_PER_FRAME,),
        "opening": tables["opening"].shape == (count,),
    }
    for name in ("mouth_box", "face_box"):
        right[name] = tables[name].shape == (count, 4) and bool(np.isfinite(tables[name]).all())
    return [name for name, fine in right.items() if not fine]


def _complain(line: str) -> None:
    if rank() == 0:
        print(line, file=sys.stderr, flush=True)


def open_samples(folder: Path, log: Callable[[str], None] | None = None) -> list[Sample]:
    """All samples of a dataset but those that can't be read.

    Args:
        log: Told of each that is left out, and how many they are; by default lines on stderr, of the first process.

    Raises:
        UserError: when there are none, or none can be read.
    """
    say = log or _complain
    samples, stored = [], open_dataset(folder)
    for clip in stored:
        try:
            samples.append(Sample.open(clip.folder))
        except UserError as error:
            say(f"left out: {error}")
    if not samples:
        raise UserError(f"{folder}: none of its {len(stored)} clips can be read; make the dataset again")
    if len(samples) < len(stored):
        say(f"{folder}: {len(stored) - len(samples)} of {len(stored)} clips are left out")
    return samples


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
