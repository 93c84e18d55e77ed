"""Whose face the portrait shows, and where (spec sections 1, 3 and 5).

Two analysers answer the same three questions. `InsightFaceAnalyzer` is the published one, for photographs; its models
come with the published files (research use only). `EmbeddedFaceAnalyzer` is the embedded bundle's own small pair.
"""

import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..networks.faces import FaceEncoder, FaceLocator, crop_face
from .motion import to_tensor

Box = tuple[float, float, float, float]
Picture = NDArray[np.uint8]  # (H, W, 3) RGB

BOX_SCALE = 1.2  # of the face's own box: what the reference network is shown
MIN_FACE = 1 / 16  # of the canvas' height: a smaller face is four latents wide or less
REMEDY = "give its place with --face-box X Y W H, or animate without an identity with --no-face"


@dataclass(frozen=True, eq=False)
class Face:
    """A face. box: x, y, width, height in pixels. landmarks: (5, 2) eyes, nose and mouth corners, where known."""

    box: Box
    score: float = 1.0
    landmarks: NDArray[np.float32] | None = None


class FaceAnalyzer(Protocol):
    """What a bundle's `face_encoder` can do; pictures are (H, W, 3) uint8 RGB."""

    @property
    def embedding_dim(self) -> int:
        """Numbers in an identity embedding."""

    def detect(self, image: Picture) -> list[Face]:
        """All faces, in any order."""

    def face_box(self, image: Picture, face: Face) -> Box:
        """The part of the picture that the reference network is shown."""

    def embed(self, image: Picture, face: Face) -> NDArray[np.float32]:
        """The identity embedding (c,), not normalised."""


@dataclass(frozen=True, eq=False)
class FaceCondition:
    """What the networks learn of the person.

    embedding: (c,) float32; zeros only where the user asked for no face. box: x, y, width and height, in pixels, of
    what the reference network is shown. notices: what the user should know.
    """

    embedding: NDArray[np.float32]
    box: Box
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class FoundFace:
    """Which face is taken.

    face: None where no identity is used. box, notices: as in `FaceCondition`. candidates: the faces that there are,
    largest first.
    """

    face: Face | None
    box: Box
    candidates: tuple[Face, ...] = ()
    notices: tuple[str, ...] = ()


def find_face(
    analyzer: FaceAnalyzer,
    image: Picture,
    *,
    face_box: Box | None = None,
    no_face: bool = False,
    index: int | None = None,
) -> FoundFace:
    """Finds the person's face.

    Args:
        image: The portrait on its canvas, (H, W, 3) uint8.
        face_box: x, y, width and height of the face, from chin to hairline, in pixels of `image`, where it is known.
        no_face: Animate without an identity: a zero embedding, and the reference network is shown everything.
        index: Which face, largest first, from 0. Without it the largest, and a notice if there are others.

    Raises:
        UserError: no face, one too small, no such index, a box off the picture, or options that contradict each other.
    """
    height, width = image.shape[:2]
    if sum((face_box is not None, no_face, index is not None)) > 1:
        raise UserError("--face-box, --no-face and --face: they exclude each other; give one of them")
    if no_face:
        notice = "no identity is used (--no-face): the person may drift away from the portrait"
        return FoundFace(None, (0.0, 0.0, width, height), notices=(notice,))
    if face_box is not None:
        face = Face(_checked_box(face_box, width, height))
        return FoundFace(face, enlarge(face.box, BOX_SCALE, width, height), (face,))
    found = tuple(sorted(analyzer.detect(image), key=lambda face: -face.box[2] * face.box[3]))
    face, notices = _choose(found, index)
    _check_size(face.box, height, "the face found in the portrait")
    return FoundFace(face, analyzer.face_box(image, face), found, notices)


