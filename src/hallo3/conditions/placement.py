"""Where a model's next call computes, and the way there."""

import torch
from torch import Tensor, nn


def execution_device(model: nn.Module) -> torch.device:
    """The device `model` computes on; with accelerate's offloading its weights lie elsewhere between calls."""
    hook = getattr(model, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is not None:
        return torch.device(device)
    return next(model.parameters()).device


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`; the host does not wait for work that the device still has."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
