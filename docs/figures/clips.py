"""Clips on a timeline: each begins with the last frames of the one before, as motion frames, and adds the others."""

import matplotlib
from drawing import GIVEN, MOTION, PALE, RESULT, STYLE, arrow, canvas, save
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hallo3.bundles.index import PUBLISHED_CONFIG
from hallo3.conditions.speech import FPS, num_clips

SECONDS = 5.0


def draw() -> Figure:
    """The figure, for the published sizes and five seconds of speech."""
    length, motion = PUBLISHED_CONFIG["num_frames"], PUBLISHED_CONFIG["motion_frames"]
    frames = round(SECONDS * FPS)
    clips = num_clips(frames, length, motion)
    figure, axes = canvas(9.2, 3.4)

    def at(frame: float) -> float:
        return 12 + 0.52 * frame

    def bar(y: float, start: float, count: float, colour: str, text: str = "", height: float = 3) -> None:
        axes.add_patch(
            Rectangle((at(start), y), at(start + count) - at(start), height, fc=colour, ec="#455a64", lw=0.7)
        )
        axes.text(at(start + count / 2), y + height / 2, text, ha="center", va="center", fontsize=7.5)

    bar(26, 0, frames, GIVEN, f"speech: {SECONDS:g} s, {frames} frames")
    axes.text(10.5, 27.5, "given", ha="right", va="center")
    for clip in range(clips):
        y, start = 20.5 - 5 * clip, clip * (length - motion)
        bar(y, start - motion, motion, MOTION)
        kept = min(length - motion, frames - start)
        bar(y, start, kept, RESULT, f"{kept} new frames")
        if kept < length - motion:
            bar(y, start + kept, length - motion - kept, "white", "past the end")
        axes.text(10.5, y + 1.5, f"clip {clip + 1}", ha="right", va="center")
        if clip:
            bend = at(start - motion / 2)
            arrow(axes, (bend, y + 5), (bend, y + 3), color="#7e57c2", mutation_scale=7)
    bottom = 20.5 - 5 * (clips - 1)
    axes.text(
        at(-motion), bottom - 2.2, "violet: motion frames, which the clip is given and which are dropped", fontsize=7.5
    )
    for second in range(int(SECONDS) + 1):
        x = at(second * FPS)
        axes.plot((x, x), (bottom, 29.6), color=PALE, lw=0.5, ls=":", zorder=0)
        axes.text(x, 30.2, f"{second} s", ha="center", fontsize=7)
    return figure


if __name__ == "__main__":
    with matplotlib.rc_context(STYLE):
        print(save(draw(), "clips"))
