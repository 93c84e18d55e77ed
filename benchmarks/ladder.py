"""A guided step of ours against the published graph: `python benchmarks/ladder.py PUBLISHED_GRAPH.py [--full]`.

PUBLISHED_GRAPH.py computes what the published implementation does, plainly (`PublishedGraph`, `random_weights`). Both
get the same random weights and inputs, the same number format and attention kernel, and take turns in one run; their
outputs are compared first. Medians. A guided step is two branches: without text and speech, and with both.
With `--count` nothing is timed: operations of every way at the published size, on tensors without numbers.

Last figures: docs/speed.md.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from hallo3.bundles.names import denoiser_config_from_state, denoiser_key_map
from hallo3.conditions.speech import num_clips, num_video_frames
from hallo3.errors import UserError
from hallo3.networks import products
from hallo3.networks.conditions import DenoiserConditions
from hallo3.networks.denoiser import Hallo3Transformer3DModel
from hallo3.runtime.devices import choose_device, device_name
from hallo3.runtime.measured import seconds_of
from hallo3.runtime.operations import operations_of

FULL = {"width": 3072, "heads": 48, "layers": 42, "rows": 30, "columns": 45, "words": 226}
SMALL = {"width": 256, "heads": 4, "layers": 8, "rows": 8, "columns": 12, "words": 32}
SMALL_CONDITIONS = {"text": 128, "speech": (5, 12, 32, 64, 64, 8), "face": (64, 1024, 4), "time_width": 128}
FRAMES, CLIP, LEAD = 13, 49, 2
AGREE = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # largest difference of outputs, of the largest output
BARS = {"exact": 1.25}
MOST = {"exact": 400.7e12, "folded face": 388e12, "folded face and speech": 381e12}
Step = Callable[[], Tensor]


def load_baseline(path: Path) -> Any:
    """The module of the published graph."""
    spec = importlib.util.spec_from_file_location("published_graph", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"{path}: no such Python file; give the published graph")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Contest:
    """Both denoisers with the same weights, and the inputs of a guided step."""

    def __init__(self, baseline: Any, full: bool, layers: int | None, device: torch.device, dtype: torch.dtype):
        sizes = (FULL if full else SMALL) | ({} if layers is None else {"layers": layers})
        torch.manual_seed(0)
        extra = {} if full else SMALL_CONDITIONS
        weights = baseline.random_weights(**sizes, **extra, device=device, dtype=dtype)
        grid = {name: sizes[name] for name in ("width", "heads", "layers", "rows", "columns")}
        self.published = baseline.PublishedGraph(weights, **grid)
        self.ours = _ours(weights, sizes["layers"], device, dtype)
        self.inputs = _inputs(self.ours.config, sizes, device, dtype)

    def ways(self, compiled: bool) -> dict[str, Step]:
        """The steps to time; the first is the published one."""
        latents, timestep, text, speech, face, reference = self.inputs
        both = [feature.expand(2, -1, -1) for feature in reference]
        found: dict[str, Step] = {
            "published": lambda: self.published(latents, timestep, text, speech, face.expand(2, -1), both),
            "exact": self._prepared(False, False),
            "exact, in turn": self._in_turn(),
            "exact, by MKL alone": self._by_mkl(),
            "folded face": self._prepared(True, False),
            "folded face and speech": self._prepared(True, True),
        }
        if compiled:
            found["exact, compiled"] = self._compiled()
        return found

    def conditions(self) -> DenoiserConditions:
        """What a clip's steps share, both branches in one batch."""
        _, _, _, speech, face, reference = self.inputs
        return self.ours.conditions(speech=speech, face=face, reference=reference)

    def _prepared(self, fold_face: bool, fold_speech: bool) -> Step:
        conditions = self.conditions()
        latents, timestep, text, *_ = self.inputs

        def step() -> Tensor:
            self.ours.fold_outputs(face=fold_face, speech=fold_speech)
            return self.ours(latents, timestep, text, conditions=conditions)

        return step

    def _by_mkl(self) -> Step:
        """Linear layers as PyTorch computes them, where ours go to oneDNN."""
        plain = self._prepared(False, False)

        def step() -> Tensor:
            rule, products.onednn_is_faster = products.onednn_is_faster, lambda: False
            try:
                return plain()
            finally:
                products.onednn_is_faster = rule

        return step

    def _in_turn(self) -> Step:
        conditions = self.conditions()
        latents, timestep, text, *_ = self.inputs

        def step() -> Tensor:
            self.ours.fold_outputs(face=False, speech=False)
            rows = (slice(i, i + 1) for i in range(2))
            return torch.cat([self.ours(latents[i], timestep[i], text[i], conditions=conditions[i]) for i in rows])

        return step

    def _compiled(self) -> Step:
        compiled, conditions = torch.compile(self.ours, fullgraph=True), self.conditions()
        latents, timestep, text, *_ = self.inputs

        def step() -> Tensor:
            self.ours.fold_outputs(face=False, speech=False)
            return compiled(latents, timestep, text, conditions=conditions)

        return step


def _ours(
    weights: dict[str, Tensor], layers: int, device: torch.device, dtype: torch.dtype
) -> Hallo3Transformer3DModel:
    config: dict[str, Any] = denoiser_config_from_state({name: tuple(x.shape) for name, x in weights.items()})
    with torch.device("meta"):
        denoiser = Hallo3Transformer3DModel(**config)
    names = denoiser_key_map(layers)
    state = {names[name]: tensor for name, tensor in weights.items() if name in names}
    state |= {name: x for name, x in Hallo3Transformer3DModel(**config).state_dict().items() if name not in state}
    denoiser.load_state_dict(state, strict=True, assign=True)
    return denoiser.to(device, dtype).eval()


