"""What a training of the comparison is worth: its videos of held-out people, read by the meters, kept as numbers."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hallo3.evaluation.meters import Floats
from hallo3.evaluation.motion import clip_borders
from hallo3.studio.dataset import Material
from hallo3.training.ablation import PUBLISHED, Ablation, Run, Scales, bundle_config, folder, runs
from hallo3.training.loop import Log
from hallo3.training.parallel import rank, run_processes, share
from hallo3.training.score_cases import VIEWS, drawn_truth, generate
from hallo3.training.score_drawn import COMPARED, Reader, Reading, identities

FRONT = "front"
FIRST = {FRONT: 60_000, **{name: 61_000 + 100 * number for number, name in enumerate(VIEWS)}}  # seeds of people
SHOWN, COLUMNS = 3, 8  # people whose videos are kept for the contact sheets, and frames of each


@dataclass(frozen=True)
class Measured:
    """What the meters say of one set of videos, case by case; NaN where there was nothing to measure.

    meters: by name (cases,), as `METERS`. faces: (cases, n, c) embeddings of every fifth frame. stills:
    (shown, columns, H, W, 3) uint8.
    """

    meters: dict[str, Floats]
    faces: Floats
    stills: NDArray[np.uint8]

    def write(self, path: Path) -> None:
        """Writes everything as one file, aside first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        tables: dict[str, Any] = {f"meters/{name}": values for name, values in self.meters.items()}
        with aside.open("wb") as file:
            np.savez_compressed(file, faces=self.faces, stills=self.stills, **tables)
        os.replace(aside, path)

    @classmethod
    def read(cls, path: Path) -> "Measured":
        """Reads what `write` wrote."""
        with np.load(path) as tables:
            meters = {name.removeprefix("meters/"): tables[name] for name in tables if name.startswith("meters/")}
            return cls(meters, tables["faces"], tables["stills"])


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
    if ablation.views:
        found += [Task(run, view, ablation.scales) for view in VIEWS for run in (None, *published)]
    return list(dict.fromkeys(found))


def measure_all(ablation: Ablation, log: Log = print) -> None:
    """Measures what is not measured yet; every training must have its bundle."""
    missing = [task for task in tasks(ablation) if not task.path(ablation).exists()]
    if missing:
        log(f"{len(missing)} of {len(tasks(ablation))} sets of videos to make and measure")
        run_processes(ablation.processes, _measure_share, ablation, missing)


def _measure_share(ablation: Ablation, missing: list[Task]) -> None:
    for view in (FRONT, *VIEWS):
        mine = share([task for task in missing if task.people == view])
        people = People(ablation, view) if mine else None
        for task in mine:
            assert people is not None
            people.measure(task).write(task.path(ablation))
            print(f"process {rank()}: measured {task.path(ablation).stem}", flush=True)


class People:
    """Held-out people of one view, with the meters that know them."""

    def __init__(self, ablation: Ablation, view: str):
        """Draws them."""
        from hallo3.bundles.places import embedded_bundle
        from hallo3.networks.faces import FaceEncoder

        self.ablation, self.view = ablation, view
        count, style = (ablation.cases, None) if view == FRONT else (ablation.views, VIEWS[view])
        # The meter is the same whatever a bundle conditions its own faces on.
        encoder = FaceEncoder.from_pretrained(embedded_bundle() / "face_encoder" / "encoder").eval()
        material, config = Material.find(ablation.recordings), bundle_config(ablation)
        truths = [drawn_truth(config, FIRST[view] + i, ablation.seconds, material, style=style) for i in range(count)]
        self.readers = [Reader(truth, encoder) for truth in truths]
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
        faces = [one.faces for one in readings]
        meters["identity"] = identities(faces, [reader.gallery for reader in self.readers])
        return Measured(meters, np.stack(faces), np.stack(stills))

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
