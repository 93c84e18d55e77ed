"""Estimates beside what lives at once in real runs, and the choice among strategies."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from live_memory import peak_of

import tiny
from hallo3.animation import AnimationRequest, animate, check_settings
from hallo3.bundles.places import embedded_bundle
from hallo3.bundles.sizes import (
    LAYERS,
    PINNED,
    PROJECTION,
    PUBLISHED_PARAMETERS,
    PUBLISHED_VAE,
    BundleSizes,
    bundle_sizes,
)
from hallo3.cli.app import main
from hallo3.cli.plan import command
from hallo3.conditions.motion import decode_video, encode_video, in_tiles
from hallo3.errors import UserError
from hallo3.media.sound import read_speech
from hallo3.networks import Hallo3Transformer3DModel, ReferenceNetwork
from hallo3.networks.lean_vae import make_lean
from hallo3.pipeline import Hallo3Pipeline
from hallo3.runtime.estimates import STRATEGIES, Estimate, Sizes, Speed, Workload, estimates, ways
from hallo3.runtime.plan import Wanted, choose, choose_for, plan, workload
from hallo3.sampling.guidance import GuidanceScales
from hallo3.sampling.shortcuts import QUALITIES

PUBLISHED = bundle_sizes("hallo3")
GPU = Workload(10.0, 50, GuidanceScales(), 2, "cuda")

SMALL_VAE: dict[str, Any] = {
    **PUBLISHED_VAE,
    "sample_height": 96,
    "sample_width": 128,
    "block_out_channels": [16, 32, 32, 64],
    "norm_num_groups": 8,
}
SMALL: dict[str, Any] = {
    "num_layers": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "time_embed_dim": 16,
    "text_embed_dim": 16,
    "position_rows": 13 * 48 + 12,
    "speech_channels": 8,
    "speech_intermediate_dim": 16,
    "speech_tokens": 4,
    "speech_token_dim": 16,
    "face_embed_dim": 8,
    "face_token_dim": 16,
}
SETTINGS = {**PUBLISHED.settings, "sample_height": 96, "sample_width": 128, "text_length": 12}


def small(device: str, itemsize: int = 4, decoding: str = "whole", num_frames: int = 49) -> Sizes:
    bundle = BundleSizes({"reference_network": 1, LAYERS: 1}, SMALL, SMALL_VAE, SETTINGS | {"num_frames": num_frames})
    return Sizes(bundle, Workload(2.0, 2, GuidanceScales(), itemsize, device), decoding=decoding)


def case(dtype: torch.dtype) -> tuple[Hallo3Transformer3DModel, tuple[torch.Tensor, ...], dict[str, Any]]:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, dtype=dtype)

    denoiser = Hallo3Transformer3DModel(**SMALL).to(dtype).eval()
    given = {"speech": random(49, 5, 12, 8), "face": random(8), "reference": [random(48, 128) for _ in range(2)]}
    return denoiser, (random(13, 32, 12, 16), torch.tensor([500]), random(12, 16)), given


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_denoising(dtype: torch.dtype) -> None:
    denoiser, inputs, given = case(dtype)
    conditions = denoiser.conditions(**given)
    measured = peak_of(lambda: denoiser(*inputs, conditions=conditions))
    assert small("cpu", dtype.itemsize).denoising() == pytest.approx(measured, rel=0.15)


@torch.no_grad()
def test_what_is_kept_for_a_clip() -> None:
    denoiser, _, given = case(torch.float32)
    kept = denoiser.conditions(**given)
    silent = denoiser.prepare_speech(torch.zeros_like(given["speech"]))
    tensors = [*kept.reference, *kept.face, *kept.speech, *silent]
    assert small("cuda").kept() == pytest.approx(sum(x.nbytes for x in tensors), rel=0.01)
    features = sum(x.nbytes for x in given["reference"])
    assert small("cpu").kept() - small("cuda").kept() == features  # on the host they are in the same memory


@torch.no_grad()
def test_the_reference_network() -> None:
    keys = set(ReferenceNetwork(num_layers=1, num_attention_heads=1, position_rows=1).config)
    network = ReferenceNetwork(**{k: v for k, v in SMALL.items() if k in keys}).eval()
    latent, text = torch.randn(1, 1, 32, 12, 16), torch.randn(1, 12, 16)
    sizes = small("cpu")
    assert sizes.referring() + sizes.features() == pytest.approx(peak_of(lambda: network(latent, text)), rel=0.25)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@torch.no_grad()
def test_the_vae(device: str) -> None:
    """Here on the CPU either way; on a GPU convolutions are diffusers' own."""
    vae = AutoencoderKLCogVideoX.from_config(SMALL_VAE).eval()
    make_lean(vae, convolutions=device == "cpu")
    sizes = small(device)
    decoded = peak_of(lambda: [len(piece) for piece in decode_video(vae, torch.randn(1, 5, 16, 12, 16))])
    assert sizes.decoding() == pytest.approx(decoded, rel=0.15)
    encoded = peak_of(lambda: encode_video(vae, torch.randn(1, 3, 3, 96, 128)))
    assert sizes.encoding() == pytest.approx(encoded, rel=0.15)


