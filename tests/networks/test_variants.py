"""The paper's other ways to condition: what they own, how they start, and that cached, exact and batched agree."""

import json
from itertools import product

import pytest
import torch
from network_cases import TINY, assert_agree, randomise, tiny_denoiser, tiny_inputs
from plain_graph import rotate, rotations
from torch.nn import functional as F

from hallo3.networks import DenoiserConditions, Hallo3Transformer3DModel
from hallo3.networks.attention import JoiningTokens, JointAttention
from hallo3.networks.embeddings import Modulation, RotaryPositions
from hallo3.networks.variants import IDENTITY_CONDITIONINGS, SPEECH_CONDITIONINGS

SPEECH, IDENTITY = SPEECH_CONDITIONINGS, tuple(IDENTITY_CONDITIONINGS)
SOME = [("joint", "both"), ("norm", "face_norm"), ("cross", "reference"), ("joint", "face_norm"), ("norm", "none")]


def variant(speech: str, identity: str, **changes: int) -> Hallo3Transformer3DModel:
    return tiny_denoiser(**changes, speech_conditioning=speech, identity_conditioning=identity)


def variant_inputs(denoiser: Hallo3Transformer3DModel, **sizes: int) -> tuple:
    """Arguments of a forward, without the conditions that this network takes nothing of."""
    inputs, given = tiny_inputs(denoiser.config, **sizes)
    seen = {"speech": True, "face": denoiser.identity.face is not None, "reference": denoiser.identity.reference}
    return inputs, {name: value for name, value in given.items() if seen[name]}


def modules_of(denoiser: Hallo3Transformer3DModel) -> set[str]:
    """What it has for speech and face: modules of the network, and of its layers."""
    names = {
        name.removeprefix("transformer_blocks.0.").split(".")[0]
        for name in denoiser.state_dict()
        if not name.startswith(("transformer_blocks.1", "transformer_blocks.2"))
    }
    return {name for name in names if "speech" in name or "face" in name}


def test_a_variant_has_what_it_uses_and_nothing_else():
    speech = {
        "cross": {"speech_projection", "norm_speech", "speech_attention"},
        "joint": {"speech_projection", "speech_attention"},
        "norm": {"speech_projection"},
    }
    face = {"face_projection", "norm_face", "face_attention"}
    identity = {"none": set(), "face": face, "face_norm": {"face_projection"}, "reference": set(), "both": face}
    for one, other in product(SPEECH, IDENTITY):
        assert modules_of(variant(one, other)) == speech[one] | identity[other]
    with pytest.raises(ValueError, match="speech_conditioning is 'loud'; there are cross, joint, norm"):
        variant("loud", "both")
    with pytest.raises(ValueError, match="identity_conditioning is 'twin'"):
        variant("cross", "twin")


@pytest.mark.parametrize(("speech", "identity"), list(product(SPEECH, IDENTITY)))
def test_prepared_exact_and_single_rows_agree(speech, identity):
    denoiser = variant(speech, identity)
    inputs, given = variant_inputs(denoiser)
    with torch.no_grad():
        exact = denoiser(*inputs, **given)
        conditions = denoiser.conditions(**given)
        torch.testing.assert_close(denoiser(*inputs, conditions=conditions), exact, rtol=0, atol=1e-5)
        for i in range(2):
            row = slice(i, i + 1)
            alone = denoiser(*(x[row] for x in inputs), conditions=conditions[row])
            torch.testing.assert_close(alone, exact[row], rtol=0, atol=2e-5)
        for name in given:
            left_out = denoiser(*inputs, **{key: value for key, value in given.items() if key != name})
            assert (left_out - exact).abs().max() > 1e-3, name


@pytest.mark.parametrize(("speech", "identity"), SOME)
def test_gradients_reach_every_parameter_with_checkpointing_too(speech, identity):
    denoiser = variant(speech, identity)
    inputs, given = variant_inputs(denoiser)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        denoiser.zero_grad()
        denoiser(*inputs, **given).square().mean().backward()
        found.append({name: parameter.grad for name, parameter in denoiser.named_parameters()})
    for name, gradient in found[0].items():
        assert gradient is not None and gradient.any(), name
        torch.testing.assert_close(found[1][name], gradient)


