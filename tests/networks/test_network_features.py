"""What diffusers offers to its networks works with ours."""

import copy

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import apply_group_offloading
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend
from network_cases import TINY, assert_agree, tiny_denoiser, tiny_inputs, tiny_reference
from peft import LoraConfig

from hallo3.networks import Hallo3Transformer3DModel, ReferenceNetwork
from hallo3.runtime.compilation import compile_layers


@pytest.fixture
def denoiser():
    return tiny_denoiser()


@pytest.fixture
def case(denoiser):
    return tiny_inputs(denoiser.config)


def portrait():
    (latents, _, text), _ = tiny_inputs(TINY | {"in_channels": 32, "speech_window": 5}, batch=1, frames=1)
    return latents, text


def gradients(network, loss):
    network.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


def test_gradient_checkpointing_equals(denoiser, case):
    inputs, given = case
    expected = gradients(denoiser, denoiser(*inputs, **given).square().mean())
    denoiser.enable_gradient_checkpointing()
    actual = gradients(denoiser, denoiser(*inputs, **given).square().mean())
    assert set(actual) == set(dict(denoiser.named_parameters()))
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name])


def test_gradient_checkpointing_of_the_reference_network_equals():
    reference, inputs = tiny_reference(), portrait()
    expected = gradients(reference, sum(x.square().mean() for x in reference(*inputs)))
    reference.enable_gradient_checkpointing()
    actual = gradients(reference, sum(x.square().mean() for x in reference(*inputs)))
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name])


