"""The scores of a bundle as a table: what was measured, how sure it is, what the truth scores, and the bars."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.meters import Floats
from ..evaluation.statistics import bootstrap
from ..media.files import replace_file

# Lowest and highest value that pass. What has no bar is shown for comparison.
BARS: dict[str, tuple[float | None, float | None]] = {
    "sync": (0.85, None),
    "lag": (None, 1),
    "amplitude": (0.7, 1.4),
    "wrong recordings": (None, 0.3),
    "profile sync": (0.7, None),
    "identity": (None, 0.2),  # shares of the way to somebody else
    "identity slope": (None, 0.1),  # the same, gone in a minute, beyond the truth's
    "seams": (None, 1.3),
    "text control": (0.9, None),
    "still areas": (0.75, None),
    "photograph outside the face": (0.6, None),
    "photograph largest change": (None, 4),
    "photograph mouth": (0.4, None),
    "photograph flicker": (None, 2),
}


@dataclass(frozen=True)
class Score:
    """One number of a bundle.

    Attributes:
        value: What was measured.
        low, high: Its 95 % interval, where cases are many and don't depend on each other.
        truth: What the same meter says of the true videos, where there are any.
    """

    value: float
    low: float | None = None
    high: float | None = None
    truth: float | None = None


Scores = dict[str, Score]


def over(
    name: str, made: Sequence[float], true: Sequence[float] = (), *, statistic: Callable[..., Floats] = np.median
) -> Scores:
    """A statistic over cases, with its interval; cases in which there was nothing to measure are NaN, and left out.

    Empty when that is so in all.
    """
    measured, known = ([value for value in values if np.isfinite(value)] for values in (made, true))
    if not measured:
        return {}
    found = bootstrap(measured, statistic)
    truth = float(statistic(known, axis=0)) if known else None
    return {name: Score(found.value, found.low, found.high, truth)}


def passes(name: str, value: float) -> bool:
    """Whether a score meets its bar, or has none."""
    low, high = BARS.get(name, (None, None))
    return (low is None or value >= low) and (high is None or value <= high)


def report(scores: Scores) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("score", "value", "95 %", "truth", "bar", "")
    for name, score in scores.items():
        interval = "" if score.low is None or score.high is None else f"{score.low:.3f} … {score.high:.3f}"
        truth = "" if score.truth is None else f"{score.truth:.3f}"
        verdict = "" if name not in BARS else "met" if passes(name, score.value) else "NOT met"
        table.add_row(name, f"{score.value:.3f}", interval, truth, _bar(name), verdict)
    Console().print(table)


def _bar(name: str) -> str:
    match BARS.get(name):
        case None:
            return ""
        case (low, None):
            return f"≥ {low}"
        case (None, high):
            return f"≤ {high}"
        case (low, high):
            return f"{low} … {high}"


def write_scores(path: Path, scores: Scores, about: dict[str, Any]) -> None:
    """Writes the table as JSON, with what it is about; `bar` is the lowest and the highest value that pass."""
    rows = {
        name: asdict(score) | {"bar": BARS.get(name), "met": passes(name, score.value) if name in BARS else None}
        for name, score in scores.items()
    }
    replace_file(path, (json.dumps(about | {"scores": rows}, indent=2) + "\n").encode())
