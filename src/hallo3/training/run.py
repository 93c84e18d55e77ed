"""One phase of training on a bundle: the trainer behind `hallo3 train`, and behind the embedded bundle's recipe."""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hallo3.errors import UserError
from hallo3.networks.lean_vae import make_lean
from hallo3.sampling.scheduler import Hallo3DPMScheduler
from hallo3.studio.dataset import check_settings
from hallo3.training.checkpoints import load_average
from hallo3.training.config import Training
from hallo3.training.data import Sample, open_samples
from hallo3.training.loop import Log, Loop, StepRandom
from hallo3.training.lora import add_adapters, merge_adapters
from hallo3.training.parallel import barrier, processes, rank, share, spread
from hallo3.training.phases import NETWORKS, Phase, choose_parameters, phase_loss
from hallo3.training.prepare import Prepared, check_length, draw_batch, write_prepared
from hallo3.training.validation import Validator

EVERY = 20  # prepared clips between two lines


def train(training: Training, log: Log = print, until: int | None = None) -> Path:
    """Prepares the data, trains, and writes a bundle; goes on where it was interrupted.

    In a group of processes (`torchrun`) each takes its own batches, and the networks are spread over them if the
    training says so.

    Args:
        until: Stop after this step, without a bundle; a later call goes on.

    Returns:
        The bundle's folder.

    Raises:
        UserError: for a bundle or data that can't be used, or settings that don't fit them.
    """
    from hallo3.bundles.index import read_index
    from hallo3.bundles.layout import load_components
    from hallo3.bundles.places import resolve
    from hallo3.runtime.devices import choose_device

    device = choose_device(training.device)
    say = log if rank() == 0 else _quiet
    samples = open_samples(training.data, say)
    config = dict(read_index(resolve(training.start)).config)
    config |= {name: getattr(training, name) for name in ("motion_frames", "motion_mask")}
    config["num_frames"] = training.clip_frames
    components = load_components(training.start)
    networks = training_networks(components, training, say)
    check_sizes(networks["denoiser"], samples, training.clip_frames, config["text_length"])
    prepared = training.out / "prepared"
    prepare_samples(samples, components, prepared, training.clip_frames, config["text_length"], training.seed, say)
    barrier()
    components |= in_bundle(networks.to(device))
    components["vae"].to(device)
    if training.spread and processes() > 1:
        for network in networks.values():
            spread(network)
    after = None
    if training.validation is not None:
        watched = samples if training.validation.data is None else open_samples(training.validation.data, say)
        after = Validator(training.validation, components, config, watched, training.out / "validation")
    usable = usable_samples(samples, prepared, training)
    say(f"trains on {len(usable)} clips")
    step_loss = step_function(networks, components["vae"], usable, training)
    names = partial(clip_names, usable, training)
    Loop(networks, step_loss, training.out, training.loop, say, names, after).run(until)
    if until is not None and until < training.loop.steps:
        return training.out
    if rank() == 0:
        write_result(training, config)
        say(f"wrote {training.out / 'bundle'}")
    barrier()
    return training.out / "bundle"


def _quiet(line: str) -> None:
    pass


def training_networks(components: Mapping[str, Any], training: Training, log: Log) -> nn.ModuleDict:
    """`denoiser` and `reference_network` of a bundle as the training wants them: new or not, adapters, what trains."""
    there = {name: components[part] for name, part in NETWORKS.items() if components[part] is not None}
    speech, identity = training.speech_conditioning, training.identity_conditioning
    if speech or identity:
        now = there["denoiser"].config
        there["denoiser"] = there["denoiser"].in_variant(
            speech or now.speech_conditioning, identity or now.identity_conditioning
        )
    if not there["denoiser"].identity.reference:
        there.pop("reference_network", None)
    elif "reference_network" not in there:
        raise UserError(f"{training.start}: has no reference network; choose another identity_conditioning")
    if training.scratch:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            there = {name: type(network).from_config(network.config) for name, network in there.items()}
    networks = nn.ModuleDict(there)
    count = choose_parameters(networks, training)
    if training.lora is not None:
        count = add_adapters(networks, training.lora)
    for network in networks.values():
        network.train()
        if training.activation_checkpointing:
            cast(Any, network).enable_gradient_checkpointing()
    log(f"trains {count:,} parameters")
    return networks


def in_bundle(networks: nn.ModuleDict) -> dict[str, nn.Module | None]:
    """The networks by what they are called in a bundle; None for one that there is not."""
    there = dict(networks.items())
    return {part: there.get(name) for name, part in NETWORKS.items()}


def write_result(training: Training, config: Mapping[str, Any]) -> None:
    """The bundle with the averaged weights; read anew, since those that trained may be spread over processes."""
    from hallo3.bundles.layout import load_components, save_components

    components = load_components(training.start)
    networks = training_networks(components, training, _quiet)
    load_average(networks, training.out)
    if training.lora is not None:
        merge_adapters(networks)
    components |= in_bundle(networks)
    about = {"start": training.start, "scratch": training.scratch, "clips": training.data.name}
    about["steps"] = training.loop.steps
    notes = {"_hallo3_training": {**about, "trains": list(training.trains)}}
    save_components(training.out / "bundle", components, config, notes=notes)


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
    make_lean(parts["vae"])
    for number, sample in enumerate(missing):
        write_prepared(sample, folder, parts, clip_frames, text_length, seed)
        if (number + 1) % EVERY == 0 or number + 1 == len(missing):
            log(f"prepared {number + 1} of {len(missing)}")


def check_sizes(denoiser: Any, samples: list[Sample], clip_frames: int, text_length: int) -> None:
    """Raises UserError for a clip that is too short, or has more tokens than the denoiser has positions for."""
    rows = denoiser.token_embedding.position_table.shape[1]
    side = 8 * denoiser.token_embedding.patch_size  # pixels that a token spans
    for sample in samples:
        check_length(sample, clip_frames)
        height, width = sample.size
        tokens = text_length + ((clip_frames - 1) // 4 + 1) * (height // side) * (width // side)
        if height % side or width % side or tokens > rows:
            raise UserError(
                f"{sample.folder}: {height}×{width} pixels, {tokens} tokens; this bundle takes multiples of {side} "
                f"pixels and {rows} tokens: make smaller clips (--size), or lower clip_frames"
            )


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
    step_loss = step_function(networks, vae, usable, phase)
    Loop(networks, step_loss, out, phase.loop, log, partial(clip_names, usable, phase)).run(until)


def clip_names(samples: list[Prepared], phase: Phase, random: StepRandom) -> list[str]:
    """The clips that `draw_batch` takes with these random numbers."""
    return list(draw_batch(samples, phase, random).names)


def step_function(
    networks: nn.ModuleDict, vae: Any, samples: list[Prepared], phase: Phase
) -> Callable[[int, StepRandom], tuple[Tensor, dict[str, float]]]:
    """The loss of a step's batch, as the loop wants it."""
    make_lean(vae)
    scheduler = Hallo3DPMScheduler()
    device = next(networks.parameters()).device
    precision = getattr(torch, getattr(phase, "precision", "float32"))

    def step_loss(step: int, random: StepRandom) -> tuple[Tensor, dict[str, float]]:
        batch = draw_batch(samples, phase, random).to(device)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            return phase_loss(networks, vae, scheduler, batch, phase, random)

    return step_loss
