"""One job: a portrait, a recording and a prompt on disk in, an MP4 on disk out; resumable after any interruption."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .media.files import behind_link, ensure_writable
from .media.images import read_image
from .media.sound import Speech, heard_from_blocks, read_speech
from .sampling.shortcuts import Sampling
from .settings import Settings, read_settings

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from .media.credentials import Signer
    from .media.streams import Stream, StreamWriter
    from .media.video import VideoWriter
    from .media.watermark import Watermark
    from .pipeline import Clip, Hallo3Pipeline, Performance
    from .runtime.estimates import Estimate

Event = dict[str, Any]
SCALES = ("speech_scale", "text_scale", "reference_scale")
Listener = Callable[[Event], None]


@dataclass(frozen=True)
class AnimationRequest:
    """What to animate, and how.

    face_box: x, y, width, height in pixels of the portrait. quality: exact, high or draft (`sampling/shortcuts.py`).
    steps and scales (1 is no guidance): None takes the bundle's own, of the steps as many as the quality leaves.
    separate_vocals: take music and noise away first, with the network `vocal_separator`
    (Kim_Vocal_2.onnx), else with the bundle's. watermark, credentials: the marks of a generated video; without one, the
    result's tags say so. certificate, private_key: PEM files to sign the credentials with; a local one by default.
    """

    portrait: Path
    speech: Path
    output: Path
    prompt: str = ""
    bundle: str = "embedded"
    seed: int = 0
    quality: str = "exact"
    steps: int | None = None
    speech_scale: float | None = None
    text_scale: float | None = None
    reference_scale: float | None = None
    framing: str = "auto"
    face_box: tuple[float, float, float, float] | None = None
    no_face: bool = False
    face_index: int | None = None
    separate_vocals: bool = False
    vocal_separator: Path | None = None
    crf: int = 18
    watermark: bool = True
    credentials: bool = True
    certificate: Path | None = None
    private_key: Path | None = None
    resume: bool = False
    overwrite: bool = False

    def settings(self) -> dict[str, Any]:
        """What decides the frames besides the two input files: recorded in the result, compared on resume.

        Of a bundle that is given by its folder, the folder's name and a digest.
        """
        from .bundles.places import published_name

        name, digest = published_name(self.bundle)
        bundle = {"bundle": name} if digest is None else {"bundle": name, "bundle_digest": digest}
        skip = {
            "bundle",
            "portrait",
            "speech",
            "output",
            "resume",
            "overwrite",
            "vocal_separator",
            "certificate",
            "private_key",
        }
        return bundle | {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in skip}


def file_digest(path: Path) -> str:
    """BLAKE2 of a file, so that a resumed run notices an input that changed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def animate(
    request: AnimationRequest,
    *,
    pipeline: "Hallo3Pipeline | None" = None,
    listen: Listener = lambda event: None,
    stream: "Stream | None" = None,
    **how: Any,
) -> Path:
    """Makes the video that `request` asks for and returns its path.

    pipeline: one that is loaded already; else the request's bundle is loaded, `how` as `load` takes it. listen: called
    with events (`start`, `step`, `clip`, `notice`, `done`), each a dict with `event`; what it raises ends the run.
    stream: takes the video, as fragmented MP4 and clip by clip, in place of `request.output`, which then only names it
    in messages. It is not signed.

    Raises UserError for anything the user can mend. A run that stops half-way leaves OUTPUT.part, which plays, and its
    state; the same request with `resume=True` gives the frames that an uninterrupted run would have given.
    """
    started = time.monotonic()
    if stream is None:
        request = dataclasses.replace(request, output=behind_link(request.output))
        check_request(request)
    else:
        request = unsigned(request)
        check_settings(request)
    signer = signer_of(request)
    image, speech = read_image(request.portrait), read_speech(request.speech)
    samples = _without_music(speech, request)
    if pipeline is None:
        pipeline = load(request.bundle, scales={name: getattr(request, name) for name in SCALES}, **how)
    request = with_defaults(request, pipeline.config)
    sampling = Sampling.by(request.quality, request.steps, pipeline.config.num_inference_steps)
    if pipeline.evaluator is not None:
        sampling.check_shared()
    performance = _prepare(pipeline, request, image, samples)
    about = (EMBEDDED_NOTICE,) if request.bundle == "embedded" else ()
    marks = missing_marks(request, streamed=stream is not None)
    for notice in (
        *about,
        *_approximations(pipeline, sampling, performance.num_branches),
        *performance.notices,
        *marks,
    ):
        listen({"event": "notice", "message": notice})
    _write(pipeline, request, performance, speech, sampling, listen, started, signer, stream)
    return request.output


