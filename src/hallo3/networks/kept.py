"""What a network makes of inputs that never change, computed once for all videos."""

from collections.abc import Callable, Hashable
from typing import Any
from weakref import ref

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class KeptResult:
    """The result of a network on fixed inputs (a dropped condition), made anew when the network has changed.

    Weights that were replaced, moved, cast or written to are noticed. A network with adapters, which can be switched
    without touching a weight, is asked every time.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._result: Any = None

    def of(self, network: nn.Module, about: Hashable, make: Callable[[], Any]) -> Any:
        """`make()`, or what it gave when it was last called for the same `network` and `about` (sizes of inputs)."""
        if getattr(network, "_hf_peft_config_loaded", False):
            return make()
        key = (ref(network), about, *map(_state, network.parameters()))
        if key != self._key:
            self._result, self._key = None, None  # its memory is free while the next is made
            self._result, self._key = make(), key
        return self._result


def _state(parameter: Tensor) -> Hashable:
    if is_traceable_wrapper_subclass(parameter):  # a quantised weight is made of others
        names, _ = parameter.__tensor_flatten__()
        return tuple(_state(getattr(parameter, name)) for name in names)
    version = 0 if parameter.is_inference() else parameter._version  # inference tensors have none, and can't be trained
    return parameter.data_ptr(), parameter.dtype, version
