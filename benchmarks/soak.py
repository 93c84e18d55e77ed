"""kill -9 at random moments: does a corrupt file ever get a final name, and does resuming always complete?

    python benchmarks/soak.py --kills 200

Animates, makes batches, serves jobs and converts a checkpoint, over and over, on the tests' bundle of random weights.
Every run is killed up to three times, each at a random moment, and begun again by the same command; then it may finish.
After each kill whatever has a final name must be whole, with the record of a batch and the server's table of jobs, and
the end must hold what a run that nobody killed gives.
Every process is a fork of one that has read its libraries, so that kills fall on the work and not on reading them.
Exit code 1 if anything was wrong.

Last figures (2026-11-21, two virtual cores of an x86 server, shared): 201 kills in 108 runs, 51 of them on animate, 50
on batch, 51 on convert, 49 on serve; nothing was wrong.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from forked import ended, kill, read_libraries, start

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny

GOLDEN = Path(__file__).parents[1] / "tests" / "data" / "golden"
PATIENCE = 120.0  # seconds after which a run counts as hanging


class Wrong(Exception):
    """Something that must never happen."""


class Work(ABC):
    """A command, and what must hold after it."""

    def __init__(self, folder: Path, given: dict[str, Path]):
        self.folder, self.given = folder, given
        folder.mkdir()

    @abstractmethod
    def words(self) -> list[str]:
        """The command line; given again after a kill."""

    @abstractmethod
    def content(self) -> dict[str, bytes]:
        """What is there under final names, by name. Raises Wrong for what is not whole."""

    def check_end(self) -> None:
        """Raises Wrong where the work is done, and something that is kept of it says otherwise."""
        return

    def once(self, log: Path, seconds: float) -> bool:
        """Runs the command for so long; whether it ended by itself. Raises Wrong if it failed."""
        child = start(self.words(), log)
        code = ended(child, seconds)
        if code is None:
            kill(child)
            return False
        if code:
            raise Wrong(f"exit code {code}: {log.read_text(errors='replace')[-2000:]}")
        return True


def frames_of(video: Path) -> bytes:
    """The decoded frames of a whole, signed video."""
    from hallo3.media.credentials import read_credentials
    from hallo3.media.video import read_video

    try:
        signed = read_credentials(video)
        frames = read_video(video).frames
    except Exception as error:
        raise Wrong(f"{video.name}: {error}") from error
    if signed is None or signed.state != "valid":
        raise Wrong(f"{video.name}: its credentials are {signed and signed.state}")
    return np.stack(frames).tobytes()


class Animate(Work):
    """One video."""

    def words(self) -> list[str]:
        """With --resume where something was begun; a video that is there is not made again, but must read well."""
        out = self.folder / "out.mp4"
        if out.exists():
            return ["inspect", str(out)]
        words = ["animate", str(self.given["portrait"]), str(self.given["speech"]), "-o", str(out)]
        words += ["--bundle", str(self.given["bundle"]), "--no-face", "--steps", "3", "--i-have-the-rights", "-q"]
        return [*words, "--resume"] if list(self.folder.glob("*.state")) else words

    def content(self) -> dict[str, bytes]:
        """The video."""
        return {path.name: frames_of(path) for path in self.folder.glob("*.mp4")}


class Batch(Work):
    """Three videos."""

    def words(self) -> list[str]:
        """The rows are written anew, the same."""
        rows = self.folder / "rows.jsonl"
        row = {name: str(self.given[name]) for name in ("portrait", "speech")}
        rows.write_text("\n".join(json.dumps(row | {"name": f"video{n}", "seed": n}) for n in range(3)))
        words = ["batch", str(rows), "--out", str(self.folder / "out"), "--bundle", str(self.given["bundle"])]
        return [*words, "--no-face", "--steps", "3", "--i-have-the-rights", "-q"]

    def content(self) -> dict[str, bytes]:
        """The videos; and what the record of the rows says must be so."""
        for one in self.outcomes():
            made = self.folder / "out" / str(one["output"])
            if one["status"] not in ("done", "kept") or not made.exists():
                raise Wrong(f"results.jsonl: {one}, and the video is {'there' if made.exists() else 'not there'}")
        return {path.name: frames_of(path) for path in (self.folder / "out").glob("*.mp4")}

    def outcomes(self) -> list[dict[str, Any]]:
        """The record of the rows, whole at any time."""
        path = self.folder / "out" / "results.jsonl"
        try:
            return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        except ValueError as error:
            raise Wrong(f"results.jsonl: {error}") from error

    def check_end(self) -> None:
        """Every row is in the record, once."""
        if [one["line"] for one in self.outcomes()] != [1, 2, 3]:
            raise Wrong(f"results.jsonl: {self.outcomes()}")


class Convert(Work):
    """A published checkpoint as a bundle."""

    def words(self) -> list[str]:
        """Denoiser, reference network and VAE, in small files."""
        dit, vae = GOLDEN / "dit" / "hallo3", GOLDEN / "vae" / "vae" / "3d-vae.pt"
        out = self.folder / "bundle"
        if out.exists():  # it is done: a bundle that is there is not written again, and `content` loads it
            return ["bundles"]
        return ["convert", "--denoiser", str(dit), "--vae", str(vae), "--out", str(out), "-q"]

    def content(self) -> dict[str, bytes]:
        """All files of the bundle."""
        from hallo3.bundles.layout import load_components

        out = self.folder / "bundle"
        if not out.exists():
            return {}
        try:
            load_components(out, ["transformer", "reference_network", "vae"])
        except Exception as error:
            raise Wrong(f"bundle: {error}") from error
        return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


class Serve(Work):
    """A server with two jobs."""

    def words(self) -> list[str]:
        """On a free port."""
        words = ["serve", "--port", "0", "--data", str(self.folder / "data"), "--bundle", str(self.given["bundle"])]
        return [*words, "--rate", "1000"]

    def once(self, log: Path, seconds: float) -> bool:
        """Sends the jobs when the server first answers, and follows them when it is there again."""
        log = self.folder / f"{time.monotonic_ns()}.log"
        child = start(self.words(), log)
        try:
            return self._follow(child, log, time.monotonic() + seconds)
        except httpx.HTTPError:
            code = ended(child, 0.01)
            raise Wrong(f"no answer; exit code {code}: {log.read_text(errors='replace')[-2000:]}") from None
        finally:
            kill(child)

    def _follow(self, child: int, log: Path, until: float) -> bool:
        jobs = self.folder / "jobs.json"
        while time.monotonic() < until:
            found = re.search(r"http://[\d.:]+", log.read_text()) if log.exists() else None
            if found is None:
                time.sleep(0.02)
                continue
            with httpx.Client(base_url=found[0], timeout=60, trust_env=False) as http:
                if not jobs.exists():
                    self._send(http, jobs)
                if all(self._done(http, job) for job in json.loads(jobs.read_text())):
                    return True
            time.sleep(0.05)
        return False

    def _send(self, http: httpx.Client, jobs: Path) -> None:
        sent = []
        for seed in range(2):
            files = {name: self.given[name].read_bytes() for name in ("portrait", "speech")}
            settings = json.dumps({"no_face": True, "seed": seed, "steps": 3})
            answer = http.post("/v1/jobs", files=files, data={"rights": "true", "settings": settings})
            sent.append(answer.raise_for_status().json()["id"])
        jobs.write_text(json.dumps(sent))

    def _done(self, http: httpx.Client, job: str) -> bool:
        state = http.get(f"/v1/jobs/{job}").raise_for_status().json()["state"]
        if state not in ("queued", "running", "done"):
            raise Wrong(f"a job's state is {state}")
        kept = self.folder / f"{json.loads((self.folder / 'jobs.json').read_text()).index(job)}.mp4"
        if state == "done" and not kept.exists():
            kept.write_bytes(http.get(f"/v1/jobs/{job}/result").raise_for_status().content)
        return state == "done"

    def content(self) -> dict[str, bytes]:
        """The fetched results; and all that the server calls a result must be whole, as must its table of jobs."""
        self.rows("PRAGMA integrity_check", [("ok",)])
        for path in (self.folder / "data").rglob("*.mp4"):
            frames_of(path)
        return {path.name: frames_of(path) for path in self.folder.glob("*.mp4")}

    def rows(self, question: str, expected: list[tuple[Any, ...]]) -> None:
        """Asks the table, with what a killed server left of its log of writes."""
        path = self.folder / "data" / "jobs.sqlite"
        if not path.exists():
            return
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as table:
            try:
                found = table.execute(question).fetchall()
            except sqlite3.DatabaseError as error:
                raise Wrong(f"jobs.sqlite: {error}") from error
        if found != expected:
            raise Wrong(f"jobs.sqlite: {question}: {found}")

    def check_end(self) -> None:
        """Both jobs are done, whatever was killed."""
        self.rows("SELECT state, COUNT(*) FROM jobs GROUP BY state", [("done", 2)])


KINDS: dict[str, type[Work]] = {"animate": Animate, "batch": Batch, "convert": Convert, "serve": Serve}


def inputs(folder: Path) -> dict[str, Path]:
    """Bundle, portrait and speech of every run."""
    bundle = tiny.write_bundle(folder / "tiny")
    tiny.portrait().save(folder / "portrait.png")
    return {
        "bundle": bundle,
        "portrait": folder / "portrait.png",
        "speech": tiny.write_wav(folder / "speech.wav", tiny.speech(0.9)),
    }


def whole(kind: str, folder: Path, given: dict[str, Path]) -> tuple[dict[str, bytes], float]:
    """What a run that nobody kills gives, and how long it takes."""
    work, began = KINDS[kind](folder / f"{kind}-whole", given), time.monotonic()
    if not work.once(folder / "log", PATIENCE):
        raise Wrong(f"{kind}: hangs")
    content, took = work.content(), time.monotonic() - began
    work.check_end()
    return content, took


def killed_work(
    kind: str, folder: Path, given: dict[str, Path], expected: dict[str, bytes], seconds: float, kills: int
) -> Iterator[str]:
    """One run that is killed up to so often, then let be; a word for every kill that fell on a living process."""
    work = KINDS[kind](folder, given)
    for _ in range(kills):
        if work.once(folder / "log", random.uniform(0, 1.1 * seconds)):
            break
        yield "kill"
        if not work.content().items() <= expected.items():
            raise Wrong("something under a final name is not what an unbroken run gives")
    if not work.once(folder / "log", PATIENCE):
        raise Wrong("hangs after a kill")
    if work.content() != expected:
        raise Wrong("the end is not what an unbroken run gives")
    work.check_end()


def soak(kills: int, seed: int, folder: Path) -> int:
    """All kinds in turn, until there were as many kills; how many things were wrong."""
    random.seed(seed)
    given = inputs(folder)
    expected = {kind: whole(kind, folder, given) for kind in KINDS}
    fell, wrong, rounds = dict.fromkeys(KINDS, 0), 0, dict.fromkeys(KINDS, 0)
    while sum(fell.values()) < kills:
        kind = min(fell, key=lambda kind: fell[kind])
        place = folder / f"{kind}-{rounds[kind]}"
        rounds[kind] += 1
        try:
            for _ in killed_work(kind, place, given, *expected[kind], random.randint(1, 3)):
                fell[kind] += 1
        except Wrong as error:
            wrong += 1
            print(f"WRONG {place.name}: {error}", flush=True)
        else:
            shutil.rmtree(place)
        print(f"{sum(fell.values())} of {kills} kills, {wrong} wrong", flush=True)
    for kind in KINDS:
        print(f"{kind:8} {fell[kind]:4} kills in {rounds[kind]} runs, {expected[kind][1]:.1f} s each unbroken")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    read_libraries()
    with tempfile.TemporaryDirectory() as name:
        os.environ["HALLO3_HOME"] = name + "/home"
        wrong = soak(options.kills, options.seed, Path(name))
    print(f"{wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
