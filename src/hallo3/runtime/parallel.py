"""Several processes for one clip: how they meet and talk, how they share the work, how a denoiser's tokens are split.

The first process leads: it tells the others what to do, and gives them tensors. Guidance branches go to different
processes; what is left of these splits each branch's tokens (Ulysses, by diffusers' context parallelism). A part of the
tokens of *every* latent frame goes to each, so that face and speech attention stay where they are.
"""

import json
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, ParallelConfig
from diffusers.hooks import apply_context_parallel
from diffusers.hooks.context_parallel import remove_context_parallel
from diffusers.models._modeling_parallel import ContextParallelOutput
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn import functional as F

from ..errors import UserError
from ..networks.denoiser import Hallo3Transformer3DModel
from .devices import choose_device, free_host_memory, free_memory
from .layout import Layout

IDLE = timedelta(days=365)  # the others wait as long as the first has nothing for them: a server's, for days

Message = dict[str, Any]


class Group:
    """The processes that make one video together, as one of them sees it.

    rank: its number; 0 leads. size: how many there are. device: where tensors are exchanged, known once `device` is
    given or received.
    """

    def __init__(self, method: str = "env://", rank: int = -1, size: int = -1) -> None:
        """Meets the others. method, rank, size: as torch's `init_process_group`; by default as `torchrun` says.

        Raises UserError where it has not said all of that.
        """
        try:
            self._store, self.rank, self.size = next(dist.rendezvous(method, rank, size))
        except ValueError as error:
            said = f"WORLD_SIZE={os.environ.get('WORLD_SIZE')}"
            raise UserError(f"{said}: {error}; start several processes with torchrun, or unset it for one") from None
        self._local = int(os.environ.get("LOCAL_RANK", self.rank))
        self._local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        on_gpus = torch.cuda.is_available() and self._local_size <= torch.cuda.device_count()
        if on_gpus:
            torch.cuda.set_device(self._local)
        backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
        dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size)
        self._talk = dist.new_group(backend="gloo", timeout=IDLE)
        self._meshes: dict[Layout, DeviceMesh] = {}
        self.device = torch.device("cpu")

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def leave(self) -> None:
        """Ends the group for this process."""
        dist.destroy_process_group()

    def use_device(self, name: str) -> torch.device:
        """The device of this process for what a user calls `name`. Raises UserError for one that they can't share."""
        if ":" in name:
            raise UserError(f"--device {name}: each process takes the GPU of its number; give cuda or cpu, or nothing")
        device = choose_device(name)
        if device.type == "mps":
            raise UserError("--device mps: several processes can't share it; use --device cpu, or start one process")
        if device.type == "cuda":
            if self._local_size > (there := torch.cuda.device_count()):
                raise UserError(f"--nproc-per-node {self._local_size}: this machine has {there} GPUs; start as many")
            device = torch.device("cuda", self._local)
        self.device = device
        return device

    # ------------------------------------------------------------------------------------------------------- talking

    def send(self, message: Message, tensors: Sequence[Tensor] = ()) -> None:
        """Tells all others something; the leader's. Tensors are on its device."""
        kinds = [(list(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for tensor in tensors]
        text = torch.frombuffer(bytearray(json.dumps({**message, "tensors": kinds}).encode()), dtype=torch.uint8)
        dist.broadcast(torch.tensor([len(text)]), 0, group=self._talk)
        dist.broadcast(text, 0, group=self._talk)
        for tensor in tensors:
            self._pass_on(tensor.contiguous())

    def receive(self) -> tuple[Message, list[Tensor]]:
        """Waits for what the leader sends."""
        length = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(length, 0, group=self._talk)
        text = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(text, 0, group=self._talk)
        message = json.loads(text.numpy().tobytes())
        kinds = message.pop("tensors")
        tensors = [torch.empty(shape, dtype=getattr(torch, dtype), device=self.device) for shape, dtype in kinds]
        for tensor in tensors:
            self._pass_on(tensor)
        return message, tensors

    def _pass_on(self, tensor: Tensor) -> None:
        if tensor.numel():  # as bytes, which every backend knows
            dist.broadcast(tensor.flatten().view(torch.uint8), 0)

    def room(self) -> tuple[int, int]:
        """Bytes of device and host memory that each process may take; all must ask at once."""
        host = free_host_memory() // self._local_size
        device = host if self.device.type == "cpu" else free_memory(self.device)
        least = torch.tensor([device, host])
        dist.all_reduce(least, dist.ReduceOp.MIN, group=self._talk)
        return int(least[0]), int(least[1])

    def end(self, code: int) -> tuple[bool, int]:
        """Notes that the processes end with this exit code, if none has done so before.

        Returns whether this one is the first, who says why: one line, not one by each; and the first one's code.
        """
        try:
            rank, noted = self._store.compare_set("ended", "", f"{self.rank} {code}").decode().split()
        except RuntimeError:  # who keeps the note is gone, too
            return True, code
        return int(rank) == self.rank, int(noted)

    # ------------------------------------------------------------------------------------------------------- sharing

    def mesh(self, layout: Layout) -> DeviceMesh:
        """The processes as branches × 1 × parts of the sequence; made once, by all at the same time."""
        if layout not in self._meshes:
            shape, names = (layout.branches, 1, layout.parts), ("branch", "ring", "ulysses")
            self._meshes[layout] = init_device_mesh(self.device.type, shape, mesh_dim_names=names)
        return self._meshes[layout]


class SplitTokens:
    """Splits the tokens of a denoiser's forward over the processes of a mesh, until `undo`.

    Each has a part of the text, of the reference, and of the video tokens of every latent frame, and all heads; for the
    joint attention they exchange these for all tokens and a part of the heads. Every process calls the denoiser with
    the whole input, and gets the whole output.

    Args:
        denoiser: Of which all processes have the same weights.
        mesh: See `Group.mesh`.
        tokens: Of a latent frame.
        counts: Of the other tokens that are split: text, reference. Counts and heads that do not divide by the
            processes take diffusers' uneven form, in which these tell each other how many they have.

    Raises:
        UserError: for an attention backend that can't do it.
    """

    def __init__(
        self, denoiser: Hallo3Transformer3DModel, mesh: DeviceMesh, tokens: int, counts: Sequence[int]
    ) -> None:
        _check_backends(denoiser)
        parts = mesh["ulysses"].size()
        uneven = any(count % parts for count in (tokens, *counts, denoiser.config.num_attention_heads))
        ulysses = ContextParallelConfig(ulysses_degree=parts, ulysses_anything=uneven)
        config = ParallelConfig(context_parallel_config=ulysses)
        # What `enable_parallelism` does, but for the mesh, and for counting devices, of which a CPU has none.
        config.setup(dist.get_rank(), dist.get_world_size(), torch.device(mesh.device_type), mesh=mesh)
        self._denoiser, self._group = denoiser, mesh["ulysses"].get_group()
        self._lengths = [len(part) for part in torch.arange(tokens).tensor_split(parts)]
        plan = denoiser._cp_plan.items()
        self._plan = {name: how for name, how in plan if not isinstance(how, ContextParallelOutput)}
        self._set(config)
        apply_context_parallel(denoiser, ulysses, self._plan)
        self._gathering = denoiser.proj_out.register_forward_hook(self._gather)

    def undo(self) -> None:
        """The denoiser computes alone again."""
        self._gathering.remove()
        remove_context_parallel(self._denoiser, self._plan)
        self._set(None)

    def _set(self, config: ParallelConfig | None) -> None:
        for processor in _processors(self._denoiser):
            processor._parallel_config = config

    def _gather(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        """The other processes' tokens beside one's own, `(B, T, part, c)` → `(B, T, n, c)`.

        Filled up to the same number, as gloo gathers no others.
        """
        filled = F.pad(output, (0, 0, 0, self._lengths[0] - output.shape[2])).contiguous()
        parts = [torch.empty_like(filled) for _ in self._lengths]
        dist.all_gather(parts, filled, group=self._group)
        return torch.cat([part[:, :, :length] for part, length in zip(parts, self._lengths, strict=True)], 2)


def _processors(denoiser: nn.Module) -> list[Any]:
    """Those of the attention that all tokens take part in."""
    every = (getattr(module, "processor", None) for module in denoiser.modules())
    return [processor for processor in every if hasattr(processor, "_parallel_config")]


def _check_backends(denoiser: nn.Module) -> None:
    for processor in _processors(denoiser):
        name = processor._attention_backend
        backend = _AttentionBackendRegistry.get_active_backend()[0] if name is None else AttentionBackendName(name)
        if not _AttentionBackendRegistry._is_context_parallel_available(backend):
            raise UserError(f"attention backend {backend.value}: can't split a sequence over processes; use native")
