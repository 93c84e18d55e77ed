"""Clips of talking portraits with their truth, drawn or bent from photographs, made from seeds and kept on disk.

A clip is a folder: `frames.npy` (uint8, can be memory-mapped), `speech.npy`, `truth.npz`, `meta.json`, and `face.npy`,
the embedding of the face in the first frame, where a bundle was given that embeds faces. It is written aside and
renamed, so what is there is whole, and an interrupted run goes on where it stopped. Identities, voices, recordings and
photographs of the two splits are disjoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from hallo3.errors import UserError, hush_libraries
from hallo3.media.files import replace_file, writing
from hallo3.version import __version__

from .speech_clips import SpeechClip, speech_clip
from .voices import Recording, Split, recordings

TRUTH = (
    *("opening", "width", "loudness", "phone_class", "face_box", "mouth_box", "subject_mask"),
    *("foreground_mask", "yaw", "pitch", "roll", "keypoints", "lip_gap", "light", "camera"),
)

DRAWINGS = 3
"""Counts how often a seed came to draw something else: clips of two ways of drawing do not go into one folder."""

# One in how many clips has another light than the steady one, or a camera that does more than drift, where nothing is
# asked for: who asks for a style or for surroundings wants to compare, and gets these only by asking for them too.
_LIGHT_SHARES = {"steady": 0.76, "harsh": 0.10, "lamp": 0.05, "passing": 0.05, "fading": 0.04}
_CAMERA_SHARES = {"drift": 0.79, "pan": 0.07, "push": 0.07, "hand-held": 0.07}


@dataclass(frozen=True)
class Sample:
    """A clip at 25 frames per second and everything known about it.

    frames: (F,H,W,3) uint8. speech: (F·640,) float32 at 16 kHz. opening, width, loudness: (F,) 0…1; phone_class: (F,);
    see `articulation`. face_box, mouth_box: (F,4) float32 x, y, w, h in pixels. subject_mask: (F,H,W) uint8, exact when
    drawn, head and shoulders roughly in photographs; foreground_mask: (F,H,W) uint8, what stands before the subject;
    the rest are surroundings. yaw, pitch, roll: (F,) radians. keypoints: (F,K,2) float32, the skeleton in pixels as
    `skeleton.KEYPOINTS`, NaN where not there or not known. lip_gap: (F,) pixels. light: (F,4) direction (x right, y up,
    z to the viewer) and luminance of the key light, NaN in photographs. camera: (F,3) how far it
    shifts the person in heights of the frame (right, down), and how much it enlarges them.
    identity: equal for the same person. meta: how it was made.
    """

    frames: np.ndarray
    speech: np.ndarray
    opening: np.ndarray
    width: np.ndarray
    loudness: np.ndarray
    phone_class: np.ndarray
    face_box: np.ndarray
    mouth_box: np.ndarray
    subject_mask: np.ndarray
    foreground_mask: np.ndarray
    yaw: np.ndarray
    pitch: np.ndarray
    roll: np.ndarray
    keypoints: np.ndarray
    lip_gap: np.ndarray
    caption: str
    identity: str
    source: Literal["drawn", "photograph"]
    meta: dict[str, Any] = field(default_factory=dict)
    light: np.ndarray | None = None
    camera: np.ndarray | None = None


@dataclass(frozen=True)
class Material:
    """What samples are made from besides the drawn: recordings and photographs, each with its split; both may be empty.

    photograph_share: of samples made from photographs, where there are any.
    """

    recorded: Sequence[Recording] = ()
    photographs: Sequence[Any] = ()
    photograph_share: float = 0.25

    @classmethod
    def find(
        cls, recorded: str | Path | None = None, photographs: str | Path | None = None, share: float = 0.25
    ) -> Material:
        """Material of folders; raises UserError for folders without any."""
        from .photographs import find_photographs

        return cls(
            recorded=recordings(recorded) if recorded else (),
            photographs=find_photographs(photographs) if photographs else (),
            photograph_share=share,
        )

    def settings(self) -> dict[str, Any]:
        """What it is made of, as plain values that differ where samples would.

        Recordings count by name, size and split, photographs by content and split.
        """
        heard = [(one.path.name, one.path.stat().st_size, one.split) for one in self.recorded]
        seen = [(one.label.sha256, one.label.split) for one in self.photographs]
        share = self.photograph_share if seen else 0.0
        return {"recordings": _digest(heard), "photographs": _digest(seen), "photograph_share": share}


def _digest(items: Sequence[Any]) -> str | None:
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()[:16] if items else None


def sample(
    seed: int,
    *,
    split: Split,
    frames: int = 65,
    height: int = 128,
    width: int = 192,
    material: Material | None = None,
    style: str | None = None,
    place: str | None = None,
    dynamic: bool | None = None,
    light: str | None = None,
    camera: str | None = None,
) -> Sample:
    """The clip of a seed: the same arguments give the same clip.

    style: how a drawn person moves, one of `performance.STYLES`. place, dynamic: the surroundings, as `Scene.sample`
    takes them; where both are given, the same person says the same and moves alike whether the surroundings move or
    not. light: one of `scene.LIGHTS`. camera: one of `performance.CAMERAS`, of drawn people. None leaves it to
    chance; but where style, place or dynamic is given, light is steady and the camera drifts unless they are given
    too. Raises ValueError for what can't be.
    """
    material = material or Material()
    rng = np.random.default_rng([zlib.crc32(b"sample"), split == "test", seed])
    usable = [item for item in material.photographs if item.label.split == split and not item.label.teeth]
    speech = speech_clip(seed, frames, split, material.recorded)
    if usable and rng.random() < material.photograph_share:
        return _from_photograph(rng, usable, speech, seed, height, width)
    if style is None and place is None and dynamic is None:
        light, camera = light or _chance("light", seed, split), camera or _chance("camera", seed, split)
    return _drawn(
        rng, speech, f"{split}-{seed}", seed, height, width, style=style, place=place, dynamic=dynamic,
        light=light or "steady", camera=camera or "drift",
    )  # fmt: skip


def _chance(what: str, seed: int, split: Split) -> str:
    """A light or a camera, from a generator of its own: what was drawn before there were any stays as it was."""
    shares = {"light": _LIGHT_SHARES, "camera": _CAMERA_SHARES}[what]
    rng = np.random.default_rng([zlib.crc32(what.encode()), split == "test", seed])
    return str(rng.choice(list(shares), p=list(shares.values())))


def _drawn(
    rng: np.random.Generator,
    speech: SpeechClip,
    identity_name: str,
    seed: int,
    height: int,
    width: int,
    *,
    style: str | None,
    place: str | None,
    dynamic: bool | None,
    light: str,
    camera: str,
) -> Sample:
    from .captions import caption
    from .identity import Identity
    from .performance import performance
    from .renderer import render
    from .scene import Scene

    identity, scene = Identity.sample(rng), Scene.sample(rng, dynamic, place, light)
    motion = performance(rng, speech.movement.opening, speech.movement.width, style, camera)
    words = caption(rng, identity, scene, motion)
    result = render(identity, scene, motion, height, width)
    meta = {"seed": seed, "speech": speech.source, "identity": identity.to_dict(), "scene": scene.to_dict()}
    meta["body_pitch"] = float(motion.body_pitch.mean())
    return _sample(result, speech, words, f"drawn-{identity_name}", "drawn", meta)


def _from_photograph(
    rng: np.random.Generator, photographs: Sequence[Any], speech: SpeechClip, seed: int, height: int, width: int
) -> Sample:
    from .performance import performance
    from .photographs import animate, draw_framing

    chosen = photographs[int(rng.integers(len(photographs)))]
    label = chosen.label
    picture = np.asarray(Image.open(chosen.path).convert("RGB"))
    if rng.random() < 0.5:
        picture, label = picture[:, ::-1].copy(), label.mirrored()
    picture = _recoloured(picture, rng)
    motion = performance(rng, speech.movement.opening, speech.movement.width, "conversation")
    framing = draw_framing(rng, label, (picture.shape[1], picture.shape[0]), height, width)
    result = animate(picture, label, framing, motion, height, width)
    meta = {"seed": seed, "speech": speech.source, "photograph": f"{label.source}: {label.file}"}
    identity = f"photograph-{Path(label.file).stem}-{label.sha256[:6]}"
    return _sample(result, speech, _photograph_caption(rng), identity, "photograph", meta)


def _sample(
    result: Any,
    speech: SpeechClip,
    words: str,
    identity: str,
    source: Literal["drawn", "photograph"],
    meta: dict[str, Any],
) -> Sample:
    movement = speech.movement
    return Sample(
        frames=result.frames,
        speech=speech.samples,
        opening=movement.opening,
        width=movement.width,
        loudness=movement.loudness,
        phone_class=movement.phone_class,
        face_box=np.asarray(result.face_box, np.float32),
        mouth_box=np.asarray(result.mouth_box, np.float32),
        subject_mask=np.asarray(result.subject_mask, np.uint8),
        foreground_mask=np.asarray(result.foreground_mask, np.uint8),
        yaw=result.yaw,
        pitch=result.pitch,
        roll=result.roll,
        keypoints=result.keypoints,
        lip_gap=np.asarray(result.lip_gap, np.float32),
        light=result.light,
        camera=result.camera,
        caption=words,
        identity=identity,
        source=source,
        meta=meta,
    )


def _recoloured(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another exposure and white balance, so that a face is not known by its colours."""
    gain = np.exp(rng.normal(0, 0.05, 3) + rng.normal(0, 0.08))
    gamma = float(np.exp(rng.normal(0, 0.1)))
    values = 255 * (picture / 255.0) ** gamma * gain
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def _photograph_caption(rng: np.random.Generator) -> str:
    person = rng.choice(["A person", "Someone", "A portrait of a person who", "The person in the picture"])
    action = rng.choice(["talks", "speaks", "is talking", "speaks to the camera", "is speaking", "talks to the camera"])
    still = rng.choice([". The background is still.", ", nothing else moves.", " in front of a still background.", "."])
    return f"{person} {action}{still}"


