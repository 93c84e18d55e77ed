"""The way of a clip: what is given, the encoders, the denoiser with its attentions, the VAE's decoder."""

from itertools import pairwise
from typing import Any

import matplotlib
from drawing import ENCODER, GIVEN, MOTION, NETWORK, RESULT, STYLE, arrow, box, canvas, save
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

LAYERS, STEPS, BRANCHES = 42, 50, 2  # of the published model
STACK = (
    (7.0, "video tokens", "of noisy latents and image latents"),
    (13.4, "joint attention", "text, video and reference tokens"),
    (19.8, "face attention", "4 tokens, the same for all frames"),
    (26.2, "speech attention", "32 tokens of each latent frame"),
    (32.2, "feed-forward", "text and video tokens"),
)


def draw() -> Figure:
    """The figure."""
    figure, axes = canvas(9.2, 4.3)
    _inputs(axes)
    _denoiser(axes)
    for y, end, label in (
        (36.1, 29.4, "speech tokens"),
        (29.1, 22.7, "face embedding"),
        (22.1, 17.2, "features of every layer"),
        (15.1, 15.1, "text tokens"),
        (8.1, 8.1, "image latents"),
    ):
        turn = 45.5 if y - end < 5 else 46.5
        arrow(axes, *([(34, y), (50, y)] if y == end else [(34, y), (turn, y), (turn, end), (50, end)]))
        axes.text(34.5, y + 0.5, label, fontsize=6.8)
    box(axes, 73.5, 20, 8, 4.6, "VAE\ndecoder", ENCODER, fontsize=8)
    box(axes, 84.5, 19, 7, 6.6, "49 frames,\n47 are new", RESULT, fontsize=7.5)
    arrow(axes, (68, 22.3), (73.5, 22.3))
    axes.text(70.7, 22.9, "latents", ha="center", fontsize=6.8)
    arrow(axes, (81.5, 22.3), (84.5, 22.3))
    arrow(axes, (88, 19), (88, 2), (6, 2), (6, 5.2), color="#7e57c2")
    axes.text(46, 2.6, "the last two frames are the motion frames of the next clip", ha="center", fontsize=7.5)
    return figure


def _inputs(axes: Any) -> None:
    box(axes, 1, 34, 10, 4.2, "speech", GIVEN)
    box(axes, 1, 23.5, 10, 4.2, "portrait", GIVEN)
    box(axes, 1, 13, 10, 4.2, "prompt", GIVEN)
    box(axes, 1, 5.2, 10, 5.8, "portrait and last\ntwo frames of\nthe clip before", MOTION, fontsize=6.8)
    for y, text in (
        (33.8, "wav2vec2, windows of\n5 frames, projection"),
        (26.8, "face encoder"),
        (19.8, "face alone → VAE encoder\n→ reference network"),
        (12.8, "T5 encoder"),
        (5.8, "VAE encoder"),
    ):
        box(axes, 17.5, y, 16.5, 4.6, text, ENCODER, fontsize=7.5)
    for y in (36.1, 15.1, 8.1):
        arrow(axes, (11, y), (17.5, y))
    for y in (29.1, 22.1):
        arrow(axes, (11, 25.6), (14, 25.6), (14, y), (17.5, y))


def _denoiser(axes: Any) -> None:
    box(axes, 48, 4.2, 20, 38.4, "", NETWORK)
    axes.text(58, 41.3, "denoiser", ha="center", va="center", fontsize=10)
    axes.text(58, 39.7, f"{STEPS} steps, {BRANCHES} branches each", ha="center", va="center", fontsize=6.8)
    layer = FancyBboxPatch((49, 12.7), 18, 25.9, boxstyle="round,pad=0,rounding_size=0.8", fill=False, ls="--", lw=0.7)
    axes.add_patch(layer)
    axes.text(66.4, 37.65, f"× {LAYERS} layers", ha="right", va="center", fontsize=6.8)
    for y, name, about in STACK:
        box(axes, 50, y, 16, 4.6, "", "white")
        axes.text(58, y + 3.2, name, ha="center", va="center", fontsize=8)
        axes.text(58, y + 1.4, about, ha="center", va="center", fontsize=6)
    for (y, *_), (above, *_) in pairwise(STACK):
        arrow(axes, (58, y + 4.6), (58, above), mutation_scale=6)


if __name__ == "__main__":
    with matplotlib.rc_context(STYLE):
        print(save(draw(), "pipeline"))
