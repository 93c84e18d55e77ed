"""What this machine has of all that hallo3 needs, found by trying it, and what to do about the rest."""

import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from .errors import UserError
from .version import __version__

State = Literal["fine", "note", "problem"]

EXTRAS = {
    "train": ("training, the studio, `hallo3 ablate`", ("numba", "scipy", "matplotlib", "tensorboard", "skimage")),
    "faces": ("faces in photographs with the published weights", ("insightface", "mediapipe", "onnxruntime")),
    "serve": ("`hallo3 serve`", ("fastapi", "uvicorn", "python_multipart", "prometheus_client")),
    "web": ("`hallo3 web`", ("gradio",)),
    "quantized": ("`animate --weights int8`", ("torchao",)),
    "vocals": ("--separate-vocals with the published network", ("onnxruntime",)),
}
"""Extra → what it is for, and the modules that it brings."""

SYNTHESISERS = ("espeak-ng", "flite")
ROOM = 2e9
"""Bytes that should be free where results and models go: less is worth a word."""


@dataclass(frozen=True)
class Finding:
    """topic: what was looked at. found: what is there. remedy: what to do; empty if nothing needs to be done."""

    topic: str
    state: State
    found: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Everything, one finding after the other; takes seconds, loads no model and sends nothing anywhere."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _versions, _devices, _codecs, _extras, _synthesisers, _models, _room, _marks, _rights,
    )  # fmt: skip
    for check in checks:
        yield from check()


def next_step(findings: list[Finding]) -> str:
    """What to do now, in one line: the first remedy of a problem, else the command to start with."""
    for finding in findings:
        if finding.state == "problem":
            return f"{finding.topic}: {finding.remedy}"
    gpu = any(finding.topic == "device" and "GPU" in finding.found for finding in findings)
    published = any(finding.topic == "model hallo3" for finding in findings)
    if gpu and not published:
        return "hallo3 plan hallo3 tells whether the published model fits; hallo3 download hallo3 fetches it (60 GB)"
    return "hallo3 animate portrait.jpg speech.wav --prompt 'A woman talks by the sea' -o out.mp4"


