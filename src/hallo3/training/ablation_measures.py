"""What a training of the comparison is worth: its videos of held-out people, read by the meters, kept as numbers."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hallo3.evaluation.meters import Floats
from hallo3.evaluation.motion import clip_borders
from hallo3.studio.dataset import DRAWINGS, Material, Sample
from hallo3.studio.scene import PLACES, STILL_ONLY
from hallo3.training.ablation import (
    PUBLISHED,
    Ablation,
    Run,
    Scales,
    bundle_config,
    folder,
    folder_digest,
    resolve_bundle,
    runs,
)
from hallo3.training.loop import Log
from hallo3.training.parallel import rank, run_processes, share
from hallo3.training.phases import NETWORKS
from hallo3.training.score_cases import VIEWS, drawn_truth, generate
from hallo3.training.score_drawn import COMPARED, LEAST_PART, Reader, Reading

FRONT = "front"
MOVING, STILL = "moving scene", "still scene"
# Seeds of people. Those of either scene are the same people in the same places.
FIRST = {FRONT: 60_000, **{name: 61_000 + 100 * number for number, name in enumerate(VIEWS)}}
FIRST_SCENE = 112_000
METERS = 3
"""Counts how often the meters or the people came to be others: what was measured before is measured again."""
SHOWN, COLUMNS = 3, 8  # people whose videos are kept for the contact sheets, and frames of each

RAW: dict[str, Callable[[Reading], float]] = {
    "background speed": lambda reading: reading.background,
    "foreground change": lambda reading: reading.foreground,
}
"""Meters that are no shares of the truth's, which stands still in a still scene."""


@dataclass(frozen=True)
class Measured:
    """What the meters say of one set of videos, case by case; NaN where there was nothing to measure.

    meters: by name (cases,), as `COMPARED` and `RAW`. faces: (cases, n, c) features of the face in every fifth frame.
    stills: (shown, columns, H, W, 3) uint8. settings: with which it was measured.
    """

    meters: dict[str, Floats]
    faces: Floats
    stills: NDArray[np.uint8]
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Writes everything as one file, aside first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        tables: dict[str, Any] = {f"meters/{name}": values for name, values in self.meters.items()}
        with aside.open("wb") as file:
            about = np.array(json.dumps(self.settings))
            np.savez_compressed(file, faces=self.faces, stills=self.stills, settings=about, **tables)
        os.replace(aside, path)

    @classmethod
    def read(cls, path: Path) -> "Measured":
        """Reads what `write` wrote."""
        with np.load(path) as tables:
            meters = {name.removeprefix("meters/"): tables[name] for name in tables if name.startswith("meters/")}
            return cls(meters, tables["faces"], tables["stills"], _settings(tables))


def _settings(tables: Any) -> dict[str, Any]:
    """Empty for what was measured before they were kept."""
    return json.loads(str(tables["settings"])) if "settings" in tables else {}


@dataclass(frozen=True)
class Task:
    """One set of videos: a training (None: the truth), the people, and the scales of guidance."""

    run: Run | None
    people: str
    scales: Scales

    def path(self, ablation: Ablation) -> Path:
        """Where its numbers are."""
        name = "truth" if self.run is None else f"{self.run}_{self.scales}"
        return ablation.out / "measured" / f"{name}_{self.people.replace(' ', '-')}.npz"

    def settings(self, ablation: Ablation) -> dict[str, Any]:
        """All that decides what is measured; plain values for JSON."""
        told: dict[str, Any] = {"meters": METERS, "drawings": DRAWINGS, "seconds": ablation.seconds}
        told |= {"people": people_of(ablation, self.people), "bundle": folder_digest(resolve_bundle(ablation))}
        told["recordings"] = folder_digest(ablation.recordings)
        if self.run is not None:
            told["sampling_steps"] = ablation.sampling_steps
            told["weights"] = weights_digest(folder(ablation, self.run) / "bundle")
        return told

    def why_not_measured(self, ablation: Ablation) -> str | None:
        """What keeps the numbers that are there from being those of these settings; None where nothing does."""
        if not self.path(ablation).exists():
            return "is not measured yet"
        with np.load(self.path(ablation)) as tables:
            known, now = _settings(tables), self.settings(ablation)
        if not known:
            return "was measured with settings that nobody noted"
        for name in now:
            if known.get(name) != now[name]:
                return f"was measured with {name}={known.get(name)}, not {now[name]}"
        return None


def people_of(ablation: Ablation, people: str) -> int:
    """How many people there are of a kind."""
    if people in (MOVING, STILL):
        return ablation.scenes
    return ablation.cases if people == FRONT else ablation.views


def weights_digest(bundle: Path) -> str:
    """Tells the networks of one training from another's."""
    found = hashlib.blake2b(digest_size=6)
    for path in sorted(path for part in NETWORKS.values() for path in (bundle / part).glob("*.safetensors")):
        found.update(path.read_bytes())
    return found.hexdigest()


