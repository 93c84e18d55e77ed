"""How good a small bundle is, on people, voices and photographs it has never seen.

Drawn cases: how well the mouth follows the articulation track, how far it opens, whether it follows *this* recording
and not just any, and whether still surroundings stay as in the portrait. Photographs: whether the picture outside the
face holds for ten seconds without jumps. The command is `hallo3 studio score`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError
from ..evaluation.meters import MouthMeter, structural_similarity
from ..evaluation.motion import frame_change
from ..evaluation.sync import lip_sync, wrong_recordings

FPS = 25
FIRST_SEED = 50_000  # of held-out samples, beyond any that are drawn while developing
STILL_SECONDS = 10
JITTERS = 4
BARS = {
    "sync": (">=", 0.6),
    "amplitude low": (">=", 0.5),
    "amplitude high": ("<=", 2.0),
    "wrong recordings": ("<=", 0.4),
    "still areas": (">=", 0.75),
    "photograph outside the face": (">=", 0.6),
    "photograph largest change": ("<=", 4.0),
}


@dataclass(frozen=True)
class Case:
    """A held-out drawn person, what they say, and the mouth and pictures that belong to it."""

    truth: Any
    frames: NDArray[np.uint8]


def generate(
    pipeline: Any, portrait: NDArray[np.uint8], speech: NDArray[np.float32], prompt: str, seed: int, **options: Any
) -> NDArray[np.uint8]:
    """The pipeline's video, (F, H, W, 3) uint8."""
    return pipeline(Image.fromarray(portrait), speech, prompt, seed=seed, **options).frames


def drawn_cases(pipeline: Any, count: int, seconds: float, material: Any = None) -> Iterator[Case]:
    """Generates held-out drawn cases one after the other."""
    from ..studio.dataset import sample

    for index in range(count):
        truth = sample(FIRST_SEED + index, split="test", frames=round(seconds * FPS), material=material)
        frames = generate(
            pipeline, truth.frames[0], truth.speech, truth.caption, index, face_box=tuple(truth.face_box[0])
        )
        yield Case(truth, frames)


def mouth_track(case: Case) -> NDArray[np.floating]:
    """The generated mouth's opening (F,), by a meter that has learned this person from the true frames.

    The meter sees the true frames with their boxes moved about, so that a head that moves otherwise is read as well;
    the generated frames are read where the portrait has its mouth.
    """
    rng = np.random.default_rng(0)
    truth, count = case.truth, len(case.frames)
    boxes = np.concatenate([truth.mouth_box] * JITTERS)
    moved = boxes + np.pad(rng.normal(0, 2, (len(boxes), 2)), ((0, 0), (0, 2)))
    meter = MouthMeter(np.concatenate([truth.frames] * JITTERS), moved, np.tile(truth.opening, JITTERS))
    return meter(case.frames, np.repeat(truth.mouth_box[:1], count, axis=0))


def sync_scores(cases: list[Case]) -> dict[str, float]:
    """Medians of correlation and amplitude ratio, and the 90th percentile of |correlation| with wrong recordings."""
    tracks = [mouth_track(case) for case in cases]
    truths, loudness = ([getattr(case.truth, name) for case in cases] for name in ("opening", "loudness"))
    right = [lip_sync(track, truth) for track, truth in zip(tracks, truths, strict=True)]
    amplitude = float(np.median([score.amplitude for score in right]))
    return {
        "sync": float(np.median([score.correlation for score in right])),
        "amplitude low": amplitude,
        "amplitude high": amplitude,
        "wrong recordings": float(np.percentile(wrong_recordings(tracks, truths, loudness), 90)),
    }


def still_score(pipeline: Any, count: int, material: Any = None) -> dict[str, float]:
    """Median SSIM between the portrait and the picture at ten seconds where neither person nor surroundings move."""
    from ..studio.dataset import sample

    found: list[float] = []
    seed = FIRST_SEED + 1000
    while len(found) < count:
        truth = sample(seed, split="test", frames=STILL_SECONDS * FPS, material=material)
        seed += 1
        if truth.meta["scene"]["dynamic"]:
            continue
        box = tuple(truth.face_box[0])
        frames = generate(pipeline, truth.frames[0], truth.speech, truth.caption, seed, face_box=box)
        mask = np.logical_not(np.any(truth.subject_mask, axis=0))
        found.append(structural_similarity(truth.frames[0], frames[-1], mask))
    return {"still areas": float(np.median(found))}