def embed_face(analyzer: FaceAnalyzer, image: Picture, found: FoundFace) -> FaceCondition:
    """What the networks learn of the face that was found in `image`; zeros where there is none.

    Raises UserError for a face that gives no embedding: what the network takes for an identity is never zero unasked.
    """
    if found.face is None:
        return FaceCondition(np.zeros(analyzer.embedding_dim, np.float32), found.box, found.notices)
    embedding = np.asarray(analyzer.embed(image, found.face), dtype=np.float32).reshape(-1)
    if not np.isfinite(embedding).all() or not embedding.any():
        raise UserError(f"portrait: the face at {_describe(found.face.box)} gives no identity; {REMEDY}")
    return FaceCondition(embedding, found.box, found.notices)


def condition_face(analyzer: FaceAnalyzer, image: Picture, **options: Any) -> FaceCondition:
    """Finds the person's face and embeds it; options and errors as `find_face` and `embed_face`."""
    return embed_face(analyzer, image, find_face(analyzer, image, **options))


def _choose(faces: Sequence[Face], index: int | None) -> tuple[Face, tuple[str, ...]]:
    if not faces:
        raise UserError(f"portrait: no face was found; {REMEDY}")
    if index is None:
        if len(faces) == 1:
            return faces[0], ()
        where = _describe(faces[0].box)
        return faces[0], (f"{len(faces)} faces were found; the largest, at {where}, speaks (--face INDEX for another)",)
    if not 0 <= index < len(faces):
        raise UserError(
            f"--face {index}: {len(faces)} found in the portrait; give 0 to {len(faces) - 1}, largest first"
        )
    return faces[index], ()


def _checked_box(box: Box, width: int, height: int) -> Box:
    x, y, w, h = box
    if not np.isfinite(box).all() or w <= 0 or h <= 0:
        raise UserError("--face-box: needs X Y W H in pixels of the portrait, width and height above zero")
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    if right <= left or bottom <= top:
        raise UserError(
            "--face-box: lies outside the picture, or is cut off by the framing; give X Y W H in its pixels"
        )
    inside = (left, top, right - left, bottom - top)
    _check_size(inside, height, "--face-box: the face")
    return inside


def _check_size(box: Box, height: int, what: str) -> None:
    if min(box[2:]) < MIN_FACE * height:
        raise UserError(
            f"{what} is too small ({box[2]:.0f}×{box[3]:.0f} pixels in a frame {height} high); "
            f"cut the portrait closer, {REMEDY}"
        )


def _describe(box: Box) -> str:
    return f"x {box[0]:.0f}, y {box[1]:.0f}, {box[2]:.0f}×{box[3]:.0f} pixels of the frame"


def enlarge(box: Box, scale: float, width: int, height: int) -> Box:
    """A box grown about its centre, cut to the picture."""
    x, y, w, h = box
    left, top = max(x + w / 2 - w * scale / 2, 0.0), max(y + h / 2 - h * scale / 2, 0.0)
    right, bottom = min(x + w / 2 + w * scale / 2, float(width)), min(y + h / 2 + h * scale / 2, float(height))
    return left, top, right - left, bottom - top


def black_outside(image: Picture, box: Box) -> Picture:
    """The picture, black outside the box (whole pixels that the box touches stay)."""
    x, y, w, h = box
    rows = slice(max(0, int(np.floor(y))), max(0, int(np.ceil(y + h))))
    columns = slice(max(0, int(np.floor(x))), max(0, int(np.ceil(x + w))))
    kept = np.zeros_like(image)
    kept[rows, columns] = image[rows, columns]
    return kept


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(w, 0.0) * max(h, 0.0)
    return shared / max(a[2] * a[3] + b[2] * b[3] - shared, 1e-9)


def _load_whole(network: Any, folder: Path) -> Any:
    """A small network from its folder; UserError where weights are missing, which diffusers would only warn of."""
    options = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    loaded, found = network.from_pretrained(folder, **options)
    wrong = [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]
    if wrong:
        raise UserError(f"{folder}: its weights don't fit this version ({wrong[0]} and others); copy the bundle again")
    return loaded


