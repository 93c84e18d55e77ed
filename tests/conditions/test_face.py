"""Faces: choosing one, remedies for none, the embedded analyser's networks, the published analyser's loading code."""

import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from mediapipe.tasks.python.components.containers.landmark import NormalizedLandmark
from mediapipe.tasks.python.vision import FaceLandmarkerResult, FaceLandmarksConnections
from tiny_face_models import write_detector, write_recogniser

from hallo3.conditions.face import (
    SILHOUETTE,
    EmbeddedFaceAnalyzer,
    Face,
    InsightFaceAnalyzer,
    black_outside,
    condition_face,
    enlarge,
    overlap,
    silhouette_box,
)
from hallo3.errors import UserError
from hallo3.networks.faces import FaceEncoder, FaceLocator

PICTURE = np.random.default_rng(0).integers(1, 256, (480, 720, 3), dtype=np.uint8)


@dataclass
class Found:
    """An analyser of a picture whose faces are known."""

    faces: list[Face]
    embedding_dim: int = 3
    gain: float = 1.0

    def detect(self, image):
        return self.faces

    def face_box(self, image, face):
        return enlarge(face.box, 1.2, image.shape[1], image.shape[0])

    def embed(self, image, face):
        return self.gain * np.array([face.box[0], face.box[2], 1.0], np.float32)


LARGE, SMALL = Face((300.0, 100.0, 100.0, 150.0), 0.6), Face((50.0, 60.0, 60.0, 80.0), 0.9)


def test_one_face_needs_no_word():
    condition = condition_face(Found([LARGE]), PICTURE)
    assert condition.embedding.tolist() == [300, 100, 1]
    assert condition.embedding.dtype == np.float32
    assert condition.box == pytest.approx((290, 85, 120, 180))
    assert condition.notices == ()


def test_of_several_the_largest_with_a_notice_or_the_one_asked_for():
    condition = condition_face(Found([SMALL, LARGE]), PICTURE)
    assert condition.embedding[0] == 300
    assert condition.notices == (
        "2 faces were found; the largest, at x 300, y 100, 100×150 pixels of the frame, speaks "
        "(--face INDEX for another)",
    )
    second = condition_face(Found([SMALL, LARGE]), PICTURE, index=1)
    assert second.embedding[0] == 50
    assert second.notices == ()
    for index in (2, -1):
        with pytest.raises(UserError, match=f"--face {index}: 2 found .* give 0 to 1"):
            condition_face(Found([SMALL, LARGE]), PICTURE, index=index)


def test_a_given_box_is_not_searched_for():
    condition = condition_face(Found([]), PICTURE, face_box=(600.0, 300.0, 200.0, 100.0))
    assert condition.embedding.tolist() == [600, 120, 1]  # cut to the picture
    assert condition.box == pytest.approx(enlarge((600, 300, 120, 100), 1.2, 720, 480))


def test_no_face_on_demand_is_zero_and_says_so():
    condition = condition_face(Found([LARGE]), PICTURE, no_face=True)
    assert condition.embedding.tolist() == [0, 0, 0]
    assert condition.box == (0, 0, 720, 480)
    assert "--no-face" in condition.notices[0]
    np.testing.assert_array_equal(black_outside(PICTURE, condition.box), PICTURE)


@pytest.mark.parametrize(
    ("analyzer", "options", "said"),
    [
        (Found([]), {}, "no face was found; give its place with --face-box X Y W H, .* --no-face"),
        (Found([Face((9, 9, 20, 40))]), {}, r"too small \(20×40 .* --face-box X Y W H, .* --no-face"),
        (Found([]), {"face_box": (10, 10, 5, 200)}, "--face-box: the face is too small"),
        (Found([]), {"face_box": (800, 10, 50, 50)}, "--face-box: lies outside"),
        (Found([]), {"face_box": (10, 10, -50, 50)}, "--face-box: needs X Y W H"),
        (Found([]), {"face_box": (10, float("nan"), 50, 50)}, "--face-box: needs X Y W H"),
        (Found([LARGE]), {"face_box": (0, 0, 50, 50), "no_face": True}, "exclude each other"),
        (Found([LARGE]), {"no_face": True, "index": 0}, "exclude each other"),
        (Found([LARGE], gain=0.0), {}, "gives no identity; .* --no-face"),
        (Found([LARGE], gain=float("nan")), {}, "gives no identity"),
    ],
)
def test_what_can_not_be_used_comes_with_its_remedy(analyzer, options, said):
    with pytest.raises(UserError, match=said) as error:
        condition_face(analyzer, PICTURE, **options)
    assert "\n" not in str(error.value)