@torch.no_grad()
@pytest.mark.parametrize(("speech", "identity"), SOME)
def test_branches_of_guidance_concatenate(speech, identity):
    """Branches have speech of their own, dropped in one, and share the rest, which is not copied."""
    denoiser = variant(speech, identity)
    inputs, given = variant_inputs(denoiser)
    shared = {name: [x[:1] for x in v] if isinstance(v, list) else v[:1] for name, v in given.items()}
    windows = shared.pop("speech")
    base = denoiser.conditions(**shared)
    parts = [
        DenoiserConditions(base.reference, base.face, denoiser.prepare_speech(x))
        for x in (torch.zeros_like(windows), windows)
    ]
    joined = DenoiserConditions.concatenate(parts)
    assert joined.reference is base.reference and joined.face is base.face
    together = denoiser(*inputs, conditions=joined.to(dtype=torch.float32))
    for i, part in enumerate(parts):
        row = slice(i, i + 1)
        assert_agree(denoiser(*(x[row] for x in inputs), conditions=part), together[row])
    with pytest.raises(ValueError, match="some branches have a speech condition"):
        DenoiserConditions.concatenate([base, parts[0]])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["speech", "face"])
@pytest.mark.parametrize("way", ["attention", "norm"])
def test_a_new_condition_starts_without_effect(kind, way):
    """Everything random but the condition's own weights, which are those of a new network."""
    names = {"speech": {"attention": "cross", "norm": "norm"}, "face": {"attention": "face", "norm": "face_norm"}}
    ways = {"speech": "cross", "face": "none"} | {kind: names[kind][way]}
    torch.manual_seed(0)
    denoiser = Hallo3Transformer3DModel(
        **TINY, speech_conditioning=ways["speech"], identity_conditioning=ways["face"]
    ).eval()
    fresh = {name: x.clone() for name, x in denoiser.state_dict().items() if kind in name}
    randomise(denoiser).load_state_dict(fresh, strict=False)
    inputs, given = tiny_inputs(denoiser.config)
    assert_agree(denoiser(*inputs, **{kind: given[kind]}), denoiser(*inputs))


def test_values_of_joining_tokens_start_at_zero():
    tokens = JoiningTokens(2, 16, 6)
    key, value = tokens.key_value(torch.randn(1, 3, 4, 6), torch.nn.Identity()).unbind(3)
    assert key.any() and not value.any()


