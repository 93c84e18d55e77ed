"""Whether the same frames give the same H.264: `python benchmarks/encoder_repeats.py [--processes 20] [--times 40]`.

Every process encodes the same clips again and again, on one thread, with x264's own choice of instructions and with
AVX2 at most. 2026-11-21, a Xeon with AVX-512, x264 165 of PyAV 18.1, 25 processes of each, beside other work: its own
choice, 24 of 1000 encodings deviated, in 24 processes; AVX2 at most, none.
"""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from typing import Annotated

import numpy as np
import typer

from hallo3.media import fragments

WIDTH, HEIGHT, CLIPS = 64, 48, (9, 12, 12, 5)
CHOICES = {"its own choice": {}, "AVX2 at most": {"x264-params": "asm=AVX2"}}


def clips() -> list[np.ndarray]:
    """A gradient that moves, with noise: something to search motion in."""
    random, (rows, columns) = np.random.default_rng(0), np.mgrid[:HEIGHT, :WIDTH]
    still = random.integers(0, 40, (HEIGHT, WIDTH, 3))
    moving = [128 + 80 * np.sin((rows + columns + 3 * index) / 9) for index in range(sum(CLIPS))]
    frames = np.stack([(picture[..., None] + still).astype(np.uint8) for picture in moving])
    return np.split(frames, np.cumsum(CLIPS)[:-1])


def encode(times: int, choice: str) -> list[int]:
    """How often each result came, the most frequent first."""
    plain = {"crf": "18", "preset": "medium", "profile": "high", "bf": "0", "threads": "1"} | CHOICES[choice]
    fragments._video_options = lambda crf: plain
    made, pictures = Counter(), clips()
    for _ in range(times):
        encoder = fragments.FragmentEncoder(WIDTH, HEIGHT)
        made[hashlib.sha256(b"".join(map(encoder.clip, pictures))).hexdigest()] += 1
    return [count for _, count in made.most_common()]


def main(
    processes: Annotated[int, typer.Option(min=1, help="Of each choice.")] = 20,
    times: Annotated[int, typer.Option(min=2, help="Encodings in a process.")] = 40,
    only: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    if only:
        print(json.dumps(encode(times, only)))
        return
    found: dict[str, list[list[int]]] = {choice: [] for choice in CHOICES}
    for _ in range(processes):
        for choice, counts in found.items():
            command = [sys.executable, __file__, "--only", choice, "--times", str(times)]
            counts.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    for choice, counts in found.items():
        bad = [sum(rest) for _, *rest in counts]
        print(f"{choice}: {sum(bad)} of {processes * times} encodings deviate, in {sum(map(bool, bad))} processes")


if __name__ == "__main__":
    typer.run(main)
