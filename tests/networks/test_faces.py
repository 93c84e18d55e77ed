"""Face locator and encoder: shapes, coordinates, saving and loading."""

import pytest
import torch

from hallo3.networks.faces import FaceEncoder, FaceLocator, box_iou, crop_face, decode_maps, fit, keep_best

TINY = {"height": 64, "width": 96, "channels": (4, 4, 8, 8, 8), "neck_channels": 8}


def test_maps_are_at_stride_four_and_sides_are_positive():
    heat, sides = FaceLocator(**TINY)(torch.zeros(2, 3, 64, 96))
    assert heat.shape == (2, 1, 16, 24)
    assert sides.shape == (2, 4, 16, 24)
    assert (sides > 0).all()


def test_default_networks_are_small():
    count = {net: sum(p.numel() for p in net().parameters()) for net in (FaceLocator, FaceEncoder)}
    assert count[FaceLocator] < 400_000
    assert count[FaceEncoder] < 500_000


def test_decoded_peak_gives_its_box():
    heat = torch.full((1, 1, 8, 12), -6.0)
    heat[0, 0, 3, 5] = 3.0
    heat[0, 0, 3, 6] = 2.0  # a shoulder of the same peak
    sides = torch.full((1, 4, 8, 12), 10.0)
    scores, corners = decode_maps(heat, sides)
    keep = keep_best(scores[0], corners[0], 0.3, 8)
    assert len(keep) == 1
    assert corners[0, keep[0]].tolist() == [12.0, 4.0, 32.0, 24.0]


def test_overlapping_boxes_keep_the_better_one():
    corners = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30]])
    assert keep_best(torch.tensor([0.5, 0.9, 0.4]), corners, 0.3, 8) == [1, 2]
    assert keep_best(torch.tensor([0.5, 0.9, 0.4]), corners, 0.3, 1) == [1]


def test_iou():
    a, b = torch.tensor([0.0, 0, 10, 10]), torch.tensor([5.0, 0, 15, 10])
    assert box_iou(a, b).item() == pytest.approx(1 / 3)
    assert box_iou(a, a + 100).item() == 0


@pytest.mark.parametrize("size", [(64, 96), (200, 100), (30, 500), (17, 9)])
def test_located_boxes_are_in_pixels_of_the_given_image(size):
    torch.manual_seed(0)
    locator = FaceLocator(**TINY).eval()
    height, width = size
    for faces in locator.locate(torch.rand(2, 3, height, width) * 2 - 1, threshold=0.0):
        assert faces
        for (x, y, w, h), score in faces:
            assert 0 <= x <= x + w <= width + 1e-3
            assert 0 <= y <= y + h <= height + 1e-3
            assert 0 <= score <= 1


def test_a_mirrored_image_has_mirrored_faces():
    torch.manual_seed(0)
    locator = FaceLocator(**TINY).eval()
    image = torch.rand(1, 3, 64, 96) * 2 - 1
    found, mirrored = (dict(locator.locate(x, 0.0, 3)[0]) for x in (image, image.flip(-1)))
    expected = sorted((96 - x - w, y, w, h) for x, y, w, h in found)
    assert torch.allclose(torch.tensor(sorted(mirrored)), torch.tensor(expected), atol=1e-3)


def test_fitting_an_image_moves_its_boxes_back():
    image = torch.full((1, 3, 100, 50), -1.0)
    image[:, :, 40:60, 10:30] = 1.0
    canvas, scale, left, top = fit(image, 64, 96)
    rows, columns = torch.where(canvas[0, 0] > 0)
    assert (columns.min().item() - left) / scale == pytest.approx(10, abs=1.6)
    assert (rows.max().item() + 1 - top) / scale == pytest.approx(60, abs=1.6)


def test_crop_is_square_around_the_box_and_black_outside():
    image = torch.zeros(3, 40, 40)
    image[:, 10:20, 15:21] = 1.0
    crop = crop_face(image, (15, 10, 6, 10), size=32, margin=1.0)
    assert crop.shape == (3, 32, 32)
    assert crop[:, 16, 16].tolist() == [1, 1, 1]
    assert crop[:, 16, 1].tolist() == [0, 0, 0]
    corner = crop_face(image, (-10, -10, 20, 20), size=32, margin=1.0)
    assert corner[:, 2, 2].tolist() == [-1, -1, -1]
    assert corner[:, 30, 30].tolist() == [0, 0, 0]
    away = crop_face(image, (100, -100, 20, 20))
    assert (away == -1).all()


def test_encoder_gives_one_embedding_per_crop():
    encoder = FaceEncoder(channels=(4, 4, 8, 8), embed_dim=16)
    assert encoder(torch.zeros(3, 3, 64, 64)).shape == (3, 16)


@pytest.mark.parametrize("net", [FaceLocator(**TINY), FaceEncoder(channels=(4, 4, 8, 8), embed_dim=16)])
def test_saving_and_loading(net, tmp_path):
    net.eval().save_pretrained(tmp_path)
    again = type(net).from_pretrained(tmp_path)
    image = torch.rand(1, 3, 64, 64 if isinstance(net, FaceEncoder) else 96)
    torch.testing.assert_close(net(image), again(image))


def test_bfloat16_weights_locate():
    locator = FaceLocator(**TINY).to(torch.bfloat16)
    assert len(locator.locate(torch.zeros(1, 3, 100, 100))) == 1


def test_a_face_is_looked_at_again_from_close_by():
    """The second look sees a part of the picture, and its box comes back in pixels of the whole."""
    locator = FaceLocator(**TINY)
    seen = []

    def search(image):
        seen.append(image.shape[-2:])
        corners = torch.tensor([[100.0, 60, 120, 90], [0, 0, 0, 0]])
        if len(seen) > 1:  # the same face in the part, a little more exactly
            corners = torch.tensor([[0.0, 0, 5, 5], [36.0, 16, 56, 46]])
        return [(torch.tensor([0.9, 0.8]), corners)]

    locator._search = search
    [[(box, score)]] = locator.locate(torch.zeros(1, 3, 400, 400), max_faces=1)
    assert seen[1][0] < 200 and seen[1][1] < 200
    assert score == pytest.approx(0.9)
    assert box == (101, 61, 20, 30)