@torch.no_grad()
def test_decoding_in_tiles() -> None:
    vae = make_lean(AutoencoderKLCogVideoX.from_config(SMALL_VAE).eval())
    with in_tiles(vae):
        tiled = peak_of(lambda: [len(piece) for piece in decode_video(vae, torch.randn(1, 5, 16, 12, 16))])
    assert tiled < small("cpu").decoding() / 2
    assert small("cpu", decoding="tiled", num_frames=17).decoding() == pytest.approx(tiled, rel=0.25)


def test_published_sizes() -> None:
    """The network's own count, from one and two of its layers."""

    def count(cls: Any, layers: int, prefix: str = "") -> int:
        with torch.device("meta"):
            network = cls(num_layers=layers)
        return sum(p.numel() for name, p in network.named_parameters() if name.startswith(prefix))

    def all_layers(cls: Any, prefix: str = "") -> int:
        one, two = count(cls, 1, prefix), count(cls, 2, prefix)
        return one + 41 * (two - one)

    assert all_layers(Hallo3Transformer3DModel) == PUBLISHED_PARAMETERS["transformer"]
    assert all_layers(Hallo3Transformer3DModel, "transformer_blocks.") == PUBLISHED_PARAMETERS[LAYERS]
    with torch.device("meta"):
        layer = Hallo3Transformer3DModel(num_layers=1).transformer_blocks
    assert 42 * sum(map(room, layer.parameters())) == PUBLISHED_PARAMETERS[PINNED]
    assert count(Hallo3Transformer3DModel, 1, "speech_projection.") == PUBLISHED_PARAMETERS[PROJECTION]
    assert all_layers(ReferenceNetwork) == PUBLISHED_PARAMETERS["reference_network"]
    with torch.device("meta"):
        vae = AutoencoderKLCogVideoX.from_config(PUBLISHED_VAE)
    assert sum(p.numel() for p in vae.parameters()) == PUBLISHED_PARAMETERS["vae"]


def test_sizes_of_a_bundle_are_those_of_its_networks(tiny_bundle: Path) -> None:
    found, parts = bundle_sizes(tiny_bundle), tiny.components()
    for name in ("transformer", "reference_network", "text_encoder", "vae", "speech_encoder"):
        numbers = sum(p.numel() for p in parts[name].parameters())
        assert found.parameters[name] == pytest.approx(numbers, rel=0.02), name
    layers = list(parts["transformer"].transformer_blocks.parameters())
    assert found.parameters[LAYERS] == sum(p.numel() for p in layers)
    assert found.parameters[PINNED] == sum(map(room, layers)) > found.parameters[LAYERS]


def room(parameter: torch.Tensor) -> int:
    """Numbers that it has room for in pinned memory: a power of two."""
    return 2 ** math.ceil(math.log2(parameter.numel()))


