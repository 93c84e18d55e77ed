import shutil

import pytest
import torch
from bundle_parts import GOLDEN
from safetensors.torch import load_file, save_file

from hallo3.bundles.convert import Sources, convert
from hallo3.bundles.verify import verify
from hallo3.errors import UserError


def failed(result):
    return {check.tensor for check in result.checks if not check.passed}


def test_the_recorded_networks_and_run_are_replayed(golden_bundle):
    result = verify(golden_bundle, GOLDEN / "dit")
    assert result.passed and failed(result) == set()
    assert {check.tensor for check in result.checks} == {
        *(f"reference_features.{i}" for i in range(3)), "audio_tokens", "face_tokens", "output",
        *(f"{name}_{steps}" for name in ("timesteps", "sqrt_alphas_cumprod") for steps in (6, 50)), "final_latents",
    }  # fmt: skip
    tolerances = {check.tensor: check.tolerance for check in result.checks}
    assert (tolerances["output"], tolerances["final_latents"]) == (2e-5, pytest.approx(2e-4))
    assert result.unchecked == [] and result.notices == []


def test_the_recorded_speech_is_replayed(tmp_path):
    convert(Sources(speech_encoder=GOLDEN / "audio" / "wav2vec"), tmp_path / "b", dtype=None)
    result = verify(tmp_path / "b", GOLDEN / "audio" / "audio_io.safetensors")
    assert result.passed and [c.tensor for c in result.checks] == ["audio_embeds", "audio_windows", "clip_audio_embeds"]
    assert [skipped.tensor for skipped in result.unchecked] == ["clip_audio_embeds[2:]"]
    nothing = verify(tmp_path / "b", GOLDEN / "vae")
    assert not nothing.passed and nothing.checks == []
    assert {skipped.reason for skipped in nothing.unchecked} == {"the bundle has no vae"}


SHORT = {"vae_io": ("video_1", "latent_mean_1", "video_3", "latent_mean_3")}


def perturb(bundle, part, tensor, by):
    for file in (bundle / part).glob("*.safetensors"):
        tensors = load_file(file)
        if tensor in tensors:
            tensors[tensor].view(-1)[0] += by
            save_file(tensors, file, {"format": "pt"})
            return
    raise AssertionError(f"{tensor} is not in {part}")


@pytest.mark.parametrize(
    ("part", "tensor", "expected"),
    [
        ("transformer", "transformer_blocks.2.mlp.net.2.weight", {"output"}),
        ("transformer", "speech_projection.conv.weight", {"audio_tokens", "output"}),
        ("transformer", "face_projection.norm.bias", {"face_tokens", "output"}),
        ("reference_network", "transformer_blocks.2.norm_attention.bias", {"reference_features.2", "output"}),
    ],
)
def test_one_changed_weight_is_found(part, tensor, expected, golden_bundle, tmp_path):
    shutil.copytree(golden_bundle, tmp_path / "b")
    perturb(tmp_path / "b", part, tensor, 0.5)
    result = verify(tmp_path / "b", GOLDEN / "dit" / "transformer_io.safetensors")
    assert failed(result) == expected and not result.passed


def test_a_changed_vae_is_found(golden_bundle, tmp_path):
    recorded = load_file(GOLDEN / "vae" / "vae_io.safetensors")
    save_file({name: recorded[name] for name in SHORT["vae_io"]}, tmp_path / "vae_io.safetensors")
    assert verify(golden_bundle, tmp_path / "vae_io.safetensors").passed
    shutil.copytree(golden_bundle, tmp_path / "b")
    perturb(tmp_path / "b", "vae", "encoder.conv_out.conv.bias", 0.1)
    assert failed(verify(tmp_path / "b", tmp_path)) == {"latent_mean_1", "latent_mean_3"}


def test_what_is_not_a_number_fails(golden_bundle, tmp_path):
    shutil.copytree(golden_bundle, tmp_path / "b")
    perturb(tmp_path / "b", "transformer", "proj_out.bias", float("nan"))
    result = verify(tmp_path / "b", GOLDEN / "dit" / "transformer_io.safetensors")
    assert failed(result) == {"output"}


def test_a_partial_bundle_is_checked_as_far_as_it_goes(golden_bundle, tmp_path):
    from hallo3.bundles.index import write_index

    shutil.copytree(golden_bundle, tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "reference_network")
    write_index(tmp_path / "b", {"transformer": ("hallo3.networks.denoiser", "Hallo3Transformer3DModel")})
    result = verify(tmp_path / "b", GOLDEN / "dit")
    assert result.passed
    assert [check.tensor for check in result.checks] == ["audio_tokens", "face_tokens", "output"]
    reasons = {skipped.tensor: skipped.reason for skipped in result.unchecked}
    assert reasons["reference_features.0"] == "the bundle has no reference_network; recorded one used"
    assert reasons["final_latents"] == "the bundle has no scheduler"


def test_rounded_weights_fail_and_the_reason_is_said(tmp_path):
    convert(Sources(denoiser=GOLDEN / "dit" / "hallo3"), tmp_path / "b", dtype=torch.bfloat16)
    result = verify(tmp_path / "b", GOLDEN / "dit" / "transformer_io.safetensors")
    assert "output" in failed(result)
    assert "stored in bfloat16: rounding alone exceeds the tolerance" in result.notices[0]
    assert verify(tmp_path / "b", GOLDEN / "dit" / "transformer_io.safetensors", tolerance=0.05).passed


def test_a_recording_of_other_sizes_fails(golden_bundle, tmp_path):
    recorded = load_file(GOLDEN / "dit" / "transformer_io.safetensors")
    recorded["text_embeds"] = recorded["text_embeds"][..., :20].contiguous()
    save_file(recorded, tmp_path / "transformer_io.safetensors")
    result = verify(golden_bundle, tmp_path)
    assert not result.passed and "does not fit the bundle" in result.checks[-1].note


def test_a_recording_that_is_none_is_one_line(golden_bundle, tmp_path):
    with pytest.raises(UserError, match=r"holds no recording; their names are transformer_io.safetensors"):
        verify(golden_bundle, tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        verify(golden_bundle, tmp_path / "nowhere")
    (tmp_path / "vae_io.safetensors").write_bytes((GOLDEN / "vae" / "vae_io.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match="cut short"):
        verify(golden_bundle, tmp_path)
    save_file({"latents": torch.zeros(1)}, tmp_path / "transformer_io.safetensors")
    with pytest.raises(UserError, match="has no tensor 'reference_latents'"):
        verify(golden_bundle, tmp_path / "transformer_io.safetensors")
