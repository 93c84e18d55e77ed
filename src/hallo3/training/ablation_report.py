"""The comparison as a report: the paper's tables with intervals, plots, contact sheets, and an answer to each claim."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hallo3.evaluation.meters import Floats
from hallo3.evaluation.statistics import (
    Estimate,
    Interval,
    Spread,
    holm,
    kernel_distance,
    seed_spread,
    student_reach,
    trained_difference,
    trained_mean,
)
from hallo3.evaluation.sync import LAGS
from hallo3.studio.dataset import DRAWINGS, noted_settings
from hallo3.training.ablation import (
    COMPARISONS,
    PUBLISHED,
    VARIANTS,
    Ablation,
    Run,
    Scales,
    Variant,
    bundle_config,
    folder,
    folder_digest,
    resolve_bundle,
    runs,
    was_adopted,
)
from hallo3.training.ablation_measures import FRONT, METERS, MOVING, STILL, Measured, Task, seen
from hallo3.training.journal import read_metrics
from hallo3.training.score_cases import VIEWS
from hallo3.version import __version__

KERNEL = "kernel"
FOLDERS = ("out=", "portraits=", "recordings=")  # settings that say where things lie on one machine
SURE = 0.05  # chance of one wrong answer among all
LEAST_CASES = 3  # people that a kernel distance can be told of
TITLES = {
    "sync": "lip sync ↑",
    "lag": "lag, frames ↓",
    "amplitude": "mouth amplitude → 1",
    "mouth shape": "mouth shape ↑",
    "identity": "distance from the person ↓",
    "pose": "pose error, degrees ↓",
    KERNEL: "kernel distance of faces ↓",
    "sharpness": "sharpness → 1",
    "subject dynamics": "subject dynamics → 1",
    "background dynamics": "background dynamics → 1",
    "foreground dynamics": "foreground dynamics → 1",
    "seams": "change at seams → 1",
    "background speed": "background, pixels a frame",
    "foreground change": "foreground, grey levels a frame",
}
COLUMNS = {
    "speech": ("sync", "lag", "amplitude", "mouth shape", "identity", KERNEL, "sharpness"),
    "identity": ("identity", KERNEL, "sharpness", "sync", "subject dynamics"),
    "motion frames": ("sync", "lag", "amplitude", "seams", "identity", KERNEL, "subject dynamics"),
    "guidance": (
        "sync",
        "lag",
        "amplitude",
        "subject dynamics",
        "background dynamics",
        "identity",
        KERNEL,
        "sharpness",
    ),
    "scenes": (
        "sync",
        "lag",
        "amplitude",
        "pose",
        "identity",
        "subject dynamics",
        "background speed",
        "foreground change",
    ),
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
    """A claim of the paper, and what was measured of it; it claims that this is above zero.

    by_seed: The same in each training. chance: the estimate's p, raised for the number of claims that are answered.
    """

    claim: str
    meter: str
    measured: Estimate | None
    by_seed: tuple[float, ...] = ()
    chance: float = 1.0

    @property
    def verdict(self) -> str:
        """Whether it is on the claimed side of zero, beyond chance."""
        if self.measured is None:
            return "nothing to measure"
        if not self.chance <= SURE:  # what is no number is no proof
            return "not told apart"
        return "holds" if self.measured.value > 0 else "the opposite"


class Results:
    """Everything that was measured."""

    def __init__(self, ablation: Ablation):
        self.ablation = ablation
        self._read: dict[Path, Measured] = {}
        self._spreads: dict[str, Spread] = {}

    def measured(self, row: Row) -> list[Measured]:
        """What was measured for a row, one a seed; the truth once."""
        seeds = [None] if row.variant is None else [Run(row.variant, seed) for seed in self.ablation.seeds]
        return [self._one(Task(run, row.people, row.scales)) for run in seeds]

    def values(self, row: Row, meter: str) -> Floats:
        """(seeds, cases)."""
        return np.stack([one.meters[meter] for one in self.measured(row)])

    def spread(self, meter: str) -> Spread:
        """How much trainings differ by their seed, over all variants."""
        if meter not in self._spreads:
            rows = [Row("", variant, self.ablation.scales) for variant in VARIANTS]
            read = self._kernel_values if meter == KERNEL else partial(self.values, meter=meter)
            self._spreads[meter] = seed_spread(read(row) for row in rows)
        return self._spreads[meter]

    def cell(self, row: Row, meter: str) -> Interval | None:
        """A number of a table; None where there was nothing to measure."""
        if meter == KERNEL:
            return self._kernel(row) if len(self.measured(row)[0].faces) >= LEAST_CASES else None
        spread = Spread(0, 0) if row.variant is None else self.spread(meter)
        return trained_mean(self.values(row, meter), spread)

    def difference(self, claim: str, more: Row, less: Row, meter: str) -> Answer:
        """The claim that `more` has more of what the meter measures than `less`."""
        a, b = self.values(more, meter), self.values(less, meter)
        same = more.variant == less.variant
        found = trained_difference(a, b, self.spread(meter), same_trainings=same)
        return Answer(claim, meter, found, () if found is None else tuple(np.nanmean(a - b, axis=1)))

    def above_zero(self, claim: str, row: Row, meter: str, floor: float = 0.0, sign: int = 1) -> Answer:
        """The claim that a row has more than `floor` of what the meter measures; sign −1: less."""
        values = sign * (self.values(row, meter) - floor)
        found = trained_mean(values, self.spread(meter))
        return Answer(claim, meter, found, () if found is None else tuple(np.nanmean(values, axis=1)))

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

    def _kernels(self, row: Row) -> list[Interval]:
        """Distance of each training's faces to those of the true videos."""
        (true,) = self.measured(Row("", None, row.scales, row.people))
        return [kernel_distance(one.faces, true.faces) for one in self.measured(row)]

    def _kernel_values(self, row: Row) -> Floats:
        """(seeds, 1); (seeds, 0) for too few people."""
        if len(self.measured(row)[0].faces) < LEAST_CASES:
            return np.empty((len(self.measured(row)), 0))
        return np.array([[one.value] for one in self._kernels(row)])

    def _kernel(self, row: Row) -> Interval:
        """The mean over trainings; what people and trainings add to its interval, together."""
        found, values = self._kernels(row), self._kernel_values(row)
        value, over_cases = float(values.mean()), float(np.mean([one.high - one.value for one in found]))
        spread = Spread(0, 0) if row.variant is None else self.spread(KERNEL)
        between = max(spread.variance, float(values.var(ddof=1)) if len(values) > 1 else 0) / len(values)
        over_seeds = student_reach(spread.degrees) * between**0.5 if spread.degrees else 0.0
        reach = float(np.hypot(over_cases, over_seeds))
        return Interval(value, value - reach, value + reach)


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
    found["scenes"] = [
        Row(f"{name}{suffix}", variant, here, name)
        for name in seen(ablation)
        for suffix, variant in (("", PUBLISHED), (", truth", None))
    ]
    return found


