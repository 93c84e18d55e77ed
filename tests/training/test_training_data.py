import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hallo3.errors import UserError
from hallo3.training.data import Photographs, Sample, box_mask, cut_clip, open_samples, to_pixels
from hallo3.training.prepare import latent_mouth


def write_sample(folder, frames=9, height=64, width=96):
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (frames, height, width, 3), np.uint8)
    pixels[:, 40:48, 32:48] = 255  # the mouth
    np.save(folder / "frames.npy", pixels)
    np.save(folder / "speech.npy", random.normal(0, 0.1, frames * 640).astype(np.float32))
    box = np.tile(np.array([32.0, 40.0, 16.0, 8.0]), (frames, 1))
    np.savez(folder / "truth.npz", mouth_box=box, face_box=box, opening=np.linspace(0, 1, frames))
    (folder / "meta.json").write_text(json.dumps({"caption": "A person talks."}))


@pytest.fixture
def sample(tmp_path):
    write_sample(tmp_path / "000000")
    return open_samples(tmp_path)[0]


def test_clips_that_cannot_be_read_are_left_out_and_named(tmp_path, capsys):
    for number in range(8):
        write_sample(tmp_path / f"{number:06d}")
    with (tmp_path / "000001" / "frames.npy").open("rb+") as file:
        file.truncate(5000)
    (tmp_path / "000002" / "truth.npz").unlink()
    np.save(tmp_path / "000003" / "frames.npy", np.zeros((5, 64, 96, 3), np.uint8))
    (tmp_path / "000004" / "meta.json").write_text("{")
    np.savez(tmp_path / "000005" / "truth.npz", mouth_box=np.zeros((9, 4)), opening=np.zeros(9))
    boxes = np.full((9, 4), np.nan)
    np.savez(tmp_path / "000006" / "truth.npz", mouth_box=boxes, face_box=boxes, opening=np.zeros(9))
    (tmp_path / "000007" / "truth.npz").write_bytes(b"")
    said = []
    assert [sample.folder.name for sample in open_samples(tmp_path, said.append)] == ["000000"]
    assert len(said) == 8 and not any("\n" in line for line in said)
    for number in range(1, 8):
        assert f"{number:06d}: " in said[number - 1]
    assert "speech, opening, mouth_box, face_box" in said[2] and "mouth_box, face_box" in said[5]
    assert said[-1].endswith("7 of 8 clips are left out")
    assert len(open_samples(tmp_path)) == 1
    assert capsys.readouterr().err.splitlines() == said
    (tmp_path / "000000" / "speech.npy").unlink()
    with pytest.raises(UserError, match="none of its 8 clips"):
        open_samples(tmp_path, said.append)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux shows them")
def test_many_clips_hold_no_file_open(tmp_path):
    for number in range(3):
        write_sample(tmp_path / f"{number:06d}")
    before = len(list(Path("/proc/self/fd").iterdir()))
    samples = open_samples(tmp_path)
    assert [sample.frames.shape for sample in samples] == [(9, 64, 96, 3)] * 3
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_masks_count_the_share_of_a_pixel():
    mask = box_mask(np.array([[1.5, 0.0, 2.0, 1.25]]), 3, 5)
    np.testing.assert_allclose(mask[0], [[0, 0.5, 1, 0.5, 0], [0, 0.125, 0.25, 0.125, 0], [0] * 5])


def test_the_mouth_on_the_latent_grid_is_the_mean_of_its_frames():
    boxes = np.tile(np.array([16.0, 8.0, 8.0, 8.0]), (5, 1))
    boxes[1:3, 0] = 24
    cells = latent_mouth(boxes, 32, 48)
    assert cells.shape == (2, 4, 6)
    assert cells[0, 1, 2] == 1 and cells[0].sum() == 1
    assert cells[1, 1, 2] == cells[1, 1, 3] == 0.5


def test_cuts_stay_inside_and_their_mask_lies_on_the_mouth(sample: Sample):
    for seed in range(12):
        pixels, mouth = cut_clip(sample, 5, 32, 40, np.random.default_rng(seed), aim=0.7)
        assert pixels.shape == (3, 5, 32, 40) and mouth.shape == (1, 5, 32, 40)
        inside = mouth.expand(3, -1, -1, -1) == 1
        assert (pixels[inside] == 1).all()


def test_a_cut_aimed_at_the_mouth_holds_it(sample: Sample):
    for seed in range(6):
        _, mouth = cut_clip(sample, 1, 32, 40, np.random.default_rng(seed), aim=1.0)
        assert mouth.sum() > 0.5 * 16 * 8


def test_photographs_become_stills_of_the_canvas(tmp_path):
    for name, size in (("tall.png", (40, 90)), ("wide.jpg", (200, 60)), ("square.png", (64, 64))):
        Image.new("RGB", size, (200, 100, 50)).save(tmp_path / name)
    (tmp_path / "manifest.csv").write_text("no picture")
    photographs = Photographs(tmp_path, 32, 48)
    assert len(photographs.images) == 3
    random = np.random.default_rng(0)
    stills = [photographs.draw(random) for _ in range(20)]
    assert {still.shape for still in stills} == {(32, 48, 3)}
    assert any((still == 0).all(2).any() for still in stills) and any((still > 0).all() for still in stills)


def test_photographs_that_cannot_be_read_are_named_and_none_is_a_mistake(tmp_path):
    for place in (tmp_path / "missing", tmp_path / "a_file"):
        (tmp_path / "a_file").write_text("")
        with pytest.raises(UserError, match=rf"{place.name}: can't be read .*give a folder of photographs"):
            Photographs(place)
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"photographs: no photographs that can be read"):
        Photographs(folder, log=lambda line: None)
    Image.effect_noise((400, 400), 60).convert("RGB").save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:3000])
    Image.new("RGB", (40, 60)).save(folder / "fine.png")
    said = []
    assert len(Photographs(folder, log=said.append).images) == 1
    assert [line.split(":")[1].split("/")[-1] for line in said] == ["broken.jpg", "cut.jpg"]


def test_pixels_lie_between_minus_one_and_one():
    frames = np.array([[[[0, 127, 255]]]], np.uint8)
    assert torch.equal(to_pixels(frames)[[0, 2], 0, 0, 0], torch.tensor([-1.0, 1.0]))
