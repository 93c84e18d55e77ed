"""A denoiser's tokens on 2 and 4 processes, by counts that do not divide: the result is that of one process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from network_cases import assert_agree, tiny_denoiser, tiny_inputs
from torch.utils._python_dispatch import TorchDispatchMode

from hallo3.bundles.sizes import BundleSizes
from hallo3.networks import Hallo3Transformer3DModel
from hallo3.runtime.estimates import Sizes, Workload
from hallo3.runtime.layout import Layout
from hallo3.runtime.parallel import Group, SplitTokens
from hallo3.sampling.guidance import GuidanceScales

# 15 tokens of a latent frame and of the reference, 7 of the text: neither divides by 2 or 4.
FRAMES, WORDS = 3, 7
GRID = {"frames": FRAMES, "rows": 3, "columns": 5, "words": WORDS}
EVEN = {"frames": FRAMES, "rows": 4, "columns": 4, "words": 8}
CASES: dict[str, dict[str, Any]] = {
    "published": {},
    "folded": {"folded": True},
    "norm": {"variant": {"speech_conditioning": "norm", "identity_conditioning": "face_norm"}},
    "heads that don't divide": {"variant": {"num_attention_heads": 3}, "parts": (2,)},
    "counts that do": {"grid": EVEN},
}
EQUAL = 1e-5


class Sent(TorchDispatchMode):
    """Counts the bytes that this process sends to others in the exchanges of attention."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "all_to_all_single" in str(func):
            parts = len(args[1]) or 1
            self.bytes += args[0].numel() * args[0].element_size() * (parts - 1) // parts
        return func(*args, **kwargs or {})


def case(variant: dict[str, Any], grid: dict[str, int], folded: bool) -> tuple[Hallo3Transformer3DModel, Any, Any]:
    denoiser = tiny_denoiser(**{"num_attention_heads": 4, **variant})
    denoiser.fold_outputs(face=folded, speech=folded)
    inputs, given = tiny_inputs(denoiser.config, **grid)
    if not denoiser.identity.reference:
        del given["reference"]
    return denoiser, inputs, given


@torch.no_grad()
def on_four(rank: int, folder: str) -> None:
    """Every case in 2 and 4 parts, on one of four processes: pairs beside each other work on the same."""
    torch.set_num_threads(1)
    group = Group(f"file://{folder}/meeting", rank, 4)
    found: dict[str, list[torch.Tensor]] = {}
    seen: dict[str, list[int]] = {}
    for name, made in CASES.items():
        grid = made.get("grid", GRID)
        denoiser, inputs, given = case(made.get("variant", {}), grid, made.get("folded", False))
        conditions = denoiser.conditions(**given)
        for parts in made.get("parts", (2, 4)):
            counts = [grid["words"]] + [grid["rows"] * grid["columns"]] * ("reference" in given)
            split = SplitTokens(denoiser, group.mesh(Layout(4 // parts, parts)), grid["rows"] * grid["columns"], counts)
            tokens: list[torch.Size] = []
            hook = denoiser.transformer_blocks[1].mlp.register_forward_hook(
                lambda _, x, __, t=tokens: t.append(x[0].shape)
            )
            with Sent() as sent:
                prepared = denoiser(*inputs, conditions=conditions)
            exact = denoiser(*inputs, **given)
            hook.remove()
            split.undo()
            found[f"{name} {parts}"] = [exact, prepared, denoiser(*inputs, **given)]
            seen[f"{name} {parts}"] = [tokens[0][2], tokens[1][1], sent.bytes]
    torch.save(found, f"{folder}/{rank}.pt")
    Path(f"{folder}/{rank}.json").write_text(json.dumps(seen))
    group.leave()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    mp.spawn(on_four, (str(folder),), nprocs=4)
    return folder


RUNS = [(name, parts) for name, how in CASES.items() for parts in how.get("parts", (2, 4))]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parts"), RUNS)
@torch.no_grad()
def test_several_processes_equal_one(made: Path, name: str, parts: int) -> None:
    """With conditions recomputed and prepared; and alone again when the split is undone."""
    how = CASES[name]
    denoiser, inputs, given = case(how.get("variant", {}), how.get("grid", GRID), how.get("folded", False))
    expected = denoiser(*inputs, **given)
    for rank in range(4):
        exact, prepared, undone = torch.load(made / f"{rank}.pt", weights_only=True)[f"{name} {parts}"]
        assert_agree(exact, expected, EQUAL)
        assert_agree(prepared, expected, EQUAL)
        assert torch.equal(undone, expected)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 4])
def test_each_has_a_part_of_every_kind_of_token(made: Path, parts: int) -> None:
    """And what it sends is what plans reckon with: keys of the reference are sent once, and never asked with."""
    seen = [json.loads((made / f"{rank}.json").read_text())[f"published {parts}"] for rank in range(parts)]
    assert [video for video, _, _ in seen] == {2: [8, 7], 4: [4, 4, 4, 3]}[parts]
    assert [text for _, text, _ in seen] == {2: [4, 3], 4: [2, 2, 2, 1]}[parts]
    heads, head_dim, layers, batch, floats = 4, 16, 3, 2, 4
    sizes = Sizes(
        BundleSizes(
            {},
            {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": head_dim},
            {},
            {"sample_height": 48, "sample_width": 80, "num_frames": 4 * (FRAMES - 1) + 1, "text_length": WORDS},
        ),
        Workload(1.0, 1, GuidanceScales(1, 1, 1), floats, "cuda", gpus=parts),
    )
    assert sizes.layout == Layout(1, parts)
    assert sum(count for _, _, count in seen) == batch * parts * sizes.exchanged()


def test_speech_in_the_joint_attention_is_refused() -> None:
    from diffusers import ContextParallelConfig

    denoiser = tiny_denoiser(speech_conditioning="joint")
    with pytest.raises(ValueError, match="speech_conditioning is 'joint'"):
        denoiser.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
