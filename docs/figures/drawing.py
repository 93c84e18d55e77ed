"""What the figures share: colours, boxes and arrows, and files that come out the same every time."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

IMAGES = Path(__file__).parents[1] / "images"
INK, PALE = "#263238", "#90a4ae"
GIVEN, ENCODER, NETWORK, RESULT, MOTION = "#fff3c4", "#d7ecff", "#cdeee6", "#ffe0d3", "#e6dcf7"
STYLE = {
    "svg.hashsalt": "hallo3",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def canvas(width: float, height: float) -> tuple[Figure, Any]:
    """A figure of so many inches, and axes without a frame whose units are tenths of an inch, from the lower left."""
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10 * width), ylim=(0, 10 * height))
    axes.axis("off")
    return figure, axes


def box(axes: Any, x: float, y: float, width: float, height: float, text: str, colour: str, **font: Any) -> None:
    """A rounded box with its lower left corner at x, y, and a text in its middle."""
    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.8", fc=colour, ec=INK, lw=0.8)
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", linespacing=1.3, **font)


def arrow(axes: Any, *points: tuple[float, float], **look: Any) -> None:
    """An arrow along straight lines from the first point to the last."""
    for start, end in pairwise(points[:-1]):
        axes.plot(*zip(start, end, strict=True), color=look.get("color", INK), lw=0.9, solid_capstyle="round")
    last = {"arrowstyle": "-|>", "mutation_scale": 8, "lw": 0.9, "color": INK, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(points[-2], points[-1], **{**last, **look}))


def save(figure: Figure, name: str, folder: Path = IMAGES) -> Path:
    """Writes NAME.svg. The same drawing gives the same bytes with the same matplotlib, whose version is in the file."""
    path = folder / f"{name}.svg"
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, format="svg", metadata={"Date": None})
    return path
