"""The watermark at the embedded size: what it withstands, what it costs, and silence where there is none."""

import io
import math

import av
import numpy as np
import pytest
from PIL import Image

import tiny
from hallo3.animation import AnimationRequest, animate
from hallo3.bundles.places import embedded_bundle
from hallo3.media import watermark
from hallo3.media.inspection import inspect
from hallo3.media.video import read_video
from hallo3.media.watermark import BITS, WINDOW, Watermark, detect

HEIGHT, WIDTH = 128, 192
IDENTIFIER = 0xA53C71


def moving(frames: int = WINDOW, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """The sample's portrait under a hand-held camera, with a mouth that opens and shuts: (F, height, width, 3)."""
    picture = Image.open(embedded_bundle() / "sample" / "portrait.png").convert("RGB")
    made = []
    for number in range(frames):
        zoom = 0.9 + 0.01 * math.sin(number / 15)
        w, h = picture.width * zoom, picture.width * zoom * height / width
        x = (picture.width - w) * (0.5 + 0.15 * math.sin(number / 17))
        y = max(0.0, (picture.height - h) * (0.3 + 0.05 * math.cos(number / 13)))
        frame = picture.resize((width, height), Image.Resampling.BICUBIC, (x, y, x + w, min(picture.height, y + h)))
        pixels = np.asarray(frame).copy()
        opening = round(height * 0.05 * (1 + math.sin(number * 1.3)))
        pixels[height // 2 : height // 2 + opening, width * 9 // 20 : width * 11 // 20] //= 3
        made.append(pixels)
    return np.stack(made)


def compressed(frames: np.ndarray, crf: int) -> np.ndarray:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": str(crf), "threads": "1"})
        height, width = (size - size % 2 for size in frames.shape[1:3])
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames[:, :height, :width]:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def resized(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames])


def cropped(frames: np.ndarray) -> np.ndarray:
    """A tenth less high and wide, from uneven sides."""
    height, width = frames.shape[1:3]
    return frames[:, height // 33 : height // 33 + height * 9 // 10, width // 13 : width // 13 + width * 9 // 10]


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    return moving()


@pytest.fixture(scope="module")
def saved(plain: np.ndarray) -> np.ndarray:
    """A marked video as it is written: from some place in a longer one, at the default quality."""
    return compressed(Watermark(IDENTIFIER, HEIGHT, WIDTH).apply(plain, 31), 18)


ATTACKS = {
    "none": lambda frames: frames,
    "H.264 at CRF 28": lambda frames: compressed(frames, 28),
    "half size": lambda frames: resized(frames, HEIGHT // 2, WIDTH // 2),
    "half size, saved": lambda frames: compressed(resized(frames, HEIGHT // 2, WIDTH // 2), 18),
    "cropped": cropped,
    "cropped, H.264 at CRF 28": lambda frames: compressed(cropped(frames), 28),
    "cropped, enlarged": lambda frames: resized(cropped(frames), HEIGHT, WIDTH),
    "mirrored": lambda frames: frames[:, :, ::-1],
    "grey, darker": lambda frames: np.repeat(frames.mean(-1, keepdims=True) * 0.8, 3, -1).astype(np.uint8),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_withstands(attack: str, saved: np.ndarray) -> None:
    seen = detect(ATTACKS[attack](saved))
    assert seen.found and seen.log10_chance < -6
    right = BITS - (seen.identifier ^ IDENTIFIER).bit_count()
    assert right / BITS >= 0.95
    assert seen.mirrored == (attack == "mirrored") and seen.frames == WINDOW


def test_it_says_what_was_cut_away(saved: np.ndarray) -> None:
    top, bottom, left, right = detect(cropped(saved)).kept
    assert np.allclose((top, left), (3 / 128, 14 / 192), atol=0.015)
    assert np.allclose((bottom, right), ((3 + 115) / 128, (14 + 172) / 192), atol=0.015)


def test_it_is_hard_to_see(plain: np.ndarray) -> None:
    marked = Watermark(IDENTIFIER, HEIGHT, WIDTH).apply(plain, 0)
    difference = marked.astype(float) - plain
    assert 10 * math.log10(255**2 / (difference**2).mean()) > 40
    assert np.abs(difference).max() <= 16
    assert np.abs(difference.mean(0)).mean() < 0.25, "over time nothing remains"


def test_frames_are_marked_alike_in_every_clip(plain: np.ndarray) -> None:
    mark = Watermark(IDENTIFIER, HEIGHT, WIDTH)
    whole = mark.apply(plain, 0)
    again = Watermark(IDENTIFIER, HEIGHT, WIDTH)
    parts = [again.apply(plain[start : start + 7], start) for start in range(0, len(plain), 7)]
    assert np.array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize("cut", [False, True])
def test_nothing_is_found_where_nothing_is(cut: bool, plain: np.ndarray) -> None:
    assert not detect(cropped(plain) if cut else plain).found
    assert not detect(np.zeros_like(plain)).found
    assert not detect(np.random.default_rng(0).integers(0, 256, plain.shape, dtype=np.uint8)).found


def test_the_bound_on_false_positives_holds(saved: np.ndarray, plain: np.ndarray) -> None:
    """For keys drawn at random, scores are no higher than Hoeffding's inequality allows, marked video or not."""
    for frames in (plain, saved):
        scores = np.array([detect(frames, cropped=False, key=f"another {number}").score for number in range(60)])
        # Both ways round, eight phases, any identifier: the best of them exceeds this once in twenty keys at most.
        allowed = math.sqrt(2 * (math.log(20 * 2 * 8 * 3) + (BITS + 1) * math.log(2)))
        assert (scores < allowed).all() and scores.std() > 0


def test_an_identifier_of_its_own_for_each() -> None:
    still = np.full((WINDOW, HEIGHT, WIDTH, 3), 128, np.uint8)
    for identifier in (0, 1, (1 << BITS) - 1, 0x5A5A5A):
        assert detect(Watermark(identifier, HEIGHT, WIDTH).apply(still, 3), cropped=False).identifier == identifier
    with pytest.raises(ValueError, match="24 bits"):
        Watermark(1 << BITS, HEIGHT, WIDTH)


def test_part_of_a_longer_video_is_enough(plain: np.ndarray) -> None:
    """Two marked seconds, then two of something else: seen in the window where they are."""
    mark = Watermark(IDENTIFIER, HEIGHT, WIDTH).apply(plain, 12)
    noise = np.random.default_rng(1).integers(0, 256, plain.shape, dtype=np.uint8)
    seen = detect(np.concatenate([noise, mark]), cropped=False)
    assert seen.found and seen.identifier == IDENTIFIER and seen.frames == 2 * WINDOW


def test_too_short_to_tell() -> None:
    seen = detect(moving(watermark.SHORTEST - 1))
    assert seen.too_short and not seen.found
    assert detect([]).too_short


@pytest.mark.parametrize(("height", "width"), [(192, 128), (160, 160), (108, 192), (128, 72)])
def test_every_format_has_a_grid(height: int, width: int) -> None:
    frames = moving(height=height, width=width)
    seen = detect(compressed(Watermark(IDENTIFIER, height, width).apply(frames, 0), 18))
    assert seen.found and seen.identifier == IDENTIFIER


@pytest.mark.slow
def test_the_published_size() -> None:
    frames = moving(height=480, width=720)
    mark = Watermark(IDENTIFIER, 480, 720)
    marked = compressed(mark.apply(frames, 0), 28)
    difference = mark.apply(frames[:5], 0) - frames[:5].astype(float)
    assert 10 * math.log10(255**2 / (difference**2).mean()) > 43
    seen = detect(resized(cropped(marked), 216, 324))
    assert seen.found and seen.identifier == IDENTIFIER


def test_the_mark_is_in_what_the_embedded_model_makes(tmp_path):
    """Two seconds of the sample, through the whole job; as it is, and compressed as uploads are."""
    sample = embedded_bundle() / "sample"
    with av.open(str(sample / "speech.wav")) as container:
        sound = np.concatenate([frame.to_ndarray().ravel() for frame in container.decode(audio=0)])
        rate = container.streams.audio[0].rate
    tiny.write_wav(tmp_path / "speech.wav", sound[: 2 * rate].astype(np.float32) / np.abs(sound).max(), rate)
    request = AnimationRequest(sample / "portrait.png", tmp_path / "speech.wav", tmp_path / "out.mp4")
    found = inspect(animate(request))
    assert found.mark.found and found.agrees and found.mark.log10_chance < -6
    again = detect(compressed(read_video(request.output).frames, 28))
    assert again.found and (again.identifier ^ found.mark.identifier).bit_count() <= 2
