"""Where a pipeline's networks are while it works: all on the device, or each, or each layer, only when it is needed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakSet

import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor, nn

from ..networks.layers import at_hand

FREED = ("text_encoder", "reference_network")  # used once a video
HOST = torch.device("cpu")


class Strategy(Protocol):
    """What the pipeline asks of a strategy.

    name: as in `estimates.STRATEGIES`. device: where networks compute; None where the pipeline can tell by itself.
    """

    name: str
    device: torch.device | None

    def using(self, pipeline: Any, part: str) -> Any:
        """A context in which `part` of the pipeline is on the device, with its numbers.

        part: `text_encoder`, `reference_network`, `speech_projection` of the denoiser, `transformer` (the denoiser
        without that), or `vae`.
        """


class Resident:
    """Everything is where it was put, and stays."""

    name = "resident"
    device: torch.device | None = None

    @contextmanager
    def using(self, pipeline: Any, part: str) -> Iterator[None]:
        """Nothing to do."""
        yield


class Staged:
    """One network after the other: those used once are read when their time comes and freed afterwards.

    On a GPU denoiser, speech projection and VAE come for their work and make room for each other; their numbers stay
    on the host, so that nothing is copied back. Results are those of `Resident`, bit by bit.

    Args:
        device: Where networks compute.
        read: Reads a part of the bundle to the host, by its name. In the pipeline such a part is a network without
            numbers.
    """

    name = "staged"

    def __init__(self, device: torch.device, read: Callable[[str], nn.Module]) -> None:
        self.device: torch.device | None = device
        self._read = read

    @contextmanager
    def using(self, pipeline: Any, part: str) -> Iterator[None]:
        """Brings `part` to the device, and takes it away again."""
        if part in FREED:
            empty = getattr(pipeline, part)
            pipeline.register_modules(**{part: self._read_for_use(part)})
            try:
                yield
            finally:
                pipeline.register_modules(**{part: empty})
        elif self.device == HOST:
            yield
        else:
            home = _own_weights(self._modules(pipeline, part))
            try:
                self._bring(home)  # memory may run out on the way: what has come goes home again
                yield
            finally:
                for owner, name, tensor in home:
                    setattr(owner, name, tensor)

    def _read_for_use(self, part: str) -> nn.Module:
        return self._read(part).to(self.device)

    def _modules(self, pipeline: Any, part: str) -> list[nn.Module]:
        """The modules whose own weights `part` needs on the device."""
        if part == "vae":
            return list(pipeline.vae.modules())
        projection = list(pipeline.transformer.speech_projection.modules())
        if part == "speech_projection":
            return projection
        return [module for module in pipeline.transformer.modules() if module not in projection]

    def _bring(self, home: list[tuple[nn.Module, str, Tensor]]) -> None:
        """Puts copies on the device in place of the weights."""
        for owner, name, tensor in home:
            moved = tensor.to(self.device)
            setattr(owner, name, nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved)


def _own_weights(modules: list[nn.Module]) -> list[tuple[nn.Module, str, Tensor]]:
    """The weights of the modules themselves: whose, by what name, and the numbers."""
    home: list[tuple[nn.Module, str, Tensor]] = []
    for owner in modules:
        own = (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False))
        home += [(owner, name, tensor) for name, tensor in own]
    return home


class Streamed(Staged):
    """As `Staged`, but of text encoder, reference network and denoiser one layer at a time is on the device.

    Diffusers' group offload brings it from the host; on a GPU the next one comes while a layer computes. Results are
    those of `Resident`, bit by bit.
    """

    name = "streamed"

    def __init__(self, device: torch.device, read: Callable[[str], nn.Module]) -> None:
        super().__init__(device, read)
        self._streamed: WeakSet[nn.Module] = WeakSet()

    def _read_for_use(self, part: str) -> nn.Module:
        network = self._read(part)
        # A text encoder's layers are those of the stack inside. Each is used once, and pinned only while it is.
        self._stream(network.encoder if part == "text_encoder" else network, lasting=False)  # type: ignore[arg-type]
        return network

    @contextmanager
    def using(self, pipeline: Any, part: str) -> Iterator[None]:
        """Brings `part` to the device as far as it has no layers, and takes it away again."""
        if part == "transformer" and pipeline.transformer not in self._streamed:
            self._streamed.add(pipeline.transformer)
            layers = LayersAlone(pipeline.transformer.transformer_blocks)
            self._stream(layers, lasting=True)
            if self._ahead:
                layers()
        with super().using(pipeline, part):
            yield

    def _modules(self, pipeline: Any, part: str) -> list[nn.Module]:
        streamed = set(pipeline.transformer.transformer_blocks.modules())
        return [module for module in super()._modules(pipeline, part) if module not in streamed]

    @property
    def _ahead(self) -> bool:
        """Layers are fetched ahead, on a stream of their own."""
        return self.device is not None and self.device.type == "cuda"

    def _stream(self, network: nn.Module, lasting: bool) -> None:
        """Lets layers come and go; lasting: they are kept pinned, because they come again and again."""
        assert self.device is not None
        apply_group_offloading(
            network,
            onload_device=self.device,
            offload_device=HOST,
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=self._ahead,
            low_cpu_mem_usage=not lasting,
        )


class LayersAlone(nn.Module):
    """The layers of a network without the rest of it.

    Diffusers takes all that is beside a network's layers as one group, which would come and go with every forward; of
    the denoiser that is a seventh. Calling this makes the order of the layers known, after which the next one is
    fetched while one computes.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers
        self.beside = nn.Identity()  # where nothing is beside the layers, diffusers looks for no order

    def forward(self) -> None:
        """Brings each layer once, in order."""
        for layer in self.layers:
            with at_hand(layer):
                pass
