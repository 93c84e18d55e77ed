"""The comparison as a report: the paper's tables with intervals, plots, contact sheets, and an answer to each claim."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hallo3.evaluation.meters import Floats
from hallo3.evaluation.statistics import Interval, crossed_bootstrap, crossed_difference, frechet_distance
from hallo3.training.ablation import COMPARISONS, PUBLISHED, Ablation, Run, Scales, Variant, folder, runs
from hallo3.training.ablation_measures import FRONT, Measured, Task
from hallo3.training.journal import read_metrics
from hallo3.training.score_cases import VIEWS

FRECHET = "fréchet"
TITLES = {
    "sync": "lip sync ↑",
    "lag": "lag, frames ↓",
    "amplitude": "mouth amplitude → 1",
    "mouth shape": "mouth shape ↑",
    "identity": "identity distance ↓",
    FRECHET: "Fréchet distance of faces ↓",
    "sharpness": "sharpness → 1",
    "subject dynamics": "subject dynamics → 1",
    "background dynamics": "background dynamics → 1",
    "foreground dynamics": "foreground dynamics → 1",
    "seams": "change at seams → 1",
}
COLUMNS = {
    "speech": ("sync", "lag", "amplitude", "mouth shape", "identity", FRECHET, "sharpness"),
    "identity": ("identity", FRECHET, "sharpness", "sync", "subject dynamics"),
    "motion frames": ("sync", "lag", "seams", "identity", FRECHET, "subject dynamics"),
    "guidance": ("sync", "subject dynamics", "background dynamics", "identity", FRECHET, "sharpness"),
    "scenes": ("sync", "lag", "subject dynamics", "background dynamics", "foreground dynamics", "identity"),
}
PAPER = {
    "speech": "Cross-attention has the best Sync-C and Sync-D of the three.",
    "identity": "Face attention + reference network has the best FID (23.458) and FVD (242.602) of the five.",
    "motion frames": "One motion frame has the best Sync-C (6.889) and Sync-D (8.695); two are used.",
    "guidance": "A higher speech scale improves sync, a higher text scale the dynamics of subject and background, a "
    "higher reference scale the consistency of the subject.",
    "scenes": "Foreground and background move (dynamic degree 13.286 and 4.481 on 34 wild cases), from any view.",
}


@dataclass(frozen=True)
class Row:
    """A row of a table: trainings (None: the truth), people and scales of guidance."""

    name: str
    variant: Variant | None
    scales: Scales
    people: str = FRONT


@dataclass(frozen=True)
class Answer:
    """A claim of the paper, and the difference that was measured; it claims that it is above zero."""

    claim: str
    meter: str
    difference: Interval

    @property
    def verdict(self) -> str:
        """Whether the interval is on the claimed side of zero."""
        if self.difference.low > 0:
            return "holds"
        return "the opposite" if self.difference.high < 0 else "not told apart"


class Results:
    """Everything that was measured."""

    def __init__(self, ablation: Ablation):
        self.ablation = ablation
        self._read: dict[Path, Measured] = {}

    def measured(self, row: Row) -> list[Measured]:
        """What was measured for a row, one a seed; the truth once."""
        seeds = [None] if row.variant is None else [Run(row.variant, seed) for seed in self.ablation.seeds]
        return [self._one(Task(run, row.people, row.scales)) for run in seeds]

    def values(self, row: Row, meter: str) -> Floats:
        """(seeds, cases)."""
        return np.stack([one.meters[meter] for one in self.measured(row)])

    def cell(self, row: Row, meter: str) -> Interval | None:
        """A number of a table; None where there was nothing to measure."""
        if meter == FRECHET:
            return self._frechet(row)
        values = self.values(row, meter)
        return crossed_bootstrap(values) if np.isfinite(values).any() else None

    def difference(self, more: Row, less: Row, meter: str) -> Interval:
        """Mean of `more − less` over cases and seeds."""
        same = more.variant == less.variant
        return crossed_difference(self.values(more, meter), self.values(less, meter), same_seeds=same)

    @cached_property
    def minutes(self) -> dict[Run, float]:
        """How long each training took."""
        found = {}
        for run in runs(self.ablation):
            rows = read_metrics(folder(self.ablation, run) / "metrics.jsonl")
            steps = np.diff([0, *(row["step"] for row in rows)])
            found[run] = float(sum(row["seconds"] * n for row, n in zip(rows, steps, strict=True))) / 60
        return found

    def _one(self, task: Task) -> Measured:
        path = task.path(self.ablation)
        if path not in self._read:
            self._read[path] = Measured.read(path)
        return self._read[path]

    def _frechet(self, row: Row, rounds: int = 100) -> Interval:
        """To the faces of the true videos; people are drawn again. Fewer people are farther apart: it lies too high."""
        faces = np.stack([one.faces for one in self.measured(row)])
        (true,) = self.measured(Row("", None, row.scales, row.people))
        random = np.random.default_rng(0)

        def distance(seeds: NDArray[np.int64], cases: NDArray[np.int64]) -> float:
            made = faces[seeds][:, cases].reshape(-1, faces.shape[-1])
            return frechet_distance(made, true.faces[cases].reshape(-1, faces.shape[-1]))

        seeds, cases = np.arange(len(faces)), np.arange(faces.shape[1])
        drawn = [distance(random.choice(seeds, len(seeds)), random.choice(cases, len(cases))) for _ in range(rounds)]
        low, high = np.percentile(drawn, [2.5, 97.5])
        return Interval(distance(seeds, cases), float(low), float(high))


def tables(ablation: Ablation) -> dict[str, list[Row]]:
    """The report's tables and their rows."""
    here, truth = ablation.scales, Row("truth", None, ablation.scales)
    found = {
        name: [*(Row(label, variant, here) for label, variant in rows.items()), truth]
        for name, rows in COMPARISONS.items()
    }
    settings = [scales for name in ("speech", "text", "reference") for scales in ablation.sweep(name)]
    if settings:
        rows = [Row(scales_name(scales), PUBLISHED, scales) for scales in dict.fromkeys(settings)]
        found["guidance"] = [*rows, truth]
    people = (FRONT, *(VIEWS if ablation.views else ()))
    found["scenes"] = [
        Row(f"{name}{suffix}", variant, here, name)
        for name in people
        for suffix, variant in (("", PUBLISHED), (", truth", None))
    ]
    return found