def check_request(request: AnimationRequest) -> None:
    """Raises UserError for whatever is wrong with the request itself, before anything is read or loaded."""
    ensure_writable(request.output)
    for what, path in (("portrait", request.portrait), ("speech", request.speech)):
        if request.output.exists() and path.exists() and request.output.samefile(path):
            raise UserError(f"{request.output}: is the {what}, too, which would be lost; choose another output")
    if request.output.exists() and not (request.overwrite or request.resume):
        raise UserError(f"{request.output}: exists already; choose another name, or --overwrite")
    if request.resume and request.overwrite:
        raise UserError("--resume and --overwrite: one goes on, the other starts anew; give one of them")
    half_done = begun(request.output)
    if half_done and not (request.resume or request.overwrite):
        raise UserError(f"{request.output}.part: left by an interrupted run; go on with --resume, or --overwrite it")
    if request.resume and not half_done:
        raise UserError(f"{request.output}: there is nothing to --resume; leave the option out to start")
    check_settings(request)


def check_settings(request: AnimationRequest) -> None:
    """The part of `check_request` that looks at no file."""
    values = {name: getattr(request, name) for name in Settings.model_fields if name != "face"}
    read_settings({**values, "face": request.face_index})
    if request.vocal_separator and not request.separate_vocals:
        raise UserError("--vocal-separator: is only used with --separate-vocals; add that, or leave it out")


def begun(output: Path) -> bool:
    """Whether a run was interrupted that was to make this file: `resume` then goes on with it."""
    output = behind_link(output)
    return output.with_name(output.name + ".part.state").exists()


def is_result_of(request: AnimationRequest) -> bool:
    """Whether `request.output` is there, finished, and was made of these files with these settings: its tags tell.

    Raises UserError for an input or a bundle that is not there.
    """
    from .bundles.index import read_index
    from .bundles.places import resolve
    from .media import credentials
    from .media.provenance import read_provenance

    if not request.output.exists():
        return False
    try:
        record = read_provenance(request.output)
    except UserError:
        return False  # not even a video
    if record is None:
        return False
    config = read_index(resolve(request.bundle)).config
    sampling = Sampling.by(request.quality, request.steps, config["num_inference_steps"])
    asked = with_defaults(request, config).settings()
    asked |= {"steps": sampling.steps, "credentials": request.credentials and credentials.available()}
    made_with = {name: value for name, value in record.get("settings", {}).items() if name in asked}
    return record.get("inputs") == _stated(_digests(request)) and made_with == json.loads(json.dumps(asked))


def _digests(request: AnimationRequest) -> dict[str, str]:
    return {"portrait_file": file_digest(request.portrait), "speech_file": file_digest(request.speech)}


def _stated(digests: Mapping[str, str]) -> dict[str, str]:
    """Digests of the inputs as a result's record states them."""
    return {name.removesuffix("_file"): f"blake2b-128:{digest}" for name, digest in digests.items()}


def unsigned(request: AnimationRequest) -> AnimationRequest:
    """The request for a stream: a signature is of the whole file, and a stream's start is gone by then."""
    return dataclasses.replace(request, credentials=False, certificate=None, private_key=None)


