"""Replaying recorded tensors through a bundle: does it compute what the published implementation computed?

Recordings are safetensors files under four names: `transformer_io`, `sampler_io`, `vae_io` and `audio_io`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError
from ..networks.variants import DEFAULT_IDENTITY, DEFAULT_SPEECH
from .index import read_index
from .layout import load_components, stored_dtype
from .parts import PARTS, read_header
from .places import resolve

FORWARD_TOLERANCE = 2e-5
RUN_FACTOR = 10  # a run of several steps may differ by this much more than one forward
GUIDANCE_SCALE = 3.5  # of the recorded run, for speech and text
CLIP = 49


@dataclass(frozen=True)
class Check:
    """One recorded tensor. difference: largest |ours − recorded|, relative to the largest |recorded|.

    note: why there is no number, as "shapes differ"; such a check has failed.
    """

    recording: str
    tensor: str
    difference: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance  # false for NaN too


@dataclass(frozen=True)
class Unchecked:
    """Something recorded that could not be checked, and why."""

    recording: str
    tensor: str
    reason: str


@dataclass(frozen=True)
class Verification:
    """checks and unchecked, in the order of the recordings; notices: what explains failures."""

    checks: list[Check]
    unchecked: list[Unchecked]
    notices: list[str]

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)


Result = Check | Unchecked


def verify(bundle: str | Path, recording: str | Path, *, tolerance: float = FORWARD_TOLERANCE) -> Verification:
    """Replays every recording found through whatever parts the bundle has, in float32 on the CPU.

    Args:
        bundle: Folder or name.
        recording: One recording, or a folder that is searched for them.
        tolerance: Largest relative difference of one forward; ten times it for the sampling run.

    Raises:
        UserError: unknown or damaged bundle, no recording, damaged recording.
    """
    files = find_recordings(Path(recording))
    folder = resolve(bundle, local_files_only=True)
    parts = read_index(folder).parts
    results: list[Result] = []
    used: set[str] = set()
    for name, (needed, replay) in _REPLAYS.items():
        present = [part for part in needed if part in parts]
        for path in files.get(name, []):
            if not present:
                reason = f"the bundle has no {' or '.join(needed)}"
                results += [Unchecked(name, tensor, reason) for tensor in sorted(read_header(path))]
                continue
            used |= set(present)
            loaded = load_components(folder, needed, optional=needed)
            results += _guarded(name, replay(_Recording(name, path, tolerance), loaded), tolerance)
            del loaded
    return Verification(
        [result for result in results if isinstance(result, Check)],
        [result for result in results if isinstance(result, Unchecked)],
        list(_rounded(folder, sorted(used))),
    )


def _rounded(folder: Path, parts: list[str]) -> Iterator[str]:
    for name in parts:
        if PARTS[name].weights and (dtype := stored_dtype(folder / name, PARTS[name])) != torch.float32:
            short = str(dtype).removeprefix("torch.")
            yield f"{name} is stored in {short}: rounding alone exceeds the tolerance; compare one of --dtype fp32"


def find_recordings(path: Path) -> dict[str, list[Path]]:
    """Recording name → files of that name, in `path` itself or in the folder `path` and its sub-folders."""
    if path.is_file():
        candidates = [path]
    elif path.is_dir():
        candidates = sorted(path.rglob("*.safetensors"))
    else:
        raise UserError(f"{path}: no such file or folder; give a recording or a folder of recordings")
    found = {name: [file for file in candidates if file.stem == name] for name in _REPLAYS}
    if not any(found.values()):
        raise UserError(
            f"{path}: holds no recording; their names are {', '.join(f'{n}.safetensors' for n in _REPLAYS)}"
        )
    return found


class _Recording:
    """A recording's tensors, by name."""

    def __init__(self, name: str, path: Path, tolerance: float) -> None:
        read_header(path)
        try:
            self.tensors: dict[str, Tensor] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: can't be read ({error}); copy the recording again") from None
        self.name, self.path, self.tolerance = name, path, tolerance

    def __getitem__(self, tensor: str) -> Tensor:
        if tensor not in self.tensors:
            raise UserError(f"{self.path}: has no tensor {tensor!r}; copy the recording again")
        return self.tensors[tensor]

    def numbered(self, prefix: str) -> list[str]:
        """Names `prefix` + number, by number."""
        numbers = [n.removeprefix(prefix) for n in self.tensors if n.startswith(prefix)]
        return [prefix + number for number in sorted(filter(str.isdecimal, numbers), key=int)]

    def check(self, tensor: str, ours: Tensor, factor: float = 1) -> Check:
        """Compares what the bundle computed with what is recorded."""
        recorded = self[tensor].float()
        limit = self.tolerance * factor
        if ours.shape != recorded.shape:
            shapes = f"shape {list(ours.shape)}, recorded {list(recorded.shape)}"
            return Check(self.name, tensor, float("inf"), limit, shapes)
        difference = (ours.float() - recorded).abs().max() / recorded.abs().max().clamp(min=1e-30)
        return Check(self.name, tensor, float(difference), limit)

    def skip(self, tensor: str, reason: str) -> Unchecked:
        return Unchecked(self.name, tensor, reason)


