"""The denoiser at sizes of its own: against a plain graph, cached and exact, batched and single, skipped conditions."""

import pytest
import torch
from network_cases import TINY, assert_agree, tiny_denoiser, tiny_inputs, tiny_reference
from plain_graph import PlainGraph

from hallo3.bundles.names import denoiser_config_from_state, denoiser_key_map
from hallo3.networks import DenoiserConditions, Hallo3Transformer3DModel


@pytest.fixture(scope="module")
def denoiser():
    return tiny_denoiser()


@pytest.fixture(scope="module")
def case(denoiser):
    return tiny_inputs(denoiser.config)


def published(denoiser: Hallo3Transformer3DModel) -> dict[str, torch.Tensor]:
    state = denoiser.state_dict()
    return {theirs: state[ours] for theirs, ours in denoiser_key_map(denoiser.config.num_layers).items()}


@torch.no_grad()
@pytest.mark.parametrize(
    ("frames", "rows", "columns", "words"), [(1, 2, 3, 1), (2, 5, 3, 7), (13, 1, 4, 4), (25, 2, 2, 9)]
)
def test_other_grids_frames_and_texts(denoiser, frames, rows, columns, words):
    inputs, given = tiny_inputs(denoiser.config, frames=frames, rows=rows, columns=columns, words=words)
    plain = PlainGraph(published(denoiser), denoiser.config.num_attention_heads)
    assert_agree(denoiser(*inputs, **given), plain(*inputs, **given))


@torch.no_grad()
def test_published_grid_with_a_narrow_network():
    """60×90 latents, 13 latent frames and 226 text tokens fit the default position table exactly."""
    small = {key: value for key, value in TINY.items() if key != "position_rows"}
    sizes = small | {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 64}
    denoiser = tiny_denoiser(**sizes, position_rows=226 + 13 * 1350)
    inputs, given = tiny_inputs(denoiser.config, batch=1, frames=13, rows=30, columns=45, words=226)
    plain = PlainGraph(published(denoiser), 1)
    assert_agree(denoiser(*inputs, **given), plain(*inputs, **given))


@torch.no_grad()
def test_prepared_conditions_equal_the_exact_mode(denoiser, case):
    inputs, given = case
    exact = denoiser(*inputs, **given)
    conditions = denoiser.conditions(**given)
    for _ in range(2):
        torch.testing.assert_close(denoiser(*inputs, conditions=conditions), exact, rtol=0, atol=1e-6)


@torch.no_grad()
def test_prepared_conditions_are_not_computed_again(denoiser, case):
    inputs, given = case
    conditions = denoiser.conditions(**given)
    computed = []
    modules = [denoiser.speech_projection, denoiser.face_projection]
    for block in denoiser.transformer_blocks:
        modules += [block.face_attention.to_kv, block.speech_attention.to_kv]
    handles = [module.register_forward_hook(lambda *_: computed.append(1)) for module in modules]
    denoiser(*inputs, conditions=conditions)
    assert not computed
    denoiser(*inputs, **given)
    assert len(computed) == len(modules)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def test_no_queries_or_outputs_of_the_reference(denoiser, case):
    """The reference costs the key and value rows of the fused projection alone, and nothing once it is prepared."""
    inputs, given = case
    rows = []
    handles = []
    for block in denoiser.transformer_blocks:
        for linear in (block.attention.to_qkv, block.attention.to_out):
            handles.append(linear.register_forward_hook(lambda _, args, out: rows.append(out[0].numel())))
    conditions = DenoiserConditions(reference=denoiser.prepare_reference(given["reference"]))
    tokens, width = given["reference"][0].shape[1:]
    assert rows == [tokens * 2 * width] * 3
    rows.clear()
    denoiser(*inputs, conditions=conditions)
    with_reference = list(rows)
    rows.clear()
    denoiser(*inputs)
    assert with_reference == rows
    for handle in handles:
        handle.remove()


@torch.no_grad()
def test_a_batch_equals_its_rows(denoiser, case):
    inputs, given = case
    together = denoiser(*inputs, **given)
    conditions = denoiser.conditions(**given)
    for i in range(2):
        row = slice(i, i + 1)
        alone = denoiser(*(x[row] for x in inputs), conditions=conditions[row])
        torch.testing.assert_close(alone, together[row], rtol=0, atol=2e-5)


@torch.no_grad()
def test_one_row_of_conditions_serves_the_batch(denoiser, case):
    inputs, given = case
    one = {"face": given["face"][:1], "reference": [x[:1] for x in given["reference"]], "speech": given["speech"]}
    both = {"face": given["face"][:1].expand(2, -1), "reference": [x[:1].expand(2, -1, -1) for x in one["reference"]]}
    expected = denoiser(*inputs, **one | both)
    assert_agree(denoiser(*inputs, **one), expected)
    conditions = denoiser.conditions(**one)
    assert conditions.reference[0].shape[0] == 1
    assert_agree(denoiser(*inputs, conditions=conditions), expected)
    row = conditions[1:]
    assert row.reference[0].shape[0] == 1
    assert_agree(denoiser(*(x[1:] for x in inputs), conditions=row), expected[1:])


