"""What each branch of guidance sees, and its weight, for some scales."""

import matplotlib
from drawing import ENCODER, PALE, STYLE, canvas, save
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from hallo3.sampling.guidance import Branch, GuidanceScales, branches

EXAMPLES = {
    "published": GuidanceScales(),
    "more speech": GuidanceScales(speech=5.0, text=3.5, reference=1.0),
    "more reference": GuidanceScales(speech=3.5, text=3.5, reference=2.0),
    "none": GuidanceScales(1.0, 1.0, 1.0),
}
ROWS = ((False, False, False), (True, False, False), (True, True, False), (True, True, True))
SEEN = ("face", "reference", "text", "speech")


def draw() -> Figure:
    """The figure."""
    figure, axes = canvas(8.4, 3.1)
    for column, name in enumerate(SEEN):
        axes.text(6 + 7 * column, 26, name, ha="center")
    for row, flags in enumerate(ROWS):
        y = 21 - 4.5 * row
        for column, seen in enumerate((True, *flags)):
            axes.add_patch(Circle((6 + 7 * column, y), 1.1, fc="#00897b" if seen else "white", ec="#00897b", lw=1))
    for column, (name, scales) in enumerate(EXAMPLES.items()):
        x = 42 + 11.5 * column
        numbers = ", ".join(f"{value:g}" for value in scales)
        axes.text(x, 27.4, name, ha="center")
        axes.text(x, 25.4, numbers, ha="center", fontsize=7.5)
        weights = {branch[:3]: branch.weight for branch in branches(scales)}
        for row, flags in enumerate(ROWS):
            _weight(axes, x, 21 - 4.5 * row, weights.get(flags))
        axes.text(x, 3.2, f"{len(weights)} of 4", ha="center")
    axes.text(2, 3.2, "branches that are computed", fontsize=9)
    axes.text(2, 29.3, "what a branch sees", color="#607d8b", fontsize=8)
    axes.text(36.5, 29.3, "its weight in the sum, at scales of speech, text, reference", color="#607d8b", fontsize=8)
    axes.plot((33.5, 33.5), (2.5, 30.5), color=PALE, lw=0.6)
    return figure


def _weight(axes: object, x: float, y: float, weight: float | None) -> None:
    shown = "left out" if weight is None else f"{weight:+g}".replace("-", "−")
    look = {"boxstyle": "round,pad=0.35", "fc": "white" if weight is None else ENCODER, "ec": "none"}
    colour = PALE if weight is None else "#263238"
    axes.text(x, y, shown, ha="center", va="center", fontsize=8, color=colour, bbox=look)  # type: ignore[attr-defined]


assert Branch._fields[:3] == SEEN[1:]

if __name__ == "__main__":
    with matplotlib.rc_context(STYLE):
        print(save(draw(), "guidance"))