def _guarded(name: str, results: Iterator[Result], tolerance: float) -> Iterator[Result]:
    """A recording of other sizes than the bundle's makes the networks raise: that is a failure, not a crash."""
    try:
        with torch.inference_mode():
            yield from results
    except (RuntimeError, ValueError, IndexError) as error:
        if "out of memory" in str(error).lower() or "can't allocate memory" in str(error).lower():
            raise
        reason = " ".join(str(error).split())[:160]
        yield Check(name, "the rest", float("inf"), tolerance, f"does not fit the bundle: {reason}")


# ---------------------------------------------------------------------------------------------------------- networks


def _references(recording: _Recording, network: Any) -> list[Tensor]:
    """The reference network's features of the recorded portrait, with the zero text embedding."""
    latents = recording["reference_latents"]
    text = torch.zeros_like(recording["text_embeds"][:1])
    return network(torch.cat([latents, latents], dim=2), text)


def _unlike_recorded(network: Any) -> str | None:
    """Why a denoiser can't compute what was recorded: there is none, or it is conditioned otherwise."""
    if network is None:
        return "the bundle has no transformer"
    kinds = (network.config.speech_conditioning, network.config.identity_conditioning)
    if kinds == (DEFAULT_SPEECH, DEFAULT_IDENTITY):
        return None
    return f"the transformer is conditioned by {kinds[0]} and {kinds[1]}, the recorded one as published"


def _transformer(recording: _Recording, parts: Mapping[str, Any]) -> Iterator[Result]:
    names = recording.numbered("reference_features.")
    features = [recording[name] for name in names]
    if parts["reference_network"] is None:
        yield from (recording.skip(name, "the bundle has no reference_network; recorded one used") for name in names)
    else:
        features = _references(recording, parts["reference_network"])
        if len(features) != len(names):
            raise ValueError(f"{len(names)} recorded layers, the reference network has {len(features)}")
        yield from (recording.check(name, feature) for name, feature in zip(names, features, strict=True))
    network = parts["transformer"]
    if (reason := _unlike_recorded(network)) is not None:
        outputs = ("audio_tokens", "face_tokens", "output")
        yield from (recording.skip(name, reason) for name in outputs)
        return
    yield recording.check("audio_tokens", network.speech_projection(recording["audio_embeds"]))
    yield recording.check("face_tokens", network.face_projection(recording["face_embeds"]))
    latents = torch.cat([recording["latents"], recording["image_latents"]], dim=2)
    conditions = {"speech": recording["audio_embeds"], "face": recording["face_embeds"], "reference": features}
    output = network(latents, recording["timestep"], recording["text_embeds"], **conditions)
    yield recording.check("output", output)


def _sampler(recording: _Recording, parts: Mapping[str, Any]) -> Iterator[Result]:
    if parts["scheduler"] is None:
        yield from (recording.skip(n, "the bundle has no scheduler") for n in sorted(recording.tensors))
        return
    yield from _schedules(recording, parts["scheduler"])
    lacking = [name for name in ("transformer", "reference_network") if parts[name] is None]
    conditions = recording.path.with_name("transformer_io.safetensors")
    if lacking:
        yield recording.skip("final_latents", f"the bundle has no {' and no '.join(lacking)}")
    elif (reason := _unlike_recorded(parts["transformer"])) is not None:
        yield recording.skip("final_latents", reason)
    elif not conditions.exists():
        yield recording.skip("final_latents", f"{conditions.name}, which holds its conditions, is not beside it")
    else:
        final = _run(recording, _Recording("transformer_io", conditions, recording.tolerance), parts)
        yield recording.check("final_latents", final, RUN_FACTOR)


