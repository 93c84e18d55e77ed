"""Speech to drive the drawn mouths: synthesised by espeak-ng and flite, or read from a folder of recordings.

Both synthesisers are programs of their own (GPL and BSD); only training calls them, nothing of theirs is shipped.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import tempfile
import wave
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import signal

from hallo3.errors import UserError

from .sentences import babble, sentence

SAMPLE_RATE = 16000
Split = Literal["train", "test"]


@dataclass(frozen=True)
class Voice:
    """A synthetic speaker: program (`espeak-ng` or `flite`), its voice name, and whether it reads English."""

    program: str
    name: str
    english: bool
    split: Split


_LANGUAGES = {"en-gb": True, "en-us": True, "en-gb-scotland": True, "en-029": True, "de": False, "es": False}
_LANGUAGES |= {"it": False, "nl": False, "pl": False, "pt": False, "fi": False, "ja": False, "tr": False}
_VARIANTS = (
    *("m1", "m3", "m7", "f2", "f3", "f5", "Alex", "Alicia", "Denis", "Diogo", "Gene", "Mario", "Michael"),
    *("belinda", "klatt2", "linda", "max", "paul", "steph"),
)
_TEST_LANGUAGES = {"en-gb-x-rp": True, "fr": False, "sv": False}
_TEST_VARIANTS = ("m4", "f4", "Andrea", "Lee", "adam")


def _espeak(languages: dict[str, bool], variants: tuple[str, ...], split: Split) -> list[Voice]:
    return [Voice("espeak-ng", f"{name}+{v}", english, split) for name, english in languages.items() for v in variants]


VOICES = (
    *_espeak(_LANGUAGES, _VARIANTS, "train"),
    *(Voice("flite", name, True, "train") for name in ("slt", "awb", "kal16")),
    *_espeak(_TEST_LANGUAGES, _TEST_VARIANTS, "test"),
    Voice("flite", "rms", True, "test"),
)


def draw_voice(rng: np.random.Generator, split: Split) -> Voice:
    """A voice of the split; flite's, which are taken from real speakers, as often as one time in three."""
    program = "flite" if rng.random() < 1 / 3 else "espeak-ng"
    choice = [voice for voice in VOICES if voice.split == split and voice.program == program]
    return choice[int(rng.integers(len(choice)))]


def synthesize(text: str, voice: Voice, rate: float = 1.0, pitch: float = 1.0) -> np.ndarray:
    """`text` read by `voice`: (n,) float32, mono, 16 kHz.

    rate: 0.5 … 2 times the voice's usual speed. pitch: 0.5 … 2 times its usual pitch.
    The same arguments give the same samples. Raises UserError when the program is not installed or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        if voice.program == "flite":
            # duration_stretch is in times the length; int_f0_target_mean only some voices heed, hence the resampling.
            options = ["-voice", voice.name, "--setf", f"duration_stretch={pitch / rate:.3f}", "-o", str(path)]
            _run(["flite", *options, "-t", text], None)
        else:
            speed = str(int(np.clip(165 * rate, 80, 400)))
            height = str(int(np.clip(50 + 50 * np.log2(pitch), 0, 99)))
            _run(["espeak-ng", "-v", voice.name, "-s", speed, "-p", height, "-w", str(path), "--stdin"], text)
        samples, sample_rate = _read_wave(path)
    # Played faster, a flite voice is higher: its stretched durations make up for it.
    played = sample_rate * pitch if voice.program == "flite" else sample_rate
    return _resample(samples, played)


def installed() -> bool:
    """Whether both programs that read sentences are on this machine."""
    return all(shutil.which(program) for program in ("espeak-ng", "flite"))


def utterance(seed: int, seconds: float, split: Split) -> np.ndarray:
    """At least `seconds` of one synthetic voice saying several things with pauses between: (n,) float32, 16 kHz.

    Seeds fix everything; the voices of the splits differ.
    """
    rng = np.random.default_rng([zlib.crc32(b"utterance"), split == "test", seed])
    voice = draw_voice(rng, split)
    rate, pitch = float(np.exp(rng.normal(0, 0.16))), float(np.exp(rng.normal(0, 0.12)))
    pieces = [np.zeros(int(rng.uniform(0, 0.5) * SAMPLE_RATE), np.float32)]
    while sum(map(len, pieces)) < seconds * SAMPLE_RATE:
        text = sentence(rng) if voice.english and rng.random() < 0.85 else babble(rng)
        pieces.append(_trim(synthesize(text, voice, rate * float(rng.uniform(0.92, 1.08)), pitch)))
        pieces.append(np.zeros(int(rng.exponential(0.35) * SAMPLE_RATE), np.float32))
    return np.concatenate(pieces)


def augment(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another level, and now and then a room, a narrow band or a little noise. Same length; timing is kept."""
    samples = samples.astype(np.float32)
    if rng.random() < 0.25:
        samples = _reverberate(samples, rng)
    if rng.random() < 0.25:
        band = [float(rng.uniform(60, 180)), float(rng.uniform(3800, 7600))]
        samples = signal.sosfiltfilt(signal.butter(2, band, "bandpass", fs=SAMPLE_RATE, output="sos"), samples)
    if rng.random() < 0.4:
        level = np.sqrt(np.mean(samples**2)) * 10 ** (-rng.uniform(28, 50) / 20)
        noise = signal.lfilter([1], [1, -float(rng.uniform(0, 0.9))], rng.standard_normal(len(samples)))
        samples = samples + level * noise / noise.std()
    peak = float(np.abs(samples).max(initial=1e-6))
    return (samples * (10 ** (rng.uniform(-14, -0.5) / 20) / peak)).astype(np.float32)