def missing_marks(request: AnimationRequest, *, streamed: bool = False) -> list[str]:
    """What the result will lack of its marks, a sentence each; a result never lacks one without saying so."""
    from .media import credentials

    missing = []
    if not request.watermark:
        missing.append("no invisible watermark, as --no-watermark says; the result's tags record it")
    if streamed:
        missing.append("no content credentials, as a stream cannot be signed; the result's tags record it")
    elif not request.credentials:
        missing.append("no content credentials, as --no-credentials says; the result's tags record it")
    elif not credentials.available():
        missing.append(credentials.MISSING)
    return missing


def signer_of(request: AnimationRequest) -> "Signer | None":
    """Who signs the result, tried; None without credentials. Raises UserError for a certificate that can't be used."""
    from .media import credentials

    if not request.credentials:
        if request.certificate or request.private_key:
            raise UserError("--certificate and --private-key: go without --no-credentials; leave that out, or them")
        return None
    if not credentials.available():
        if request.certificate or request.private_key:
            raise UserError("--certificate: needs c2pa-python, which is not installed; pip install c2pa-python")
        return None
    signer = credentials.find_signer(request.certificate, request.private_key)
    credentials.try_signer(signer)
    return signer


def load(
    bundle: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    strategy: str = "auto",
    weights: str = "auto",
    decoding: str = "auto",
    attention: str = "auto",
    compiled: bool = False,
    scales: Mapping[str, float | None] | None = None,
) -> "Hallo3Pipeline":
    """Loads a bundle for a device, in a way that its memory suffices for. Raises UserError when there is none.

    strategy, weights, decoding: see `runtime/plan.py`. By `auto` the results are exact, unless nothing exact fits.
    attention: see `runtime/attention.py`; by `auto` the fastest exact kernel here. compiled: see
    `runtime/compilation.py`. scales: of guidance, by the names of their settings, where they are known by now: a
    reference scale that is not 1 takes memory. In the first of several processes that work together the others load the
    denoiser, and evaluate it with this one.
    """
    from . import several
    from .bundles.places import resolve
    from .runtime.compilation import check_compiler
    from .runtime.devices import choose_device, choose_dtype
    from .runtime.plan import Wanted, batch_fits, choose_for

    group, folder = several.led(), resolve(bundle)
    target, room = (choose_device(device), None) if group is None else several.room(group, device)
    number_format = choose_dtype(dtype, target)
    wanted = Wanted(strategy, weights, decoding)
    chosen = choose_for(folder, target, number_format, wanted, f"bundle {bundle}", room, scales or {})
    if compiled:
        check_compiler(target, alone=group is None)
    if group is not None and attention == "auto":
        attention = "native"  # measuring, each process could come to another kernel
    kernel = _choose_kernel(attention, folder, target, number_format)
    leader = None if group is None else several.lead(group, folder, number_format, chosen, kernel)
    fits = group is None and batch_fits(folder, target, number_format, chosen, scales or {})
    pipeline = _load_as(chosen, bundle, folder, target, number_format)
    _tune(pipeline, target, kernel, compiled, fits)
    pipeline.evaluator = leader
    return pipeline


def _choose_kernel(attention: str, folder: Path, target: "torch.device", number_format: "torch.dtype") -> str:
    from .bundles.sizes import bundle_sizes
    from .runtime.attention import JointShape, choose_attention

    return choose_attention(attention, JointShape.of(bundle_sizes(folder)), target, number_format)


def _tune(pipeline: "Hallo3Pipeline", target: "torch.device", kernel: str, compiled: bool, fits: bool) -> None:
    """Makes the denoiser as fast as it can be here; fits: whether memory holds a batch of guidance branches."""
    from .runtime.attention import use_attention
    from .runtime.branches import choose_branches_at_once
    from .runtime.compilation import compile_layers

    use_attention(pipeline.transformer, kernel)
    pipeline.attention = kernel
    if compiled:
        compile_layers(pipeline.transformer)
    how = {"strategy": type(pipeline.strategy).__name__, "weights": pipeline.weights, "compiled": compiled}
    sizes = {name: value for name, value in pipeline.transformer.config.items() if not name.startswith("_")}
    about = {**how, "attention": kernel, "dtype": str(pipeline.transformer.dtype), "denoiser": sizes}
    pipeline.branches_at_once = choose_branches_at_once(pipeline, target, fits, about)