def write_dataset(
    folder: str | Path,
    count: int,
    seed: int,
    *,
    split: Split,
    frames: int = 65,
    height: int = 128,
    width: int = 192,
    material: Material | None = None,
    workers: int = 1,
    face_encoder: str | None = None,
    report: Callable[[int, int], None] | None = None,
) -> int:
    """Makes the clips 0 … count − 1 of a seed that are not in `folder` yet; returns how many are new.

    face_encoder: name or folder of the bundle that embeds the faces; None writes no embeddings.
    report: called with (clips there, count) after each. Raises UserError when the folder was made with other settings
    or other material, when another process writes into it, and for a full disk.
    """
    folder, material = Path(folder), material or Material()
    settings: dict[str, Any] = {"seed": seed, "split": split, "frames": frames, "height": height, "width": width}
    settings |= {"drawings": DRAWINGS, "face_encoder": face_encoder, **material.settings()}
    if face_encoder is not None:
        _face_analyzer(face_encoder)  # a bundle that isn't there is said before anything is drawn
    with alone_in(folder), writing(folder, "what is written stays: make room, then give the command again"):
        check_settings(folder / "dataset.json", settings)
        missing = [index for index in range(count) if not (folder / f"{index:06d}").is_dir()]
        make = partial(_write_sample, folder, settings, material)
        for made, _ in enumerate(_each(make, missing, workers), start=1):
            if report:
                report(count - len(missing) + made, count)
    return len(missing)