@dataclass(frozen=True)
class Recording:
    """A sound file and the split its source belongs to."""

    path: Path
    split: Split


_SOUND_FILES = {".flac", ".wav", ".mp3", ".ogg", ".m4a"}

# The published examples are what the finished model is shown with, so no training may hear them.
_TEST_SOURCES = ("fudan-generative-vision/hallo3",)


def recordings(folder: str | Path) -> list[Recording]:
    """The sound files of `folder`, each with its split: a fifth of them, by name, and some sources are for tests.

    An optional `manifest.csv` (columns file, repo) names the sources. Raises UserError when there are no sound files.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in _SOUND_FILES)
    if not paths:
        raise UserError(f"{folder}: no recordings here; give a folder of flac, wav, mp3, ogg or m4a files")
    sources: dict[str, str] = {}
    if (folder / "manifest.csv").is_file():
        try:
            with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
                sources = {row["file"]: row["repo"] for row in csv.DictReader(file)}
        except (KeyError, UnicodeDecodeError, csv.Error):
            raise UserError(f"{folder / 'manifest.csv'}: must be a table with columns file and repo") from None
    found = []
    for path in paths:
        held_out = sources.get(path.name) in _TEST_SOURCES or zlib.crc32(path.name.encode()) % 5 == 0
        found.append(Recording(path, "test" if held_out else "train"))
    return found


def _run(command: list[str], text: str | None) -> None:
    program = command[0]
    if shutil.which(program) is None:
        raise UserError(f"{program}: not installed, but it reads the training sentences; apt install {program}")
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(f"{program} failed ({reason[-1] if reason else done.returncode}); is its voice installed?")


def _read_wave(path: Path) -> tuple[np.ndarray, int]:
    with wave.open(str(path)) as file:
        raw = file.readframes(file.getnframes())
        return np.frombuffer(raw, "<i2").astype(np.float32) / 32768, file.getframerate()


def _resample(samples: np.ndarray, rate: float) -> np.ndarray:
    step = max(round(rate / 50), 1)
    return signal.resample_poly(samples, SAMPLE_RATE // 50, step).astype(np.float32)


def _trim(samples: np.ndarray) -> np.ndarray:
    """Without the silence that the synthesisers put around what they say."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max(initial=1e-6))
    return samples[max(loud[0] - 800, 0) : loud[-1] + 800] if len(loud) else samples


def _reverberate(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A small room: early decay 0.1 … 0.35 s, at most a quarter of the direct sound's strength."""
    length = int(rng.uniform(0.1, 0.35) * SAMPLE_RATE)
    tail = rng.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)
    tail *= rng.uniform(0.05, 0.25) / np.sqrt(np.sum(tail**2))
    tail[0] += 1
    return signal.fftconvolve(samples, tail)[: len(samples)]
