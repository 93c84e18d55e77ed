"""Networks whose layers lie on disk give what they give with all of their weights in memory."""

from pathlib import Path

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from network_cases import TINY

from hallo3.networks import Hallo3Transformer3DModel

VARIANTS = [("cross", "both"), ("joint", "face"), ("norm", "reference")]


@pytest.mark.parametrize(("speech", "identity"), VARIANTS)
@pytest.mark.parametrize("together", [1, 2])
@torch.no_grad()
def test_conditions_and_forward(speech: str, identity: str, together: int, tmp_path: Path) -> None:
    """A layer that is used while its weights are on disk would compute with whatever memory held before."""
    torch.manual_seed(0)
    network = Hallo3Transformer3DModel(**TINY, speech_conditioning=speech, identity_conditioning=identity).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    given = {"speech": torch.randn(1, 9, 5, 2, 3)}
    if network.identity.face:
        given["face"] = torch.randn(1, 7)
    if network.identity.reference:
        given["reference"] = [torch.randn(1, 12, 32) for _ in range(3)]
    inputs = torch.randn(1, 3, 32, 6, 8), torch.tensor([400]), torch.randn(1, 5, 10)

    def results() -> list[torch.Tensor]:
        conditions = network.conditions(**given)
        return [network(*inputs, conditions=conditions), network(*inputs, **given)]

    plain = results()
    layers = torch.nn.Module()
    layers.blocks = network.transformer_blocks
    cpu = torch.device("cpu")
    apply_group_offloading(
        layers, cpu, cpu, num_blocks_per_group=together, offload_to_disk_path=str(tmp_path), offload_type="block_level"
    )
    assert len(list(tmp_path.iterdir())) == -(-3 // together)
    for parameter in network.transformer_blocks.parameters():
        parameter.data.fill_(torch.nan)  # what is on disk is not in memory
    for _ in range(2):
        torch.testing.assert_close(results(), plain)  # rounding differs where weights lie differently in memory
