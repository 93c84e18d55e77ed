"""Operations of the denoiser at the published size, counted on tensors without numbers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from hallo3.bundles.sizes import PUBLISHED_VAE, bundle_sizes
from hallo3.conditions.motion import decode_video
from hallo3.runtime import operations, plan
from hallo3.runtime.operations import DenoiserOperations, Grid, count_decoding, count_denoiser, operations_of
from hallo3.training.vae import EMBEDDED_VAE

TERA = 10**12
PUBLISHED = 418.3 * TERA  # of the published implementation's graph: a forward of one guidance branch


@pytest.fixture(scope="module")
def plain() -> DenoiserOperations:
    return count_denoiser({}, Grid())


def test_exact_mode(plain: DenoiserOperations) -> None:
    assert 400 * TERA < plain.step <= 400.7 * TERA < PUBLISHED
    # What the published graph recomputes in every step is prepared once.
    assert 2.3 * TERA < plain.clip + plain.lasting < 2.5 * TERA
    assert plain.step < plain.recomputed <= plain.step + plain.clip + plain.lasting


def test_attention_is_counted(plain: DenoiserOperations) -> None:
    """Queries of 226 text and 17,550 video tokens; keys of these, and of 1350 reference tokens."""
    words = Grid(words=225)
    one_less = plain.step - count_denoiser({}, words).step
    sequence, width, layers = 226 + 17_550, 3072, 42
    attention = 4 * width * (sequence * (sequence + 1350) - (sequence - 1) * (sequence - 1 + 1350))
    linear = 2 * (3 + 1 + 8) * width**2
    assert one_less == layers * (attention + linear) + 2 * 4096 * width


def test_folded_outputs(plain: DenoiserOperations) -> None:
    face = count_denoiser({}, Grid(), fold_face=True)
    both = count_denoiser({}, Grid(), fold_face=True, fold_speech=True)
    assert face.step <= 388 * TERA
    assert both.step <= 381 * TERA
    assert (face.clip, face.lasting) == (both.clip, both.lasting) == (plain.clip, plain.lasting)


def test_layers_that_follow_are_those_that_would_be_counted() -> None:
    config = {"num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 16, "position_rows": 100}
    for variant in (
        {},
        {"speech_conditioning": "norm", "identity_conditioning": "face_norm"},
        {"speech_conditioning": "joint", "identity_conditioning": "none"},
    ):
        grid = Grid(frames=3, height=6, width=8, words=5)
        assert count_denoiser(config | variant, grid) == count_denoiser(config | variant, grid, every_layer=True)


@pytest.mark.slow
def test_every_layer_of_the_published_size(plain: DenoiserOperations) -> None:
    assert count_denoiser({}, Grid(), every_layer=True) == plain


SMALLER: dict[str, Any] = {"block_out_channels": [8, 24, 16, 32], "norm_num_groups": 8, "layers_per_block": 1}


@pytest.mark.parametrize(
    ("config", "frames"),
    [
        (PUBLISHED_VAE, 3),
        (EMBEDDED_VAE, 9),
        *((PUBLISHED_VAE | SMALLER, frames) for frames in (1, 2, 4, 13)),
        (PUBLISHED_VAE | SMALLER | {"temporal_compression_ratio": 8, "latent_channels": 4, "out_channels": 1}, 3),
    ],
)
@torch.no_grad()
def test_decoding_is_what_would_be_counted(config: dict[str, Any], frames: int) -> None:
    grid = Grid(frames=frames, height=2, width=3)
    with torch.device("meta"):
        vae = AutoencoderKLCogVideoX.from_config(config)
    latents = torch.empty(1, frames, vae.config.latent_channels, grid.height, grid.width, device="meta")
    assert count_decoding(config, grid) == operations_of(lambda: list(decode_video(vae, latents)))


@pytest.mark.parametrize("probe", [(32, 1), (64, 5)])
def test_speed_is_that_of_finished_work(probe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that works later, and takes long to start: a clock that goes on only while work is waited for."""
    clock = SimpleNamespace(now=0.0, given=0, start=100.0, monotonic=lambda: clock.now)
    product = torch.Tensor.__matmul__

    def give(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        clock.given += 1
        assert a.dtype == torch.bfloat16
        return product(a, b)

    def wait(device: torch.device) -> None:
        clock.now += 0.25 * clock.given + clock.start
        clock.given, clock.start = 0, 0.0

    monkeypatch.setattr(operations, "time", clock)
    monkeypatch.setattr(operations, "wait_for", wait)
    monkeypatch.setattr(operations, "SMALL_PROBE", probe)
    monkeypatch.setattr(torch.Tensor, "__matmul__", give)
    assert operations.measured_speed(torch.device("cpu"), "bfloat16", 4.0) == 2 * probe[0] ** 3 / 0.25


def test_one_gpu_is_not_planned_by_the_speed_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor by that of another number format."""
    sizes, cpu = bundle_sizes("hallo3"), torch.device("cpu")
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(plan, "measured_speed", lambda device, precision: asked.append((device.type, precision)) or 7.0)
    assumed = [plan.speed_of(sizes, cpu, kind, elsewhere=True) for kind in (torch.bfloat16, torch.float32)]
    assert assumed[0].per_second > 4 * assumed[1].per_second > 1e12 and not asked
    here = plan.speed_of(sizes, torch.device("cuda"), torch.float16)
    assert (here.per_second, asked) == (7.0, [("cuda", "float16")]) and "measured here (cuda, float16)" in here.source
