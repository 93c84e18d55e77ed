"""Device memory of the published model in each stage, by each way to run it, as `hallo3 plan` estimates it."""

import matplotlib
from drawing import PALE, STYLE, save
from matplotlib.figure import Figure

from hallo3.bundles.index import PUBLISHED_CONFIG
from hallo3.bundles.sizes import PUBLISHED_PARAMETERS, PUBLISHED_VAE, BundleSizes
from hallo3.runtime.estimates import Workload, estimates
from hallo3.sampling.guidance import GuidanceScales

COLOURS = {
    "text": "#f4c95d",
    "portrait": "#9ccc9c",
    "reference": "#5da9a0",
    "speech": "#b39ddb",
    "denoising": "#5b8bd6",
    "decoding": "#e58b6b",
}
CARDS = (8, 12, 16, 24, 48)


def draw() -> Figure:
    """The figure: bfloat16 on a GPU, the published scales of guidance."""
    published = BundleSizes(PUBLISHED_PARAMETERS, {}, PUBLISHED_VAE, PUBLISHED_CONFIG, downloaded=False)
    work = Workload(10.0, PUBLISHED_CONFIG["num_inference_steps"], GuidanceScales(), itemsize=2, device="cuda")
    found = estimates(published, work)
    figure = Figure(figsize=(9.2, 4.6), facecolor="white")
    axes = figure.add_axes((0.27, 0.12, 0.7, 0.78))
    for row, way in enumerate(found):
        for place, (stage, count) in enumerate(way.stages.items()):
            y = row + (place - (len(way.stages) - 1) / 2) * 0.13
            axes.barh(y, count / 1e9, height=0.12, color=COLOURS[stage])
        axes.text(way.device / 1e9 + 0.4, row, f"{way.device / 1e9:.1f} GB", va="center", fontsize=8)
    for size in CARDS:
        axes.axvline(size, color=PALE, lw=0.7, ls=":", zorder=0)
        axes.text(size, -0.72, f"{size} GB", ha="center", fontsize=7.5, color="#607d8b")
    axes.set_yticks(range(len(found)), [_name(way.name, way.exact) for way in found], fontsize=8)
    axes.set(ylim=(len(found) - 0.45, -0.6), xlim=(0, 56))
    axes.set_xlabel("device memory, GB (estimates; nobody has measured them on a GPU yet)", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    shown = [matplotlib.patches.Patch(color=colour, label=stage) for stage, colour in COLOURS.items()]
    axes.legend(handles=shown, title="stage", loc="lower right", fontsize=8, frameon=False)
    return figure


def _name(name: str, exact: bool) -> str:
    return name if exact else name.replace(", ", ",\n", 1) + " ≈"


if __name__ == "__main__":
    with matplotlib.rc_context(STYLE):
        print(save(draw(), "memory"))
