"""Memory and time at the published size, unattended: `python benchmarks/published.py --work FOLDER [--way NAME …]`.

Makes a bundle of random weights of the published sizes (41 GB on disk, bfloat16), then measures every way of keeping
and computing them by `hallo3 bench` in a process of its own, and sets the peak of device memory and the time of a clip
beside the bars and beside what `hallo3 plan` says. What a way came to lies in FOLDER/NAME.json; a second call measures
only the others. A way that fails is told with its last line, and the rest goes on.

`--tiny`: few numbers and small pictures, on any machine, to see that it runs. `benchmarks/ladder.py --full --compile`
compares a guided step with the published graph's.

Last figures: none yet, no GPU was at hand.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from diffusers import AutoencoderKLCogVideoX
from transformers import T5Config, T5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from hallo3.bundles.index import PUBLISHED_CONFIG
from hallo3.bundles.layout import load_components, save_components
from hallo3.bundles.places import embedded_bundle
from hallo3.bundles.sizes import PUBLISHED_VAE
from hallo3.networks.denoiser import Hallo3Transformer3DModel
from hallo3.networks.reference import ReferenceNetwork
from hallo3.runtime.devices import choose_device, device_name

OURS = ("tokenizer", "feature_extractor", "scheduler", "face_encoder")  # of the embedded bundle: no large weights
T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
LAYERS = {"num_layers": 2, "num_attention_heads": 2}
TINY = {
    "transformer": LAYERS,
    "reference_network": LAYERS,
    "vae": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
    "text_encoder": {"num_layers": 1, "d_ff": 64, "num_heads": 2},
    "speech_encoder": {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 32},
}
TINY_PICTURES = {"sample_height": 96, "sample_width": 144, "num_frames": 17}
STEPS = 3  # of the ways whose time is told by the step


class Way(NamedTuple):
    """Options of `hallo3 bench`, and the bars: bytes of device memory; times the speed of `of`, at least."""

    options: tuple[str, ...]
    most_memory: float | None = None
    of: str | None = None
    least_speed: float | None = None


FEW = ("--steps", str(STEPS))
WAYS = {
    "resident": Way(("--strategy", "resident", *FEW)),
    "staged": Way(("--strategy", "staged", *FEW), most_memory=22e9),
    "staged int8": Way(("--strategy", "staged", "--weights", "int8", *FEW), most_memory=12e9),
    "staged fp8": Way(("--strategy", "staged", "--weights", "fp8", *FEW), most_memory=12e9),
    "streamed tiled": Way(
        ("--strategy", "streamed", "--decoding", "tiled", *FEW), most_memory=10e9, of="resident", least_speed=1 / 1.15
    ),
    "compiled": Way(("--strategy", "resident", "--compile", *FEW)),
    "fp8 products": Way(("--strategy", "resident", "--weights", "fp8-compute", "--compile", *FEW)),
    "exact": Way(("--strategy", "resident")),
    "high": Way(("--strategy", "resident", "--quality", "high")),
    "draft": Way(("--strategy", "resident", "--quality", "draft"), of="exact", least_speed=3.0),
}


def make_bundle(folder: Path, tiny: bool, device: torch.device) -> None:
    """Writes the random bundle; each network is made on `device`, one after the other."""
    parts, settings = load_components(embedded_bundle()), PUBLISHED_CONFIG | (TINY_PICTURES if tiny else {})
    save_components(folder, {name: parts[name] for name in OURS}, settings)
    face = {"face_embed_dim": parts["face_encoder"].embedding_dim}
    sizes = TINY if tiny else {}

    def with_sizes(name: str, usual: dict[str, Any]) -> dict[str, Any]:
        return {**usual, **sizes.get(name, {})}

    makers = {
        "transformer": lambda: Hallo3Transformer3DModel(**with_sizes("transformer", face)),
        "reference_network": lambda: ReferenceNetwork(**with_sizes("reference_network", {})),
        "vae": lambda: AutoencoderKLCogVideoX.from_config(with_sizes("vae", PUBLISHED_VAE)),
        "text_encoder": lambda: T5EncoderModel(T5Config(**with_sizes("text_encoder", T5_XXL))),
        "speech_encoder": lambda: Wav2Vec2Model(Wav2Vec2Config(**with_sizes("speech_encoder", {"layerdrop": 0.0}))),
    }
    for name, make in makers.items():
        print(f"making {name}", flush=True)
        with torch.device(device):
            network = make().to(torch.bfloat16).eval()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        save_components(folder, {name: network.cpu()}, settings)
        del network
        if device.type == "cuda":
            torch.cuda.empty_cache()


def measure(bundle: Path, way: Way, device: str, repeats: int) -> dict[str, Any]:
    """What `hallo3 bench` says of a way; `error` with its last line where it failed."""
    words = [sys.executable, "-m", "hallo3", "bench", str(bundle), "--json", "--device", device]
    done = subprocess.run([*words, "--repeats", str(repeats), *way.options], capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["nothing was said"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def line(name: str, found: dict[str, dict[str, Any]]) -> tuple[str, bool]:
    """A way's row of the table, and whether it meets its bars."""
    way, one = WAYS[name], found[name]
    if "error" in one:
        return f"{name:15} {one['error']}", False
    seconds = {stage["name"]: stage["seconds"] for stage in one["stages"]}
    memory, met = one["device_memory"], True
    told = f"{name:15} {seconds['denoising']:8.2f} {seconds['denoising'] / one['steps'] * 1e3:10.1f}"
    told += (
        f" {seconds['decoding']:9.2f} {one['clip_seconds']:8.2f} {'-' if memory is None else f'{memory / 1e9:.1f}':>8}"
    )
    if way.most_memory is not None and memory is not None:
        met &= memory <= way.most_memory
        told += f"  memory at most {way.most_memory / 1e9:g} GB: {'met' if memory <= way.most_memory else 'MISSED'}"
    other = found.get(way.of or "", {})
    if way.least_speed is not None and "clip_seconds" in other:
        speed = other["clip_seconds"] / one["clip_seconds"]
        met &= speed >= way.least_speed
        verdict = "met" if speed >= way.least_speed else "MISSED"
        told += f"  {speed:.2f} × {way.of}, at least {way.least_speed:.2f}: {verdict}"
    return told, met


def main(
    work: Annotated[Path, typer.Option(help="Folder for the bundle and what is found.")],
    way: Annotated[list[str], typer.Option(help="Which to measure; several times for several.")] = list(WAYS),  # noqa: B006
    device: Annotated[str, typer.Option()] = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="Runs after the one to warm up.")] = 1,
    tiny: Annotated[bool, typer.Option("--tiny", help="Few numbers, small pictures.")] = False,
) -> None:
    """Measure every way at the published size; exit code 1 when one fails or misses its bar."""
    place, bundle = choose_device(device), work / ("tiny" if tiny else "bundle")
    if not (bundle / "complete").exists():
        make_bundle(bundle, tiny, place)
        (bundle / "complete").touch()
    found = {}
    for name in way:
        file = work / f"{'tiny ' if tiny else ''}{name}.json"
        if not file.exists():
            print(f"measuring {name}", flush=True)
            file.write_text(json.dumps(measure(bundle, WAYS[name], device, repeats)))
        found[name] = json.loads(file.read_text())
    print(f"{device_name(place)}\n{'way':15} {'denoise s':>8} {'a step ms':>9} {'decode s':>9} {'clip s':>8} {'GB':>8}")
    rows = [line(name, found) for name in way]
    print("\n".join(told for told, _ in rows))
    raise typer.Exit(int(not all(met for _, met in rows)))


if __name__ == "__main__":
    typer.run(main)