def test_strategies_of_the_published_size() -> None:
    found = {one.name: one for one in estimates(PUBLISHED, GPU)}
    memory = [found[name].device / 1e9 for name in ("resident", "staged", "streamed")]
    assert memory == sorted(memory, reverse=True)
    assert 45 < memory[0] < 55 and memory[1] < 22 and memory[2] < 12
    assert found["staged, int8 weights"].device < 12.2e9
    assert found["streamed, tiled decoding"].device < 10e9
    assert [one.exact for one in found.values()] == [True] * 3 + [False] * 4
    assert found["staged"].host < found["streamed"].host < found["resident"].host  # layers that stream are pinned
    on_cpu = {one.name: one for one in estimates(PUBLISHED, Workload(10.0, 50, GuidanceScales(), 2, "cpu"))}
    assert set(on_cpu) == set(found)
    assert on_cpu["streamed"].stages == on_cpu["staged"].stages
    assert on_cpu["staged"].host < on_cpu["resident"].host


def test_memory_does_not_depend_on_the_speech() -> None:
    long = Workload(3600.0, 50, GuidanceScales(), 2, "cuda")
    for short, hour in zip(estimates(PUBLISHED, GPU), estimates(PUBLISHED, long), strict=True):
        assert (short.device, short.host) == (hour.device, hour.host)


def test_several_gpus_save_time_and_little_memory() -> None:
    """Each has all weights; what lives in a forward is cut where a sequence is."""
    speed = Speed(400e12, 400e12, 150e12, "assumed")
    one, two, four = (estimates(PUBLISHED, replace(GPU, gpus=count), speed) for count in (1, 2, 4))
    for alone, shared, cut in zip(one, two, four, strict=True):
        assert alone.seconds and shared.seconds and cut.seconds
        assert 1.7 < alone.seconds / shared.seconds < 2 and 1.5 < shared.seconds / cut.seconds < 2
        assert alone.others == 0 and cut.others < shared.others
        assert shared.stages == alone.stages and cut.stages["denoising"] < shared.stages["denoising"]
    assert all(found.others < found.device for found in two)
    assert not any(Sizes(PUBLISHED, replace(GPU, gpus=count)).exchanged() for count in (1, 2)), "but for the results"


def test_the_fastest_that_fits_is_chosen() -> None:
    slow = Estimate("staged", {"denoising": 2e9}, 3e9, None)
    quantised = Estimate("staged", {"all": 1e9}, 1e9, None, weights="int8")
    found = [Estimate("resident", {"denoising": 4e9}, 4e9, None), slow, quantised]
    assert choose(found, 5e9, 5e9, "it").chosen is found[0]
    plan = choose(found, 3e9, math.inf, "it")
    assert (plan.chosen, plan.reason) == (slow, "staged fits; resident needs 4.0 GB of device memory")
    assert choose(found, 5e9, 3e9, "it").chosen is slow
    assert choose(found, 5e9, 5e9, "it", "staged").chosen is slow
    last = choose(found, 1.5e9, 9e9, "it")
    assert last.chosen is quantised and last.reason.startswith("staged, int8 weights fits (approximate); resident")
    none = choose(found, 1.5e9, 9e9, "it", can_quantise=False)
    assert none.chosen is None
    assert "1.5 GB of device and 9.0 GB of host memory: resident needs 4.0 GB" in none.reason
    assert 'staged, int8 weights needs torchao, which is not installed; pip install "hallo3[quantized]"' in none.reason


def test_what_is_asked_for_is_all_that_is_considered() -> None:
    assert {weights for _, weights, _ in ways("fp8")} == {"fp8"}
    assert {decoding for _, _, decoding in ways(decoding="whole")} == {"whole"}
    assert set(ways("full", "tiled")) == {(strategy, "full", "tiled") for strategy in STRATEGIES}
    assert ways()[:3] == [(strategy, "full", "whole") for strategy in STRATEGIES]


