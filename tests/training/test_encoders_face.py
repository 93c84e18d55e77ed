"""Images for the face networks carry their boxes through every warp; both networks learn and are saved."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hallo3.errors import UserError
from hallo3.networks.faces import STRIDE, FaceEncoder, FaceLocator, decode_maps, keep_best
from hallo3.training.encoders_face import (
    area_under_curve,
    by_identity,
    contrastive_loss,
    draw_pairs,
    evaluate_face,
    standardise,
    train_face,
)
from hallo3.training.encoders_images import (
    FaceImage,
    backdrop,
    draw_faces,
    load_drawn,
    load_photographs,
    recolour,
    similarity,
    warp,
)
from hallo3.training.encoders_locator import (
    box_loss,
    draw_canvas,
    heat_loss,
    place_face,
    targets,
    train_locator,
    without_face,
)
from hallo3.training.loop import LoopSettings

QUIET = {"log": lambda line: None}
LOCATOR = {"height": 64, "width": 96, "channels": (4, 8, 8, 8, 8), "neck_channels": 8}
ENCODER = {"channels": (4, 8, 8, 8), "embed_dim": 8, "size": 32}


def person(number: int, views: int = 2) -> list[FaceImage]:
    """An oval with eyes in a colour of its own, as if it were a face."""
    images = []
    for view in range(views):
        random = np.random.default_rng([number, view])
        pixels = np.full((96, 144, 3), 20, np.uint8)
        x, y = random.integers(20, 80), random.integers(10, 30)
        rows, columns = np.mgrid[:96, :144] + 0.5
        oval = ((columns - x - 22) / 22) ** 2 + ((rows - y - 30) / 30) ** 2 <= 1
        pixels[oval] = np.array([(90, 160, 240), (240, 90, 120), (120, 240, 90), (230, 230, 90)])[number % 4]
        for eye in (12, 32):
            pixels[y + 20 : y + 26, x + eye - 3 : x + eye + 3] = 0
        images.append(FaceImage(pixels, (float(x), float(y), 44.0, 60.0), number, "drawn", f"{number}.{view}"))
    return images


PEOPLE = [image for number in range(4) for image in person(number)]


def test_warp_shows_what_the_map_says():
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[2, 5] = 255
    face = FaceImage(pixels, None, 0, "drawn")
    same = warp(face, similarity((0, 0), (0, 0), (1, 1), 0.0), 8, 12)
    torch.testing.assert_close(same, torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1)
    moved = warp(face, similarity((5.5, 2.5), (1.5, 3.5), (-1, 1), 0.0), 8, 12, torch.full((3, 8, 12), 0.25))
    assert moved[:, 3, 1].tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert moved[0, 0].tolist() == [0.25] * 12


def test_placed_faces_lie_where_their_box_says():
    random = np.random.default_rng(0)
    for index in range(20):
        canvas, (x0, y0, x1, y1) = place_face(PEOPLE[index % 8], random, 128, 192)
        bright = canvas.amax(0) > -0.2
        inside = torch.zeros(128, 192, dtype=torch.bool)
        inside[round(float(y0)) : round(float(y1)), round(float(x0)) : round(float(x1))] = True
        assert 0 <= x0 < x1 <= 192 and 0 <= y0 < y1 <= 128
        assert bright[inside].float().mean() > 0.5


def test_other_canvases_show_no_face():
    random = np.random.default_rng(1)
    for index in range(8):
        assert (without_face(PEOPLE[index], random, 64, 96)[2] < 0.9).float().mean() > 0.5
        assert backdrop(64, 96, random).abs().max() <= 1


def test_canvases_hold_up_to_two_boxes():
    random = np.random.default_rng(2)
    drawn = [draw_canvas(PEOPLE, random, 64, 96) for _ in range(40)]
    assert {len(corners) for _, corners in drawn} == {0, 1, 2}
    images = recolour(torch.stack([canvas for canvas, _ in drawn]), random)
    assert images.shape == (40, 3, 64, 96) and images.abs().max() <= 1


def test_perfect_maps_decode_to_the_boxes_and_cost_nothing():
    corners = torch.tensor([[10.0, 12, 40, 50], [100, 60, 180, 128]])
    heat, boxes, weight = targets(corners, 32, 48)
    centres = (
        torch.stack(torch.meshgrid(torch.arange(32) + 0.5, torch.arange(48) + 0.5, indexing="ij")).flip(0) * STRIDE
    )
    sides = torch.cat([centres - boxes[:2], boxes[2:] - centres])[None]
    logits = torch.logit(heat.clamp(1e-4, 1 - 1e-4))[None, None]
    scores, found = decode_maps(logits, sides)
    kept = found[0, keep_best(scores[0], found[0], 0.5, 8)]
    torch.testing.assert_close(kept[kept[:, 0].argsort()], corners)
    assert box_loss(sides, boxes[None], weight[None]).item() == pytest.approx(0, abs=1e-5)
    assert box_loss(sides * 1.3, boxes[None], weight[None]).item() > 0.1
    assert heat_loss(logits[:, 0], heat[None]).item() < heat_loss(logits[:, 0].flip(1), heat[None]).item() / 10


def test_locator_learns_to_find_a_face(tmp_path):
    settings = LoopSettings(steps=60, learning_rate=1e-2, warmup=5, save_every=60, log_every=100)
    metrics = train_locator(
        [PEOPLE], {"drawn": PEOPLE}, tmp_path, settings, config=LOCATOR, batch=8, canvases=60, **QUIET
    )
    assert metrics["drawn"]["faces"] == 8
    assert metrics["drawn"]["recall"] >= 0.5, metrics
    folder = tmp_path / "face_encoder" / "locator"
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    found = FaceLocator.from_pretrained(folder).locate(torch.full((1, 3, 64, 96), -1.0))
    assert found == [[]]


def test_encoder_learns_to_tell_people_apart(tmp_path):
    settings = LoopSettings(steps=25, learning_rate=1e-2, warmup=3, save_every=25, log_every=100)
    metrics = train_face([PEOPLE], {"drawn": PEOPLE}, tmp_path, settings, config=ENCODER, batch=4, **QUIET)
    assert metrics["drawn"]["people"] == 4
    assert metrics["drawn"]["auc"] > 0.7
    encoder = FaceEncoder.from_pretrained(tmp_path / "face_encoder" / "encoder")
    assert evaluate_face(encoder, PEOPLE)["auc"] == pytest.approx(metrics["drawn"]["auc"], abs=1e-6)


def test_standardised_embeddings_have_unit_variance():
    torch.manual_seed(0)
    encoder = FaceEncoder(**ENCODER)
    standardise(encoder, PEOPLE * 16, seed=0)
    assert evaluate_face(encoder, PEOPLE, views=16)["deviation"] == pytest.approx(1, abs=0.3)


def test_pairs_of_doubtful_sources_do_not_count():
    doubtful = [FaceImage(image.pixels, image.box, image.identity, "one source") for image in PEOPLE[:4]]
    a, b, counts = draw_pairs([by_identity(doubtful), by_identity(PEOPLE)], 4, np.random.default_rng(0), 32)
    assert a.shape == b.shape == (4, 3, 32, 32)
    assert counts.tolist() == [[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    z = torch.eye(4)
    assert contrastive_loss(z, z, counts) < 0.01 < contrastive_loss(z, z.flip(0), counts)


def test_area_under_curve():
    assert area_under_curve(np.array([2.0, 3]), np.array([0.0, 1])) == 1
    assert area_under_curve(np.array([0.0, 1]), np.array([0.0, 1])) == 0.5


def test_drawn_people_come_back_with_their_boxes(tmp_path):
    draw_faces(tmp_path, range(2), 2, height=48, width=72, **QUIET)
    faces = load_drawn(tmp_path, range(5))
    assert [face.identity for face in faces] == [0, 0, 1, 1]
    assert faces[0].pixels.shape == (48, 72, 3)
    x, y, w, h = faces[0].box
    assert w > 5 and h > 5 and x + w <= 72 and y + h <= 48
    with pytest.raises(UserError, match="no drawn people"):
        load_drawn(tmp_path / "nowhere", range(5))


def test_photographs_come_by_split_with_their_boxes(tmp_path):
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    Image.new("RGB", (100, 100)).save(tmp_path / "b.png")
    rows = ["file,x,y,width,height,source,split", "a.png,0.25,0.5,0.5,0.25,here,train", "b.png,0,0,1,1,there,test"]
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("\n".join([*rows, "absent.png,0,0,1,1,here,train"]))
    found = load_photographs(tmp_path, boxes, longest=100)
    assert [face.box for face in found["train"]] == [(25, 25, 50, 12.5)]
    assert [face.source for face in found["test"]] == ["there"]
    with pytest.raises(UserError, match="none of the photographs"):
        load_photographs(tmp_path / "nowhere", boxes)