def _schedules(recording: _Recording, scheduler: Any) -> Iterator[Check]:
    for name in recording.numbered("timesteps_"):
        steps = name.removeprefix("timesteps_")
        scheduler.set_timesteps(int(steps))
        ascending = torch.cat([torch.tensor([-1]), scheduler.timesteps.flip(0)])
        yield recording.check(name, ascending)
        yield recording.check(f"sqrt_alphas_cumprod_{steps}", torch.tensor(scheduler.signal))


def _run(recording: _Recording, conditions: _Recording, parts: Mapping[str, Any]) -> Tensor:
    """The recorded guided run: conditions of row 1, guided away from zero text and zero speech."""
    from ..sampling.guidance import GuidanceScales, branches, combine

    network, scheduler = parts["transformer"], parts["scheduler"]
    image, text, speech, face = (
        conditions[name][1:2] for name in ("image_latents", "text_embeds", "audio_embeds", "face_embeds")
    )
    plan = branches(GuidanceScales(speech=GUIDANCE_SCALE, text=GUIDANCE_SCALE))
    reference = network.prepare_reference(_references(conditions, parts["reference_network"]))
    inputs = []
    for branch in plan:
        heard = network.prepare_speech(speech * branch.speech)
        known = type(network.conditions())(reference=reference, face=network.prepare_face(face), speech=heard)
        inputs.append((text * branch.text, known))
    sample, x0 = recording["initial_noise"], None
    scheduler.set_timesteps(len(recording.numbered("step_noise.")) + 1)
    for index, timestep in enumerate(scheduler.timesteps):
        latents = torch.cat([sample, image], dim=2)
        estimates = [network(latents, timestep[None], words, conditions=known) for words, known in inputs]
        velocity = combine(estimates, [branch.weight for branch in plan])
        noise = recording.tensors.get(f"step_noise.{index}")  # none at the last step
        result = scheduler.step(velocity, index, sample, x0, noise=noise)
        sample, x0 = result.prev_sample, result.pred_original_sample
    return sample


# ------------------------------------------------------------------------------------------------------ VAE and speech


def _vae(recording: _Recording, parts: Mapping[str, Any]) -> Iterator[Check]:
    from ..conditions.motion import encode_video

    vae = parts["vae"]
    for name in recording.numbered("video_"):
        mean = encode_video(vae, recording[name]).transpose(1, 2) / vae.config["scaling_factor"]
        yield recording.check(name.replace("video_", "latent_mean_"), mean)
    for name in recording.numbered("latents_"):
        frames = 4 * (recording[name].shape[2] - 1) + 1
        yield recording.check(f"decoded_{frames}", vae.decode(recording[name]).sample)


def _speech(recording: _Recording, parts: Mapping[str, Any]) -> Iterator[Result]:
    if parts["speech_encoder"] is None or parts["feature_extractor"] is None:
        lacking = "speech_encoder" if parts["speech_encoder"] is None else "feature_extractor"
        yield from (recording.skip(n, f"the bundle has no {lacking}") for n in sorted(recording.tensors))
        return
    from ..conditions.speech import clip_windows, encode_speech, num_clips, speech_windows

    samples, frames = recording["waveform"].numpy(), int(recording["num_frames"])
    features = encode_speech(samples, parts["speech_encoder"], parts["feature_extractor"], num_frames=CLIP)
    windows = speech_windows(features, recording["audio_windows"].shape[1])
    yield recording.check("audio_embeds", features[:])
    yield recording.check("audio_windows", windows[:])
    recorded = recording["clip_audio_embeds"]
    clips = [clip_windows(windows, clip, CLIP) for clip in range(min(num_clips(frames, CLIP), len(recorded)))]
    recording.tensors["clip_audio_embeds"] = recorded[: len(clips)]
    yield recording.check("clip_audio_embeds", torch.stack(clips))
    if len(clips) < len(recorded):
        yield recording.skip(f"clip_audio_embeds[{len(clips)}:]", "lies past the end of the speech; hallo3 skips it")


_Replay = Callable[[_Recording, Mapping[str, Any]], Iterator[Result]]
_REPLAYS: dict[str, tuple[tuple[str, ...], _Replay]] = {
    "transformer_io": (("transformer", "reference_network"), _transformer),
    "sampler_io": (("transformer", "reference_network", "scheduler"), _sampler),
    "vae_io": (("vae",), _vae),
    "audio_io": (("speech_encoder", "feature_extractor"), _speech),
}