@pytest.mark.slow
def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hallo3.runtime.plan.measured_speed", lambda *_: 1e12)
    assert main(["plan", "--json", "--steps", "7", "--seconds", "2", str(embedded_bundle())]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["chosen"] == {"strategy": "resident", "weights": "full", "decoding": "whole"}
        and found["steps"] == 7
        and found["clips"] == 2
    )
    assert [one["strategy"] for one in found["strategies"] if one["exact"]] == ["resident", "staged", "streamed"]
    assert all(one["seconds"] > 0 and one["host"] > one["device"] / 2 > 0 for one in found["strategies"])
    assert main(["plan", "hallo3", "--gpu-memory", "24GB", "--quality", "draft", "--json"]) == 0
    draft = json.loads(capsys.readouterr().out)
    assert (draft["quality"], draft["steps"], draft["evaluations"]) == ("draft", 20, 26)
    staged = next(one["seconds"] for one in draft["strategies"] if one["strategy"] == "staged")
    times = draft["qualities"]
    assert times["draft"] == staged < times["high"] < times["exact"] and list(times) == ["exact", "high", "draft"]
    assert main(["plan", "hallo3", "--gpu-memory", "24GB"]) == 0
    shown = capsys.readouterr().out
    assert "--quality: exact " in shown and ", draft " in shown
    assert "chosen: staged fits; resident needs" in shown and "hallo3 download hallo3" in shown
    assert main(["plan", "hallo3", "--gpu-memory", "9GB", "--host-memory", "32GB"]) == 0
    assert "chosen: streamed, tiled decoding fits (approximate)" in capsys.readouterr().out
    assert main(["plan", "hallo3", "--gpu-memory", "9GB", "--decoding", "whole"]) == 2
    capsys.readouterr()
    assert main(["plan", "hallo3", "--gpu-memory", "24GB", "--gpus", "6"]) == 0
    shown = capsys.readouterr().out
    assert "6 GPUs: 2 × guidance branches, 3 × the sequence of each; reckoned" in shown and "each other GPU" in shown
    assert main(["plan", "hallo3", "--gpu-memory", "3"]) == 2
    assert "does not fit into 3.0 GB" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--gpu-memory", "lots"],
        ["--gpu-memory", "0GB"],
        ["no-such-bundle"],
        ["--weights", "int3"],
        ["hallo3", "--gpu-memory", "80GB", "--gpus", "97"],
        ["hallo3", "--gpu-memory", "80GB", "--gpus", "2", "--quality", "draft"],
        ["--quality", "best"],
        ["--steps", "0"],
        ["--steps", "2000"],
        ["--speech-scale", "nan"],
        ["--reference-scale", "101"],
        ["--seconds", "nan"],
        ["--seconds", "inf"],
        ["--seconds", "1e308"],
        ["--seconds", "7201"],
        ["--seconds", "0.1"],
        ["hallo3", "--gpu-memory", "80GB", "--weights", "fp8-compute", "--dtype", "float32"],
    ],
)
def test_what_cannot_be_planned(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hallo3: error: ") and "a bug" not in line


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Hallo3Pipeline:
    return Hallo3Pipeline.from_pretrained(tiny_bundle)


@pytest.mark.parametrize(
    ("scales", "quality"),
    [
        ({}, "high"),
        ({"speech_scale": 1.0, "text_scale": 1.0}, "exact"),
        ({"reference_scale": 2.0}, "exact"),
        ({"text_scale": 2.0}, "high"),
    ],
)
def test_evaluations_are_those_that_are_made(
    scales: dict[str, float],
    quality: str,
    tiny_bundle: Path,
    pipeline: Hallo3Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A branch whose weight cancels at a scale of 1 is not computed, and takes neither time nor memory."""
    monkeypatch.setattr("hallo3.runtime.plan.measured_speed", lambda *_: 1e12)
    found = plan(str(tiny_bundle), seconds=0.28, quality=quality, steps=5, scales=scales)
    made: list[object] = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda _, given: made.append(given))
    guidance = pipeline.guidance._replace(**{name.removesuffix("_scale"): one for name, one in scales.items()})
    performance = pipeline.prepare(tiny.portrait(), tiny.speech(0.28), no_face=True, guidance=guidance)
    shortcuts = QUALITIES[quality].shortcuts
    clips = list(pipeline.render(performance, num_inference_steps=5, shortcuts=shortcuts, branches_at_once=1))
    hook.remove()
    assert (found.clips, found.evaluations) == (len(clips), len(made))


def test_scales_of_guidance_cost_memory_and_time() -> None:
    cpu, speed = torch.device("cpu"), Speed(400e12, 400e12, 150e12, "assumed")

    def needs(**scales: float) -> tuple[int, float, float]:
        work = workload(PUBLISHED, 10.0, None, torch.bfloat16, cpu, scales=scales)
        staged = next(one for one in estimates(PUBLISHED, work, speed) if one.name == "staged")
        return work.branches, staged.stages["denoising"], staged.seconds or 0.0

    own, none, more = needs(), needs(speech_scale=1.0, text_scale=1.0), needs(reference_scale=2.0)
    assert (none[0], own[0], more[0]) == (1, 2, 3)
    assert none[1] == own[1] and more[1] - own[1] == pytest.approx(3 * 42 * 1350 * 3072 * 2)
    assert none[2] < 0.6 * own[2] < 0.45 * more[2]


def test_animate_plans_with_its_own_scales(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for one reference does not suffice for two."""
    sizes, cpu, how = bundle_sizes(tiny_bundle), torch.device("cpu"), ("resident", "full", "whole")
    (own,) = estimates(sizes, workload(sizes, 1.0, None, torch.float32, cpu), considered=[how])
    monkeypatch.setattr("hallo3.runtime.plan.free_memory", lambda device: math.ceil(own.device))
    monkeypatch.setattr("hallo3.runtime.plan.free_host_memory", lambda: math.ceil(own.host))
    tiny.portrait().save(tmp_path / "a.png")
    speech = tiny.write_wav(tmp_path / "a.wav", tiny.speech(0.28))
    options: dict[str, Any] = {"bundle": str(tiny_bundle), "no_face": True, "credentials": False}
    request = AnimationRequest(tmp_path / "a.png", speech, tmp_path / "a.mp4", **options)
    given: dict[str, Any] = {"device": "cpu", **dict(zip(("strategy", "weights", "decoding"), how, strict=True))}
    with pytest.raises(UserError, match="does not fit"):
        animate(replace(request, reference_scale=2.0), **given)
    assert animate(request, **given).exists()


def test_limits_are_those_of_animate(tmp_path: Path) -> None:
    """The same words, too."""

    def refusal(work: Callable[..., object], *given: Any, **named: Any) -> str:
        with pytest.raises(UserError) as error:
            work(*given, **named)
        return str(error.value).split(": ", 1)[1]

    for seconds in (7201.0, 0.1):
        sound = tiny.write_wav(tmp_path / "a.wav", np.full(round(seconds * 4000), 0.1, np.float32), 4000)
        assert refusal(command, seconds=seconds) == refusal(read_speech, sound)
    asked = AnimationRequest(tmp_path / "a.png", tmp_path / "a.wav", tmp_path / "a.mp4", steps=2000)
    assert refusal(command, steps=2000) == refusal(check_settings, asked)


@pytest.mark.parametrize("weights", ["fp8-compute", "int3"])
def test_weights_are_refused_as_animate_refuses_them(
    weights: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, wanted = torch.device("cpu"), Wanted(weights=weights)
    monkeypatch.setattr("hallo3.runtime.plan.choose_device", lambda name: cpu)
    with pytest.raises(UserError) as refused:
        choose_for(tiny_bundle, cpu, torch.float32, wanted, "it")
    with pytest.raises(UserError) as unplanned:
        plan(str(tiny_bundle), wanted=wanted)
    assert str(unplanned.value) == str(refused.value)


def test_unknown_bundle() -> None:
    with pytest.raises(UserError, match="no such bundle"):
        bundle_sizes("hallo33")
