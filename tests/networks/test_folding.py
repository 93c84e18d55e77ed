"""Face and speech attention with their values projected first: the same results, in every variant."""

import copy
from itertools import product

import pytest
import torch
from network_cases import assert_agree, tiny_denoiser, tiny_inputs
from peft import LoraConfig

from hallo3.networks.attention import FoldedCrossAttentionProcessor
from hallo3.networks.variants import IDENTITY_CONDITIONINGS, SPEECH_CONDITIONINGS

WAYS = [(True, False), (False, True), (True, True)]


@pytest.mark.parametrize(("speech", "identity"), list(product(SPEECH_CONDITIONINGS, IDENTITY_CONDITIONINGS)))
@torch.no_grad()
def test_folded_equals_unfolded(speech: str, identity: str) -> None:
    denoiser = tiny_denoiser(speech_conditioning=speech, identity_conditioning=identity)
    inputs, given = tiny_inputs(denoiser.config)
    seen = {"speech": True, "face": denoiser.identity.face is not None, "reference": denoiser.identity.reference}
    given = {name: value for name, value in given.items() if seen[name]}
    conditions, expected = denoiser.conditions(**given), denoiser(*inputs, **given)
    foldable = {"face": denoiser.identity.face == "attention", "speech": speech == "cross"}
    for face, spoken in WAYS:
        denoiser.fold_outputs(face=face, speech=spoken)
        folded = [p for p in denoiser.attn_processors.values() if isinstance(p, FoldedCrossAttentionProcessor)]
        assert len(folded) == 3 * ((face and foldable["face"]) + (spoken and foldable["speech"]))
        assert_agree(denoiser(*inputs, **given), expected)
        assert_agree(denoiser(*inputs, conditions=conditions), expected)
    denoiser.fold_outputs(face=False, speech=False)
    assert torch.equal(denoiser(*inputs, **given), expected)


@torch.no_grad()
def test_it_computes_the_output_from_projected_values() -> None:
    """By definition: a weighted sum, over heads and tokens, of values times their head's columns."""
    denoiser = tiny_denoiser()
    attention, norm_q = denoiser.transformer_blocks[0].face_attention, denoiser.transformer_blocks[0].attention.norm_q
    attention.fold(True)
    video, key_value = torch.randn(1, 2, 6, 32), torch.randn(1, 1, 3, 2, 2, 16)
    rotary = denoiser.rotary(2, 2, 3, video.device)
    query, key, value = attention.query_key_value(video, key_value, rotary, norm_q)
    expected = torch.zeros(12, 32)
    for head in range(2):
        weights = (query[0, :, head] @ key[0, :, head].T / 4).softmax(-1)
        expected += weights @ (value[0, :, head] @ attention.to_out.weight[:, 16 * head : 16 * head + 16].T)
    expected += attention.to_out.bias
    actual = attention(video, key_value, rotary, norm_q)
    torch.testing.assert_close(actual, expected.view(1, 2, 6, 32), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_the_plain_way() -> None:
    denoiser = tiny_denoiser(num_layers=1)
    inputs, given = tiny_inputs(denoiser.config)
    gradients = []
    for folded in (False, True):
        denoiser.fold_outputs(face=folded, speech=folded)
        denoiser.zero_grad()
        denoiser(*inputs, **given).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in denoiser.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_half_precision_stays_as_near_as_the_plain_way() -> None:
    exact = tiny_denoiser()
    inputs, given = tiny_inputs(exact.config)
    expected = exact(*inputs, **given)
    half = copy.deepcopy(exact).bfloat16()
    latents, timestep, text = inputs
    conditions = exact.conditions(**given).to(dtype=torch.bfloat16)
    half.fold_outputs(face=True, speech=True)
    actual = half(latents.bfloat16(), timestep, text.bfloat16(), conditions=conditions)
    assert actual.dtype == torch.bfloat16
    assert_agree(actual.float(), expected, tolerance=0.05)


@torch.no_grad()
def test_an_adapter_on_the_projection_is_heeded() -> None:
    denoiser = tiny_denoiser()
    inputs, given = tiny_inputs(denoiser.config)
    denoiser.add_adapter(LoraConfig(r=2, target_modules=["face_attention.to_out"], init_lora_weights=False))
    expected = denoiser(*inputs, **given)
    denoiser.fold_outputs(face=True, speech=True)
    assert_agree(denoiser(*inputs, **given), expected)


@torch.no_grad()
def test_weights_cast_by_layer_are_heeded() -> None:
    denoiser = tiny_denoiser()
    inputs, given = tiny_inputs(denoiser.config)
    denoiser.enable_layerwise_casting(torch.bfloat16, torch.float32)
    expected = denoiser(*inputs, **given)
    denoiser.fold_outputs(face=True, speech=True)
    assert_agree(denoiser(*inputs, **given), expected)


@torch.no_grad()
def test_it_compiles_without_a_graph_break() -> None:
    denoiser = tiny_denoiser()
    inputs, given = tiny_inputs(denoiser.config)
    denoiser.fold_outputs(face=True, speech=True)
    compiled = torch.compile(denoiser, backend="eager", fullgraph=True)
    assert_agree(compiled(*inputs, **given), denoiser(*inputs, **given))
    torch._dynamo.reset()