def _load_as(
    chosen: "Estimate", bundle: str, folder: Path, target: "torch.device", number_format: "torch.dtype"
) -> "Hallo3Pipeline":
    from .bundles.layout import empty_component, load_components, read_index
    from .pipeline import Hallo3Pipeline
    from .runtime.quantized import QUANTISED, quantize
    from .runtime.strategies import FREED, Staged, Streamed

    def read(part: str) -> Any:
        return quantize(part, load_components(folder, [part], torch_dtype=number_format)[part], chosen.weights)

    given: dict[str, Any] = {}
    if chosen.strategy != "resident":
        names = [name for name in FREED if name in read_index(folder).parts]
        given = {name: empty_component(folder, name, number_format) for name in names}
    if chosen.weights != "full":  # one after the other, so that only one is there in full
        missing = [name for name in QUANTISED if name not in given and name in read_index(folder).parts]
        given |= {name: read(name) for name in missing}
    pipeline = Hallo3Pipeline.from_pretrained(bundle, torch_dtype=number_format, **given)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.weights, pipeline.decoding = chosen.weights, chosen.decoding
    if chosen.strategy == "resident":
        return pipeline.to(target)
    pipeline.speech_encoder.to(target)
    pipeline.strategy = {"staged": Staged, "streamed": Streamed}[chosen.strategy](target, read)
    return pipeline


def _approximations(pipeline: "Hallo3Pipeline", sampling: Sampling, branches: int) -> list[str]:
    """What makes results differ from exact ones, a sentence each."""
    found = [notice] if (notice := sampling.notice(branches)) else []
    if pipeline.weights != "full":
        found.append(f"weights are {pipeline.weights}: results are close to exact ones, not equal; see docs/memory.md")
    if pipeline.decoding != "whole":
        found.append("frames are decoded in tiles: results are close to exact ones, not equal; see docs/memory.md")
    if _attention_of(pipeline) != "exact":
        found.append(
            f"attention is {pipeline.attention}: results are close to exact ones, not equal; see docs/speed.md"
        )
    return found


def _attention_of(pipeline: "Hallo3Pipeline") -> str:
    """`exact`, or the approximate kernel that results must name."""
    from .runtime.attention import KERNELS

    return "exact" if KERNELS[pipeline.attention].exact else pipeline.attention


def with_defaults(request: AnimationRequest, config: Mapping[str, Any]) -> AnimationRequest:
    """The request with the bundle's own scales of guidance where it names none. config: the pipeline's."""
    scales = {name: config[name] for name in SCALES if getattr(request, name) is None}
    return dataclasses.replace(request, **scales)


EMBEDDED_NOTICE = (
    "the embedded bundle is a small model for trying things out, tests and teaching; for real portraits get the "
    "published weights with `hallo3 download hallo3` (60 GB, a GPU), then --bundle hallo3"
)


def _without_music(speech: Speech, request: AnimationRequest) -> "np.ndarray":
    if not request.separate_vocals:
        return speech.samples
    from .conditions.vocals import SAMPLE_RATE, stream_vocals

    voice = stream_vocals(speech.blocks(SAMPLE_RATE), _separator(request))
    return heard_from_blocks(voice, SAMPLE_RATE, f"{request.speech} without its music")


def _separator(request: AnimationRequest) -> Path:
    """The network that separates vocals. Raises UserError when none was given and the bundle has none."""
    if request.vocal_separator is not None:
        return request.vocal_separator
    from .bundles.parts import VOCALS_FILE, VOCALS_FOLDER
    from .bundles.places import resolve

    file = resolve(request.bundle) / VOCALS_FOLDER / VOCALS_FILE
    if not file.is_file():
        raise UserError(
            f"--separate-vocals: bundle {request.bundle} has no {VOCALS_FILE}; give that file by --vocal-separator"
        )
    return file


