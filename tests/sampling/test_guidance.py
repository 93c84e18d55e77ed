"""Guidance computes what it must and no more, and a guided run equals the published one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hallo3.bundles.names import denoiser_config_from_state, denoiser_key_map
from hallo3.errors import UserError
from hallo3.networks import Hallo3Transformer3DModel
from hallo3.sampling import Branch, GuidanceScales, Hallo3DPMScheduler, branches, combine

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "dit"


def test_the_defaults_are_the_published_pair():
    unconditional, conditional = branches()
    assert unconditional == Branch(reference=True, text=False, speech=False, weight=-2.5)
    assert conditional == Branch(reference=True, text=True, speech=True, weight=3.5)


@pytest.mark.parametrize(
    ("scales", "weights"),
    [
        (GuidanceScales(1, 1, 1), [1]),
        (GuidanceScales(0, 0, 0), [1]),
        (GuidanceScales(5, 2, 1), [-1, -3, 5]),
        (GuidanceScales(3, 3, 2), [-1, -1, 3]),
        (GuidanceScales(4, 3, 2), [-1, -1, -1, 4]),
        (GuidanceScales(1, 2, 1), [-1, 1, 1]),
    ],
)
def test_branches_that_cancel_are_left_out(scales, weights):
    assert [branch.weight for branch in branches(scales)] == weights
    assert sum(weights) == 1


@pytest.mark.parametrize("scales", [GuidanceScales(), GuidanceScales(4, 3, 2), GuidanceScales(0.5, 7, -1)])
def test_the_sum_is_the_chain_of_differences(scales):
    none, r, rt, rta = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    expected = none + scales.reference * (r - none) + scales.text * (rt - r) + scales.speech * (rta - rt)
    every = {(False, False, False): none, (True, False, False): r, (True, True, False): rt, (True, True, True): rta}
    needed = branches(scales)
    actual = combine([every[branch[:3]] for branch in needed], [branch.weight for branch in needed])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", ["speech", "text", "reference"])
def test_impossible_scales_are_told(name):
    with pytest.raises(UserError, match=f"scale for {name}"):
        branches(GuidanceScales(**{name: float("nan")}))


def recorded_denoiser() -> Hallo3Transformer3DModel:
    prefix = "model.diffusion_model."
    state = torch.load(GOLDEN / "hallo3/1/mp_rank_00_model_states.pt", weights_only=True, mmap=True)["module"]
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    config = denoiser_config_from_state({name: tuple(tensor.shape) for name, tensor in state.items()})
    denoiser = Hallo3Transformer3DModel(**config).eval()
    names = denoiser_key_map(config["num_layers"])
    denoiser.load_state_dict({ours: state[theirs] for theirs, ours in names.items()})
    return denoiser


@torch.no_grad()
def test_a_guided_run_equals_the_published_one():
    denoiser, scheduler = recorded_denoiser(), Hallo3DPMScheduler()
    io, run = load_file(GOLDEN / "transformer_io.safetensors"), load_file(GOLDEN / "sampler_io.safetensors")
    text, speech, face = (io[name][1:] for name in ("text_embeds", "audio_embeds", "face_embeds"))
    needed = branches()
    conditions = denoiser.conditions(
        speech=torch.cat([speech * branch.speech for branch in needed]),
        face=face,
        reference=[io[f"reference_features.{i}"] for i in range(denoiser.config.num_layers)],
    )
    texts = torch.cat([text * branch.text for branch in needed])
    scheduler.set_timesteps(6)
    sample, x0 = run["initial_noise"], None
    for i, timestep in enumerate(scheduler.timesteps):
        latents = torch.cat([sample, io["image_latents"][1:]], 2).expand(len(needed), -1, -1, -1, -1)
        predictions = denoiser(latents, timestep, texts, conditions=conditions).split(1)
        prediction = combine(predictions, [branch.weight for branch in needed])
        out = scheduler.step(prediction, i, sample, x0, noise=run.get(f"step_noise.{i}"))
        sample, x0 = out.prev_sample, out.pred_original_sample
    expected = run["final_latents"]
    # The published bar is 2e-4; rounding in float32 alone makes 2e-6.
    assert (sample - expected).abs().max() <= 1e-5 * expected.abs().max()