class EmbeddedFaceAnalyzer:
    """The embedded bundle's own networks, on the CPU: they are small."""

    def __init__(self, locator: FaceLocator, encoder: FaceEncoder) -> None:
        self.locator, self.encoder = locator.eval(), encoder.eval()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "EmbeddedFaceAnalyzer":
        """Loads `folder/locator` and `folder/encoder`. Raises UserError when one is not there."""
        for part in ("locator", "encoder"):
            if not (Path(folder) / part / "config.json").is_file():
                raise UserError(f"{Path(folder) / part}: is missing; copy or convert the bundle again")
        locator = _load_whole(FaceLocator, Path(folder) / "locator")
        return cls(locator, _load_whole(FaceEncoder, Path(folder) / "encoder"))

    def save_pretrained(self, folder: str | Path) -> None:
        self.locator.save_pretrained(Path(folder) / "locator")
        self.encoder.save_pretrained(Path(folder) / "encoder")

    @property
    def embedding_dim(self) -> int:
        return int(self.encoder.config["embed_dim"])

    def detect(self, image: Picture) -> list[Face]:
        return [Face(box, score) for box, score in self.locator.locate(to_tensor(image))[0]]

    def face_box(self, image: Picture, face: Face) -> Box:
        return enlarge(face.box, BOX_SCALE, image.shape[1], image.shape[0])

    def embed(self, image: Picture, face: Face) -> NDArray[np.float32]:
        import torch

        crop = crop_face(to_tensor(image)[0], face.box, self.encoder.config["size"])
        with torch.no_grad():
            return self.encoder(crop[None].to(self.encoder.dtype))[0].float().numpy()


