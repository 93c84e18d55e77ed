"""The main job: portrait, speech and prompt become conditions, then clip after clip of frames, in constant memory."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from transformers import PreTrainedTokenizerBase, T5EncoderModel, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from .conditions import face as faces
from .conditions import motion, text
from .conditions.placement import send
from .conditions.portrait import Framing, frame_portrait
from .conditions.speech import SpeechWindows, clip_windows, encode_speech, num_clips, num_video_frames, speech_windows
from .errors import UserError
from .media.images import read_image
from .media.provenance import provenance_record, record_identifier
from .media.sound import read_speech
from .media.watermark import BITS, Watermark
from .networks.conditions import Condition, DenoiserConditions
from .networks.denoiser import Hallo3Transformer3DModel
from .networks.kept import KeptResult
from .networks.lean_vae import make_lean
from .networks.reference import ReferenceNetwork
from .runtime.strategies import Resident, Strategy
from .sampling.evaluation import BranchInputs, Evaluate, GuidedDenoiser, first_block_cache
from .sampling.guidance import GuidanceScales, branches
from .sampling.scheduler import Hallo3DPMScheduler
from .sampling.shortcuts import EXACT, Shortcuts, find_quality, steps_of

StepCallback = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Look:
    """What the model sees of a portrait: the canvas, (H, W, 3) uint8, how the picture lies on it, and which face."""

    canvas: np.ndarray
    framing: Framing
    face: faces.FoundFace


@dataclass(frozen=True)
class Performance:
    """Everything that stays the same over a video: made once by `Hallo3Pipeline.prepare`.

    portrait: (1, 3, H, W) in [-1, 1]; text_embeds: (1, L, c); windows: (frames, 5, 12, c), read clip by clip;
    references: the reference network's features, one (1, n, d) a layer, of the portrait (True) and of the dropped
    reference (False), as far as the guidance branches need them, and None in a bundle without a reference network;
    num_frames: of the video, num_clips: that it takes.
    """

    seed: int
    guidance: GuidanceScales

    portrait: torch.Tensor
    framing: Framing
    face: faces.FaceCondition
    text_embeds: torch.Tensor
    windows: SpeechWindows
    references: dict[bool, list[torch.Tensor] | None]
    num_frames: int
    num_clips: int
    notices: tuple[str, ...]

    @property
    def num_branches(self) -> int:
        """Guidance branches of a step."""
        return len(branches(self.guidance))


@dataclass(frozen=True)
class Clip:
    """One finished clip: frames (F, height, width, 3) uint8 as the user sees them, and what the next clip starts from.

    motion: the last frames on the canvas, (k, 3, H, W) float32 in [-1, 1].
    """

    index: int
    total: int
    frames: np.ndarray
    motion: torch.Tensor


@dataclass
class Hallo3Output(BaseOutput):
    """frames: (F, height, width, 3) uint8; fps: frames per second."""

    frames: np.ndarray
    fps: int


@dataclass(frozen=True)
class LastingConditions:
    """What a whole video shares of the denoiser's conditions (see `DenoiserConditions`)."""

    reference: dict[bool, list[torch.Tensor] | None]
    face: Condition
    no_speech: Condition


