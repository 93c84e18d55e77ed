"""`hallo3 bench`: where the time goes on this machine."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from .options import Attention, Compiled, Decoding, Device, Dtype, Quality, Strategy, Weights, bundle_names

if TYPE_CHECKING:
    from ..bench import Bench

SPEECH = (5.0, 10.0, 60.0)  # seconds, of the examples
BAR = 40  # characters


def command(
    bundle: Annotated[
        str, typer.Argument(help="Model: `embedded`, a folder, or a name.", autocompletion=bundle_names)
    ] = "embedded",
    device: Device = "auto",
    dtype: Dtype = "auto",
    strategy: Strategy = "auto",
    weights: Weights = "auto",
    decoding: Decoding = "auto",
    attention: Attention = "auto",
    compiled: Compiled = False,
    quality: Quality = "exact",
    steps: Annotated[int | None, typer.Option(help="Sampling steps.", show_default="the bundle's")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of two clips; the medians count.")] = 3,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the times into this file (.png, .svg); needs matplotlib.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Measure every stage of an animation with BUNDLE, and what that means for whole videos."""
    from importlib.util import find_spec

    from ..bench import bench
    from ..media.files import ensure_writable

    if plot is not None:
        if find_spec("matplotlib") is None:
            raise UserError("--plot: needs matplotlib; pip install matplotlib, or leave the option out")
        ensure_writable(plot, ".png", ".svg", ".pdf")
    how: dict[str, Any] = {"device": device, "dtype": dtype, "strategy": strategy, "weights": weights}
    how |= {"decoding": decoding, "attention": attention, "compiled": compiled}
    found = bench(bundle, quality=quality, steps=steps, repeats=repeats, report=_progress, **how)
    if plot is not None:
        _draw(found, plot)
    if as_json:
        print(json.dumps(_as_json(found)))
    else:
        _show(found)


def _progress(done: int, whole: int) -> None:
    print(f"run {done} of {whole}" + (" (to warm up)" if done == 1 else ""), file=sys.stderr, flush=True)


def _as_json(found: "Bench") -> dict[str, Any]:
    made = {f"{seconds:g}": found.seconds_for(seconds) for seconds in SPEECH}
    speed = {"frames_per_second": found.frames_per_second, "operations_per_second": found.operations_per_second}
    speed |= {"clip_seconds": found.clip_seconds, "first_clip_share": found.first_clip_share}
    return {**asdict(found), **speed, "seconds_for_speech": made}


def _show(found: "Bench") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if Console().is_terminal else 120, highlight=False, markup=False)
    table = Table("stage", "when", "seconds", "")
    longest = max(stage.seconds for stage in found.stages)
    for stage in found.stages:
        bar = "█" * max(1, round(BAR * stage.seconds / longest)) if stage.seconds > longest / BAR / 2 else ""
        when = "each clip" if stage.each_clip else "once"
        table.add_row(*map(Text, (stage.name, when, f"{stage.seconds:.3f}", bar)))
    console.print(f"{found.bundle} on {found.processor} ({found.device}, {found.dtype}, {found.threads} threads)")
    console.print(table)
    size = f"{found.width}×{found.height}, {found.steps} steps, {found.evaluations} evaluations of the denoiser"
    console.print(f"{size}: {found.operations_per_second / 1e9:,.0f} GFLOP a second in the denoiser")
    console.print(f"{found.frames_per_second:.1f} frames a second; {found.fps} are real time")
    share = f"{found.first_clip_share:.2f} × its denoising and decoding"
    if found.device_memory is not None:
        console.print(f"{found.device_memory / 1e9:.1f} GB of the device's memory at most")
    console.print(f"first clip after {found.first_clip:.2f} s with a loaded bundle: {share}")
    for seconds in SPEECH:
        console.print(f"{seconds:g} s of speech: {found.seconds_for(seconds):.1f} s")


def _draw(found: "Bench", path: Path) -> None:
    from matplotlib.figure import Figure

    stages = [stage for stage in found.stages if stage.each_clip]
    figure = Figure(figsize=(8, 0.4 * len(stages) + 1.4), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([stage.name for stage in stages], [stage.seconds for stage in stages])
    axes.bar_label(bars, fmt="%.2f s", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(f"seconds for a clip of {found.frames_a_clip} frames")
    where = f"{found.bundle}, {found.dtype}, {found.processor}"
    axes.set_title(f"{where}: {found.frames_per_second:.1f} frames/s", fontsize=9)
    figure.savefig(path)