def scales_name(scales: Scales) -> str:
    """As the paper's table has it: speech, text, reference."""
    return f"speech {scales.speech:g}, text {scales.text:g}, reference {scales.reference:g}"


def answers(results: Results) -> Iterator[Answer]:
    """The paper's claims, each with what was measured."""
    rows = {name: {row.name: row for row in rows} for name, rows in tables(results.ablation).items()}

    def against(table: str, best: str, meter: str, sign: int) -> Iterator[Answer]:
        for name, row in rows[table].items():
            if name not in (best, "truth"):
                more, less = (rows[table][best], row) if sign > 0 else (row, rows[table][best])
                yield Answer(f"{table}: {best} is better than {name}", meter, results.difference(more, less, meter))

    yield from against("speech", "cross-attention", "sync", 1)
    yield from against("identity", "face attention + reference network", "identity", -1)
    yield from against("motion frames", "1", "sync", 1)
    for scale, meter, sign in (
        ("speech", "sync", 1),
        ("text", "subject dynamics", 1),
        ("text", "background dynamics", 1),
        ("reference", "identity", -1),
    ):
        steps = results.ablation.sweep(scale)
        if steps:
            low, high = (Row("", PUBLISHED, scales) for scales in (steps[0], steps[-1]))
            more, less = (high, low) if sign > 0 else (low, high)
            what, ends = "less" if sign < 0 else "more", [getattr(one, scale) for one in (steps[-1], steps[0])]
            claim = f"guidance: {scale} scale {ends[0]:g} has {what} {_plain(meter)} than {ends[1]:g}"
            yield Answer(claim, meter, results.difference(more, less, meter))


def _plain(meter: str) -> str:
    return TITLES[meter].rstrip(" ↑↓→1")