def test_black_outside_keeps_what_the_box_touches():
    kept = black_outside(PICTURE, (10.4, 20.6, 30.0, 40.0))
    np.testing.assert_array_equal(kept[20:61, 10:41], PICTURE[20:61, 10:41])
    assert np.count_nonzero(kept) == 41 * 31 * 3
    assert PICTURE.all()


def test_boxes_grow_inside_the_picture_and_overlap_by_area():
    assert enlarge((0, 0, 100, 100), 1.2, 720, 480) == pytest.approx((0, 0, 110, 110))
    assert enlarge((700, 460, 20, 20), 2.0, 720, 480) == pytest.approx((690, 450, 30, 30))
    assert overlap((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 10, 10), (20, 0, 10, 10)) == 0


# ------------------------------------------------------------------------------------------ the embedded bundle's


@pytest.fixture
def embedded():
    torch.manual_seed(0)
    return EmbeddedFaceAnalyzer(FaceLocator(), FaceEncoder(embed_dim=8, size=32))


def test_the_embedded_analyser_is_saved_and_loaded(embedded, tmp_path):
    embedded.save_pretrained(tmp_path / "face_encoder")
    loaded = EmbeddedFaceAnalyzer.from_pretrained(tmp_path / "face_encoder")
    assert loaded.embedding_dim == 8
    assert not loaded.locator.training
    face = Face((300.0, 100.0, 100.0, 150.0))
    embedding = loaded.embed(PICTURE, face)
    assert (embedding.shape, embedding.dtype) == ((8,), np.float32)
    # Not bit for bit: some processors' kernels add in another order where weights lie differently in memory.
    np.testing.assert_allclose(embedding, embedded.embed(PICTURE, face), rtol=1e-5, atol=1e-6)
    assert not np.array_equal(embedding, embedded.embed(PICTURE, SMALL))
    assert loaded.face_box(PICTURE, face) == pytest.approx((290, 85, 120, 180))
    with pytest.raises(UserError, match="locator: is missing"):
        EmbeddedFaceAnalyzer.from_pretrained(tmp_path)


def test_the_embedded_analyser_finds_what_its_locator_finds(embedded):
    assert embedded.detect(PICTURE) == []  # untrained, it starts by finding nothing
    torch.nn.init.constant_(embedded.locator.heat.bias, 4.0)
    faces = embedded.detect(PICTURE)
    assert faces
    assert all(face.score > 0.3 and face.box[0] + face.box[2] <= 720 for face in faces)


# ----------------------------------------------------------------------------------------------- the published one


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("face_encoder")
    write_detector(folder / InsightFaceAnalyzer.DETECTOR)
    write_recogniser(folder / InsightFaceAnalyzer.RECOGNISER)
    (folder / InsightFaceAnalyzer.LANDMARKER).write_bytes(b"not a task bundle")
    return folder


@pytest.fixture(scope="module")
def published(models):
    return InsightFaceAnalyzer.from_pretrained(models)


def crowd() -> np.ndarray:
    """A small "face" (red over dark red) about (200, 220) and a large one (green) about (480, 240) on grey."""
    image = np.full((480, 720, 3), 90, np.uint8)
    image[184:220, 164:236] = (255, 20, 0)
    image[220:256, 164:236] = (230, 20, 40)
    image[150:330, 390:570] = (20, 255, 60)
    return image


def test_insightface_finds_faces_where_they_are(published):
    small, large = sorted(published.detect(crowd()), key=lambda face: face.box[2])
    # The detector sees 720 pixels as 640 and answers on a grid of 8 or 16.
    assert small.box == pytest.approx((164, 184, 72, 72), abs=10)
    assert large.box == pytest.approx((390, 150, 180, 180), abs=19)
    assert small.landmarks is not None
    assert small.landmarks.shape == (5, 2)
    np.testing.assert_allclose(small.landmarks.mean(axis=0), [200, 229], atol=10)
    assert published.detect(np.full((480, 720, 3), 90, np.uint8)) == []


def test_insightface_embeds_the_aligned_face_in_its_own_colours(published):
    small = min(published.detect(crowd()), key=lambda face: face.box[2])
    embedding = published.embed(crowd(), small)
    assert embedding.shape == (512,) == (published.embedding_dim,)
    colours = embedding[:6].reshape(2, 3) * 127.5 + 127.5  # upper and lower half: red, green, blue
    np.testing.assert_allclose(colours, [[255, 20, 0], [230, 20, 40]], atol=45)
    assert colours[0, 0] > colours[1, 0]  # upright
    assert abs(np.linalg.norm(embedding) - 1) > 1  # not normalised


def test_a_box_alone_is_aligned_by_the_landmarks_near_it(published):
    found = min(published.detect(crowd()), key=lambda face: face.box[2])
    boxed = published.embed(crowd(), Face((150.0, 180.0, 80.0, 80.0)))
    assert np.abs(boxed - published.embed(crowd(), found)).max() < 0.35