def seen(ablation: Ablation) -> list[str]:
    """The kinds of people that there are any of."""
    return [people for people in (FRONT, *VIEWS, MOVING, STILL) if people_of(ablation, people)]


def tasks(ablation: Ablation) -> list[Task]:
    """Everything that the report needs, each once."""
    settings = [
        ablation.scales,
        *(scales for name in ("speech", "text", "reference") for scales in ablation.sweep(name)),
    ]
    found = [Task(None, FRONT, ablation.scales)]
    found += [Task(run, FRONT, ablation.scales) for run in runs(ablation)]
    published = [run for run in runs(ablation) if run.variant == PUBLISHED]
    found += [Task(run, FRONT, scales) for scales in dict.fromkeys(settings) for run in published]
    others = (people for people in seen(ablation) if people != FRONT)
    found += [Task(run, people, ablation.scales) for people in others for run in (None, *published)]
    return list(dict.fromkeys(found))


def measure_all(ablation: Ablation, log: Log = print) -> None:
    """Measures what is not measured yet; every training must have its bundle."""
    found = {task: task.why_not_measured(ablation) for task in tasks(ablation)}
    missing = [task for task, why in found.items() if why]
    if missing:
        log(f"{len(missing)} of {len(found)} sets of videos to make and measure")
        for task in missing:
            if task.path(ablation).exists():
                log(f"{task.path(ablation).stem} {found[task]}: again")
        run_processes(ablation.processes, _measure_share, ablation, missing)


def _measure_share(ablation: Ablation, missing: list[Task]) -> None:
    for kind in seen(ablation):
        mine = share([task for task in missing if task.people == kind])
        people = People(ablation, kind) if mine else None
        for task in mine:
            assert people is not None
            people.measure(task).write(task.path(ablation))
            print(f"process {rank()}: measured {task.path(ablation).stem}", file=sys.stderr, flush=True)


def draw_people(ablation: Ablation, kind: str) -> Iterator[Sample]:
    """Held-out people of a kind."""
    material, config, count = Material.find(ablation.recordings), bundle_config(ablation), people_of(ablation, kind)
    draw = partial(drawn_truth, config, seconds=ablation.seconds, material=material)
    if kind in (MOVING, STILL):
        for seed, place in scenes_with_foreground(config, count):
            yield draw(seed, place=place, dynamic=kind == MOVING)
    else:
        for number in range(count):
            yield draw(FIRST[kind] + number, style=VIEWS.get(kind))


def scenes_with_foreground(config: dict[str, Any], count: int) -> list[tuple[int, str]]:
    """Seeds and places of the first people who have enough before them to be measured."""
    found: list[tuple[int, str]] = []
    places, seed = [place for place in PLACES if place not in STILL_ONLY], FIRST_SCENE
    while len(found) < count:
        place = places[seed % len(places)]
        glance = drawn_truth(config, seed, 0.08, place=place, dynamic=True)
        if (glance.foreground_mask[0] > 0).mean() >= LEAST_PART:
            found.append((seed, place))
        seed += 1
    return found


class People:
    """Held-out people of one kind, with the meters that know them."""

    def __init__(self, ablation: Ablation, kind: str):
        """Draws them."""
        self.ablation = ablation
        self.readers = [Reader(truth) for truth in draw_people(ablation, kind)]
        self.true = [reader(reader.truth.frames) for reader in self.readers]

    def measure(self, task: Task) -> Measured:
        """Makes the task's videos and reads them."""
        readings: list[Reading] = []
        stills: list[NDArray[np.uint8]] = []
        for reader, frames, borders in self._videos(task):
            readings.append(reader(frames, borders))
            if len(stills) < SHOWN:
                stills.append(frames[np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int)])
        cases = [reader.case(made, true) for reader, made, true in zip(self.readers, readings, self.true, strict=True)]
        meters: dict[str, Floats] = {
            name: np.array([compare(case, case.made) for case in cases], np.float64)
            for name, compare in COMPARED.items()
        }
        meters |= {name: np.array([read(one) for one in readings], np.float64) for name, read in RAW.items()}
        faces = np.stack([one.faces for one in readings]).astype(np.float32)
        return Measured(meters, faces, np.stack(stills), task.settings(self.ablation))

    def _videos(self, task: Task) -> Iterator[tuple[Reader, NDArray[np.uint8], list[int]]]:
        if task.run is None:
            yield from ((reader, reader.truth.frames, []) for reader in self.readers)
            return
        from hallo3.pipeline import Hallo3Pipeline

        pipeline = Hallo3Pipeline.from_pretrained(folder(self.ablation, task.run) / "bundle")
        options: dict[str, Any] = {"guidance": task.scales.guidance}
        if self.ablation.sampling_steps is not None:
            options["num_inference_steps"] = self.ablation.sampling_steps
        for index, reader in enumerate(self.readers):
            frames = generate(pipeline, reader.truth, index, **options)
            yield reader, frames, clip_borders(len(frames), pipeline.config.num_frames, pipeline.config.motion_frames)
