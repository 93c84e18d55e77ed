"""One phase of training on a bundle: the trainer behind `hallo3 train`, and behind the embedded bundle's recipe."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hallo3.errors import UserError
from hallo3.media.files import writing
from hallo3.networks.lean_vae import make_lean
from hallo3.sampling.scheduler import Hallo3DPMScheduler
from hallo3.training.checkpoints import load_average
from hallo3.training.config import Training
from hallo3.training.data import Sample, open_samples
from hallo3.training.journal import KEPT, check_wandb
from hallo3.training.loop import Log, Loop, StepRandom
from hallo3.training.lora import add_adapters, merge_adapters
from hallo3.training.parallel import alone, barrier, gather, processes, rank, share, spread, together
from hallo3.training.phases import NETWORKS, Phase, choose_parameters, phase_loss
from hallo3.training.prepare import (
    MadeWith,
    Prepared,
    check_length,
    check_prepared,
    draw_batch,
    encoder_digests,
    open_prepared,
    prepared_file,
    write_prepared,
)
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
    say = log if rank() == 0 else _quiet
    check_wandb(training.loop.wandb)
    samples = open_samples(training.data, say)
    empty, config = empty_components(training.start)
    with torch.device("meta"):  # mistakes show before hours of preparation
        denoiser = training_networks(empty, training, _quiet)["denoiser"]
    check_sizes(denoiser, samples, training.clip_frames, config["text_length"])
    config |= {name: getattr(training, name) for name in ("motion_frames", "motion_mask")}
    config["num_frames"] = training.clip_frames
    with alone(training.out):
        return _train(training, samples, config, say, until)


def _train(training: Training, samples: list[Sample], config: dict[str, Any], say: Log, until: int | None) -> Path:
    from hallo3.bundles.layout import load_components
    from hallo3.runtime.devices import choose_device

    device, prepared = choose_device(training.device), training.out / "prepared"
    components = _prepared_by(training, samples, prepared, config["text_length"], device, say)
    networks = training_networks(load_components(training.start, NETWORKS.values()), training, say)
    if training.spread and processes() > 1:  # before they are moved: a device has room for its share, not for all
        for network in networks.values():
            spread(network)
    else:
        halve_frozen(networks, training)
    components |= in_bundle(networks.to(device))
    after = None
    if training.validation is not None:
        watched = samples if training.validation.data is None else open_samples(training.validation.data, say)
        place, precision = training.out / "validation", getattr(torch, training.precision)
        after = Validator(training.validation, components, config, watched, place, precision)
    usable = usable_samples(samples, prepared, training)
    say(f"trains on {len(usable)} clips")
    step_loss = step_function(networks, components["vae"], usable, training)
    names = partial(clip_names, usable, training)
    Loop(networks, step_loss, training.out, training.loop.seeded(training.seed), say, names, after).run(until)
    if until is not None and until < training.loop.steps:
        return training.out
    if rank() == 0:
        write_result(training, config)
        say(f"wrote {training.out / 'bundle'}")
    barrier()
    return training.out / "bundle"


def _prepared_by(
    training: Training, samples: list[Sample], folder: Path, text_length: int, device: torch.device, say: Log
) -> dict[str, Any]:
    """Prepares on the device; returns the VAE there, and for validation the other parts, back on the CPU."""
    from hallo3.bundles.layout import load_components
    from hallo3.bundles.parts import PARTS

    components = load_components(training.start, [part for part in PARTS if part not in NETWORKS.values()])
    modules = [part for part in components.values() if isinstance(part, nn.Module)]
    for module in modules:
        module.to(device)
    prepare_samples(samples, components, folder, training.clip_frames, text_length, training.seed, say)
    if training.validation is None:  # the others are of no more use, and large
        return {"vae": components["vae"]}
    for module in modules:
        if module is not components["vae"]:
            module.to("cpu")
    return components


def _quiet(line: str) -> None:
    pass


def empty_components(start: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Networks and VAE of a bundle without numbers (on torch's meta device), None where it has none, and its settings.

    Of a hub repository nothing but configurations is fetched. Raises UserError for a bundle that can't be trained.
    """
    from hallo3.bundles.index import read_index
    from hallo3.bundles.layout import check_bundle
    from hallo3.bundles.parts import part_class
    from hallo3.bundles.places import resolve

    wanted = (*NETWORKS.values(), "vae")
    folder = resolve(start, parts=wanted, weights=False)
    present, index = check_bundle(folder, wanted, weights=False), read_index(folder)
    empty: dict[str, Any] = dict.fromkeys(wanted)
    for part in present:
        kind = part_class(index.parts[part])
        with torch.device("meta"):
            empty[part] = kind.from_config(kind.load_config(folder / part))
    return empty, dict(index.config)