def test_a_box_without_landmarks_is_taken_as_it_is(published):
    image = np.full((480, 720, 3), 90, np.uint8)
    image[100:200, 100:200] = (60, 70, 250)
    colours = published.embed(image, Face((100.0, 100.0, 100.0, 100.0)))[:6].reshape(2, 3) * 127.5 + 127.5
    np.testing.assert_allclose(colours, [[60, 70, 250]] * 2, atol=6)


def test_the_files_are_copied_whole_and_missing_ones_named(published, tmp_path):
    published.save_pretrained(tmp_path / "copy")
    assert len(InsightFaceAnalyzer.from_pretrained(tmp_path / "copy").detect(crowd())) == 2
    InsightFaceAnalyzer.from_pretrained(tmp_path / "copy").save_pretrained(tmp_path / "copy")
    (tmp_path / "copy" / "glintr100.onnx").unlink()
    with pytest.raises(UserError, match=r"glintr100\.onnx: is missing"):
        InsightFaceAnalyzer.from_pretrained(tmp_path / "copy")


def test_broken_and_mistaken_files_are_named(models, tmp_path):
    InsightFaceAnalyzer(models).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"blendshapes\.task: can't be loaded"):
        InsightFaceAnalyzer(tmp_path).face_box(crowd(), LARGE)
    (tmp_path / InsightFaceAnalyzer.RECOGNISER).write_bytes((models / InsightFaceAnalyzer.DETECTOR).read_bytes())
    with pytest.raises(UserError, match=r"glintr100\.onnx: is not a model for recognition"):
        InsightFaceAnalyzer(tmp_path).embed(crowd(), InsightFaceAnalyzer(tmp_path).detect(crowd())[0])
    (tmp_path / InsightFaceAnalyzer.DETECTOR).write_text("hello")
    with pytest.raises(UserError, match=r"scrfd_10g_bnkps\.onnx: can't be loaded"):
        InsightFaceAnalyzer(tmp_path).detect(crowd())


@pytest.mark.parametrize("missing", ["insightface.model_zoo", "onnxruntime", "mediapipe"])
def test_without_the_extra_it_is_named(models, monkeypatch, missing):
    for name in [n for n in sys.modules if n.partition(".")[0] == "insightface"] if missing == "onnxruntime" else []:
        monkeypatch.delitem(sys.modules, name)  # so that it is imported again, now without onnxruntime
    monkeypatch.setitem(sys.modules, missing, None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install hallo3\[faces\]"):
        analyzer = InsightFaceAnalyzer(models)
        analyzer.detect(crowd())
        analyzer.face_box(crowd(), LARGE)
    # Without an identity none of it is needed.
    assert condition_face(InsightFaceAnalyzer(models), PICTURE, no_face=True).embedding.shape == (512,)


def test_the_silhouette_is_mediapipes_face_oval():
    oval = {connection.start for connection in FaceLandmarksConnections.FACE_LANDMARKS_FACE_OVAL}
    assert set(SILHOUETTE) == oval
    landmarks = np.random.default_rng(1).uniform(0, 1000, (478, 2)).astype(np.float32)
    landmarks[list(SILHOUETTE)] = np.random.default_rng(2).uniform(200, 300, (36, 2))
    landmarks[[10, 152, 234, 454]] = [[250, 180], [255, 340], [190, 260], [310, 262]]
    assert silhouette_box(landmarks) == pytest.approx((190, 180, 120, 160))


class Outlines:
    """In MediaPipe's place: its result type, filled with faces whose landmarks lie within known boxes."""

    def __init__(self, *boxes):
        self.boxes = boxes

    def detect(self, picture):
        assert (picture.width, picture.height) == (720, 480)
        return FaceLandmarkerResult([self.spread(*box) for box in self.boxes], [], [])

    @staticmethod
    def spread(x, y, w, h):
        across, down = np.random.default_rng(3).uniform(0, 1, (2, 478))
        across[[10, 234]], down[[10, 234]] = (0, 1), (1, 0)
        return [NormalizedLandmark(x=(x + a * w) / 720, y=(y + d * h) / 480) for a, d in zip(across, down, strict=True)]


def test_the_face_box_is_the_silhouette_of_the_same_face(models):
    analyzer = InsightFaceAnalyzer(models)
    vars(analyzer)["_landmarker"] = Outlines((30, 30, 60, 80), (310, 110, 90, 140))
    assert analyzer.face_box(PICTURE, LARGE) == pytest.approx(enlarge((310, 110, 90, 140), 1.2, 720, 480), abs=0.01)
    # None on this face: the detector's box serves.
    vars(analyzer)["_landmarker"] = Outlines((30, 30, 60, 80))
    assert analyzer.face_box(PICTURE, LARGE) == pytest.approx(enlarge(LARGE.box, 1.2, 720, 480))
