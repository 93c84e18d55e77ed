"""What a training will do, before anything is loaded: what trains, what is frozen, memory and time of a step.

The networks are built without numbers (on torch's meta device) from the bundle's configuration and run once, so that
operations and what is kept for gradients are counted and not guessed.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hallo3.bundles.layout import check_bundle
from hallo3.bundles.places import resolve
from hallo3.networks.lean_vae import make_lean
from hallo3.runtime.operations import measured_speed
from hallo3.training.config import Training, VaeTraining
from hallo3.training.data import open_samples
from hallo3.training.loop import LoopSettings
from hallo3.training.run import check_sizes, empty_components, halve_frozen, training_networks
from hallo3.training.vae import EMBEDDED_VAE, make_vae

LAYER = re.compile(r"\.transformer_blocks\.\d+\.")


@dataclass(frozen=True)
class Group:
    """Parameters of one module, over all layers: how many numbers train and how many are frozen."""

    name: str
    trained: int
    frozen: int


@dataclass(frozen=True)
class Explanation:
    """What a training will do.

    Attributes:
        groups: Modules in the order of the networks.
        trained, frozen: Numbers in all.
        weights, optimizer, activations: Bytes: weights; gradients, averages and the optimiser's state; what is kept for
            gradients in a step.
        operations: Of a step, forward and backward, in one process.
        seconds: Of a step if every operation ran as fast as a large product of matrices here: it takes longer.
        steps: Of the whole training.
        processes: That train together; weights and memory are what each of them holds.
        clip: What a step of one process sees, in words.
    """

    groups: tuple[Group, ...]
    trained: int
    frozen: int
    weights: int
    optimizer: int
    activations: int
    operations: int
    seconds: float
    steps: int
    processes: int
    clip: str


def explain(training: Training | VaeTraining, device: torch.device, processes: int = 1) -> Explanation:
    """Counts what a step of the training takes, in each of so many processes; of a hub's bundle it fetches no weights.

    Raises UserError where the training would, as far as can be told without loading: for a bundle, an expression that
    names no parameter, or, if the data is there already, clips that don't fit.
    """
    if isinstance(training, VaeTraining):
        return _explain_vae(training, device, processes)
    components, config = empty_components(training.start)
    with torch.device("meta"):
        networks = training_networks(components, training, lambda line: None)
    size = config["sample_height"], config["sample_width"]
    if training.data.is_dir():
        samples = open_samples(training.data)
        check_sizes(networks["denoiser"], samples, training.clip_frames, config["text_length"])
        size = max((sample.size for sample in samples), key=lambda one: one[0] * one[1])
    trained = _numbers(p for p in networks.parameters() if p.requires_grad)
    vae = make_lean(components["vae"], convolutions=device.type != "cuda").requires_grad_(False)
    frozen = _numbers(p for p in networks.parameters() if not p.requires_grad)
    operations, activations = _count_step(networks, vae, size, config["text_length"], training)
    operations *= training.loop.accumulate
    share = processes if training.spread else 1
    if share == 1:
        halve_frozen(networks, training)
    return Explanation(
        groups=_groups(nn.ModuleDict({**networks, "vae": vae})),
        trained=trained,
        frozen=frozen + _numbers(vae.parameters()),
        weights=sum(p.nbytes for p in networks.parameters()) // share + sum(p.nbytes for p in vae.parameters()),
        optimizer=_per_number(training.loop) * trained // share,
        activations=activations // (2 if training.precision == "bfloat16" else 1),
        operations=operations,
        seconds=operations / measured_speed(device, training.precision),
        steps=training.loop.steps,
        processes=processes,
        clip=f"{training.batch * training.loop.accumulate} of {training.clip_frames} frames, {size[0]}×{size[1]}",
    )


def _numbers(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _per_number(loop: LoopSettings) -> int:
    """Bytes of gradient, average and the optimiser's moments of a number that trains."""
    return 4 + 4 + (8 if loop.optimizer == "adamw" else 4)