@torch.no_grad()
def test_joining_tokens_are_further_keys_at_the_time_of_their_frame():
    heads, head, frames, rows, columns = 2, 16, 3, 2, 4
    attention = randomise(JointAttention(heads * head, heads, head))
    joining = randomise(JoiningTokens(heads, head, 6), seed=1)
    generator = torch.Generator().manual_seed(2)
    video = torch.randn(1, frames, rows * columns, heads * head, generator=generator)
    text = torch.randn(1, 5, heads * head, generator=generator)
    speech = torch.randn(1, frames, 4, 6, generator=generator)
    rotary = RotaryPositions(head)(frames, rows, columns, video.device)
    found = joining(joining.key_value(speech, attention.norm_k), rotary)
    actual, actual_text = attention(video, text, rotary, [found])

    def split(x):
        return x.unflatten(-1, (heads, head)).transpose(-2, -3)

    turns = rotations(head, frames, rows, columns)
    q, k, v = map(split, attention.to_qkv(torch.cat([text, video.flatten(1, 2)], 1)).chunk(3, -1))
    q, k = attention.norm_q(q), attention.norm_k(k)
    still = torch.ones(5, head // 2, dtype=turns.dtype)
    q, k = (rotate(x, torch.cat([still, turns.flatten(0, 1)])) for x in (q, k))
    speech_k, speech_v = map(split, joining.to_kv(speech.flatten(1, 2)).chunk(2, -1))
    times = turns[:, :1].clone()
    times[..., head // 8 :] = 1  # only time turns
    speech_k = rotate(attention.norm_k(speech_k), times.expand(-1, 4, -1).flatten(0, 1))
    out = F.scaled_dot_product_attention(q, torch.cat([k, speech_k], 2), torch.cat([v, speech_v], 2))
    out = attention.to_out(out.transpose(1, 2).flatten(2))
    assert_agree(actual_text, out[:, :5])
    assert_agree(actual.flatten(1, 2), out[:, 5:])


def test_added_speech_goes_to_its_frame_and_the_face_to_everything():
    generator = torch.Generator().manual_seed(0)
    temb, face, speech = (torch.randn(shape, generator=generator) for shape in ((2, 5), (2, 1, 5), (1, 3, 5)))
    told = DenoiserConditions(face=face, speech=speech).told(temb)
    assert told.shape == (2, 4, 5)
    torch.testing.assert_close(told[:, 0], temb + face[:, 0])
    torch.testing.assert_close(told[:, 2], temb + face[:, 0] + speech[:, 1])
    assert torch.equal(DenoiserConditions().told(temb)[:, 0], temb)
    modulation = randomise(Modulation(5, 8))
    together, text, second = modulation(told), modulation(told[:, :1]), modulation(told[:, 2:3])
    for part in range(4):
        for one, plain, framed in zip(together[part], text[part], second[part], strict=True):
            torch.testing.assert_close(*((one[:, 1:2], framed) if part < 2 else (one, plain)))


@torch.no_grad()
def test_what_a_network_has_nothing_for_is_refused():
    inputs, given = tiny_inputs(variant("cross", "none").config)
    for name, identity in (("face", "reference"), ("reference", "face_norm"), ("face", "none")):
        denoiser = variant("cross", identity)
        with pytest.raises(ValueError, match=f"identity_conditioning is '{identity}': this network takes no {name}"):
            denoiser(*inputs, **{name: given[name]})
        with pytest.raises(ValueError, match=f"takes no {name}"):
            denoiser.conditions(**{name: given[name]})
    norm = variant("norm", "none")
    with pytest.raises(ValueError, match="speech for 2 latent frames"):
        norm(*inputs, speech=given["speech"][:, :5])


@torch.no_grad()
def test_weights_go_over_into_another_variant():
    published = tiny_denoiser()
    state = published.state_dict()
    for speech, identity in SOME:
        other = published.in_variant(speech, identity)
        assert (other.config.speech_conditioning, other.config.identity_conditioning) == (speech, identity)
        same = {name for name, x in other.state_dict().items() if name in state and torch.equal(x, state[name])}
        assert {name for name in other.state_dict() if "speech_" not in name and "face_p" not in name} <= same
        assert any(name.startswith("speech_projection.proj1") for name in same)
        inputs, given = variant_inputs(other)
        alike = {name: value for name, value in given.items() if name == "reference"}
        assert_agree(other(*inputs, **alike), published(*inputs, **alike))
    joint = published.in_variant("joint", "both").transformer_blocks[0].speech_attention
    assert not joint.to_kv.weight.chunk(2)[1].any()
    inputs, given = variant_inputs(published)
    assert torch.equal(published.in_variant("cross", "both")(*inputs, **given), published(*inputs, **given))


@torch.no_grad()
def test_saving_and_loading(tmp_path):
    for number, (speech, identity) in enumerate(SOME):
        denoiser = variant(speech, identity)
        denoiser.save_pretrained(tmp_path / str(number))
        loaded, report = Hallo3Transformer3DModel.from_pretrained(tmp_path / str(number), output_loading_info=True)
        assert not any(report.values())
        inputs, given = variant_inputs(denoiser)
        assert torch.equal(loaded(*inputs, **given), denoiser(*inputs, **given))


@torch.no_grad()
def test_a_configuration_from_before_there_were_variants_is_the_published_one(tmp_path):
    denoiser = tiny_denoiser()
    denoiser.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    names = ("speech_conditioning", "identity_conditioning")
    assert [config.pop(name) for name in names] == ["cross", "both"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = Hallo3Transformer3DModel.from_pretrained(tmp_path)
    inputs, given = tiny_inputs(denoiser.config)
    assert torch.equal(loaded(*inputs, **given), denoiser(*inputs, **given))


@torch.no_grad()
@pytest.mark.parametrize(("speech", "identity"), [("joint", "face_norm"), ("norm", "face")])
def test_compiles_without_a_graph_break(speech, identity):
    denoiser = variant(speech, identity)
    inputs, given = variant_inputs(denoiser)
    compiled = torch.compile(denoiser, backend="eager", fullgraph=True)
    for arguments in (given, {"conditions": denoiser.conditions(**given)}):
        assert_agree(compiled(*inputs, **arguments), denoiser(*inputs, **given))
    torch._dynamo.reset()