class InsightFaceAnalyzer:
    """The published choice: InsightFace finds and embeds (at 640², 512 numbers), MediaPipe outlines.

    Needs the extra `faces`; models are loaded when they are first used. They run on the CPU: once per portrait.
    For any number of threads, one at a time: MediaPipe is not made for several.
    """

    DETECTOR = "scrfd_10g_bnkps.onnx"
    RECOGNISER = "glintr100.onnx"
    LANDMARKER = "face_landmarker_v2_with_blendshapes.task"

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._one_at_a_time = threading.RLock()
        for name in (self.DETECTOR, self.RECOGNISER, self.LANDMARKER):
            if not (self.folder / name).is_file():
                raise UserError(
                    f"{self.folder / name}: is missing; copy it from face_analysis/models/ of the published files"
                )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "InsightFaceAnalyzer":
        """Opens a folder with the published files. Raises UserError, naming the file, when one is missing."""
        return cls(folder)

    def save_pretrained(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in (self.DETECTOR, self.RECOGNISER, self.LANDMARKER):
            if (self.folder / name).resolve() != (Path(folder) / name).resolve():
                shutil.copyfile(self.folder / name, Path(folder) / name)

    @property
    def embedding_dim(self) -> int:
        return 512

    def detect(self, image: Picture) -> list[Face]:
        with self._one_at_a_time:
            boxes, landmarks = self._detector.detect(_bgr(image))
        return [
            Face((float(x0), float(y0), float(x1 - x0), float(y1 - y0)), float(score), points)
            for (x0, y0, x1, y1, score), points in zip(boxes, landmarks, strict=True)
        ]

    def face_box(self, image: Picture, face: Face) -> Box:
        """The silhouette's bounding box × 1.2 (published); the detector's where no silhouette is found on the face."""
        outlines = [silhouette_box(points) for points in self._landmarks(image)]
        own = max(outlines, key=lambda box: overlap(box, face.box), default=face.box)
        if overlap(own, face.box) < 0.2:
            own = face.box
        return enlarge(own, BOX_SCALE, image.shape[1], image.shape[0])

    def embed(self, image: Picture, face: Face) -> NDArray[np.float32]:
        """The recogniser aligns by landmarks. A face given by its box alone is searched for them around that box; where
        none are found, it is taken to fill the box as an aligned face fills the recogniser's input."""
        landmarks = face.landmarks if face.landmarks is not None else self._landmarks_near(image, face.box)
        align = _require("insightface.utils.face_align")
        if landmarks is None:
            landmarks = np.array(face.box[:2]) + align.arcface_dst / 112 * np.array(face.box[2:])
        crop = align.norm_crop(_bgr(image), landmark=landmarks.astype(np.float32), image_size=112)
        with self._one_at_a_time:
            return self._recogniser.get_feat(crop).reshape(-1)

    def _landmarks_near(self, image: Picture, box: Box) -> NDArray[np.float32] | None:
        x, y, w, h = (round(v) for v in enlarge(box, 2.0, image.shape[1], image.shape[0]))
        place = (box[0] - x, box[1] - y, box[2], box[3])
        found = self.detect(image[y : y + h, x : x + w])
        best = max(found, key=lambda face: overlap(face.box, place), default=None)
        if best is None or best.landmarks is None or overlap(best.box, place) < 0.2:
            return None
        return best.landmarks + np.array([x, y], np.float32)

    def _landmarks(self, image: Picture) -> list[NDArray[np.float32]]:
        """Landmarks of every face that MediaPipe finds, (478, 2) in pixels."""
        mediapipe = _require("mediapipe")
        picture = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image))
        size = np.array([image.shape[1], image.shape[0]], np.float32)
        with self._one_at_a_time:
            found = self._landmarker.detect(picture).face_landmarks
        return [np.array([[point.x, point.y] for point in face], np.float32) * size for face in found]

    @cached_property
    def _detector(self) -> Any:
        detector = self._insightface(self.DETECTOR, "detection")
        detector.prepare(-1, input_size=(640, 640), det_thresh=0.5)
        if not detector.use_kps:
            raise UserError(f"{self.folder / self.DETECTOR}: finds no landmarks; copy the published file again")
        return detector

    @cached_property
    def _recogniser(self) -> Any:
        return self._insightface(self.RECOGNISER, "recognition")

    @cached_property
    def _landmarker(self) -> Any:
        base = _require("mediapipe.tasks.python.core.base_options")
        vision = _require("mediapipe.tasks.python.vision.face_landmarker")
        path = self.folder / self.LANDMARKER
        options = vision.FaceLandmarkerOptions(base_options=base.BaseOptions(model_asset_path=str(path)), num_faces=8)
        try:
            return vision.FaceLandmarker.create_from_options(options)
        except (RuntimeError, ValueError, OSError) as error:
            raise _broken(path, error) from None

    def _insightface(self, name: str, task: str) -> Any:
        zoo = _require("insightface.model_zoo")
        path = self.folder / name
        try:
            model = zoo.get_model(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnx, onnxruntime and protobuf each have their own errors
            raise _broken(path, error) from None
        if getattr(model, "taskname", None) != task:
            raise UserError(f"{path}: is not a model for {task}; copy the published file again")
        return model


# MediaPipe's face oval: the landmarks along the edge of the face.
SILHOUETTE = (
    *(10, 21, 54, 58, 67, 93, 103, 109, 127, 132, 136, 148, 149, 150, 152, 162, 172, 176),
    *(234, 251, 284, 288, 297, 323, 332, 338, 356, 361, 365, 377, 378, 379, 389, 397, 400, 454),
)


def silhouette_box(landmarks: NDArray[np.float32]) -> Box:
    """Bounding box of a face's outline among MediaPipe's landmarks, (478, 2) in pixels."""
    outline = landmarks[list(SILHOUETTE)]
    (x0, y0), (x1, y1) = outline.min(axis=0), outline.max(axis=0)
    return float(x0), float(y0), float(x1 - x0), float(y1 - y0)


def _bgr(image: Picture) -> Picture:
    """InsightFace takes pictures as OpenCV reads them."""
    return np.ascontiguousarray(image[..., ::-1])


def _require(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise UserError(
            "portrait: finding faces with this bundle needs insightface, onnxruntime and mediapipe; "
            "install them with `pip install hallo3[faces]`, or animate without an identity with --no-face"
        ) from None


def _broken(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{path}: can't be loaded ({reason}); copy the published file again")
