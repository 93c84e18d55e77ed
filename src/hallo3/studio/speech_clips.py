"""Clips of speech with the mouth movement that belongs to them, for whatever learns from speech alone."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hallo3.errors import UserError

from .articulation import Articulation, articulation
from .voices import SAMPLE_RATE, Recording, Split, augment, installed, utterance

if TYPE_CHECKING:
    from hallo3.media.sound import Speech

SAMPLES_PER_FRAME = 640
RECORDED_SHARE = 0.2


@dataclass(frozen=True)
class SpeechClip:
    """Speech as a listener gets it, and the mouth movement of the clean speech behind it.

    samples: (F · 640,) float32, 16 kHz. movement: F frames. source: `synthetic` or the recording's name.
    """

    samples: np.ndarray
    movement: Articulation
    source: str


def speech_clip(seed: int, frames: int, split: Split, recorded: Sequence[Recording] = ()) -> SpeechClip:
    """`frames` video frames of speech; one clip in five is cut from the split's `recorded` files, if any are given.

    All are where no synthesiser is installed. Raises UserError when there is nothing to take speech from.
    """
    rng = np.random.default_rng([zlib.crc32(b"speech clip"), split == "test", seed])
    length = frames * SAMPLES_PER_FRAME
    files = [recording for recording in recorded if recording.split == split]
    if files and (rng.random() < RECORDED_SHARE or not installed()):
        recording = files[int(rng.integers(len(files)))]
        samples, source = _read(recording.path), recording.path.stem
        start = int(rng.integers(max(len(samples) - length, 0) // SAMPLES_PER_FRAME + 1)) * SAMPLES_PER_FRAME
    else:
        samples, source = utterance(seed, frames / 25, split), "synthetic"
        start = 0
    # The movement is judged on the whole recording, like a speaker's own habits, then cut.
    movement = articulation(samples)
    samples = np.pad(samples, (0, max(start + length - len(samples), 0)))[start : start + length]
    first = start // SAMPLES_PER_FRAME
    return SpeechClip(augment(samples, rng), _cut(movement, first, frames), source)


def write_speech(
    folder: str | Path, count: int, split: Split, recorded: Sequence[Recording] = (), first_seed: int = 0
) -> int:
    """Writes `count` files `NNNNN.npz` (samples, opening, width, loudness, phone_class) of 6 … 10 seconds.

    Returns how many are new. What is already there is kept, so an interrupted run goes on where it stopped.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for seed in range(first_seed, first_seed + count):
        path = folder / f"{seed:05d}.npz"
        if path.exists():
            continue
        frames = int(np.random.default_rng([seed, 6]).integers(150, 251))
        clip = speech_clip(seed, frames, split, recorded)
        movement = clip.movement
        aside = path.with_suffix(".part")
        with open(aside, "wb") as file:
            np.savez(
                file,
                samples=clip.samples,
                opening=movement.opening,
                width=movement.width,
                loudness=movement.loudness,
                phone_class=movement.phone_class,
            )
        aside.rename(path)
        written += 1
    return written


def as_sound(samples: np.ndarray) -> Speech:
    """A clip's samples (n,) at 16 kHz as the sound of a video. It may be silent: people pause, and clips are cut there.

    What a user gives as speech comes from `media.sound`, which refuses silence.
    """
    from hallo3.media.sound import Speech

    samples = np.asarray(samples, np.float32)
    return Speech(samples, "a clip's sound", SAMPLE_RATE, 1, original=samples[None])


def _read(path: Path) -> np.ndarray:
    from hallo3.media.sound import read_speech

    samples = read_speech(path).samples
    if len(samples) < SAMPLE_RATE // 2:
        raise UserError(f"{path}: shorter than half a second; take it out of the folder of recordings")
    return samples


def _cut(movement: Articulation, first: int, frames: int) -> Articulation:
    """Frames `first` … `first + frames` of a movement; past its end the mouth rests."""

    def cut(track: np.ndarray, rest: float) -> np.ndarray:
        piece = track[first : first + frames]
        return np.pad(piece, (0, frames - len(piece)), constant_values=rest)

    return Articulation(
        opening=cut(movement.opening, 0),
        width=cut(movement.width, 0.5),
        loudness=cut(movement.loudness, 0),
        phone_class=cut(movement.phone_class, 0),
    )