def _versions() -> Iterator[Finding]:
    system = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("hallo3", "fine", f"{__version__}, {system}")
    wrong, seen = [], []
    for requirement in _requirements():
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        seen.append(f"{requirement.name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        yield Finding("libraries", "problem", "; ".join(wrong), "pip install --upgrade hallo3")
    else:
        yield Finding("libraries", "fine", ", ".join(seen))


def _requirements():  # type: ignore[no-untyped-def]  # packaging is there wherever transformers is, without types here
    from packaging.requirements import Requirement

    for line in metadata.requires("hallo3") or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _devices() -> Iterator[Finding]:
    import torch

    from .runtime.devices import choose_device, free_host_memory

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, whole = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            found = f"GPU {index}: {name}, {free / 1e9:.1f} of {whole / 1e9:.1f} GB free"
            yield Finding("device", "fine", found)
    elif shutil.which("nvidia-smi"):
        found = f"an NVIDIA driver is here, but torch {torch.__version__} does not see a GPU"
        remedy = "see whether nvidia-smi lists one; if so install torch for CUDA, see https://pytorch.org/get-started"
        yield Finding("device", "problem", found, remedy)
    else:
        kind = "an Apple GPU" if choose_device().type == "mps" else f"no GPU; {torch.get_num_threads()} CPU threads"
        yield Finding("device", "fine", f"{kind}, torch {torch.__version__}: right for the embedded model")
    yield Finding("memory", "fine", f"{free_host_memory() / 1e9:.1f} GB free")


def _codecs() -> Iterator[Finding]:
    """Writes and reads a tiny video with sound: the only proof that both work."""
    import av
    import numpy as np

    from .media.sound import speech_from_samples
    from .media.video import VideoWriter, read_video

    libraries = ", ".join(f"{name} {'.'.join(map(str, version))}" for name, version in av.library_versions.items())
    frames = np.zeros((5, 32, 48, 3), np.uint8)
    try:
        with tempfile.TemporaryDirectory() as folder:
            tone = 0.3 * np.sin(np.arange(3200, dtype=np.float32) / 10)
            speech = speech_from_samples(tone, 16_000)
            with VideoWriter(Path(folder) / "tiny.mp4", 48, 32, speech=speech) as writer:
                writer.write_clip(frames)
                there = len(read_video(writer.finish()).frames)
        if there != len(frames):
            raise RuntimeError(f"{there} of {len(frames)} frames came back")
    except Exception as error:
        remedy = "pip install --force-reinstall av, whose wheels bring their own codecs"
        yield Finding("video", "problem", f"writing H.264 and AAC fails ({error})", remedy)
    else:
        yield Finding("video", "fine", f"H.264 and AAC written and read; {libraries}")


def _extras() -> Iterator[Finding]:
    for extra, (purpose, modules) in EXTRAS.items():
        lacking = [module for module in modules if find_spec(module) is None]
        if lacking:
            remedy = f"for {purpose}: pip install 'hallo3[{extra}]'"
            yield Finding(f"extra {extra}", "note", f"lacks {', '.join(lacking)}", remedy)
        else:
            yield Finding(f"extra {extra}", "fine", purpose)


def _synthesisers() -> Iterator[Finding]:
    lacking = [program for program in SYNTHESISERS if shutil.which(program) is None]
    if lacking:
        remedy = "the studio speaks with them: install them, or give it --recordings"
        yield Finding("synthesisers", "note", f"no {' and no '.join(lacking)} on the path", remedy)
    else:
        yield Finding("synthesisers", "fine", " and ".join(SYNTHESISERS))


def _models() -> Iterator[Finding]:
    from .bundles.places import list_bundles

    for bundle in list_bundles():
        topic, found = f"model {bundle.name}", f"{bundle.size / 1e6:,.0f} MB in {bundle.folder}"
        if bundle.problem:
            yield Finding(topic, "problem", bundle.problem, f"delete {bundle.folder} and make or fetch it again")
        elif bundle.missing:
            remedy = "hallo3 convert adds parts to it"
            yield Finding(topic, "note", f"{found}; lacks {', '.join(bundle.missing)}", remedy)
        else:
            yield Finding(topic, "fine", found)


def _room() -> Iterator[Finding]:
    from .bundles.places import home

    places = [("room here", Path.cwd())]
    try:
        places.insert(0, ("room for models", home()))
    except UserError as error:
        yield Finding("room for models", "note", *_found_and_remedy(error))
    for topic, place in places:
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        found = f"{free / 1e9:.1f} GB free in {place}"
        tight = free < ROOM
        yield Finding(topic, "note" if tight else "fine", found, "make room, or choose another disk" if tight else "")


def _marks() -> Iterator[Finding]:
    from .media import credentials

    if not credentials.available():
        remedy = "pip install c2pa-python cryptography, or results carry no content credentials"
        yield Finding("credentials", "note", "c2pa-python does not work here", remedy)
    else:
        yield Finding("credentials", "fine", "results are signed with C2PA content credentials")


def _rights() -> Iterator[Finding]:
    from .consent import OPTION, stated
    from .media.personal import settings_folder

    try:
        settings = settings_folder()
    except UserError as error:
        yield Finding("settings", "note", *_found_and_remedy(error))
        return
    if stated():
        yield Finding("rights", "fine", f"the statement of rights is made; settings are in {settings}")
    else:
        remedy = f"animate asks for it once, or give {OPTION}"
        yield Finding("rights", "note", "the statement of rights to likeness and voice is not made yet", remedy)


def _found_and_remedy(error: UserError) -> tuple[str, str]:
    found, _, remedy = str(error).partition(": ")[2].partition("; ")
    return found, remedy