def find_pictures(folder: Path) -> list[Path]:
    """The photographs of a folder. Raises UserError when there are none."""
    kinds = {".jpg", ".jpeg", ".png"}
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in kinds) if folder.is_dir() else []
    if not pictures:
        raise UserError(f"{folder}: holds no .jpg or .png; give a folder of photographs")
    return pictures


def photograph_scores(
    pipeline: Any, pictures: list[Path], speech: NDArray[np.float32]
) -> tuple[dict[str, float], list[NDArray[np.uint8]]]:
    """The worst photograph's SSIM outside the face at the end, and largest frame-to-frame change over the median."""
    from ..conditions.face import condition_face
    from ..conditions.portrait import frame_portrait
    from ..media.images import read_image

    kept, jumps, videos = [], [], []
    for path in pictures:
        image = read_image(path)
        canvas, framing = frame_portrait(image, pipeline.config.sample_height, pipeline.config.sample_width)
        frames = pipeline(image, speech, "A person talks to the camera.").frames
        x, y, w, h = (round(v) for v in condition_face(pipeline.face_encoder, canvas).box)
        outside = np.ones(canvas.shape[:2], bool)
        outside[max(y, 0) : y + h, max(x, 0) : x + w] = False
        mask = framing.restore(np.repeat(outside[..., None], 3, axis=-1).astype(np.uint8))[..., 0].astype(bool)
        kept.append(structural_similarity(framing.restore(canvas), frames[-1], mask))
        change = frame_change(frames)
        jumps.append(float(change.max() / max(float(np.median(change)), 1e-6)))
        videos.append(frames)
    return {"photograph outside the face": min(kept), "photograph largest change": max(jumps)}, videos


def contact_sheet(videos: list[NDArray[np.uint8]], columns: int = 10) -> Image.Image:
    """A row a video, `columns` frames spread over it, all scaled to a height of 128."""
    rows = []
    for frames in videos:
        chosen = frames[np.linspace(0, len(frames) - 1, columns).round().astype(int)]
        size = (round(128 * frames.shape[2] / frames.shape[1]), 128)
        rows.append(np.concatenate([np.asarray(Image.fromarray(frame).resize(size)) for frame in chosen], axis=1))
    width = max(row.shape[1] for row in rows)
    return Image.fromarray(np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]))


def passes(name: str, value: float) -> bool:
    """Whether a score meets its bar."""
    relation, bar = BARS[name]
    return value >= bar if relation == ">=" else value <= bar


def report(scores: dict[str, float]) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("score", "value", "bar", "")
    for name, value in scores.items():
        relation, bar = BARS[name]
        table.add_row(name, f"{value:.3f}", f"{relation} {bar}", "met" if passes(name, value) else "NOT met")
    Console().print(table)


def score_bundle(
    bundle: str,
    out: Path,
    *,
    photographs: Path | None = None,
    recordings: Path | None = None,
    count: int = 20,
    seconds: float = 4.0,
    still: int = 5,
) -> dict[str, float]:
    """Scores a bundle of the embedded one's size; writes scores.json and contact sheets into `out`.

    Args:
        photographs: Folder of photographs that were not trained on; None leaves their scores out.
        recordings: Folder of recordings to speak now and then, or always where no synthesiser is installed.
        count, seconds: Drawn cases and their length. still: drawn cases of ten seconds in still surroundings.

    Raises:
        UserError: for a bundle that can't be loaded, or a folder without photographs.
    """
    from ..pipeline import Hallo3Pipeline
    from ..studio.dataset import Material
    from ..studio.speech_clips import speech_clip

    out.mkdir(parents=True, exist_ok=True)
    pictures = None if photographs is None else find_pictures(photographs)
    material = Material.find(recordings)
    pipeline = Hallo3Pipeline.from_pretrained(bundle)
    cases = list(drawn_cases(pipeline, count, seconds, material))
    scores = sync_scores(cases)
    pairs = [video for case in cases[:8] for video in (case.truth.frames, case.frames)]
    contact_sheet(pairs).save(out / "drawn.png")
    if still:
        scores |= still_score(pipeline, still, material)
    if pictures is not None:
        speech = speech_clip(FIRST_SEED, STILL_SECONDS * FPS, "test", material.recorded).samples
        found, videos = photograph_scores(pipeline, pictures, speech)
        scores |= found
        contact_sheet(videos).save(out / "photographs.png")
    (out / "scores.json").write_text(json.dumps({"bundle": bundle, "cases": count, **scores}, indent=2) + "\n")
    return scores
