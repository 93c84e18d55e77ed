"""Three nodes: a bundle is loaded, a portrait is animated into a marked MP4, the MP4 is shown.

Types are ComfyUI's: IMAGE is (N, H, W, 3) float32 in [0, 1]; AUDIO is a dict of "waveform" (1, channels, samples) and
"sample_rate". The video is made by `hallo3.animation.animate`: it has all marks of a generated video, and one that was
interrupted goes on where it was when the graph is queued again.
"""

import hashlib
import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hallo3 import animation, consent
from hallo3.bundles.places import list_bundles
from hallo3.errors import UserError
from hallo3.media.sound import read_speech
from hallo3.media.video import probe, read_video
from hallo3.sampling.shortcuts import QUALITIES

CATEGORY = "hallo3"
LARGEST_SEED = 2**53 - 1  # the page counts in doubles
OWN = -1.0  # of a scale: what the bundle brings


class Hallo3Load:
    """Loads a bundle once; every animation of the graph shares it."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = ("HALLO3",), ("model",)
    DESCRIPTION = (
        "Loads a bundle: `embedded` comes with the package, `hallo3 download hallo3` brings the published one."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The bundles on this machine."""
        names = [bundle.name for bundle in list_bundles() if not bundle.problem]
        return {
            "required": {"bundle": (names, {"default": "embedded"})},
            "optional": {
                "device": (["auto", "cuda", "mps", "cpu"],),
                "dtype": (["auto", "bfloat16", "float16", "float32"],),
                "strategy": (
                    ["auto", "resident", "staged", "streamed"],
                    {"tooltip": "How memory is used; `hallo3 plan` explains."},
                ),
            },
        }

    def load(self, bundle: str, device: str = "auto", dtype: str = "auto", strategy: str = "auto") -> tuple[Any]:
        """Raises UserError when the bundle is incomplete or memory does not suffice."""
        return ((bundle, animation.load(bundle, device=device, dtype=dtype, strategy=strategy)),)


class Hallo3Animate:
    """A portrait says what is in a recording."""

    CATEGORY, FUNCTION = CATEGORY, "animate"
    RETURN_TYPES = ("IMAGE", "AUDIO", "FLOAT", "STRING")
    RETURN_NAMES = ("frames", "speech", "fps", "video")
    DESCRIPTION = "Makes the portrait say what is in the recording. The video is marked as AI-generated."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Scales below zero and 0 steps are the bundle's own."""
        scale = {"default": OWN, "min": OWN, "max": 20.0, "step": 0.1, "tooltip": "Below 0: the bundle's own."}
        steps = {"default": 0, "min": 0, "max": 1000, "tooltip": "0: the bundle's own."}
        return {
            "required": {
                "model": ("HALLO3",),
                "portrait": ("IMAGE",),
                "speech": ("AUDIO",),
                "prompt": ("STRING", {"multiline": True, "default": "A person talks to the camera."}),
                "seed": ("INT", {"default": 0, "min": 0, "max": LARGEST_SEED}),
                "i_have_the_rights": ("BOOLEAN", {"default": False, "tooltip": consent.STATEMENT}),
            },
            "optional": {
                "quality": (list(QUALITIES), {"tooltip": "How much may be left out to be faster; see docs/speed.md."}),
                "steps": ("INT", steps),
                "speech_scale": ("FLOAT", scale),
                "text_scale": ("FLOAT", scale),
                "reference_scale": ("FLOAT", scale),
                "framing": (["auto", "pad", "crop"],),
                "no_face": ("BOOLEAN", {"default": False, "tooltip": "Animate without an identity."}),
            },
        }

    def animate(
        self,
        model: tuple[str, Any],
        portrait: torch.Tensor,
        speech: dict[str, Any],
        prompt: str,
        seed: int,
        i_have_the_rights: bool,
        quality: str = "exact",
        steps: int = 0,
        framing: str = "auto",
        no_face: bool = False,
        **scales: float,
    ) -> tuple[torch.Tensor, dict[str, Any], float, str]:
        """Raises UserError for input that can't be used, and without the statement of rights."""
        if not (i_have_the_rights or consent.stated()):
            raise UserError(f"switch i_have_the_rights on, if this is so: {consent.STATEMENT}")
        bundle, pipeline = model
        with tempfile.TemporaryDirectory() as folder:
            inputs = write_portrait(portrait, Path(folder)), write_speech(speech, Path(folder))
            settings: dict[str, Any] = {"prompt": prompt, "bundle": bundle, "seed": seed, "steps": steps or None}
            settings["quality"] = quality
            settings |= {name: None if value < 0 else value for name, value in scales.items()}
            settings |= {"framing": framing, "no_face": no_face}
            output = place("output") / f"hallo3-{digest(settings, *inputs)}.mp4"
            begun = output.with_name(output.name + ".part.state").exists()
            request = animation.AnimationRequest(*inputs, output, resume=begun, **settings)
            if not output.exists():
                animation.animate(request, pipeline=pipeline, listen=Progress())
        video, heard = read_video(output), read_speech(output)
        frames = torch.from_numpy(video.frames).float() / 255
        sound = {"waveform": torch.from_numpy(heard.samples)[None, None], "sample_rate": 16_000}
        return frames, sound, float(video.fps), str(output)