def derived_generator(seed: int, *purpose: object) -> torch.Generator:
    """A random generator that depends on the seed and the purpose alone, so that clip c is the same whether the run
    came from clip 0 or was resumed just before c. On the CPU: the same noise on every device."""
    digest = hashlib.blake2b("/".join(map(str, (seed, *purpose))).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


class Hallo3Pipeline(DiffusionPipeline):
    """Talking portraits (Hallo3): `pipeline(portrait, speech, prompt=...)` gives all frames, `.stream(...)` clips.

    The configuration holds the sizes the weights were trained for (pixels, frames a clip, motion frames and the share
    of their pixels that is lost, text length), and the steps and scales of guidance that suit them. `reference_network`
    is None where the denoiser takes no reference (`identity_conditioning`).
    """

    transformer: Hallo3Transformer3DModel
    reference_network: ReferenceNetwork | None
    vae: AutoencoderKLCogVideoX
    text_encoder: T5EncoderModel
    tokenizer: PreTrainedTokenizerBase
    speech_encoder: Wav2Vec2Model
    feature_extractor: Wav2Vec2FeatureExtractor
    scheduler: Hallo3DPMScheduler
    face_encoder: faces.FaceAnalyzer
    config: Any

    _optional_components = ["reference_network"]  # noqa: RUF012
    model_cpu_offload_seq = "text_encoder->speech_encoder->reference_network->transformer->vae"

    def __init__(
        self,
        transformer: Hallo3Transformer3DModel,
        reference_network: ReferenceNetwork | None,
        vae: AutoencoderKLCogVideoX,
        text_encoder: T5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        speech_encoder: Wav2Vec2Model,
        feature_extractor: Wav2Vec2FeatureExtractor,
        scheduler: Hallo3DPMScheduler,
        face_encoder: faces.FaceAnalyzer,
        sample_height: int = 480,
        sample_width: int = 720,
        num_frames: int = 49,
        motion_frames: int = 2,
        motion_mask: float = 0.1,
        text_length: int = 226,
        fps: int = 25,
        num_inference_steps: int = 50,
        speech_scale: float = 3.5,
        text_scale: float = 3.5,
        reference_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if transformer.identity.reference and reference_network is None:
            raise UserError("this bundle's denoiser needs a reference network; add it with `hallo3 convert --denoiser`")
        if motion_frames >= num_frames:
            raise UserError(f"motion_frames is {motion_frames}, num_frames {num_frames}; a clip must be longer")
        self.register_modules(
            transformer=transformer,
            reference_network=reference_network,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            speech_encoder=speech_encoder,
            feature_extractor=feature_extractor,
            scheduler=scheduler,
            face_encoder=face_encoder,
        )
        self.register_to_config(
            sample_height=sample_height,
            sample_width=sample_width,
            num_frames=num_frames,
            motion_frames=motion_frames,
            motion_mask=motion_mask,
            text_length=text_length,
            fps=fps,
            num_inference_steps=num_inference_steps,
            speech_scale=speech_scale,
            text_scale=text_scale,
            reference_scale=reference_scale,
        )
        self._no_reference, self._no_speech = KeptResult(), KeptResult()
        # Of the video before: rows of a batch often share portrait or prompt.
        self._last_words, self._last_reference = KeptResult(), KeptResult()
        self.strategy: Strategy = Resident()
        # Takes a clip's guidance branches, to evaluate them with other processes.
        self.evaluator: Callable[[Hallo3Transformer3DModel, list[BranchInputs]], Evaluate] | None = None
        self.weights, self.decoding = "full", "whole"  # `load` says how they are approximated
        self.attention = "native"
        self.branches_at_once = 1  # guidance branches in one forward of the denoiser

    @property
    def guidance(self) -> GuidanceScales:
        """The bundle's own scales of guidance, taken where none are given."""
        return GuidanceScales(self.config.speech_scale, self.config.text_scale, self.config.reference_scale)

    @property
    def _execution_device(self) -> torch.device:
        if self.strategy.device is not None:
            return self.strategy.device
        hooks = ("_hf_hook", "_diffusers_hook")  # offloaded by its user, perhaps leaf by leaf
        if any(hasattr(module, hook) for module in self.transformer.modules() for hook in hooks):
            return super()._execution_device
        return next(self.transformer.parameters()).device  # diffusers' own answer looks through every module, 10 ms

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "Hallo3Pipeline":
        """Loads a bundle: a folder, the name of one on this machine (`embedded`), or a hub repository.

        options: `torch_dtype`, and any component or configuration value to use in place of the bundle's.
        Raises UserError when the bundle is unknown, incomplete or damaged.
        """
        from .bundles.layout import load_pipeline

        pipeline = load_pipeline(cls, pretrained_model_name_or_path, **options)
        make_lean(pipeline.vae)
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Writes the pipeline as a bundle folder."""
        from .bundles.layout import save_pipeline

        save_pipeline(self, save_directory, **options)

    # ---------------------------------------------------------------------------------------------------- conditions

    @torch.no_grad()
    def prepare(
        self,
        portrait: Image.Image,
        speech: np.ndarray,
        prompt: str = "",
        *,
        seed: int = 0,
        guidance: GuidanceScales | None = None,
        framing: str = "auto",
        face_box: tuple[float, float, float, float] | None = None,
        no_face: bool = False,
        face_index: int | None = None,
    ) -> Performance:
        """Turns what a person has into what the networks take; runs every encoder once.

        What stands for a dropped reference is the same in every video and is computed for the first one only; text, or
        portrait and seed, that are those of the video before are not encoded again.

        portrait: an RGB image. speech: (samples,) mono float32 at 16 kHz. face_box: x, y, width, height in pixels of
        `portrait`. Raises UserError when no face is found and neither `face_box` nor `no_face` is given.
        """
        guidance = guidance or self.guidance
        seen = self.look(portrait, framing=framing, face_box=face_box, no_face=no_face, face_index=face_index)
        canvas, placed = seen.canvas, seen.framing
        face = faces.embed_face(self.face_encoder, canvas, seen.face)
        words, text_notices = self._encode_text(prompt)
        windows = speech_windows(
            encode_speech(speech, self.speech_encoder, self.feature_extractor, num_frames=self.config.num_frames)
        )
        frames = num_video_frames(len(speech))
        return Performance(
            seed=seed,
            guidance=guidance,
            portrait=motion.to_tensor(canvas),
            framing=placed,
            face=face,
            text_embeds=words,
            windows=windows,
            references=self._references(canvas, face, seed, {b.reference for b in branches(guidance)}),
            num_frames=frames,
            num_clips=num_clips(frames, self.config.num_frames, self.config.motion_frames),
            notices=(*face.notices, *text_notices),
        )

    def look(
        self,
        portrait: Image.Image,
        *,
        framing: str = "auto",
        face_box: tuple[float, float, float, float] | None = None,
        no_face: bool = False,
        face_index: int | None = None,
    ) -> Look:
        """The first part of `prepare`, with the same arguments and errors: frames the picture and finds the face.

        The face is not searched for where no network is told of it. Other threads may look while one animates.
        """
        canvas, placed = frame_portrait(portrait, self.config.sample_height, self.config.sample_width, framing)
        identity = self.transformer.identity
        if identity.face is None and not identity.reference:
            height, width = canvas.shape[:2]
            return Look(canvas, placed, faces.FoundFace(None, (0.0, 0.0, width, height)))
        box = placed.to_canvas(face_box) if face_box else None
        found = faces.find_face(self.face_encoder, canvas, face_box=box, no_face=no_face, index=face_index)
        return Look(canvas, placed, found)

    def _encode_text(self, prompt: str) -> tuple[torch.Tensor, tuple[str, ...]]:
        def encode() -> tuple[torch.Tensor, tuple[str, ...]]:
            with self.strategy.using(self, "text_encoder"):
                return text.encode_prompt(prompt, self.tokenizer, self.text_encoder, self.config.text_length)

        about = (prompt, id(self.tokenizer), self.config.text_length)
        kept: tuple[torch.Tensor, tuple[str, ...]] = self._last_words.of(self.text_encoder, about, encode)
        return kept

    def _references(
        self, canvas: np.ndarray, face: faces.FaceCondition, seed: int, wanted: set[bool]
    ) -> dict[bool, list[torch.Tensor] | None]:
        """Per-layer features of the portrait (True) and of the dropped reference, a zero latent (False)."""
        if self.reference_network is None or not self.transformer.identity.reference:
            return dict.fromkeys(wanted)
        image = faces.black_outside(canvas, face.box)
        with self.strategy.using(self, "vae"):
            latent = motion.encode_reference_latents(self.vae, image, derived_generator(seed, "reference"))
        return self._features(self.reference_network, latent, wanted)

    def _features(
        self, network: ReferenceNetwork, latent: torch.Tensor, wanted: set[bool]
    ) -> dict[bool, list[torch.Tensor] | None]:
        doubled = torch.cat([latent, latent], dim=2).to(self._execution_device)
        empty = torch.zeros(1, self.config.text_length, network.config.text_embed_dim).to(doubled)
        with ExitStack() as present:

            @cache
            def at_hand() -> ReferenceNetwork:
                # Not before it is needed: it may have to be read from disk.
                present.enter_context(self.strategy.using(self, "reference_network"))
                assert self.reference_network is not None
                return self.reference_network

            def of(portrait: torch.Tensor) -> list[torch.Tensor]:
                # They wait on the host: the layers' keys and values of them are what a step needs.
                dtype = at_hand().dtype
                return [feature.cpu() for feature in at_hand()(portrait.to(dtype), empty.to(dtype))]

            features: dict[bool, list[torch.Tensor] | None] = {}
            if True in wanted:
                about = (hashlib.blake2b(latent.float().cpu().numpy().tobytes()).digest(), doubled.shape, empty.shape)
                features[True] = self._last_reference.of(network, about, lambda: of(doubled))
            if False in wanted:
                sizes = (doubled.shape, empty.shape)
                features[False] = self._no_reference.of(network, sizes, lambda: of(torch.zeros_like(doubled)))
        return features

    # ------------------------------------------------------------------------------------------------------ rendering

    @torch.no_grad()
    def render(
        self,
        performance: Performance,
        *,
        num_inference_steps: int | None = None,
        first_clip: int = 0,
        last_motion: torch.Tensor | None = None,
        shortcuts: Shortcuts = EXACT,
        branches_at_once: int | None = None,
        cached: bool = True,
        on_step: StepCallback | None = None,
    ) -> Iterator[Clip]:
        """Yields finished clips from `first_clip` on; memory does not grow with the speech's length.

        num_inference_steps: the bundle's own, or `shortcuts`' share of them, if not given. shortcuts: what may be left
        out, approximately. branches_at_once: guidance branches in one forward of the denoiser, in place of the
        pipeline's own; another number rounds differently. last_motion: `Clip.motion` of the clip before `first_clip`;
        needed when that is not 0. cached: project speech, face and reference once per clip; False recomputes them in
        every step (exact mode, for comparison). on_step is called with (clip, step) after each sampling step.
        """
        if (first_clip > 0) != (last_motion is not None):
            raise ValueError("last_motion goes with first_clip > 0, and only then")
        steps = num_inference_steps or steps_of(self.config.num_inference_steps, shortcuts)
        at_once = branches_at_once or self.branches_at_once
        lasting = self._lasting_conditions(performance) if cached else None
        moving = last_motion
        for index in range(first_clip, performance.num_clips):
            generator = derived_generator(performance.seed, "clip", index)
            image_latents = self._image_latents(performance, moving, generator)
            report = None if on_step is None else partial(on_step, index)
            with ExitStack() as present:
                if lasting is None:  # every step projects the speech anew
                    present.enter_context(self.strategy.using(self, "speech_projection"))
                windows = self._clip_windows(performance, index)
                projected = None if lasting is None else self._project_speech(windows)
                present.enter_context(self.strategy.using(self, "transformer"))
                inputs = self._clip_inputs(performance, windows, projected, image_latents, lasting)
                latents = self._sample(inputs, image_latents, steps, generator, report, shortcuts, at_once)
            _require_numbers(latents, "the denoiser")
            frames, moving = self._decode(latents, self._frames_of(performance, index))
            yield Clip(index, performance.num_clips, performance.framing.restore(frames), moving)

    def _lasting_conditions(self, performance: Performance) -> LastingConditions:
        network, k = self.transformer, self.transformer.config
        shape = (1, self.config.num_frames, k.speech_window, k.speech_blocks, k.speech_channels)
        silence = torch.zeros(shape, device=self._execution_device, dtype=network.dtype)
        silent = self._no_speech.of(network, shape, lambda: self._project_speech(silence))
        with self.strategy.using(self, "transformer"):
            seen, face = performance.references, self._face_embedding(performance)
            return LastingConditions(
                reference={
                    kept: None if x is None else network.prepare_reference(self._on_device(x))
                    for kept, x in seen.items()
                },
                face=None if face is None else network.prepare_face(face),
                no_speech=network.spread_speech(silent),
            )

    def _project_speech(self, windows: torch.Tensor) -> torch.Tensor:
        """A clip's windows (1, F, window, blocks, c) through the speech projection, which is not needed again then."""
        with self.strategy.using(self, "speech_projection"):
            return self.transformer.speech_projection(windows)

    def _on_device(self, tensors: list[torch.Tensor] | None) -> list[torch.Tensor] | None:
        return None if tensors is None else [tensor.to(self._execution_device) for tensor in tensors]

    def _face_embedding(self, performance: Performance) -> torch.Tensor | None:
        """The face embedding (1, c); None for a denoiser that takes none."""
        if self.transformer.identity.face is None:
            return None
        embedding = torch.from_numpy(performance.face.embedding)[None]
        return embedding.to(self._execution_device, self.transformer.dtype)

    def _image_latents(
        self, performance: Performance, last_motion: torch.Tensor | None, generator: torch.Generator
    ) -> torch.Tensor:
        """Portrait and masked motion frames as latents (1, T, 16, h, w); the first clip starts from the portrait."""
        k = self.config.motion_frames
        before = performance.portrait.repeat(k, 1, 1, 1) if last_motion is None else last_motion
        masked = motion.mask_pixels(before, self.config.motion_mask, generator)
        count = (self.config.num_frames - 1) // self.vae.config.temporal_compression_ratio + 1
        with self.strategy.using(self, "vae"):
            return motion.encode_image_latents(self.vae, performance.portrait, masked, generator, count)

    def _clip_windows(self, performance: Performance, index: int) -> torch.Tensor:
        """Speech windows of a clip, (1, F, window, blocks, c), on the device."""
        windows = clip_windows(performance.windows, index, self.config.num_frames, self.config.motion_frames)
        return windows[None].to(self._execution_device, self.transformer.dtype)

    def _clip_inputs(
        self,
        performance: Performance,
        windows: torch.Tensor,
        projected: torch.Tensor | None,
        image_latents: torch.Tensor,
        lasting: LastingConditions | None,
    ) -> list[BranchInputs]:
        """What the denoiser takes in each guidance branch of a clip, besides the sample and the timestep."""
        device, dtype = self._execution_device, self.transformer.dtype
        known, words = image_latents.to(device, dtype), performance.text_embeds.to(device, dtype)
        speech = None if projected is None else self.transformer.spread_speech(projected)
        inputs = []
        for branch in branches(performance.guidance):
            if lasting is None:
                given: dict[str, Any] = {
                    "speech": windows if branch.speech else torch.zeros_like(windows),
                    "face": self._face_embedding(performance),
                    "reference": self._on_device(performance.references[branch.reference]),
                }
            else:
                spoken = speech if branch.speech else lasting.no_speech
                given = {"conditions": DenoiserConditions(lasting.reference[branch.reference], lasting.face, spoken)}
            image = known if branch.reference else torch.zeros_like(known)
            prompt = words if branch.text else torch.zeros_like(words)
            inputs.append(BranchInputs((branch.weight,), image, prompt, given))
        return inputs

    def _sample(
        self,
        inputs: list[BranchInputs],
        like: torch.Tensor,
        steps: int,
        generator: torch.Generator,
        report: Callable[[int], None] | None,
        shortcuts: Shortcuts = EXACT,
        at_once: int = 1,
    ) -> torch.Tensor:
        """Runs the solver: latents (1, T, 16, h, w) × the VAE's scaling factor, in float32.

        Nothing in a step waits for the device: the host prepares the next one meanwhile.
        """
        device = self._execution_device
        sample = send(torch.randn(like.shape, generator=generator), device)
        self.scheduler.set_timesteps(steps, device=device)
        together = None if self.evaluator is None else self.evaluator(self.transformer, inputs)
        velocity = GuidedDenoiser(
            self.transformer, inputs, steps, shortcuts=shortcuts, at_once=at_once, together=together
        )
        x0 = None
        with first_block_cache(self.transformer, shortcuts.cache):
            for index, timestep in enumerate(self.scheduler.timesteps):
                prediction = velocity(index, sample, timestep)
                noise = send(torch.randn(like.shape, generator=generator), device) if index < steps - 1 else None
                step = self.scheduler.step(prediction, index, sample, x0, noise=noise)
                sample, x0 = step.prev_sample, step.pred_original_sample
                if report is not None:
                    report(index)
        return sample

    def _frames_of(self, performance: Performance, index: int) -> int:
        """Frames that clip `index` adds: all but its lead-in, and no more than the speech still needs."""
        step = self.config.num_frames - self.config.motion_frames
        return min(step, performance.num_frames - index * step)

    def _decode(self, latents: torch.Tensor, wanted: int) -> tuple[np.ndarray, torch.Tensor]:
        """The clip's frames after its lead-in, (wanted, H, W, 3) uint8, and its last frames (k, 3, H, W) float32."""
        k = self.config.motion_frames
        pieces, last = [], latents.new_zeros(0)
        tiles = motion.in_tiles(self.vae) if self.decoding == "tiled" else nullcontext()
        with self.strategy.using(self, "vae"), tiles:
            for piece in motion.decode_video(self.vae, latents):
                _require_numbers(piece, "the VAE")
                last = torch.cat([last, piece[-k:].cpu()])[-k:] if len(last) else piece[-k:].cpu()
                pieces.append(motion.to_frames(piece))
        return np.concatenate(pieces)[k : k + wanted], last

    # ------------------------------------------------------------------------------------------------- the short ways

    def stream(
        self,
        portrait: Image.Image | str | Path,
        speech: np.ndarray | str | Path,
        prompt: str = "",
        *,
        num_inference_steps: int | None = None,
        quality: str = "exact",
        on_step: StepCallback | None = None,
        watermark: bool = True,
        **options: Any,
    ) -> Iterator[np.ndarray]:
        """Yields frames clip by clip, (F, height, width, 3) uint8 each, at the configuration's `fps`.

        portrait: an image or its path. speech: a path, or (samples,) mono float32 at 16 kHz. quality: exact, high or
        draft, see `sampling/shortcuts.py`. watermark: put the invisible mark of a generated video into the frames;
        without it, say by other means what they are. options: as `prepare`. Raises UserError for input that can't be
        used, and where a network gives no numbers.
        """
        sampled: dict[str, Any] = {"num_inference_steps": num_inference_steps, "on_step": on_step}
        sampled["shortcuts"] = find_quality(quality).shortcuts
        samples = _as_samples(speech)
        performance = self.prepare(_as_image(portrait), samples, prompt, **options)
        mark, shown = self._mark(performance, samples, prompt) if watermark else None, 0
        for clip in self.render(performance, **sampled):
            yield clip.frames if mark is None else mark.apply(clip.frames, shown)
            shown += len(clip.frames)

    def _mark(self, performance: Performance, samples: np.ndarray, prompt: str) -> Watermark:
        """A watermark for frames that leave without a file: its identifier stands for the seed and the inputs."""
        inputs = {"portrait": performance.portrait.numpy(), "speech": samples}
        record = provenance_record(
            bundle=str(self.config.get("_name_or_path", "")),
            seed=performance.seed,
            settings={"prompt": prompt, **performance.guidance._asdict()},
            inputs={name: hashlib.blake2b(x.tobytes(), digest_size=16).hexdigest() for name, x in inputs.items()},
        )
        _, _, width, height = performance.framing.visible
        return Watermark(record_identifier(record, BITS), height, width, fps=self.config.fps)

    def __call__(
        self, portrait: Image.Image | str | Path, speech: np.ndarray | str | Path, prompt: str = "", **options: Any
    ) -> Hallo3Output:
        """All frames at once; arguments as `stream`. For minutes of speech use `stream`: memory stays constant."""
        frames = np.concatenate(list(self.stream(portrait, speech, prompt, **options)))
        return Hallo3Output(frames=frames, fps=self.config.fps)


def _require_numbers(tensor: torch.Tensor, source: str) -> None:
    """Raises UserError where a network has gone out of the range of its numbers: frames of that would be black."""
    if not torch.isfinite(tensor).all():
        raise UserError(
            f"{source}: gives values that are no numbers; bring the scales of guidance closer to 1, use --dtype "
            "float32, or copy the bundle again"
        )


def _as_image(portrait: Image.Image | str | Path) -> Image.Image:
    return portrait if isinstance(portrait, Image.Image) else read_image(portrait)


def _as_samples(speech: np.ndarray | str | Path) -> np.ndarray:
    return speech if isinstance(speech, np.ndarray) else read_speech(speech).samples
