"""The rotary embedding: its tables, and that both ways to apply it agree."""

import torch
from diffusers.models.embeddings import apply_rotary_emb
from network_cases import assert_agree
from plain_graph import rotations

from hallo3.networks.attention import rotate
from hallo3.networks.embeddings import RotaryPositions


def test_tables():
    """A quarter of the head for time, three eighths each for row and column, integer positions."""
    cos, sin = RotaryPositions(64)(3, 4, 5, torch.device("cpu"))
    assert cos.shape == sin.shape == (3, 20, 64)
    turns = rotations(64, 3, 4, 5)
    for pair in range(2):
        torch.testing.assert_close(cos[..., pair::2], turns.real)
        torch.testing.assert_close(sin[..., pair::2], turns.imag)


def test_rotate_equals_diffusers_function():
    tables = tuple(table.flatten(0, 1) for table in RotaryPositions(16)(2, 3, 2, torch.device("cpu")))
    x = torch.randn(2, 12, 3, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected, actual = apply_rotary_emb(x, tables, sequence_dim=1), rotate(x, tables)
    assert_agree(actual, expected)
    (first,) = torch.autograd.grad(expected.pow(3).sum(), x)
    (second,) = torch.autograd.grad(actual.pow(3).sum(), x)
    assert_agree(second, first)
    assert rotate(x.bfloat16(), tables).dtype == torch.bfloat16