def _prepare(
    pipeline: "Hallo3Pipeline", request: AnimationRequest, image: "Image.Image", samples: "np.ndarray"
) -> "Performance":
    from .sampling.guidance import GuidanceScales

    return pipeline.prepare(
        image,
        samples,
        request.prompt,
        seed=request.seed,
        guidance=GuidanceScales(*(float(getattr(request, name)) for name in SCALES)),
        framing=request.framing,
        face_box=request.face_box,
        no_face=request.no_face,
        face_index=request.face_index,
    )


def _write(
    pipeline: "Hallo3Pipeline",
    request: AnimationRequest,
    performance: "Performance",
    speech: Speech,
    sampling: Sampling,
    listen: Listener,
    started: float,
    signer: "Signer | None",
    stream: "Stream | None",
) -> None:
    _, _, width, height = performance.framing.visible
    exact = sampling.is_exact(performance.num_branches)
    settings = {**request.settings(), "steps": sampling.steps, "framing_used": performance.framing.mode}
    settings["credentials"] = signer is not None
    settings["shortcuts"] = None if exact else dataclasses.asdict(sampling.shortcuts)
    inputs = _digests(request)
    settings |= {"weights": pipeline.weights, "decoding": pipeline.decoding, "attention": _attention_of(pipeline)}
    unsigned = None if signer is not None else _why_unsigned(request, stream)
    record, mark = _marks(request, settings, inputs, unsigned, width, height, pipeline.config.fps)
    fingerprint = json.dumps({**settings, **inputs, "clips": performance.num_clips}, sort_keys=True)
    writer = _writer(request, width, height, pipeline.config.fps, speech, record, fingerprint, stream)
    with writer:
        _still_to_be_made(request, writer, stream)
        listen(_start_event(pipeline, performance, sampling.steps, width, height, writer.progress.clips))
        _write_clips(pipeline, performance, sampling, listen, writer, mark)
        frames = writer.progress.frames
        writer.finish(None if signer is None else partial(_seal, record, signer))
    seconds, took = frames / pipeline.config.fps, time.monotonic() - started
    listen({"event": "done", "output": str(request.output), "frames": frames, "seconds": seconds, "took": took})


def _still_to_be_made(request: AnimationRequest, writer: "VideoWriter | StreamWriter", stream: "Stream | None") -> None:
    """Asked again now that nobody else can write it: loading a model leaves another run time to finish the same one."""
    from .media.video import BeingWritten

    if stream is None and request.output.exists() and not (request.overwrite or writer.progress.clips):
        raise BeingWritten(f"{request.output}: another run has made it meanwhile; choose another name, or --overwrite")


def _write_clips(
    pipeline: "Hallo3Pipeline",
    performance: "Performance",
    sampling: Sampling,
    listen: Listener,
    writer: "VideoWriter | StreamWriter",
    mark: "Watermark | None",
) -> None:
    """Renders and writes what is missing; each clip is marked, encoded and written while the next one is sampled."""
    import numpy as np
    import torch

    from .media.behind import OneBehind

    first = writer.progress.clips
    timer = Timer(performance.num_clips - first, sampling.steps, listen, first)
    carried = torch.from_numpy(writer.progress.carry["motion"]) if first else None
    # As it was begun: where more memory is free now, a batch would round differently.
    at_once = int(writer.progress.carry["branches_at_once"][0]) if first else pipeline.branches_at_once

    def write(clip: "Clip") -> None:
        # Only what is shown is marked: the next clip is made from frames without a mark.
        shown = clip.frames if mark is None else mark.apply(clip.frames, writer.progress.frames)
        writer.write_clip(shown, carry={"motion": clip.motion.numpy(), "branches_at_once": np.array([at_once])})

    def stepped(index: int, step: int) -> None:
        behind.look()
        timer.step(index, step)

    how: dict[str, Any] = {"num_inference_steps": sampling.steps, "shortcuts": sampling.shortcuts, "on_step": stepped}
    with OneBehind(write, timer.written) as behind:
        for clip in pipeline.render(
            performance, first_clip=first, last_motion=carried, branches_at_once=at_once, **how
        ):
            timer.made(clip)
            behind.put(clip)
        behind.wait()