def training_networks(components: Mapping[str, Any], training: Training, log: Log) -> nn.ModuleDict:
    """`denoiser` and `reference_network` of a bundle as the training wants them: new or not, adapters, what trains.

    What is new in them is random, by the training's seed: the same in every process.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        networks = _in_variant(components, training)
        if training.scratch:
            there = networks.items()
            networks = nn.ModuleDict(
                {name: cast(Any, type(network)).from_config(network.config) for name, network in there}
            )
        count = choose_parameters(networks, training)
        if training.lora is not None:
            count = add_adapters(networks, training.lora)
    for network in networks.values():
        network.train()
        if training.activation_checkpointing:
            cast(Any, network).enable_gradient_checkpointing()
    log(f"trains {count:,} parameters")
    return networks


def _in_variant(components: Mapping[str, Any], training: Training) -> nn.ModuleDict:
    """A bundle's networks conditioned as the training says. Raises UserError when the bundle lacks one for it."""
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
    return nn.ModuleDict(there)


def halve_frozen(networks: nn.Module, training: Training) -> None:
    """Keeps frozen linear layers in bfloat16 where the computation is: autocast would make the same of them every time.

    Not where they are spread, which takes weights of one kind.
    """
    if training.precision == "bfloat16":
        for module in networks.modules():
            if isinstance(module, nn.Linear) and not any(p.requires_grad for p in module.parameters()):
                module.to(torch.bfloat16)


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
    with writing(training.out / "bundle", KEPT):
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

    Raises UserError for samples too short for a clip, and where what is there was made of other clips or otherwise.
    """
    for sample in samples:
        check_length(sample, clip_frames)
    with alone(folder):
        _prepare(samples, components, folder, clip_frames, text_length, seed, log)
        barrier()


def _prepare(
    samples: list[Sample],
    components: Mapping[str, Any],
    folder: Path,
    clip_frames: int,
    text_length: int,
    seed: int,
    log: Log,
) -> None:
    # The weights are many: read by one process, told to the others.
    encoders = gather(encoder_digests(components) if rank() == 0 else None)[0]
    made_with = MadeWith(clip_frames, text_length, seed, encoders)
    own = share(samples)
    missing = [sample for sample in own if not prepared_file(sample, folder).exists()]

    def check() -> None:
        for sample in own:
            if prepared_file(sample, folder).exists():
                check_prepared(sample, prepared_file(sample, folder), made_with)

    together(check)
    make_lean(components["vae"])
    for number, sample in enumerate(missing):
        write_prepared(sample, folder, dict(components), made_with)
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


def usable_samples(samples: list[Sample], folder: Path, phase: Phase) -> list[Prepared]:
    """What was prepared and the phase takes. Raises UserError when there is none."""
    there = [sample for sample in samples if prepared_file(sample, folder).exists()]
    if not there:
        raise UserError(f"{folder}: nothing was prepared; prepare the data first")
    found, most = open_prepared(there, folder), phase.largest_travel
    calm = [item for item in found if most is None or item.sample.travel <= most]
    if not calm:
        raise UserError(f"largest_travel: no clip's head wanders {phase.largest_travel} pixels at most; allow more")
    return calm


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
    with alone(out):
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
