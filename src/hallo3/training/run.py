"""One phase of training on a bundle: the trainer behind `hallo3 train`, and behind the embedded bundle's recipe."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hallo3.errors import UserError
from hallo3.networks.planar import use_planes
from hallo3.sampling.scheduler import Hallo3DPMScheduler
from hallo3.studio.dataset import check_settings
from hallo3.training.config import Training
from hallo3.training.data import Sample, open_samples
from hallo3.training.loop import Log, Loop, StepRandom, load_average
from hallo3.training.parallel import rank, share
from hallo3.training.phases import Phase, choose_parameters, phase_loss
from hallo3.training.prepare import Prepared, check_length, draw_batch, write_prepared

EVERY = 20  # prepared clips between two lines


def train(training: Training, log: Log = print, until: int | None = None) -> Path:
    """Prepares the data, trains, and writes a bundle; goes on where it was interrupted.

    Args:
        until: Stop after this step, without a bundle; a later call goes on.

    Returns:
        The bundle's folder.

    Raises:
        UserError: for a bundle or data that can't be used, or settings that don't fit them.
    """
    from hallo3.bundles.index import read_index
    from hallo3.bundles.layout import load_components, save_components
    from hallo3.bundles.places import resolve
    from hallo3.runtime.devices import choose_device

    device = choose_device(training.device)
    samples = open_samples(training.data)
    config = dict(read_index(resolve(training.start)).config)
    components = load_components(training.start)
    folder = training.out / "prepared"
    prepare_samples(samples, components, folder, training.clip_frames, config["text_length"], training.seed, log)
    networks = nn.ModuleDict(
        {"denoiser": components["transformer"], "reference_network": components["reference_network"]}
    )
    for network in networks.values():
        if training.activation_checkpointing:
            cast(Any, network).enable_gradient_checkpointing()
    run_phase(networks.to(device), components["vae"].to(device), samples, folder, training, training.out, log, until)
    if until is not None and until < training.loop.steps:
        return training.out
    load_average(networks, training.out)
    if rank() == 0:
        save_components(training.out / "bundle", components, config | {"num_frames": training.clip_frames})
        log(f"wrote {training.out / 'bundle'}")
    return training.out / "bundle"


def prepare_samples(
    samples: list[Sample],
    components: Mapping[str, Any],
    folder: Path,
    clip_frames: int,
    text_length: int,
    seed: int,
    log: Log = print,
) -> None:
    """Writes what does not change in training, for those samples that lack it; every process does its share.

    Raises UserError for a folder that was prepared for another VAE or other clips, and for samples too short for one.
    """
    for sample in samples:
        check_length(sample, clip_frames)
    parts = dict(components)
    folder.mkdir(parents=True, exist_ok=True)
    made_with = {"clip_frames": clip_frames, "text_length": text_length, "seed": seed, "vae": digest(parts["vae"])}
    check_settings(folder / "prepared.json", made_with)
    parts["face_encoder"] = getattr(parts["face_encoder"], "encoder", parts["face_encoder"])
    missing = [s for s in share(samples) if not (folder / f"{s.folder.name}.npz").exists()]
    use_planes(parts["vae"])
    for number, sample in enumerate(missing):
        write_prepared(sample, folder, parts, clip_frames, text_length, seed)
        if (number + 1) % EVERY == 0 or number + 1 == len(missing):
            log(f"prepared {number + 1} of {len(missing)}")


def digest(module: nn.Module) -> str:
    """Tells weights apart: latents of one VAE mean nothing to another."""
    found = hashlib.blake2b(digest_size=8)
    for value in module.state_dict().values():
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def usable_samples(samples: list[Sample], folder: Path, phase: Phase) -> list[Prepared]:
    """What was prepared and the phase takes. Raises UserError when there is none."""
    there = [s for s in samples if (folder / f"{s.folder.name}.npz").exists()]
    if not there:
        raise UserError(f"{folder}: nothing was prepared; prepare the data first")
    calm = [s for s in there if phase.largest_travel is None or s.travel <= phase.largest_travel]
    if not calm:
        raise UserError(f"largest_travel: no clip's head wanders {phase.largest_travel} pixels at most; allow more")
    return [Prepared.open(sample, folder) for sample in calm]


def run_phase(
    networks: nn.ModuleDict,
    vae: Any,
    samples: list[Sample],
    prepared: Path,
    phase: Phase,
    out: Path,
    log: Log = print,
    until: int | None = None,
) -> None:
    """Trains `networks` (`denoiser`, `reference_network`) in place; checkpoints and metrics go to `out`."""
    usable = usable_samples(samples, prepared, phase)
    log(f"trains {choose_parameters(networks, phase):,} parameters on {len(usable)} clips")
    Loop(networks, step_function(networks, vae, usable, phase), out, phase.loop, log).run(until)


def step_function(
    networks: nn.ModuleDict, vae: Any, samples: list[Prepared], phase: Phase
) -> Callable[[int, StepRandom], tuple[Tensor, dict[str, float]]]:
    """The loss of a step's batch, as the loop wants it."""
    scheduler = Hallo3DPMScheduler()
    device = next(networks.parameters()).device
    precision = getattr(torch, getattr(phase, "precision", "float32"))

    def step_loss(step: int, random: StepRandom) -> tuple[Tensor, dict[str, float]]:
        batch = draw_batch(samples, phase, random).to(device)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            return phase_loss(networks, vae, scheduler, batch, phase, random)

    return step_loss
