"""Damaged files: does any give a traceback, a hang, or more memory than it may take?

    python benchmarks/damaged_media.py --count 600

Good PNG, JPEG, WebP, WAV, MP3 and MP4 files, cut short, with bytes changed, with noise, with a stretch left out. Each
copy goes through `hallo3 animate` as portrait or speech, MP4 through `hallo3 inspect` too, on the tests' bundle of
random weights. A run must end within 30 s with exit code 0, or 2 and one line, within the memory an undamaged file
takes and half as much again. Exit code 1 if any did not.

Last figures (2026-11-21, two virtual cores of an x86 server, shared): 100 files of each kind, none wrong. Refused in a
line: 100 PNG, 59 JPEG, 57 WebP, 55 WAV, 51 MP3, 161 of 200 runs on MP4; the others were read in spite of the damage.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from forked import kill, read_libraries, start

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "media"))
from media_samples import damaged, tone, write_sound, write_video, write_wav

import tiny

SECONDS, MEMORY = 30.0, 1.5


def good_files(folder: Path) -> dict[str, Path]:
    """One of each kind, by its ending."""
    found = {kind: folder / f"good.{kind}" for kind in ("png", "jpg", "webp", "wav", "mp3", "mp4")}
    for kind in ("png", "jpg", "webp"):
        tiny.portrait().resize((192, 144)).save(found[kind])
    write_wav(found["wav"], tone(0.4, 16_000))
    write_sound(found["mp3"], "libmp3lame", tone(0.5, 44_100, 2), 44_100, "stereo")
    write_video(found["mp4"], 0.5, tone(0.5, 44_100, 2))
    return found


def commands(kind: str, file: Path, folder: Path, good: dict[str, Path], bundle: Path) -> Iterator[list[str]]:
    """The command lines that read the file."""
    picture = kind in ("png", "jpg", "webp")
    portrait, speech = (file, good["wav"]) if picture else (good["png"], file)
    words = ["animate", str(portrait), str(speech), "-o", str(folder / "out.mp4"), "--bundle", str(bundle)]
    yield [*words, "--no-face", "--steps", "1", "--i-have-the-rights", "--overwrite", "-q"]
    if kind == "mp4":
        yield ["inspect", str(file)]


def run(words: list[str], log: Path) -> tuple[str, int]:
    """What was wrong with a run, or nothing; and its peak memory in bytes."""
    log.unlink(missing_ok=True)
    child, began = start(words, log), time.monotonic()
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > SECONDS:
            kill(child)
            return "hangs", 0
        time.sleep(0.005)
    code, text = os.waitstatus_to_exitcode(status), log.read_text(errors="replace") if log.exists() else ""
    peak = usage.ru_maxrss * 1024
    verdict = code == 1 and words[0] == "inspect" and "error:" not in text  # that it carries no mark
    if not (code in (0, 2) or verdict) or "Traceback" in text:
        return f"exit code {code}: {text[-1500:]}", peak
    return ("" if code != 2 or len(text.strip().splitlines()) == 1 else f"more than a line: {text}"), peak


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    read_libraries()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HALLO3_HOME"] = name + "/home"
        bundle, good, log = tiny.write_bundle(folder / "tiny"), good_files(folder), folder / "log"
        print(f"{'kind':5} {'files':>6} {'refused':>8} {'most MB':>8} {'of a good one':>14}")
        for kind, path in good.items():
            usual = max(run(words, log)[1] for words in commands(kind, path, folder, good, bundle))
            refused, most, copies = 0, 0, damaged(path.read_bytes(), options.count // len(good), options.seed)
            for number, copy in enumerate(copies):
                file = folder / f"damaged.{kind}"
                file.write_bytes(copy)
                for words in commands(kind, file, folder, good, bundle):
                    problem, peak = run(words, log)
                    most = max(most, peak)
                    refused += not problem and log.exists() and "damaged." in log.read_text(errors="replace")
                    problem = problem or ("takes too much memory" if peak > MEMORY * usual else "")
                    if problem:
                        wrong += 1
                        print(f"WRONG {kind} {number}, {words[0]}: {problem}", flush=True)
            print(f"{kind:5} {number + 1:6} {refused:8} {most / 1e6:8.0f} {usual / 1e6:14.0f}", flush=True)
    print(f"{wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