def scales_name(scales: Scales) -> str:
    """As the paper's table has it: speech, text, reference."""
    return f"speech {scales.speech:g}, text {scales.text:g}, reference {scales.reference:g}"


def answers(results: Results) -> list[Answer]:
    """The paper's claims, each with what was measured; chances are those of all of them together."""
    found = list(_claims(results))
    there = [one.measured.p for one in found if one.measured is not None]
    raised = iter(holm(there))
    return [one if one.measured is None else replace(one, chance=next(raised)) for one in found]


def _claims(results: Results) -> Iterator[Answer]:
    rows = {name: {row.name: row for row in rows} for name, rows in tables(results.ablation).items()}

    def against(table: str, best: str, meter: str, sign: int) -> Iterator[Answer]:
        for name, row in rows[table].items():
            if name not in (best, "truth"):
                more, less = (rows[table][best], row) if sign > 0 else (row, rows[table][best])
                yield results.difference(f"{table}: {best} is better than {name}", more, less, meter)

    yield from against("speech", "cross-attention", "sync", 1)
    yield from against("identity", "face attention + reference network", "identity", -1)
    yield from against("motion frames", "1", "sync", 1)
    counts = rows["motion frames"]
    for meter, what in (("seams", "jump less at seams"), ("identity", "stay nearer to the person")):
        for count in ("2", "4"):
            yield results.difference(f"motion frames: {count} {what} than 1", counts["1"], counts[count], meter)
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
            yield results.difference(claim, more, less, meter)
    yield from _scene_claims(results)


def _scene_claims(results: Results) -> Iterator[Answer]:
    """That what should move does, and that people are animated from any view, each of the published variant."""
    here, there = results.ablation.scales, seen(results.ablation)
    if MOVING in there:
        moving, still = (Row("", PUBLISHED, here, people) for people in (MOVING, STILL))
        for part, meter in (("background", "background speed"), ("foreground", "foreground change")):
            claim = f"scenes: a {part} that should move moves more than one that should stand still"
            yield results.difference(claim, moving, still, meter)
    for view in VIEWS:
        if view in there:
            row = Row("", PUBLISHED, here, view)
            yield results.above_zero(f"{view}: lips follow the speech", row, "sync")
            nearer = f"{view}: faces are nearer to the person than to somebody else"
            yield results.above_zero(nearer, row, "identity", 0.5, -1)


def _plain(meter: str) -> str:
    return TITLES[meter].rstrip(" ↑↓→1")


