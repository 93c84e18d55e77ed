"""Layers whose weights come to the device when they are called: how to use one otherwise than by calling it."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.hooks.group_offloading import _GROUP_OFFLOADING, _LAYER_EXECUTION_TRACKER
from torch import nn


@contextmanager
def at_hand(layer: nn.Module) -> Iterator[None]:
    """The layer's weights are on the device, as in its forward.

    Diffusers' group offload brings them by hooks around a layer's forward, which a call of another method goes past.
    Layers are taken in the order of the forward: those of a group come with its first one and go with its last.
    """
    registry = getattr(layer, "_diffusers_hook", None)
    hooks = [] if registry is None else [registry.get_hook(n) for n in (_GROUP_OFFLOADING, _LAYER_EXECUTION_TRACKER)]
    present = [hook for hook in hooks if hook is not None]
    for hook in present:
        hook.pre_forward(layer)
    try:
        yield
    finally:
        for hook in reversed(present):
            hook.post_forward(layer, None)
