"""The sample that comes with the package: `python -m hallo3.studio.sample --out src/hallo3/embedded/sample`.

A drawn person and a synthesised voice, neither of them in the training data of the embedded bundle.
"""

import argparse
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


def draw(height: int = 256, width: int = 384) -> tuple[np.ndarray, str]:
    """The person, (height, width, 3) uint8 with the mouth closed, and a caption that describes the picture."""
    rng = np.random.default_rng(SEED)
    identity, scene = Identity.sample(rng), Scene.sample(rng)
    still = performance(rng, np.zeros(2), np.full(2, 0.5), "calm")[:1]
    return render(identity, scene, still, height, width).frames[0], caption(rng, identity, scene, still)


def speak() -> np.ndarray:
    """The speech: (n,) float32, mono, 16 kHz."""
    voice = next(voice for voice in VOICES if voice.name == VOICE)
    samples = synthesize(TEXT, voice)
    return samples * (0.7 / np.abs(samples).max())


def main() -> None:
    """Write portrait.png, speech.wav and prompt.txt into the folder given."""
    import wave

    parser = argparse.ArgumentParser(description="The package's sample portrait, speech and prompt.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    picture, prompt = draw()
    Image.fromarray(picture).save(folder / "portrait.png")
    with wave.open(str(folder / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((np.clip(speak(), -1, 1) * 32767).astype("<i2").tobytes())
    (folder / "prompt.txt").write_text(prompt + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