def _explain_vae(training: VaeTraining, device: torch.device, processes: int) -> Explanation:
    """The same for a VAE; the step counted is one of a cropped clip."""
    vae = _empty_vae(training)
    total = sum(p.numel() for p in vae.parameters())
    pixels = torch.empty(1, 3, training.clip_frames, training.crop, training.crop, device="meta")
    with FlopCounterMode(display=False) as counter, _kept(vae) as kept:
        latents = vae.encoder(pixels)[0].chunk(2, dim=1)[0]
        result = vae.decoder(latents)[0]
        activations = sum(kept.values())
        result.square().mean().backward()
    operations = counter.get_total_flops() * training.loop.accumulate
    return Explanation(
        groups=_groups(nn.ModuleDict({"vae": vae})),
        trained=total,
        frozen=0,
        weights=4 * total,
        optimizer=_per_number(training.loop) * total,
        activations=activations,
        operations=operations,
        seconds=operations / measured_speed(device, "float32"),
        steps=training.loop.steps,
        processes=processes,
        clip=f"{training.loop.accumulate} of {training.clip_frames} frames, {training.crop}×{training.crop}",
    )


def _empty_vae(training: VaeTraining) -> Any:
    from diffusers import AutoencoderKLCogVideoX

    with torch.device("meta"):
        if training.start is None:
            return make_vae(EMBEDDED_VAE | training.sizes)
        folder = resolve(training.start, parts=("vae",), weights=False)
        check_bundle(folder, ("vae",), weights=False)
        return AutoencoderKLCogVideoX.from_config(AutoencoderKLCogVideoX.load_config(folder / "vae"))


def _groups(networks: nn.ModuleDict) -> tuple[Group, ...]:
    """Trained and frozen numbers by module, the layers of a network taken together."""
    counts: dict[str, list[int]] = {}
    for name, parameter in networks.named_parameters():
        layer = LAYER.search(name)
        module = ".".join(name.split(".")[:2])
        if layer:
            module = f"{name[: layer.start()]}.layers.{name[layer.end() :].split('.')[0]}"
        counts.setdefault(module, [0, 0])[0 if parameter.requires_grad else 1] += parameter.numel()
    return tuple(Group(name, trained, frozen) for name, (trained, frozen) in counts.items())


def _count_step(
    networks: nn.ModuleDict, vae: Any, size: tuple[int, int], length: int, training: Training
) -> tuple[int, int]:
    """Operations of a batch, and bytes kept for its gradients, in float32: what `phase_loss` computes.

    size: Of its clips, height and width. length: of the text.
    """
    count, frames = training.batch, training.clip_frames
    rows, columns = size[0] // 8, size[1] // 8
    denoiser: Any = networks["denoiser"]
    sizes = denoiser.config

    def empty(*shape: int) -> Tensor:
        return torch.empty(count, *shape, device="meta")

    text = empty(length, sizes.text_embed_dim)
    windows = empty(frames, sizes.speech_window, sizes.speech_blocks, sizes.speech_channels)
    with FlopCounterMode(display=False) as counter, _kept(networks) as kept:
        vae.encoder(empty(3, 1 + training.motion_frames, *size))
        features = None
        if denoiser.identity.reference:
            features = networks["reference_network"](empty(1, sizes.in_channels, rows, columns), text)
        prediction = denoiser(
            empty((frames - 1) // 4 + 1, sizes.in_channels, rows, columns),
            torch.full((count,), 500, device="meta"),
            text,
            speech=windows if training.speech else None,
            face=None if denoiser.identity.face is None else empty(sizes.face_embed_dim),
            reference=features,
        )
        activations = sum(kept.values())
        prediction.square().mean().backward()
    return counter.get_total_flops(), activations


@contextmanager
def _kept(networks: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd keeps meanwhile, parameters left out."""
    own = {p.untyped_storage()._cdata for p in networks.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found
