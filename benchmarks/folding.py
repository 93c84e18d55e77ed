"""Face and speech attention folded or not: `python benchmarks/folding.py [--full] [--rounds 7]`.

Operations and median time of a denoiser forward with prepared conditions, all ways in one run on the same weights and
in turn, so that what else the machine does meets all alike. Below one in the last column: folding is faster here.

Sizes are the embedded bundle's; `--full` takes layers of the published size. Last figures (November 2026, two virtual
cores of an x86 server shared with other work, float32, embedded size): face 1.14, speech 1.56, both 1.69 of the time of
neither. At that size few rows are saved (8 or 16 in place of 128), and writing the probabilities out costs more.
"""

from functools import partial
from typing import Annotated, Any

import torch
import typer

from hallo3.bundles.parts import read_json
from hallo3.bundles.places import embedded_bundle
from hallo3.networks.denoiser import Hallo3Transformer3DModel
from hallo3.runtime.devices import choose_device, choose_dtype
from hallo3.runtime.measured import seconds_of
from hallo3.runtime.operations import Grid, count_denoiser

WAYS = {"neither": (False, False), "face": (True, False), "speech": (False, True), "both": (True, True)}


def random_inputs(denoiser: Hallo3Transformer3DModel, grid: Grid, device: torch.device) -> tuple[tuple[Any, ...], Any]:
    """Arguments of a forward, and the conditions it takes."""
    k: Any = denoiser.config

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, device=device, dtype=denoiser.dtype)

    tokens = grid.height * grid.width // k.patch_size**2
    latents = random(grid.frames, k.in_channels, grid.height, grid.width)
    inputs = latents, torch.tensor([500], device=device), random(grid.words, k.text_embed_dim)
    conditions = denoiser.conditions(
        speech=random(4 * (grid.frames - 1) + 1, k.speech_window, k.speech_blocks, k.speech_channels),
        face=random(k.face_embed_dim),
        reference=[random(tokens, k.num_attention_heads * k.attention_head_dim) for _ in range(k.num_layers)],
    )
    return inputs, conditions


def fold_and_run(denoiser: Hallo3Transformer3DModel, inputs: tuple[Any, ...], conditions: Any, way: str) -> None:
    """A forward with face and speech folded or not."""
    face, speech = WAYS[way]
    denoiser.fold_outputs(face=face, speech=speech)
    denoiser(*inputs, conditions=conditions)


@torch.no_grad()
def main(
    full: Annotated[bool, typer.Option("--full", help="Published sizes.")] = False,
    layers: Annotated[int, typer.Option(help="Layers to run.")] = 2,
    rounds: Annotated[int, typer.Option(help="Timed rounds.")] = 7,
    device: Annotated[str, typer.Option()] = "auto",
    dtype: Annotated[str, typer.Option()] = "auto",
) -> None:
    """Compare the ways."""
    place = choose_device(device)
    config = {} if full else read_json(embedded_bundle() / "transformer" / "config.json")
    grid = Grid() if full else Grid(frames=9, height=16, width=24, words=32)
    sizes = {name: value for name, value in config.items() if not name.startswith("_")} | {"num_layers": layers}
    with place:
        denoiser = Hallo3Transformer3DModel(**sizes).to(choose_dtype(dtype, place)).eval()
    inputs, conditions = random_inputs(denoiser, grid, place)
    ways = {name: partial(fold_and_run, denoiser, inputs, conditions, name) for name in WAYS}
    seconds = seconds_of(ways, place, rounds)
    print(f"{layers} layers on {place}, {denoiser.dtype}, median of {rounds}")
    print(f"{'folded':8} {'GFLOP':>10} {'seconds':>10} {'of neither':>10}")
    for name, (face, speech) in WAYS.items():
        operations = count_denoiser(sizes, grid, fold_face=face, fold_speech=speech, every_layer=True).step
        print(f"{name:8} {operations / 1e9:10.1f} {seconds[name]:10.4f} {seconds[name] / seconds['neither']:10.3f}")


if __name__ == "__main__":
    typer.run(main)
