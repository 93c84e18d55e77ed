"""`hallo3 plan`: what an animation will take on this machine or another, and how it would run."""

import json
import math
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..durations import clock
from ..errors import UserError
from .options import ReferenceScale, SpeechScale, TextScale, bundle_names

if TYPE_CHECKING:
    from ..runtime.plan import Planned

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(GB|GiB|G|MB|MiB|M)?", re.IGNORECASE)


def command(
    bundle: Annotated[
        str,
        typer.Argument(
            help="Model: `embedded`, a folder, or a name; `hallo3` is known unseen.", autocompletion=bundle_names
        ),
    ] = "embedded",
    gpu_memory: Annotated[
        str | None,
        typer.Option(metavar="24GB", help="Plan for a GPU with this much.", show_default="this machine"),
    ] = None,
    host_memory: Annotated[
        str | None,
        typer.Option(metavar="64GB", help="And this much beside it.", show_default="what is free here"),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Of this kind, for one clip; see docs/several-gpus.md.")] = 1,
    seconds: Annotated[float, typer.Option(help="Of speech, 0.2 to 7200.")] = 10.0,
    quality: Annotated[str, typer.Option(help="exact, high or draft, as `animate --quality`.")] = "exact",
    steps: Annotated[int | None, typer.Option(help="Sampling steps.", show_default="the bundle's")] = None,
    speech_scale: SpeechScale = None,
    text_scale: TextScale = None,
    reference_scale: ReferenceScale = None,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    weights: Annotated[str, typer.Option(help="As `animate --weights`.")] = "auto",
    decoding: Annotated[str, typer.Option(help="As `animate --decoding`.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Estimate memory and time of animating with BUNDLE, and choose how; nothing is loaded.

    Reads configurations and headers of files only. The exit code is 2 when nothing fits.
    """
    from ..media.sound import check_seconds
    from ..runtime.plan import Wanted, plan
    from ..settings import read_settings

    check_seconds(f"--seconds {seconds:g}", seconds)
    scales = {"speech_scale": speech_scale, "text_scale": text_scale, "reference_scale": reference_scale}
    read_settings({"quality": quality, "steps": steps, **scales})
    found = plan(
        bundle,
        seconds=seconds,
        quality=quality,
        steps=steps,
        scales=scales,
        dtype=dtype,
        gpu_memory=_bytes(gpu_memory, "--gpu-memory"),
        host_memory=_bytes(host_memory, "--host-memory"),
        gpus=gpus,
        wanted=Wanted(weights=weights, decoding=decoding),
    )
    if as_json:
        print(json.dumps(_as_json(found)))
    else:
        _show(found)
    if found.plan.chosen is None:
        raise UserError(found.plan.reason)


def _bytes(text: str | None, option: str) -> float | None:
    """`24GB` → 24·10⁹; a number alone is gigabytes, GiB are 2³⁰."""
    if text is None:
        return None
    match = SIZE.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise UserError(f"{option} {text}: is no amount of memory; write it as 24GB")
    unit = (match[2] or "GB").lower()
    base = 1024 if unit.endswith("ib") else 1000
    return float(match[1]) * base ** (3 if unit.startswith("g") else 2)


def _as_json(found: "Planned") -> dict[str, Any]:
    values = asdict(found)
    plan = values.pop("plan")
    named = [{**one, "device": whole.device, "exact": whole.exact} for one, whole in _pairs(plan, found)]
    limits = {name: None if math.isinf(values[name]) else values[name] for name in ("device_memory", "host_memory")}
    keys = ("strategy", "weights", "decoding")
    chosen = found.plan.chosen
    choice = dict.fromkeys(keys) if chosen is None else {key: getattr(chosen, key) for key in keys}
    return {**values, **limits, "chosen": choice, "reason": plan["reason"], "strategies": named}


def _pairs(plan: dict[str, Any], found: "Planned") -> Any:
    return zip(plan["estimates"], found.plan.estimates, strict=True)


def _show(found: "Planned") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 1000, highlight=False, markup=False)
    several = ["each other GPU"] if found.gpus > 1 else []
    table = Table("strategy", "device memory", "most in", *several, "host memory", "time", "")
    for one in found.plan.estimates:
        most = max(one.stages, key=lambda stage: one.stages[stage])
        time = "" if one.seconds is None else clock(one.seconds)
        state = ["approximate"] * (not one.exact) + ["chosen"] * (one is found.plan.chosen)
        others = [_gigabytes(one.others) for _ in several]
        table.add_row(one.name, _gigabytes(one.device), most, *others, _gigabytes(one.host), time, ", ".join(state))
    console.print(table)
    work = (
        f"{found.seconds:g} s of speech, {found.clips} clips of {found.steps} steps and {found.evaluations} evaluations"
    )
    where = f"{found.dtype} on {found.device}"
    console.print(f"{work}, {where}: {found.operations / 1e12:,.1f} TFLOP in the denoiser; {found.speed}")
    if found.layout is not None:
        groups, parts = found.layout.branches, found.layout.parts
        console.print(f"{found.gpus} GPUs: {groups} × guidance branches, {parts} × the sequence of each; reckoned")
    if found.plan.chosen is not None:
        console.print(f"chosen: {found.plan.reason}")
        times = (f"{name} {clock(taken)}" for name, taken in found.qualities.items())
        console.print(f"--quality: {', '.join(times)}; docs/speed.md has what they cost")
    for notice in found.notices:
        console.print(f"note: {notice}")


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
