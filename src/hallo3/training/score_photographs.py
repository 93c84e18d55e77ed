"""What the meters say of talking photographs, whose truth nobody knows: what must hold, holds, and the mouth moves."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..conditions.face import BOX_SCALE, Box, condition_face, enlarge
from ..conditions.motion import decode_latents, encode_video, to_tensor
from ..conditions.portrait import frame_portrait
from ..errors import UserError
from ..evaluation.meters import Floats, structural_similarity
from ..evaluation.motion import flicker, frame_change, mouth_motion
from ..evaluation.sync import follows_loudness
from ..media.images import read_image
from ..studio.photographs import face_labels
from .imported import MOUTH
from .score_table import Score, Scores, over

PROMPT = "A person talks to the camera."
UPPER_FACE = (0.1, 0.05, 0.8, 0.5)  # x, y, w, h in sizes of the face's box: brows, eyes and nose
LEAST_FLICKER = 0.1  # grey levels: less is not seen, and no VAE can be blamed for twice of nothing


@dataclass(frozen=True)
class Talking:
    """A photograph's video, on the photograph's part of the canvas.

    frames: (F, h, w, 3). portrait: (h, w, 3), what it began with. decoded: (n, h, w, 3), the portrait, held still,
    through the bundle's VAE. outside, mouth, upper_face: (h, w), parts of the picture.
    """

    frames: NDArray[np.uint8]
    portrait: NDArray[np.uint8]
    decoded: NDArray[np.uint8]
    outside: NDArray[np.bool_]
    mouth: NDArray[np.bool_]
    upper_face: NDArray[np.bool_]


def find_pictures(folder: Path) -> list[Path]:
    """The photographs of a folder that were not trained on: labelled ones of the test split, and ones without a label.

    Labelled ones are known by their content, whatever they are called. Raises UserError when there are none.
    """
    kinds = {".jpg", ".jpeg", ".png"}
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in kinds) if folder.is_dir() else []
    if not pictures:
        raise UserError(f"{folder}: holds no .jpg or .png; give a folder of photographs")
    seen = {label.sha256 for label in face_labels() if label.split == "train"}
    found = [path for path in pictures if hashlib.sha256(path.read_bytes()).hexdigest() not in seen]
    if not found:
        raise UserError(f"{folder}: all {len(pictures)} pictures are ones to train on; give others")
    return found


def talking_photographs(pipeline: Any, pictures: Iterable[Path], speech: NDArray[np.float32]) -> Iterator[Talking]:
    """Generates the videos, one after the other.

    Raises UserError for a picture without a face, or with nothing else.
    """
    for path in pictures:
        image = read_image(path)
        canvas, framing = frame_portrait(image, pipeline.config.sample_height, pipeline.config.sample_width)
        try:
            shown = condition_face(pipeline.face_encoder, canvas).box
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        face = enlarge(shown, 1 / BOX_SCALE, canvas.shape[1], canvas.shape[0])
        inside = (_inside(box, canvas) for box in (shown, _part(face, MOUTH), _part(face, UPPER_FACE)))
        taken, mouth, upper_face = (framing.restore(part)[..., 0].astype(bool) for part in inside)
        if taken.all():
            raise UserError(f"{path}: the face fills the picture; take one with some surroundings")
        yield Talking(
            frames=pipeline(image, speech, PROMPT, watermark=False).frames,
            portrait=framing.restore(canvas),
            decoded=framing.restore(held_still(pipeline, canvas)),
            outside=~taken,
            mouth=mouth,
            upper_face=upper_face,
        )


def held_still(pipeline: Any, canvas: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A clip that shows a picture (H, W, 3) and nothing else, through the VAE: (num_frames, H, W, 3).

    The latents are samples of the posterior, as in training and in the pipeline; their mean would not flicker at all.
    """
    video = to_tensor(canvas).repeat(pipeline.config.num_frames, 1, 1, 1).transpose(0, 1)[None]
    latents = encode_video(pipeline.vae, video, torch.Generator().manual_seed(0))
    return np.concatenate(list(decode_latents(pipeline.vae, latents)))


def photograph_scores(videos: Iterable[Talking], loudness: Floats) -> Scores:
    """The worst picture's SSIM outside the face at the end, largest change over the median, and flicker over the VAE's.

    Of the mouth's motion and the loudness (F,) the median correlation.
    """
    kept, jumps, moved, trembling = [], [], [], []
    for one in videos:
        kept.append(structural_similarity(one.portrait, one.frames[-1], one.outside))
        change = frame_change(one.frames)
        jumps.append(float(change.max() / max(float(np.median(change)), 1e-6)))
        moved.append(follows_loudness(mouth_motion(one.frames, one.mouth, one.upper_face), loudness))
        least = max(flicker(one.decoded, one.outside), LEAST_FLICKER)
        trembling.append(flicker(one.frames, one.outside) / least)
    return {
        "photograph outside the face": Score(min(kept)),
        "photograph largest change": Score(max(jumps)),
        **over("photograph mouth", moved),
        "photograph flicker": Score(max(trembling)),
    }


def _part(box: Box, share: Box) -> Box:
    """A part of a box, given in its sizes."""
    (x, y, w, h), (left, top, across, down) = box, share
    return x + left * w, y + top * h, across * w, down * h


def _inside(box: Box, canvas: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture like the canvas, 1 inside a box and 0 outside."""
    x, y, w, h = (round(value) for value in box)
    mask = np.zeros_like(canvas)
    mask[max(y, 0) : y + h, max(x, 0) : x + w] = 1
    return mask
