"""Operations of the published denoiser for one branch and one step, by the ways to compute it."""

import matplotlib
from drawing import STYLE, save
from matplotlib.figure import Figure

from hallo3.runtime.operations import Grid, count_denoiser


def draw() -> Figure:
    """The figure, counted when it is drawn: the network's own code on tensors without numbers."""
    plain = count_denoiser({}, Grid())
    counted = {
        "conditions projected\nanew in every step": plain.recomputed,
        "projected once\n(what is done)": plain.step,
        "face attention folded": count_denoiser({}, Grid(), fold_face=True).step,
        "speech attention\nfolded too": count_denoiser({}, Grid(), fold_face=True, fold_speech=True).step,
    }
    figure = Figure(figsize=(7.4, 2.5), facecolor="white")
    axes = figure.add_axes((0.25, 0.2, 0.7, 0.75))
    colours = ("#90a4ae", "#5b8bd6", "#5da9a0", "#5da9a0")
    axes.barh(range(len(counted)), [count / 1e12 for count in counted.values()], height=0.62, color=colours)
    for row, count in enumerate(counted.values()):
        axes.text(count / 1e12 + 4, row, f"{count / 1e12:.1f}", va="center", fontsize=8.5)
    axes.set_yticks(range(len(counted)), list(counted), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 460)
    axes.set_xlabel("TFLOP a step and branch", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    with matplotlib.rc_context(STYLE):
        print(save(draw(), "operations"))