@torch.no_grad()
def test_branches_concatenate(denoiser, case):
    """Branches share the reference and the face, which are not copied, and have speech of their own."""
    inputs, given = case
    speech, shared = given["speech"], {"face": given["face"][:1], "reference": [x[:1] for x in given["reference"]]}
    base = denoiser.conditions(**shared)
    parts = [
        DenoiserConditions(base.reference, base.face, denoiser.prepare_speech(windows))
        for windows in (torch.zeros_like(speech[1:]), speech[1:])
    ]
    joined = DenoiserConditions.concatenate(parts)
    assert joined.reference is base.reference
    assert joined.speech[0].shape[0] == 2
    together = denoiser(*inputs, conditions=joined)
    for i, part in enumerate(parts):
        assert_agree(denoiser(*(x[i : i + 1] for x in inputs), conditions=part), together[i : i + 1])
    with pytest.raises(ValueError, match="speech"):
        DenoiserConditions.concatenate([base, parts[0]])
    assert joined.to(dtype=torch.float64).face[0].dtype == torch.float64


@torch.no_grad()
def test_conditions_of_different_references_concatenate(denoiser, case):
    inputs, given = case
    references = [denoiser.conditions(reference=[x[i : i + 1] for x in given["reference"]]) for i in range(2)]
    joined = DenoiserConditions.concatenate(references)
    assert_agree(denoiser(*inputs, conditions=joined), denoiser(*inputs, reference=given["reference"]))


@torch.no_grad()
def test_each_condition_matters_and_can_be_left_out(denoiser, case):
    inputs, given = case
    full = denoiser(*inputs, **given)
    for name in given:
        left_out = denoiser(*inputs, **{key: value for key, value in given.items() if key != name})
        assert (left_out - full).abs().max() > 1e-3


@torch.no_grad()
def test_timesteps_of_any_form(denoiser, case):
    (latents, _, text), given = case
    expected = denoiser(latents, torch.tensor([7, 7]), text, **given)
    for timestep in (torch.tensor(7), torch.tensor([7]), torch.tensor([7.0, 7.0])):
        assert torch.equal(denoiser(latents, timestep, text, **given), expected)


def test_a_new_network_starts_as_nothing():
    """Zero prediction, layers that change nothing, and face and speech attention that add nothing."""
    torch.manual_seed(0)
    denoiser = Hallo3Transformer3DModel(**TINY)
    inputs, given = tiny_inputs(denoiser.config)
    assert not denoiser(*inputs, **given).any()
    block = denoiser.transformer_blocks[0]
    assert not block.face_attention.to_out.weight.any()
    assert not block.speech_attention.to_out.weight.any()
    assert not block.modulation.linear.weight.any()


def test_bad_shapes_are_told(denoiser, case):
    (latents, timestep, text), given = case
    with pytest.raises(ValueError, match="position table of 400 rows"):
        denoiser(*tiny_inputs(denoiser.config, frames=13, rows=6, columns=6)[0])
    with pytest.raises(ValueError, match="patch size"):
        denoiser(latents[..., :-1], timestep, text)
    with pytest.raises(ValueError, match="channels"):
        denoiser(latents[:, :, :16], timestep, text)
    with pytest.raises(ValueError, match="4k \\+ 1"):
        denoiser(latents, timestep, text, speech=given["speech"][:, :-1])
    with pytest.raises(ValueError, match="latent frames"):
        denoiser(latents[:, :-1], timestep, text, speech=given["speech"])
    with pytest.raises(ValueError, match="reference features"):
        denoiser(latents, timestep, text, reference=given["reference"][:-1])
    with pytest.raises(ValueError, match="either"):
        denoiser(latents, timestep, text, conditions=DenoiserConditions(), face=given["face"])
    with pytest.raises(ValueError, match="multiple of 16"):
        Hallo3Transformer3DModel(**TINY | {"attention_head_dim": 24})


def test_the_configuration_is_in_the_published_tensors(denoiser):
    sizes = {"speech_blocks": 12, "speech_window": 5, "num_layers": 2}
    state = published(tiny_denoiser(**sizes))
    config = denoiser_config_from_state({name: tuple(tensor.shape) for name, tensor in state.items()})
    assert config == TINY | sizes | {"in_channels": 32, "out_channels": 16, "patch_size": 2}


@torch.no_grad()
def test_reference_network_is_the_denoiser_seen_from_inside():
    """Its features are the denoiser's own attention inputs at timestep 0, given the same weights."""
    denoiser, reference = tiny_denoiser(), tiny_reference()
    state = denoiser.state_dict()
    reference.load_state_dict({name: state[name] for name in reference.state_dict()})
    (latents, _, text), _ = tiny_inputs(denoiser.config, frames=1)
    seen = []
    for block in denoiser.transformer_blocks:
        block.attention.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    denoiser(latents, torch.tensor(0), text)
    features = reference(latents, text)
    assert len(features) == 3
    for feature, expected in zip(features, seen, strict=True):
        assert_agree(feature, expected.flatten(1, 2))


def test_every_parameter_of_the_reference_network_is_trained():
    """Nothing is kept that no feature depends on."""
    reference = tiny_reference()
    (latents, _, text), _ = tiny_inputs(TINY | {"in_channels": 32, "speech_window": 5}, frames=1)
    sum(feature.square().sum() for feature in reference(latents, text)).backward()
    assert all(parameter.grad is not None for parameter in reference.parameters())
