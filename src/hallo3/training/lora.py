"""Low-rank adapters (Hu et al. 2021) by peft: beside the linear layers that a phase trains, added in at the end."""

import re
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from hallo3.errors import UserError
from hallo3.training.config import Lora


def add_adapters(networks: nn.ModuleDict, lora: Lora) -> int:
    """Gives every linear layer whose weight requires a gradient an adapter; nothing but adapters trains afterwards.

    Returns how many numbers train. The networks compute what they did: an adapter starts at zero.

    Raises:
        UserError: when no linear layer was to be trained.
    """
    found = 0
    for network in networks.values():
        targets = [
            name
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear) and module.weight.requires_grad
        ]
        network.requires_grad_(False)
        if targets:
            # peft matches the ends of names too; whole names in an expression match nothing else.
            names = "|".join(re.escape(name) for name in targets)
            settings = LoraConfig(
                r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=f"^(?:{names})$"
            )
            inject_adapter_in_model(settings, network)
            found += sum(p.numel() for p in network.parameters() if p.requires_grad)
    if not found:
        raise UserError("lora: trains names no linear layer; name attention or mlp layers, or leave lora out")
    return found


def merge_adapters(networks: nn.ModuleDict) -> None:
    """Adds the adapters to the weights and takes them out: what is left has the names it had before."""
    for network in networks.values():
        for name, module in list(network.named_modules()):
            if isinstance(module, BaseTunerLayer):
                merged: Any = module
                merged.merge()
                parent, _, last = name.rpartition(".")
                setattr(network.get_submodule(parent), last, merged.get_base_layer())
        if hasattr(network, "peft_config"):
            del network.peft_config
