"""Host memory on a CPU beside the weights in use: `python benchmarks/memory.py [BUNDLE] [--seconds 1 --seconds 20]`.

Each strategy animates in a process of its own. *Peak* is the most that the process held beyond what it held with its
libraries loaded and warm (VmHWM − VmRSS; Linux only); *weights* are those that a strategy has in use at once, in the
number format of the files, which are mapped; *estimate* is what `hallo3 plan` would say, without the libraries.

Last figures (November 2026, two virtual cores of an x86 server): staged 510 MB for 1 s of speech, 513 MB for 10 s, 1.08
of the 473 MB of weights in use; estimate 805 MB, which counts the denoiser from the start, as if it were not mapped.

Without BUNDLE: a random one of some 800 MB, made for it, with small pictures, so that weights dominate.
"""

import gc
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from hallo3.bundles.layout import load_components, save_components
from hallo3.bundles.places import embedded_bundle
from hallo3.bundles.sizes import bundle_sizes
from hallo3.networks.denoiser import Hallo3Transformer3DModel
from hallo3.networks.reference import ReferenceNetwork
from hallo3.runtime.estimates import LIBRARIES, estimates
from hallo3.runtime.plan import workload

STRATEGIES = ("resident", "staged", "streamed")
SMALL = {"sample_height": 64, "sample_width": 64, "num_frames": 33, "text_length": 48, "num_inference_steps": 1}


def make_bundle(folder: Path, layers: int, heads: int) -> Path:
    """The embedded bundle with random denoiser and reference network of `layers` layers, 64·heads wide."""
    parts = load_components(embedded_bundle())
    for name, cls in (("transformer", Hallo3Transformer3DModel), ("reference_network", ReferenceNetwork)):
        sizes = {key: value for key, value in parts[name].config.items() if not key.startswith("_")}
        parts[name] = cls(**sizes | {"num_layers": layers, "num_attention_heads": heads})
    save_components(folder, parts, SMALL)
    return folder


def in_use(bundle: Path, strategy: str) -> int:
    """Bytes of weights that a strategy has in use at once on a CPU, float32."""
    count = bundle_sizes(bundle).parameters
    freed = [count["text_encoder"], count["reference_network"]]
    lasting = count["transformer"] + count["vae"] + count["speech_encoder"]
    return 4 * (lasting + sum(freed) if strategy == "resident" else max(lasting, count["vae"] + max(freed)))


def held(line: str) -> int:
    """`VmRSS` or `VmHWM` of this process, in bytes."""
    found = re.search(rf"{line}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def animate(bundle: Path, strategy: str, seconds: float) -> None:
    """One animation, frames thrown away."""
    import numpy as np
    from PIL import Image

    from hallo3.animation import load

    pipeline = load(str(bundle), device="cpu", dtype="float32", strategy=strategy)
    speech = np.sin(np.arange(round(seconds * 16000)) / 20).astype(np.float32) / 4
    portrait = Image.new("RGB", (64, 64), (120, 100, 90))
    for _ in pipeline.stream(portrait, speech, "a woman talks", no_face=True, num_inference_steps=1):
        pass


def child(bundle: Path, strategy: str, seconds: float) -> None:
    """Measures one animation in this process and prints its peak in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        animate(make_bundle(Path(folder) / "warm", 1, 1), "resident", 1.0)
    gc.collect()
    before = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    animate(bundle, strategy, seconds)
    print(json.dumps(held("VmHWM") - before))


def measure(bundle: Path, strategy: str, seconds: float) -> dict[str, float]:
    """Peak, weights in use and estimate, in bytes."""
    words = [sys.executable, __file__, str(bundle), "--child", strategy, "--seconds", str(seconds)]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    sizes = bundle_sizes(bundle)
    work = workload(sizes, seconds, 1, torch.float32, torch.device("cpu"))
    estimate = next(one for one in estimates(sizes, work) if one.name == strategy)
    return {
        "peak": json.loads(said.splitlines()[-1]),
        "weights": in_use(bundle, strategy),
        "estimate": estimate.host - LIBRARIES["cpu"],
    }


def main(
    bundle: Annotated[Path | None, typer.Argument(help="A folder, float32.")] = None,
    seconds: Annotated[list[float], typer.Option(help="Of speech; several times for several.")] = (1.0, 20.0),  # type: ignore[assignment]
    strategy: Annotated[list[str], typer.Option(help="Which to measure.")] = STRATEGIES,  # type: ignore[assignment]
    layers: Annotated[int, typer.Option(help="Of the random bundle's networks.")] = 24,
    heads: Annotated[int, typer.Option(help="A 64th of their width.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
    child_strategy: Annotated[str | None, typer.Option("--child", hidden=True)] = None,
) -> None:
    """Peak host memory on a CPU, beside the weights in use."""
    if child_strategy is not None:
        assert bundle is not None
        child(bundle, child_strategy, seconds[0])
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle = bundle or make_bundle(Path(folder) / "random", layers, heads)
        rows = [{"strategy": s, "seconds": t, **measure(bundle, s, t)} for s in strategy for t in seconds]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        peak, weights, estimate = (float(row[key]) / 1e6 for key in ("peak", "weights", "estimate"))
        print(
            f"{row['strategy']:9} {row['seconds']:5g} s: peak {peak:6.0f} MB = {peak / weights:.2f} × {weights:.0f} MB "
            f"of weights in use; estimate {estimate:.0f} MB"
        )


if __name__ == "__main__":
    typer.run(main)