@torch.no_grad()
def test_saving_and_loading(denoiser, case, tmp_path):
    denoiser.save_pretrained(tmp_path / "transformer", max_shard_size="50KB")
    loaded = Hallo3Transformer3DModel.from_pretrained(tmp_path / "transformer")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    inputs, given = case
    assert_same_weights(loaded, denoiser)
    torch.testing.assert_close(loaded(*inputs, **given), denoiser(*inputs, **given))
    half = Hallo3Transformer3DModel.from_pretrained(tmp_path / "transformer", torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16

    reference = tiny_reference()
    reference.save_pretrained(tmp_path / "reference_network")
    loaded = ReferenceNetwork.from_pretrained(tmp_path / "reference_network")
    assert_same_weights(loaded, reference)
    for actual, expected in zip(loaded(*portrait()), reference(*portrait()), strict=True):
        torch.testing.assert_close(actual, expected)


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Bit for bit; what is computed with them need not be: mapped from a file they lie differently in memory."""
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    assert all(name == other_name and torch.equal(a, b) for (name, a), (other_name, b) in pairs)


@torch.no_grad()
def test_half_precision_runs(denoiser, case):
    inputs, given = case
    expected = denoiser(*inputs, **given)
    denoiser.to(torch.bfloat16)
    latents, timestep, text = inputs
    given = {
        "speech": given["speech"].bfloat16(),
        "face": given["face"].bfloat16(),
        "reference": [x.bfloat16() for x in given["reference"]],
    }
    actual = denoiser(latents.bfloat16(), timestep, text.bfloat16(), **given)
    assert actual.dtype == torch.bfloat16
    assert_agree(actual.float(), expected, tolerance=0.05)


def test_autocast_trains(denoiser, case):
    inputs, given = case
    with torch.no_grad():
        expected = denoiser(*inputs, **given)
    with torch.autocast("cpu", torch.bfloat16):
        out = denoiser(*inputs, **given)
    assert_agree(out.float(), expected, tolerance=0.05)
    out.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in denoiser.parameters())


@pytest.mark.parametrize("target", ["to_qkv", "to_kv"])
def test_adapters_reach_every_mode(denoiser, case, target):
    inputs, given = case
    with torch.no_grad():
        before = denoiser(*inputs, **given)
        denoiser.add_adapter(LoraConfig(r=2, target_modules=[target], init_lora_weights=True))
        assert_agree(denoiser(*inputs, **given), before)
        for name, parameter in denoiser.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(5))
        after = denoiser(*inputs, **given)
        assert (after - before).abs().max() > 1e-2
        assert_agree(denoiser(*inputs, conditions=denoiser.conditions(**given)), after)
    trainable = [name for name, parameter in denoiser.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)


@pytest.mark.parametrize("exact", [True, False])
@torch.no_grad()
def test_compiles_without_a_graph_break(denoiser, case, exact):
    inputs, given = case
    arguments = given if exact else {"conditions": denoiser.conditions(**given)}
    compiled = torch.compile(denoiser, backend="eager", fullgraph=True)
    assert_agree(compiled(*inputs, **arguments), denoiser(*inputs, **given))
    torch._dynamo.reset()


@torch.no_grad()
def test_regional_compilation(denoiser, case):
    inputs, given = case
    expected = denoiser(*inputs, **given)
    counter = torch._dynamo.testing.CompileCounter()
    denoiser.compile_repeated_blocks(backend=counter, fullgraph=True)
    assert_agree(denoiser(*inputs, conditions=denoiser.conditions(**given)), expected)
    assert counter.frame_count == 1  # one graph for all layers
    reference, plain = tiny_reference(), tiny_reference()
    reference.compile_repeated_blocks(backend="eager", fullgraph=True)
    assert_agree(reference(*portrait())[-1], plain(*portrait())[-1])
    torch._dynamo.reset()


@torch.no_grad()
def test_layers_compile_inside_what_is_hooked_around_them(denoiser, case):
    """As `--compile` does it: with a cache, and with layers that are streamed."""
    inputs, given = case
    expected, conditions = denoiser(*inputs, **given), denoiser.conditions(**given)
    counter, here = torch._dynamo.testing.CompileCounter(), torch.device("cpu")
    compile_layers(denoiser, backend=counter)
    assert_agree(denoiser(*inputs, conditions=conditions), expected)
    denoiser.enable_cache(FirstBlockCacheConfig(threshold=0.05))
    with denoiser.cache_context("only"):
        assert_agree(denoiser(*inputs, conditions=conditions), expected)
    denoiser.disable_cache()
    apply_group_offloading(denoiser, here, here, offload_type="block_level", num_blocks_per_group=1)
    assert_agree(denoiser(*inputs, conditions=conditions), expected)
    assert counter.frame_count == 1  # one graph for all layers
    torch._dynamo.reset()


@torch.no_grad()
def test_attention_backends(denoiser, case, monkeypatch):
    inputs, given = case
    expected = denoiser(*inputs, **given)
    backend, calls = AttentionBackendName._NATIVE_MATH, []
    attend = _AttentionBackendRegistry._backends[backend]
    monkeypatch.setitem(
        _AttentionBackendRegistry._backends, backend, lambda **given: calls.append(1) or attend(**given)
    )
    with attention_backend("native"):  # which puts diffusers' global choice back afterwards
        denoiser.set_attention_backend(backend.value)
        assert_agree(denoiser(*inputs, **given), expected)
    assert len(calls) == len(denoiser.attn_processors) == 9
    denoiser.reset_attention_backend()
    denoiser(*inputs, **given)
    assert len(calls) == 9


@torch.no_grad()
def test_first_block_cache(denoiser, case):
    """With the same input twice, all layers after the first are skipped; the result stays."""
    inputs, given = case
    conditions = denoiser.conditions(**given)
    expected = denoiser(*inputs, conditions=conditions)
    denoiser.enable_cache(FirstBlockCacheConfig(threshold=0.05))
    layers = []
    denoiser.transformer_blocks[-1].attention.register_forward_hook(lambda *_: layers.append(1))
    for _ in range(2):
        with denoiser.cache_context("only"):
            assert_agree(denoiser(*inputs, conditions=conditions), expected)
    assert len(layers) == 1
    denoiser.disable_cache()


@torch.no_grad()
def test_layerwise_casting(denoiser, case):
    inputs, given = case
    expected = denoiser(*inputs, **given)
    denoiser.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    stored = {name: parameter.dtype for name, parameter in denoiser.named_parameters()}
    assert stored["transformer_blocks.0.attention.to_qkv.weight"] == torch.float8_e4m3fn
    for kept in (
        "token_embedding.position_table",
        "transformer_blocks.0.modulation.linear.weight",
        "norm_final.weight",
    ):
        assert stored[kept] == torch.float32
    assert_agree(denoiser(*inputs, conditions=denoiser.conditions(**given)), expected, tolerance=0.3)


def test_networks_can_be_copied(denoiser, case):
    inputs, given = case
    assert torch.equal(copy.deepcopy(denoiser)(*inputs, **given), denoiser(*inputs, **given))
