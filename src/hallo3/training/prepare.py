"""What does not change while the phases train, computed once per sample and kept on disk: latents, text, speech, face.

Of latents the posterior's moments are kept: what is sampled from it, and the noise on motion frames, is drawn anew in
every step.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hallo3.conditions.face import black_outside
from hallo3.conditions.speech import encode_speech
from hallo3.conditions.text import encode_prompt
from hallo3.errors import UserError
from hallo3.networks.faces import Box, crop_face
from hallo3.training.data import Sample, box_mask, to_pixels
from hallo3.training.loop import StepRandom
from hallo3.training.phases import Phase, PhaseBatch

REFERENCES = 3  # frames of each sample that may serve as its portrait


@torch.no_grad()
def prepare_sample(
    sample: Sample, parts: dict[str, Any], clip_frames: int, text_length: int, seed: int
) -> dict[str, np.ndarray]:
    """Everything a training step needs of a sample but its pixels.

    Args:
        parts: vae, text_encoder, tokenizer, speech_encoder, feature_extractor, face_encoder (the network).
        clip_frames: Video frames of a training clip; the sample is cut into clips at random places.
        text_length: Word pieces that the networks read.
    """
    random = np.random.default_rng([seed, int(sample.folder.name)])
    count = len(sample.frames)
    starts = np.unique(np.linspace(0, count - clip_frames, max(1, count // clip_frames + 1)).round().astype(int))
    vae, meta = parts["vae"], json.loads((sample.folder / "meta.json").read_text())
    clips = torch.stack([to_pixels(sample.frames[start : start + clip_frames]) for start in starts])
    portraits = random.choice(count, REFERENCES, replace=False)
    boxes: list[Box] = [tuple(float(v) for v in sample.face_box[p]) for p in portraits]  # type: ignore[misc]
    covered = [
        to_pixels(black_outside(np.array(sample.frames[p]), box)[None]) for p, box in zip(portraits, boxes, strict=True)
    ]
    faces = [crop_face(to_pixels(sample.frames[p][None])[:, 0], box) for p, box in zip(portraits, boxes, strict=True)]
    means, deviations = zip(*(posterior(vae, clip[None]) for clip in clips), strict=True)
    reference, reference_deviation = posterior(vae, torch.stack(covered))
    return {
        "starts": starts,
        "latents": torch.cat(means).half().numpy(),
        "deviations": brief(torch.cat(deviations)),
        "portraits": portraits,
        "references": reference.half().numpy(),
        "reference_deviations": brief(reference_deviation),
        "faces": parts["face_encoder"](torch.stack(faces)).float().numpy(),
        "text": encode_prompt(meta["caption"], parts["tokenizer"], parts["text_encoder"], text_length)[0][0].numpy(),
        "speech": speech_rows(sample, parts).half().numpy(),
    }


def posterior(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """`(B, 3, F, H, W)` → mean and deviation of the latents, `(B, T, 16, h, w)` each, scaled."""
    mean, logarithm = vae.encoder(pixels)[0].transpose(1, 2).chunk(2, dim=2)
    return mean * vae.config.scaling_factor, (0.5 * logarithm).exp() * vae.config.scaling_factor


def brief(deviations: Tensor) -> np.ndarray:
    """Deviations that are the same everywhere in a channel (those of our own VAE) as `(1, 1, 16, 1, 1)`."""
    first = deviations[:1, :1, :, :1, :1]
    same = torch.allclose(deviations, first.expand_as(deviations), rtol=1e-3)
    return (first if same else deviations).half().numpy()


def speech_rows(sample: Sample, parts: dict[str, Any]) -> Tensor:
    """Speech features `(F + 4, 12, c)`: at both ends the last row is repeated, as windows there are clamped."""
    rows: Any = encode_speech(
        np.load(sample.folder / "speech.npy"), parts["speech_encoder"], parts["feature_extractor"]
    )
    count = len(sample.frames)
    return rows[0:count][torch.arange(-2, count + 2).clamp(0, count - 1)].float()


def check_length(sample: Sample, clip_frames: int) -> None:
    """Raises UserError for a sample shorter than a training clip."""
    count = len(sample.frames)
    if count < max(clip_frames, REFERENCES):
        raise UserError(f"{sample.folder}: has {count} frames, too few for clip_frames {clip_frames}; draw longer ones")


def write_prepared(
    sample: Sample, out: Path, parts: dict[str, Any], clip_frames: int, text_length: int, seed: int
) -> None:
    """Writes what `prepare_sample` gives as `out/NAME.npz`, aside first; what is there already stays."""
    path = out / f"{sample.folder.name}.npz"
    if path.exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    with aside.open("wb") as file:
        np.savez(file, **prepare_sample(sample, parts, clip_frames, text_length, seed))  # type: ignore[arg-type]
    os.replace(aside, path)


@dataclass(frozen=True)
class Prepared:
    """A sample with what was computed of it."""

    sample: Sample
    tables: dict[str, np.ndarray]

    @classmethod
    def open(cls, sample: Sample, folder: Path) -> "Prepared":
        """Reads `folder/NAME.npz`."""
        with np.load(folder / f"{sample.folder.name}.npz") as tables:
            return cls(sample, {name: tables[name] for name in tables})


def draw_batch(prepared: list[Prepared], phase: Phase, random: StepRandom) -> PhaseBatch:
    """A random batch of clips, each with a portrait from the same sample; latents are sampled from their posterior.

    Clips of one batch are of one size: the first is drawn from all, the others from those of its size.
    """
    items: list[dict[str, Tensor]] = []
    names: list[str] = []
    alike = prepared
    for _ in range(phase.batch):
        chosen = alike[int(random.numpy.integers(len(alike)))]
        if not items:
            alike = [item for item in prepared if item.sample.size == chosen.sample.size]
        items.append(_draw(chosen, phase, random))
        names.append(chosen.sample.folder.name)
    return PhaseBatch(**{name: torch.stack([item[name] for item in items]) for name in items[0]}, names=tuple(names))


def _sampled(mean: np.ndarray, deviations: np.ndarray, index: int, random: StepRandom) -> Tensor:
    """One of several posteriors, sampled."""
    mean_here = torch.from_numpy(mean[index]).float()
    deviation = torch.from_numpy(deviations[min(index, len(deviations) - 1)]).float()
    return mean_here + deviation * torch.randn(mean_here.shape, generator=random.torch)


def _draw(item: Prepared, phase: Phase, random: StepRandom) -> dict[str, Tensor]:
    tables, sample, frames = item.tables, item.sample, phase.clip_frames
    clip, portrait = int(random.numpy.integers(len(tables["starts"]))), int(random.numpy.integers(REFERENCES))
    start = int(tables["starts"][clip])
    seen = sample.frames[[int(tables["portraits"][portrait]), *range(start, start + phase.motion_frames)]]
    rows = torch.from_numpy(tables["speech"][start : start + frames + 4]).float()
    return {
        "latents": _sampled(tables["latents"], tables["deviations"], clip, random),
        "reference": _sampled(tables["references"], tables["reference_deviations"], portrait, random),
        "pictures": to_pixels(seen),
        "text": torch.from_numpy(tables["text"]).float(),
        "face": torch.from_numpy(tables["faces"][portrait]).float(),
        "windows": rows.unfold(0, 5, 1).permute(0, 3, 1, 2),
        "mouth": latent_mouth(sample.mouth_box[start : start + frames], *sample.size),
    }


def latent_mouth(boxes: np.ndarray, height: int, width: int) -> Tensor:
    """Mouth boxes `(F, 4)` of F = 4k + 1 frames → `(k + 1, h, w)`: the share of each latent cell inside."""
    cells = box_mask(boxes / 8, height // 8, width // 8)
    rest = cells[1:].reshape(-1, 4, *cells.shape[1:]).mean(1)
    return torch.from_numpy(np.concatenate([cells[:1], rest]))
