"""The attention kernel: chosen by measuring, remembered, refused in one line where it does not run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

import tiny
from hallo3.animation import load
from hallo3.bundles.sizes import bundle_sizes
from hallo3.cli.app import main
from hallo3.errors import UserError
from hallo3.pipeline import Hallo3Pipeline
from hallo3.runtime.attention import KERNELS, JointShape, Kernel, choose_attention, use_attention

CPU = torch.device("cpu")
SHAPE = JointShape(queries=96, keys=128, heads=2, head_dim=16)
# What a CPU has beside PyTorch's choice; one that is not here, and one that only a name may take.
SEVERAL = {
    "native": Kernel("native"),
    "math": Kernel("_native_math"),
    "flash": Kernel("flash"),
    "rough": Kernel("_native_flash", exact=False),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The kernels that are called, with the sizes that they are called on; choices are remembered in a new folder."""
    monkeypatch.setenv("HALLO3_HOME", str(tmp_path))
    found: list[str] = []
    for backend in (AttentionBackendName.NATIVE, AttentionBackendName._NATIVE_MATH, AttentionBackendName._NATIVE_FLASH):
        attend = _AttentionBackendRegistry._backends[backend]

        def counted(attend: Any = attend, name: str = backend.value, **given: Any) -> Any:
            found.append(f"{name} {given['query'].shape[1]}")
            return attend(**given)

        monkeypatch.setitem(_AttentionBackendRegistry._backends, backend, counted)
    return found


def test_the_fastest_exact_one_is_measured_once(calls: list[str]) -> None:
    chosen = choose_attention("auto", SHAPE, CPU, torch.float32, SEVERAL)
    assert chosen in ("native", "math")
    assert calls.count("native 96") == 6 and calls.count("_native_math 96") == 5  # one to compare, one to warm up
    assert not any(call.startswith("_native_flash") for call in calls), "an approximate one was considered"
    calls.clear()
    assert choose_attention("auto", SHAPE, CPU, torch.float32, SEVERAL) == chosen
    assert not any(call.endswith(" 96") for call in calls), "measured again"
    other = JointShape(queries=100, keys=128, heads=2, head_dim=16)
    choose_attention("auto", other, CPU, torch.float32, SEVERAL)
    assert "native 100" in calls, "another shape is another question"


def test_a_kernel_that_gives_something_else_is_not_taken(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(query: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.zeros_like(query)

    monkeypatch.setitem(_AttentionBackendRegistry._backends, AttentionBackendName._NATIVE_MATH, wrong)
    assert choose_attention("auto", SHAPE, CPU, torch.float32, SEVERAL) == "native"


def test_a_cpu_has_one_and_measures_nothing(calls: list[str], tmp_path: Path) -> None:
    assert choose_attention("auto", SHAPE, CPU, torch.float32) == "native"
    assert not any(call.endswith(" 96") for call in calls) and not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "native"] + ["fastest"])
def test_what_does_not_run_here_is_one_line(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU may run it")
    with pytest.raises(UserError, match=f"--attention {name}"):
        choose_attention(name, SHAPE, CPU, torch.float32)
    tiny.portrait().save(tmp_path / "portrait.png")
    speech = tiny.write_wav(tmp_path / "speech.wav", tiny.speech(0.3))
    inputs = [str(tmp_path / "portrait.png"), str(speech), "-o", str(tmp_path / "out.mp4")]
    assert main(["animate", *inputs, "--attention", name]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and "use auto" in error


def test_the_shape_is_that_of_the_denoisers_joint_attention(tiny_bundle: Path, calls: list[str]) -> None:
    pipeline = load(str(tiny_bundle), attention="native")
    shape = JointShape.of(bundle_sizes(tiny_bundle))
    performance = pipeline.prepare(tiny.portrait(), tiny.speech(0.2), no_face=True)
    calls.clear()
    next(pipeline.render(performance, num_inference_steps=1))
    assert f"native {shape.queries}" in calls
    query, key, _ = shape.random(CPU, torch.float32)
    attention = pipeline.transformer.transformer_blocks[0].attention
    assert (query.shape[2], query.shape[3]) == (attention.heads, attention.norm_q.normalized_shape[0])
    assert key.shape[1] - query.shape[1] == (tiny.HEIGHT // 16) * (tiny.WIDTH // 16)  # the reference's


def test_another_kernel_gives_the_same(tiny_bundle: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Hallo3Pipeline.from_pretrained(tiny_bundle)
    performance = pipeline.prepare(tiny.portrait(), tiny.speech(0.2), no_face=True)
    expected = next(pipeline.render(performance)).motion
    monkeypatch.setitem(KERNELS, "math", Kernel("_native_math"))
    use_attention(pipeline.transformer, "math")
    calls.clear()
    torch.testing.assert_close(next(pipeline.render(performance)).motion, expected, atol=2e-5, rtol=0)
    assert any(call.startswith("_native_math") for call in calls)
