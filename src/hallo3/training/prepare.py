"""What does not change while the phases train, computed once per sample and kept on disk: latents, text, speech, face.

Of latents the posterior's moments are kept: what is sampled from it, and the noise on motion frames, is drawn anew in
every step. With them stands what they were made of and with.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hallo3.conditions.face import Box, Face, black_outside
from hallo3.conditions.speech import encode_speech
from hallo3.conditions.text import encode_prompt
from hallo3.errors import UserError
from hallo3.media.files import writing
from hallo3.training.data import Sample, box_mask, to_pixels
from hallo3.training.loop import StepRandom
from hallo3.training.phases import Phase, PhaseBatch

REFERENCES = 8  # frames of each clip that may serve as the portrait of all clips of its video
BLOCKS, BLOCK = 16, 256  # bytes of a clip's frames, and of its speech, that tell it from others


@torch.no_grad()
def prepare_sample(
    sample: Sample, parts: dict[str, Any], clip_frames: int, text_length: int, seed: int
) -> dict[str, np.ndarray]:
    """Everything a training step needs of a sample but its pixels.

    Args:
        parts: vae, text_encoder, tokenizer, speech_encoder, feature_extractor, face_encoder.
        clip_frames: Video frames of a training clip; the sample is cut into clips at random places.
        text_length: Word pieces that the networks read.
    """
    random = np.random.default_rng([seed, int(sample.folder.name)])
    count = len(sample.frames)
    starts = np.unique(np.linspace(0, count - clip_frames, max(1, count // clip_frames + 1)).round().astype(int))
    vae, meta = parts["vae"], json.loads((sample.folder / "meta.json").read_text())
    clips = torch.stack([to_pixels(sample.frames[start : start + clip_frames]) for start in starts])
    portraits = random.choice(count, min(count, REFERENCES), replace=False)
    boxes: list[Box] = [tuple(float(v) for v in sample.face_box[p]) for p in portraits]  # type: ignore[misc]
    covered = [
        to_pixels(black_outside(np.array(sample.frames[p]), box)[None]) for p, box in zip(portraits, boxes, strict=True)
    ]
    embed = parts["face_encoder"].embed
    faces = [embed(np.array(sample.frames[p]), Face(box)) for p, box in zip(portraits, boxes, strict=True)]
    text, _ = encode_prompt(meta["caption"], parts["tokenizer"], parts["text_encoder"], text_length)
    means, deviations = zip(*(posterior(vae, clip[None]) for clip in clips), strict=True)
    reference, reference_deviation = posterior(vae, torch.stack(covered))
    return {
        "starts": starts,
        "latents": torch.cat(means).half().numpy(),
        "deviations": brief(torch.cat(deviations)),
        "portraits": portraits,
        "references": reference.half().numpy(),
        "reference_deviations": brief(reference_deviation),
        "faces": np.stack(faces).astype(np.float32),
        "text": text[0].float().cpu().numpy(),
        "speech": speech_rows(sample, parts).half().numpy(),
    }


def posterior(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """`(B, 3, F, H, W)` → mean and deviation of the latents, `(B, T, 16, h, w)` each, scaled."""
    mean, logarithm = vae.encoder(pixels.to(vae.device))[0].transpose(1, 2).chunk(2, dim=2)
    return mean.cpu() * vae.config.scaling_factor, (0.5 * logarithm).exp().cpu() * vae.config.scaling_factor


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
    return rows[0:count].cpu()[torch.arange(-2, count + 2).clamp(0, count - 1)].float()


def check_length(sample: Sample, clip_frames: int) -> None:
    """Raises UserError for a sample shorter than a training clip."""
    count = len(sample.frames)
    if count < clip_frames:
        raise UserError(f"{sample.folder}: has {count} frames, too few for clip_frames {clip_frames}; draw longer ones")


def prepared_file(sample: Sample, folder: Path) -> Path:
    """Where what was computed of a sample is kept."""
    return folder / f"{sample.folder.name}.npz"


def write_prepared(sample: Sample, out: Path, parts: dict[str, Any], made_with: "MadeWith") -> None:
    """Writes what `prepare_sample` gives, aside first; what is there already stays.

    Raises UserError when that is of another clip, or was made with something else.
    """
    path = prepared_file(sample, out)
    if path.exists():
        check_prepared(sample, path, made_with)
        return
    aside = path.with_suffix(".part")
    tables = prepare_sample(sample, parts, made_with.clip_frames, made_with.text_length, made_with.seed)
    tables["made_with"] = np.array(json.dumps(made_with.noted() | {"clip": fingerprint(sample)}))
    with writing(path, "what is prepared stays: make room, then start again"):
        out.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            np.savez(file, **tables)  # type: ignore[arg-type]
        os.replace(aside, path)


@dataclass(frozen=True)
class MadeWith:
    """What decides what is prepared, but for the clip: numbers as in `prepare_sample`, digests of the parts by name."""

    clip_frames: int
    text_length: int
    seed: int
    encoders: Mapping[str, str]

    def noted(self) -> dict[str, Any]:
        """As it is written down."""
        numbers = {"clip_frames": self.clip_frames, "text_length": self.text_length, "seed": self.seed}
        return {**numbers, **self.encoders}


ENCODERS = ("vae", "text_encoder", "tokenizer", "speech_encoder", "feature_extractor", "face_encoder")
"""The parts of a bundle that prepare."""


def encoder_digests(parts: Mapping[str, Any]) -> dict[str, str]:
    """Tells the parts that prepare apart by their content: what one has encoded means nothing to another."""
    return {name: _digest(parts[name]) for name in ENCODERS}


def _digest(part: Any) -> str:
    """Of weights, vocabulary or settings; of a VAE of what encodes, so that another decoder does not matter."""
    found = hashlib.blake2b(type(part).__name__.encode(), digest_size=8)
    if hasattr(part, "get_vocab"):
        found.update(json.dumps(part.get_vocab(), sort_keys=True).encode())
    elif hasattr(part, "locator"):  # EmbeddedFaceAnalyzer: boxes are those of the data
        _add_weights(found, part.encoder)
    elif hasattr(part, "decoder"):
        found.update(str(part.config.scaling_factor).encode())
        _add_weights(found, part.encoder)
    elif isinstance(part, nn.Module):
        _add_weights(found, part)
    elif hasattr(part, "folder"):  # InsightFaceAnalyzer: files as published
        for path in sorted(Path(part.folder).glob("*.onnx")):
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "blake2b").digest())
    else:
        found.update(json.dumps(part.to_dict(), sort_keys=True, default=str).encode())
    return found.hexdigest()


def _add_weights(found: Any, module: nn.Module) -> None:
    for name, value in module.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def fingerprint(sample: Sample) -> str:
    """Tells clips apart: all that is said of one, and a few blocks of its frames and speech.

    Not all of them, as it is asked for whenever a training starts, and of all clips.
    """
    found = hashlib.blake2b(digest_size=8)
    for name in ("meta.json", "truth.npz"):
        found.update((sample.folder / name).read_bytes())
    for name in ("frames.npy", "speech.npy"):
        with (sample.folder / name).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            found.update(str(size).encode())
            for place in np.linspace(0, max(0, size - BLOCK), BLOCKS).astype(int):
                file.seek(place)
                found.update(file.read(BLOCK))
    return found.hexdigest()


def check_prepared(sample: Sample, path: Path, made_with: MadeWith) -> None:
    """Raises UserError, naming what differs, for a file that is not of this clip or was made with something else."""
    try:
        with np.load(path) as tables:
            noted = json.loads(str(tables["made_with"])) if "made_with" in tables else None
    except Exception as error:  # As of any damaged file, almost any exception.
        raise UserError(f"{path}: can't be read ({type(error).__name__}); remove it, to prepare it anew") from None
    if noted is None:
        differ = ["by another version"]
    else:
        wanted = made_with.noted() | {"clip": fingerprint(sample)}
        differ = [
            _difference(name, noted.get(name), value) for name, value in wanted.items() if noted.get(name) != value
        ]
    if differ:
        raise UserError(
            f"{path}: was prepared {', '.join(differ)}; remove {path.parent} to prepare anew, or use another out"
        )


def _difference(name: str, found: Any, wanted: Any) -> str:
    if name == "clip":
        return "of another clip"
    return f"with another {name}" if name in ENCODERS else f"with {name} {found}, not {wanted}"


@dataclass(frozen=True)
class Prepared:
    """A sample whose tables lie in `folder`; they are read when they are drawn: a dataset has more than fit.

    Attributes:
        video: The prepared clips that were cut from the same video, itself among them.
    """

    sample: Sample
    folder: Path
    video: tuple[Sample, ...]


def open_prepared(samples: Sequence[Sample], folder: Path) -> list[Prepared]:
    """The samples, all of them prepared, each with the others of its video."""
    videos: dict[tuple[str, tuple[int, int]], list[Sample]] = {}
    for sample in samples:
        videos.setdefault((sample.video, sample.size), []).append(sample)
    together = {key: tuple(clips) for key, clips in videos.items()}
    return [Prepared(sample, folder, together[sample.video, sample.size]) for sample in samples]


def draw_batch(prepared: Sequence[Prepared], phase: Phase, random: StepRandom) -> PhaseBatch:
    """A random batch of clips, each with a portrait from the same video; latents are sampled from their posterior.

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
    sample, frames = item.sample, phase.clip_frames
    with np.load(prepared_file(sample, item.folder)) as tables:
        clip = int(random.numpy.integers(len(tables["starts"])))
        start = int(tables["starts"][clip])
        rows = torch.from_numpy(tables["speech"][start : start + frames + 4]).float()
        drawn = {
            "latents": _sampled(tables["latents"], tables["deviations"], clip, random),
            "text": torch.from_numpy(tables["text"]).float(),
            "windows": rows.unfold(0, 5, 1).permute(0, 3, 1, 2),
            "mouth": latent_mouth(sample.mouth_box[start : start + frames], *sample.size),
        }
    portrait, shown = _draw_portrait(item, random)
    seen = np.concatenate([portrait[None], sample.frames[start : start + phase.motion_frames]])
    return drawn | shown | {"pictures": to_pixels(seen)}


def _draw_portrait(item: Prepared, random: StepRandom) -> tuple[np.ndarray, dict[str, Tensor]]:
    """A random frame of the clip's video, of those that were prepared: `(H, W, 3)`, and what the networks see of it.

    Each clip has a few of its frames prepared as portraits, and the clips of a video share theirs.
    """
    owner = item.video[int(random.numpy.integers(len(item.video)))]
    with np.load(prepared_file(owner, item.folder)) as tables:
        portrait = int(random.numpy.integers(len(tables["portraits"])))
        reference = _sampled(tables["references"], tables["reference_deviations"], portrait, random)
        face = torch.from_numpy(tables["faces"][portrait]).float()
        return owner.frames[int(tables["portraits"][portrait])], {"reference": reference, "face": face}


def latent_mouth(boxes: np.ndarray, height: int, width: int) -> Tensor:
    """Mouth boxes `(F, 4)` of F = 4k + 1 frames → `(k + 1, h, w)`: the share of each latent cell inside."""
    cells = box_mask(boxes / 8, height // 8, width // 8)
    rest = cells[1:].reshape(-1, 4, *cells.shape[1:]).mean(1)
    return torch.from_numpy(np.concatenate([cells[:1], rest]))