def _writer(
    request: AnimationRequest,
    width: int,
    height: int,
    fps: int,
    speech: Speech,
    record: dict[str, Any],
    fingerprint: str,
    stream: "Stream | None",
) -> "VideoWriter | StreamWriter":
    from .media.provenance import tags_of
    from .media.streams import StreamWriter
    from .media.video import VideoWriter

    tags = tags_of(record)
    if stream is not None:
        return StreamWriter(stream, width, height, fps=fps, speech=speech, metadata=tags, crf=request.crf)
    return VideoWriter(
        request.output,
        width,
        height,
        fps=fps,
        speech=speech,
        metadata=tags,
        fingerprint=fingerprint,
        crf=request.crf,
        resume=request.resume,
        overwrite=request.overwrite,
    )


def _why_unsigned(request: AnimationRequest, stream: "Stream | None") -> str:
    if stream is not None:
        return "a stream cannot be signed"
    return "c2pa-python was not installed" if request.credentials else "by choice"


def _marks(
    request: AnimationRequest,
    settings: Event,
    inputs: dict[str, str],
    unsigned: str | None,
    width: int,
    height: int,
    fps: int,
) -> "tuple[dict[str, Any], Watermark | None]":
    """What is stated of the result, and the watermark that leads back to it."""
    from .media import watermark
    from .media.provenance import provenance_record, record_identifier

    bundle = settings["bundle"]
    record = provenance_record(bundle=bundle, seed=request.seed, settings=settings, inputs=_stated(inputs))
    if unsigned is not None:
        record["unsigned"] = unsigned
    if not request.watermark:
        return {**record, "watermark": None}, None
    identifier = record_identifier(record, watermark.BITS)
    stated = {"scheme": watermark.SCHEME, "identifier": watermark.written(identifier)}
    return {**record, "watermark": stated}, watermark.Watermark(identifier, height, width, fps=fps)


def _seal(record: dict[str, Any], signer: "Signer", source: Path, target: Path) -> None:
    from .media.credentials import sign, still_valid

    sign(source, target, record, still_valid(signer))


def _start_event(
    pipeline: "Hallo3Pipeline", performance: "Performance", steps: int, width: int, height: int, first: int
) -> Event:
    return {
        "event": "start",
        "frames": performance.num_frames,
        "fps": pipeline.config.fps,
        "clips": performance.num_clips,
        "done_already": first,
        "steps": steps,
        "width": width,
        "height": height,
        "framing": performance.framing.report,
    }


class Timer:
    """Turns the pipeline's calls into events with the time left, from what steps and decoding have taken so far."""

    def __init__(self, clips: int, steps: int, listen: Listener, first: int) -> None:
        self._clips, self._steps, self._listen, self._first = clips, steps, listen, first
        self._began = time.monotonic()
        self._between = 0.0  # seconds from a clip's last step to the next one's first: decoding and encoding
        self._last = self._began
        self._left = 0.0

    def step(self, index: int, step: int) -> None:
        """A sampling step of clip `index` is done."""
        now = time.monotonic()
        done = (index - self._first) * self._steps + step + 1
        stepping = now - self._began - self._between * (index - self._first)
        left = stepping / done * (self._clips * self._steps - done)
        self._left = left + self._between * (self._clips - (index - self._first))
        self._last = now
        total = self._first + self._clips
        event = {"event": "step", "clip": index, "clips": total, "step": step, "steps": self._steps}
        self._listen({**event, "seconds_left": round(self._left, 1)})

    def made(self, clip: "Clip") -> None:
        """A clip is decoded."""
        now, done = time.monotonic(), clip.index - self._first + 1
        self._between += (now - self._last - self._between) / done
        self._left = (now - self._began) / done * (self._clips - done)

    def written(self, clip: "Clip") -> None:
        """A clip is on the disk."""
        event = {"event": "clip", "clip": clip.index, "clips": clip.total, "frames": len(clip.frames)}
        self._listen({**event, "seconds_left": round(self._left, 1)})
