"""The samples that come with the package: `python -m hallo3.studio.sample --out src/hallo3/embedded/sample`.

A drawn person and a synthesised voice, neither of them in the training data of the embedded bundle. With `--page`, some
more for the page in the browser (src/hallo3/web/samples).
"""

import argparse
import json
import wave
from pathlib import Path

import numpy as np
from PIL import Image

from .captions import caption
from .identity import Identity
from .performance import performance
from .renderer import render
from .scene import Scene
from .voices import VOICES, synthesize

SEED = 911
VOICE = "rms"
TEXT = "Hello, and welcome. I was drawn by a program, and now I move my mouth to speak."
PAGE_SEEDS = (936, 921, 932, 941)
PAGE_TEXTS = ("Good morning.", "The sea was calm, and nobody said a word.")
PAGE_PROMPTS = (
    "A woman talks by the sea, waves rolling behind her.",
    "In a snowy forest, a man talks, snow falling all around.",
    "A person talks in the city at night, cars driving by.",
)


def draw(seed: int = SEED, height: int = 256, width: int = 384) -> tuple[np.ndarray, str]:
    """The person, (height, width, 3) uint8 with the mouth closed, and a caption that describes the picture."""
    rng = np.random.default_rng(seed)
    identity, scene = Identity.sample(rng), Scene.sample(rng)
    still = performance(rng, np.zeros(2), np.full(2, 0.5), "calm")[:1]
    return render(identity, scene, still, height, width).frames[0], caption(rng, identity, scene, still)


def speak(text: str = TEXT) -> np.ndarray:
    """The speech: (n,) float32, mono, 16 kHz."""
    voice = next(voice for voice in VOICES if voice.name == VOICE)
    samples = synthesize(text, voice)
    return samples * (0.7 / np.abs(samples).max())


def main() -> None:
    """Write portrait.png, speech.wav and prompt.txt, or the page's samples, into the folder given."""
    parser = argparse.ArgumentParser(description="The package's sample portraits, speech and prompts.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--page", action="store_true", help="the page's samples")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    (_write_page if given.page else _write)(given.out)


def _write(folder: Path) -> None:
    picture, prompt = draw()
    Image.fromarray(picture).save(folder / "portrait.png")
    _save(speak(), folder / "speech.wav")
    (folder / "prompt.txt").write_text(prompt + "\n", encoding="utf-8")


def _write_page(folder: Path) -> None:
    people: dict[str, str] = {}
    recordings: dict[str, str] = {}
    for number, seed in enumerate(PAGE_SEEDS, start=1):
        picture, people[f"person-{number}.jpg"] = draw(seed)
        Image.fromarray(picture).save(folder / f"person-{number}.jpg", quality=92)
    for number, text in enumerate(PAGE_TEXTS, start=1):
        recordings[f"speech-{number}.wav"] = text
        _save(speak(text), folder / f"speech-{number}.wav")
    listed = {"people": people, "recordings": recordings, "embedded": TEXT, "prompts": PAGE_PROMPTS}
    (folder / "samples.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def _save(samples: np.ndarray, path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


if __name__ == "__main__":
    main()