def _each(make: Callable[[int], None], indices: Sequence[int], workers: int) -> Iterator[None]:
    """Calls `make` for each, in this process or in several."""
    if workers == 1:
        yield from map(make, indices)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=hush_libraries) as pool:
        yield from pool.map(make, indices)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes the folder of a dataset, if it is not there, and keeps others from writing into it.

    Raises UserError where another process does, or where there can't be a folder.
    """
    with writing(folder, "name a folder that can be made"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "writing.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{folder}: another process writes into this dataset; wait for it to end") from None
    try:
        yield
    finally:
        lock.release()


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Notes in `path` what its folder is made with.

    Raises UserError when that was noted otherwise before, or can't be read any more.
    """
    if path.is_file():
        found = noted_settings(path)
        if found != settings:
            raise UserError(f"{path}: this folder was made with {found}, not {settings}; choose another folder")
    else:
        replace_file(path, json.dumps(settings).encode(), alone=False)


def noted_settings(path: Path) -> dict[str, Any]:
    """What `check_settings` has noted in `path`, a file that is there. Raises UserError for one that is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    except ValueError:
        pass
    raise UserError(f"{path}: is damaged, so nobody knows what its folder was made with; choose another folder")


def _write_sample(folder: Path, settings: dict[str, Any], material: Material | None, index: int) -> None:
    made = sample(
        settings["seed"] * 1_000_003 + index,
        split=settings["split"],
        frames=settings["frames"],
        height=settings["height"],
        width=settings["width"],
        material=material,
    )
    truth = {name: getattr(made, name) for name in TRUTH}
    meta = {"caption": made.caption, "identity": made.identity, "source": made.source, "made_from": made.meta}
    face = None
    if settings["face_encoder"] is not None:
        face = embed_face(_face_analyzer(settings["face_encoder"]), made.frames[0], made.face_box[0])
    write_clip(folder / f"{index:06d}", made.frames, made.speech, truth, meta, face)


@cache
def _face_analyzer(bundle: str) -> Any:
    from hallo3.bundles.layout import load_components

    return load_components(bundle, ["face_encoder"])["face_encoder"]


def embed_face(analyzer: Any, frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """(c,) float32 of the face in the box (x, y, w, h in pixels) of a frame (H, W, 3) uint8."""
    from hallo3.conditions.face import Face

    x, y, w, h = (float(value) for value in box)
    return np.asarray(analyzer.embed(np.ascontiguousarray(frame), Face((x, y, w, h))), np.float32).reshape(-1)


def write_clip(
    folder: Path,
    frames: np.ndarray,
    speech: np.ndarray,
    truth: Mapping[str, Any],
    meta: Mapping[str, Any],
    face: np.ndarray | None = None,
) -> None:
    """Writes one clip, aside first: `folder` is whole or not there.

    frames: (F,H,W,3) uint8. speech: (F·640,) float32 at 16 kHz. truth: arrays by the names of `TRUTH`, those that are
    known. meta: caption, identity, source, made_from. face: (c,) float32 embedding of the face in the first frame.
    Raises OSError.
    """
    aside = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    np.save(aside / "frames.npy", frames)
    np.save(aside / "speech.npy", speech)
    np.savez_compressed(aside / "truth.npz", **truth)
    if face is not None:
        np.save(aside / "face.npy", face)
    text = json.dumps({**meta, "version": __version__}, indent=1)
    (aside / "meta.json").write_text(text, encoding="utf-8")
    aside.rename(folder)


class StoredSample:
    """A clip on disk with the fields of `Sample`: frames are memory-mapped, everything is read when it is asked for."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def frames(self) -> np.ndarray:
        return np.load(self.folder / "frames.npy", mmap_mode="r")

    @property
    def speech(self) -> np.ndarray:
        return np.load(self.folder / "speech.npy")

    @property
    def face(self) -> np.ndarray:
        """(c,) embedding of the face in the first frame. Raises UserError where none was made."""
        path = self.folder / "face.npy"
        if not path.is_file():
            raise UserError(f"{self.folder}: has no face embedding; take clips that were made with a face encoder")
        return np.load(path)

    def truth(self, name: str) -> np.ndarray:
        """One of `TRUTH`. Raises UserError where it is not known: of imported videos and older clips."""
        with np.load(self.folder / "truth.npz") as data:
            if name not in data:
                raise UserError(f"{self.folder}: has no {name}; take clips drawn by this version")
            return data[name]

    @cached_property
    def info(self) -> dict[str, Any]:
        """caption, identity, source, version, made_from."""
        return json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))

    @property
    def caption(self) -> str:
        return self.info["caption"]

    @property
    def identity(self) -> str:
        return self.info["identity"]

    @property
    def source(self) -> str:
        return self.info["source"]


def open_dataset(folder: str | Path) -> list[StoredSample]:
    """The whole clips of a dataset, in order. Raises UserError when there are none."""
    found = sorted(path for path in Path(folder).glob("*") if path.is_dir() and path.name.isdigit())
    if not found:
        raise UserError(f"{folder}: no clips here; make some with `hallo3 studio dataset --out {folder}`")
    return [StoredSample(path) for path in found]
