"""Linear layers by oneDNN: what they give is what PyTorch's give, wherever this machine would leave them to it."""

import copy

import pytest
import torch
from network_cases import TINY
from torch import nn
from torch.nn import functional as F

from hallo3.networks import Hallo3Transformer3DModel, products
from hallo3.networks.products import ROWS, Linear, multiply_fast, product

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a PyTorch without oneDNN")


@pytest.fixture(params=[True, False])
def by_onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("a PyTorch without oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize("shape", [(ROWS, 24), (2, ROWS, 24), (3, 50, 2, 24), (1, ROWS - 1, 24), (24,), (0, 24)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.usefixtures("by_onednn")
@torch.no_grad()
def test_every_shape(shape: tuple[int, ...], *, bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, offset = torch.randn(shape), torch.randn(40, 24), torch.randn(40) if bias else None
    torch.testing.assert_close(product(x, weight, offset), F.linear(x, weight, offset))
    torch.testing.assert_close(product(x, weight[8:], None), F.linear(x, weight[8:]))  # as FusedLinear takes a part
    aside = torch.randn(*shape[:-1], 48)[..., ::2]  # its numbers lie apart
    torch.testing.assert_close(product(aside, weight, offset), F.linear(aside, weight, offset))


@needs_onednn
@torch.no_grad()
def test_many_rows_go_to_onednn_and_few_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    layer = Linear(24, 40)
    with torch.profiler.profile() as seen:
        layer(torch.randn(ROWS, 24))
    assert "aten::mkldnn_convolution" in {event.key for event in seen.key_averages()}
    with torch.profiler.profile() as seen:
        layer(torch.randn(ROWS - 1, 24))
        layer.double()(torch.randn(ROWS, 24, dtype=torch.float64))
    assert "aten::mkldnn_convolution" not in {event.key for event in seen.key_averages()}


@pytest.mark.usefixtures("by_onednn")
def test_what_learns_is_left_to_autograd() -> None:
    layer, x = Linear(24, 40), torch.randn(ROWS, 24)
    plain = nn.Linear(24, 40)
    plain.load_state_dict(layer.state_dict())
    for one in (layer, plain):
        one(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)


def test_layers_of_libraries_too_and_nothing_else_changes() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Bilinear(4, 4, 2))
    before = copy.deepcopy(network.state_dict())
    multiply_fast(network)
    assert [type(layer) for layer in network] == [Linear, nn.LayerNorm, nn.Bilinear]
    assert before.keys() == network.state_dict().keys()


@needs_onednn
@torch.no_grad()
def test_a_denoiser_predicts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = Hallo3Transformer3DModel(**TINY).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    given = {
        "speech": torch.randn(1, 9, 5, 2, 3),
        "face": torch.randn(1, 7),
        "reference": [torch.randn(1, 12, 32) for _ in range(3)],
    }
    inputs = torch.randn(1, 3, 32, 6, 8), torch.tensor([400]), torch.randn(1, 5, 10)
    found = []
    monkeypatch.setattr(products, "ROWS", 1)
    for fast in (False, True):
        monkeypatch.setattr(products, "onednn_is_faster", lambda fast=fast: fast)
        found.append(network(*inputs, **given))
    torch.testing.assert_close(*found)