def write_report(ablation: Ablation, config: Path = Path("ablation.yaml"), settings: Sequence[str] = ()) -> Path:
    """Writes `report/README.md` with its pictures; returns its path.

    config, settings: What the ablation was read from, as the command line has it.
    """
    results, out = Results(ablation), ablation.out / "report"
    out.mkdir(parents=True, exist_ok=True)
    parts = [_introduction(results), _how(results, config, settings), _answers(answers(results))]
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
    ablation = results.ablation
    loop, phase = ablation.phase.loop, ablation.phase
    batch = phase.batch * ablation.processes * loop.accumulate
    return f"""# The paper's comparisons, measured

{len(runs(ablation))} trainings from new weights: {loop.steps:,} steps of {batch} drawn clips of {phase.clip_frames}
frames. Each then spoke {ablation.seconds:g} s for the same {ablation.cases} held-out drawn people, beside their true
videos; the published variant also for people in other views and before scenes that move or stand still. These are small
networks that learned for minutes: what they tell is the direction of a difference that is larger than chance.

{_intervals(results)}

Lip sync is the correlation of the mouth's opening, read from the picture, with the recording's articulation; lag the
shift in frames where it is highest, up to {LAGS}: a mean near that says that no shift fits. Amplitude, sharpness and
dynamics are shares of the truth's; the lag of a mouth of little amplitude says little. The distance from the person is
read in the second half of each video by a meter that learned from true frames who is who: 0 is the person, 1 anybody
else in the same light. No network that a variant is conditioned on takes part. The kernel distance (as KID) is between
gradients of made and true faces; of equal sets it is 0 on average. Pose is the head's, against the truth's.
"""


def _how(results: Results, config: Path, settings: Sequence[str]) -> str:
    """Commands, seeds, settings, versions and times."""
    ablation, minutes = results.ablation, list(results.minutes.values())
    told = " ".join(one for one in settings if not one.startswith(FOLDERS))
    command = f"hallo3 ablate {config} {told} out=…".replace("  ", " ")
    steps = ablation.sampling_steps or bundle_config(ablation)["num_inference_steps"]
    material = {name: folder_digest(getattr(ablation, name)) or "none" for name in ("recordings", "portraits")}
    adopted = ""
    if was_adopted(ablation):
        adopted = """
- The settings of the trainings were **stated after they had begun** (`--adopt`), not noted by them."""
    return f"""## How

```sh
{command}
```

- All settings: `ablation.yaml` beside this file, defaults included. Seeds of the trainings: {_listed(ablation.seeds)}.
  Video n of each kind of people has seed n; which people there are: `draw_people` in `ablation_measures.py`.
- Code: hallo3 {__version__}; drawings {DRAWINGS} (of what was learned from: {_drawings(ablation)}), meters {
        METERS
    }. Bundle {ablation.bundle}: {folder_digest(resolve_bundle(ablation))}.
- Recordings: {material["recordings"]}. Portraits: {material["portraits"]}. (Without recordings all voices are
  synthesised.)
- Sampling steps: {steps}; scales of guidance where they are not compared: {scales_name(ablation.scales)}.
- A training took {np.median(minutes):.1f} minutes (median; {min(minutes):.1f} to {max(minutes):.1f}) of wall time by {
        ablation.processes
    } single-threaded processes. Other work on the same machine is in it.{adopted}
"""


def _drawings(ablation: Ablation) -> str:
    """Which drawings the trainings learned from: people drawn otherwise are harder for all of them."""
    noted = ablation.out / "data" / "dataset.json"
    return str(noted_settings(noted).get("drawings", "not known")) if noted.is_file() else "not known"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _intervals(results: Results) -> str:
    """What the intervals mean."""
    count = len(results.ablation.seeds)
    if count < 2:
        return """Numbers are means over people, in brackets the 95 % interval over people (Student's t). Each variant
was trained **once**: how much a second training would differ is not known, and in no interval."""
    degrees = results.spread("sync").degrees
    return f"""Numbers are means over {count} trainings and the people, in brackets the 95 % interval (Student's t) over
both: for other seeds and other people. {count} trainings of one variant say little of how much trainings differ, so all
{len(VARIANTS)} variants together tell it ({degrees} degrees of freedom), which supposes that they differ about as much;
where a variant's own differ more, that counts. Simulated with two seeds, as much deviation between trainings as between
people and no difference, such an interval misses zero in about 3 % of cases, and in 10 % where one variant deviates
twice as much as the rest (`tests/evaluation/test_statistics.py`)."""


def _answers(found: Sequence[Answer]) -> str:
    lines = [
        "## Answers to the paper's claims",
        "",
        f"A claim is answered where p, the chance of as much without a difference, is at most {SURE:g};",
        f"it is raised for there being {len(found)} claims (Holm).",
        "",
        "| claim | measured by | difference, as claimed > 0 | in each training | p | answer |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        by_seed = ", ".join(f"{value:.3f}" for value in one.by_seed)
        number, chance = ("–", "–") if one.measured is None else (_number(one.measured), f"{one.chance:.3f}")
        lines.append(f"| {one.claim} | {_plain(one.meter)} | {number} | {by_seed} | {chance} | **{one.verdict}** |")
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
    """`ablation.yaml`: everything, also what is a default, but the folders of this machine."""
    import yaml

    told = ablation.model_dump(mode="json", exclude={"out", "portraits", "recordings"})
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True)