def write_report(ablation: Ablation) -> Path:
    """Writes `report/README.md` with its pictures; returns its path."""
    results, out = Results(ablation), ablation.out / "report"
    out.mkdir(parents=True, exist_ok=True)
    parts = [_introduction(results), _answers(list(answers(results)))]
    for name, rows in tables(ablation).items():
        file = name.replace(" ", "-")
        plot(results, rows, COLUMNS[name], out / f"{file}.png")
        sheet(results, rows).save(out / f"{file}-sheet.jpg", quality=88)
        title = {"guidance": "Scales of guidance", "scenes": "Views and moving scenes"}.get(
            name, f"{name} conditioning"
        )
        title = "Motion frames" if name == "motion frames" else title[0].upper() + title[1:]
        parts.append(
            f"## {title}\n\nPaper: {PAPER[name]}\n\n{table(results, rows, COLUMNS[name])}\n\n"
            f"![{title}, plotted]({file}.png)\n\n![{title}: frames of the same people]({file}-sheet.jpg)\n"
        )
    (out / "ablation.yaml").write_text(_settings(ablation), encoding="utf-8")
    path = out / "README.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def _introduction(results: Results) -> str:
    ablation, minutes = results.ablation, list(results.minutes.values())
    loop, phase = ablation.phase.loop, ablation.phase
    sizes = ", ".join(f"{name} {value}" for name, value in ablation.sizes.items()) or "the bundle's"
    seeds, batch = ", ".join(map(str, ablation.seeds)), phase.batch * ablation.processes * loop.accumulate
    return f"""# The paper's comparisons, measured

Written by `hallo3 ablate ablation.yaml out=…`; `ablation.yaml` lies beside this file. {len(runs(ablation))} trainings
(seeds {seeds}) from new weights: {loop.steps:,} steps of {batch} drawn clips of {phase.clip_frames} frames; sizes of
the networks: {sizes}. A training took {np.median(minutes):.1f} minutes (median; the longest {max(minutes):.1f}). Each
then spoke {ablation.seconds:g} s for the same {ablation.cases} held-out drawn people, beside their true videos.

Numbers are means over seeds and people, in brackets the 95 % interval (bootstrap over both). Dynamics, sharpness and
amplitude are shares of the truth's. Lip sync is the correlation of the mouth's opening, read from the picture, with the
recording's articulation; identity is the distance of the faces to their own person over that to others. These are small
networks that learned for minutes: what they tell is the direction of a difference that is larger than its interval.
"""


def _answers(found: Sequence[Answer]) -> str:
    lines = [
        "## Answers to the paper's claims",
        "",
        "| claim | measured by | difference, as claimed > 0 | answer |",
        "|---|---|---|---|",
    ]
    lines += [f"| {one.claim} | {_plain(one.meter)} | {_number(one.difference)} | **{one.verdict}** |" for one in found]
    return "\n".join(lines) + "\n"


def table(results: Results, rows: Sequence[Row], meters: Sequence[str]) -> str:
    """A table in Markdown."""
    lines = ["| | " + " | ".join(TITLES[meter] for meter in meters) + " |", "|---" * (len(meters) + 1) + "|"]
    for row in rows:
        cells = (results.cell(row, meter) for meter in meters)
        lines.append(f"| {row.name} | " + " | ".join("–" if cell is None else _number(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _number(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def plot(results: Results, rows: Sequence[Row], meters: Sequence[str], path: Path) -> None:
    """Every number of a table with its interval; the truth as a line."""
    from matplotlib.figure import Figure

    made = [row for row in rows if row.variant is not None]
    figure = Figure(figsize=(2.6 * len(meters) + 2.5, 0.4 * len(made) + 1.2), layout="constrained")
    shared = None
    for number, meter in enumerate(meters):
        axes = figure.add_subplot(1, len(meters), number + 1, title=TITLES[meter], sharey=shared)
        shared = shared or axes
        for place, row in enumerate(made):
            cell = results.cell(row, meter)
            if cell is not None:
                axes.plot([cell.low, cell.high], [place, place], color="tab:blue")
                axes.plot(cell.value, place, "o", color="tab:blue")
        true = [cell.value for row in rows if row.variant is None and (cell := results.cell(row, meter)) is not None]
        if true:
            axes.axvline(float(np.mean(true)), color="tab:green", linestyle="--")
        axes.set_yticks(range(len(made)), [row.name for row in made])
        axes.tick_params(labelleft=number == 0)
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
    assert shared is not None
    shared.invert_yaxis()
    figure.savefig(path, dpi=90)


def sheet(results: Results, rows: Sequence[Row], label: int = 150) -> Image.Image:
    """Frames of the first people, a line for each row of a table, of its first seed."""
    lines: list[tuple[str, NDArray[np.uint8]]] = []
    stills = {row: results.measured(row)[0].stills for row in rows}
    for person in range(min(len(one) for one in stills.values())):
        lines += [(row.name, np.concatenate(list(stills[row][person]), axis=1)) for row in rows]
    height, width = lines[0][1].shape[:2]
    picture = Image.new("RGB", (label + width, height * len(lines)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for number, (name, frames) in enumerate(lines):
        picture.paste(Image.fromarray(frames), (label, number * height))
        draw.multiline_text((4, number * height + 4), _wrapped(name), "black", font)
    return picture


def _wrapped(name: str, most: int = 20) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(name, most))


def _settings(ablation: Ablation) -> str:
    """`ablation.yaml`, without the folders of this machine."""
    import yaml

    told = ablation.model_dump(mode="json", exclude={"out", "portraits", "recordings"}, exclude_defaults=True)
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True)
