"""Where a pipeline's networks are while it works: all on the device, or each only when it is needed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

FREED = ("text_encoder", "reference_network")  # used once a video
ROOM = ("transformer",)  # makes room for the others on a GPU, and waits on the host


class Strategy(Protocol):
    """What the pipeline asks of a strategy.

    device: where networks compute; None where the pipeline can tell by itself.
    """

    device: torch.device | None

    def using(self, pipeline: Any, part: str) -> Any:
        """A context in which `part` of the pipeline is on the device, with its numbers."""

    def release(self, module: nn.Module) -> None:
        """A module of the part in use is not needed again in this context."""


class Resident:
    """Everything is where it was put, and stays."""

    device: torch.device | None = None

    @contextmanager
    def using(self, pipeline: Any, part: str) -> Iterator[None]:
        """Nothing to do."""
        yield

    def release(self, module: nn.Module) -> None:
        """Nothing to do."""


class Staged:
    """One network after the other: those used once are read when their time comes and freed afterwards.

    On a GPU the denoiser comes for its steps and makes room for the VAE; its numbers stay on the host, so that nothing
    is copied back. Results are those of `Resident`, bit by bit.

    Args:
        device: Where networks compute.
        read: Reads a part of the bundle, by its name. In the pipeline such a part is a network without numbers.
    """

    def __init__(self, device: torch.device, read: Callable[[str], nn.Module]) -> None:
        self.device: torch.device | None = device
        self._read = read
        self._at_home: dict[Tensor, Tensor] = {}

    @contextmanager
    def using(self, pipeline: Any, part: str) -> Iterator[None]:
        """Brings `part` to the device, and takes it away again."""
        empty = getattr(pipeline, part)
        if part in FREED and empty is not None:
            pipeline.register_modules(**{part: self._read(part).to(self.device)})
            try:
                yield
            finally:
                pipeline.register_modules(**{part: empty})
        elif part in ROOM and self.device != torch.device("cpu"):
            self._bring(empty)
            try:
                yield
            finally:
                self.release(empty)
        else:
            yield

    def _bring(self, module: nn.Module) -> None:
        for tensor in (*module.parameters(), *module.buffers()):
            self._at_home[tensor] = tensor.data
            tensor.data = tensor.data.to(self.device)

    def release(self, module: nn.Module) -> None:
        """Gives the device memory of a module back; its numbers have stayed on the host."""
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor in self._at_home:
                tensor.data = self._at_home.pop(tensor)