class Hallo3Preview:
    """Shows the video, with its sound and its marks."""

    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "show", True
    RETURN_TYPES = ()
    DESCRIPTION = "Shows the video that Hallo3 Animate has made."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The path that `Hallo3Animate` gives."""
        return {"required": {"video": ("STRING", {"forceInput": True})}}

    def show(self, video: str) -> dict[str, Any]:
        """Raises UserError for a file that is no video of ComfyUI's output folder."""
        path, folder = Path(video).resolve(), place("output").resolve()
        if folder not in path.parents:
            raise UserError(f"{video}: lies outside {folder}; only videos there can be shown")
        probe(path)
        inside = path.relative_to(folder)
        item = {"filename": inside.name, "subfolder": str(inside.parent).removeprefix("."), "type": "output"}
        return {"ui": {"images": [item], "animated": (True,)}}


class Progress:
    """Moves ComfyUI's progress bar, and stops within a step when its user cancels."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, event: dict[str, Any]) -> None:
        """Takes an event of `hallo3.animation`."""
        try:
            from comfy.model_management import throw_exception_if_processing_interrupted
            from comfy.utils import ProgressBar
        except ImportError:  # called by a program, not by ComfyUI
            return
        throw_exception_if_processing_interrupted()
        if event["event"] == "step":
            whole = event["clips"] * event["steps"]
            self._bar = self._bar or ProgressBar(whole)
            self._bar.update_absolute(event["clip"] * event["steps"] + event["step"] + 1, whole)


def place(kind: str) -> Path:
    """ComfyUI's output folder; the current folder where these classes are called by another program."""
    try:
        import folder_paths
    except ImportError:
        return Path.cwd()
    return Path(folder_paths.get_directory_by_type(kind))


def write_portrait(image: torch.Tensor, folder: Path) -> Path:
    """The first picture of an IMAGE as a file."""
    if image.ndim != 4 or image.shape[-1] < 3 or not len(image):
        raise UserError(f"portrait: an IMAGE is (1, height, width, 3), not {tuple(image.shape)}")
    path = folder / "portrait.png"
    Image.fromarray((image[0, ..., :3].cpu().float() * 255).round().clamp(0, 255).to(torch.uint8).numpy()).save(path)
    return path


def write_speech(sound: dict[str, Any], folder: Path) -> Path:
    """The first recording of an AUDIO as a file, 16 bits."""
    samples = sound["waveform"]
    if samples.ndim != 3 or not samples.numel() or not bool(torch.isfinite(samples).all()):
        raise UserError(f"speech: an AUDIO is (1, channels, samples) of finite numbers, not {tuple(samples.shape)}")
    values = (samples[0, :2].cpu().float().clamp(-1, 1) * 32767).round().to(torch.int16).numpy()
    path = folder / "speech.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((len(values), 2, int(sound["sample_rate"]), 0, "NONE", ""))
        file.writeframes(np.ascontiguousarray(values.T).tobytes())
    return path


def digest(settings: dict[str, Any], *files: Path) -> str:
    """Names a result by all that decides it: the same graph finds its video again."""
    seen = hashlib.blake2b(repr(sorted(settings.items())).encode(), digest_size=8)
    for file in files:
        seen.update(animation.file_digest(file).encode())
    return seen.hexdigest()


NODE_CLASS_MAPPINGS = {"Hallo3Load": Hallo3Load, "Hallo3Animate": Hallo3Animate, "Hallo3Preview": Hallo3Preview}
NODE_DISPLAY_NAME_MAPPINGS = {
    "Hallo3Load": "Hallo3: load",
    "Hallo3Animate": "Hallo3: animate",
    "Hallo3Preview": "Hallo3: preview",
}
