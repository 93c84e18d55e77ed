"""Where a model's next call computes."""

import torch
from torch import nn


def execution_device(model: nn.Module) -> torch.device:
    """The device `model` computes on; with accelerate's offloading its weights lie elsewhere between calls."""
    hook = getattr(model, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is not None:
        return torch.device(device)
    return next(model.parameters()).device