def _inputs(k: Any, sizes: dict[str, int], device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    rows, columns = sizes["rows"], sizes["columns"]
    text = random(2, sizes["words"], k.text_embed_dim)
    speech = random(2, CLIP, k.speech_window, k.speech_blocks, k.speech_channels)
    text[0], speech[0] = 0, 0  # the branch without
    latents = random(1, FRAMES, k.in_channels, 2 * rows, 2 * columns).expand(2, -1, -1, -1, -1)
    reference = [random(1, rows * columns, sizes["width"]) for _ in range(sizes["layers"])]
    return latents, torch.tensor([500, 500], device=device), text, speech, random(1, k.face_embed_dim), reference


def difference(step: Step, expected: Tensor) -> float:
    """Largest difference of a way's output, as a share of the largest number expected."""
    return float((step() - expected).abs().max() / expected.abs().max())


def published_clips(frames: int) -> int:
    """Clips that the published code renders: of frames padded to whole clips, cut by what a clip adds."""
    return -(-(-(-frames // CLIP) * CLIP) // (CLIP - LEAD))


def video(seconds: float, steps: int, guided: dict[str, float], conditions: float) -> dict[str, Any]:
    """Denoising of a whole video: the published way conditions every step and renders clips that are thrown away."""
    frames = num_video_frames(round(seconds * 16_000))
    clips, theirs = num_clips(frames, CLIP, LEAD), published_clips(frames)
    published = theirs * steps * guided["published"]
    ours = clips * (steps * guided["exact"] + conditions)
    return {
        "clips": clips,
        "published clips": theirs,
        "seconds": ours,
        "published": published,
        "ratio": published / ours,
    }


@torch.no_grad()
def compare(
    baseline: Any, full: bool, layers: int | None, device: torch.device, dtype: torch.dtype, rounds: int, compiled: bool
) -> dict[str, Any]:
    """All ways at one size and number format. Raises UserError where outputs differ: times would mean nothing."""
    contest = Contest(baseline, full, layers, device, dtype)
    ways = contest.ways(compiled)
    expected = ways["published"]()
    away = {name: difference(step, expected) for name, step in ways.items()}
    wrong = [name for name, value in away.items() if not value < AGREE[dtype]]
    if wrong:
        raise UserError(f"{', '.join(wrong)}: outputs differ by {max(away.values()):.1e} from the published graph's")
    guided = seconds_of(ways, device, rounds)
    prepare = seconds_of({"conditions": contest.conditions}, device)["conditions"]
    return {"seconds": guided, "differences": away, "conditions": prepare, "video": video(10, 50, guided, prepare)}


@torch.no_grad()
def count(baseline: Any) -> dict[str, float]:
    """Operations of a guidance branch at the published size, by each way."""
    with torch.device("meta"):
        contest = Contest(baseline, True, None, torch.device("meta"), torch.bfloat16)
        return {name: operations_of(step) / 2 for name, step in contest.ways(compiled=False).items()}


def main(
    graph: Annotated[Path, typer.Argument(help="The published graph, a Python file.")],
    full: Annotated[bool, typer.Option("--full", help="Published sizes: 14 billion parameters.")] = False,
    layers: Annotated[int | None, typer.Option(min=1, help="Fewer layers than the size has.")] = None,
    rounds: Annotated[int, typer.Option(min=5, help="Timed rounds.")] = 7,
    device: Annotated[str, typer.Option()] = "auto",
    dtypes: Annotated[str, typer.Option(help="Number formats, with commas.")] = "float32,bfloat16",
    compiled: Annotated[bool, typer.Option("--compile", help="Also compiled.")] = False,
    counted: Annotated[bool, typer.Option("--count", help="Operations of the published size, not times.")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Compare a guided step with the published graph's; exit code 1 when a way misses its bar."""
    place, baseline = choose_device(device), load_baseline(graph)
    if counted:
        raise typer.Exit(_show_count(count(baseline), as_json))
    found = {
        name: compare(baseline, full, layers, place, getattr(torch, name), rounds, compiled)
        for name in dtypes.split(",")
    }
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print(f"a guided step on {device_name(place)}, median of {rounds}")
        _show(found)
    reached = [one["seconds"]["published"] / one["seconds"]["exact"] for one in found.values()]
    raise typer.Exit(int(max(reached) < BARS["exact"]))


def _show_count(found: dict[str, float], as_json: bool) -> int:
    """Exit code 1 when one of ours takes more than it may."""
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print(f"{'a guidance branch, published size':34} {'TFLOP':>8} {'at most':>8}")
        for way, operations in found.items():
            most = f"{MOST[way] / 1e12:8.1f}" if way in MOST else ""
            print(f"  {way:32} {operations / 1e12:8.1f} {most}".rstrip())
    return int(any(found[way] > most for way, most in MOST.items()))


def _show(found: dict[str, Any]) -> None:
    first = next(iter(found.values()))["seconds"]["exact"]
    for name, one in found.items():
        print(f"{name:26} {'ms':>10} {'published / it':>16} {'difference':>12}")
        for way, seconds in one["seconds"].items():
            ratio = one["seconds"]["published"] / seconds
            print(f"  {way:24} {seconds * 1e3:10.1f} {ratio:16.2f} {one['differences'][way]:12.1e}")
        whole = one["video"]
        print(f"  {name} against the first format, exact: {first / one['seconds']['exact']:.2f}")
        print(
            f"  10 s of speech, 50 steps: {whole['clips']} clips in {whole['seconds']:.1f} s, the published way "
            f"{whole['published clips']} in {whole['published']:.1f} s: {whole['ratio']:.2f}"
        )


if __name__ == "__main__":
    typer.run(main)
