"""Choosing device and number format, and refusing what the machine can't do before anything is loaded."""

import pytest
import torch

from hallo3.errors import UserError
from hallo3.runtime.devices import choose_device, choose_dtype, free_host_memory

CPU = torch.device("cpu")


def test_auto_is_a_device_that_computes() -> None:
    device = choose_device("auto")
    assert torch.ones(2, device=device).sum().item() == 2


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "cuda:x", "", "meta", "xpu", "vulkan", "mps:3"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="--device"):
        choose_device(name)


def test_number_formats() -> None:
    assert choose_dtype("auto", CPU) == torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16
    for name in ("float12", "float16"):
        with pytest.raises(UserError, match="--dtype"):
            choose_dtype(name, CPU)


def test_free_memory_is_known() -> None:
    assert 1e8 < free_host_memory() < 1e15
