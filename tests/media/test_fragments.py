import io
from fractions import Fraction

import av
import numpy as np
import pytest
from media_samples import joined, pictures, tone

from hallo3.media.fragments import PACKET, FragmentEncoder, SpeechTrack, boxes, output_rate
from hallo3.media.sound import speech_from_samples

WIDTH, HEIGHT = 64, 48


def encoder(seconds=2.0, rate=16_000, **options):
    speech = speech_from_samples(tone(seconds, rate), rate) if seconds else None
    return FragmentEncoder(WIDTH, HEIGHT, speech=speech, **options)


def stream(coder, clips, width=WIDTH, height=HEIGHT):
    pieces, first = [coder.header()], 0
    for count in clips:
        pieces.append(coder.clip(pictures(count, width, height, first)))
        first += count
    return pieces


def decoded(data):
    """Times of all frames and of all sound packets, in seconds, and the frames."""
    with av.open(io.BytesIO(data), "r", format="mp4") as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    with av.open(io.BytesIO(data), "r", format="mp4") as container:
        sound = container.streams.audio
        times = [float(p.pts * p.time_base) for p in container.demux(sound[0]) if p.size] if sound else []
    return [time for time, _ in frames], [frame for _, frame in frames], times


def test_the_stream_is_one_header_and_one_piece_for_each_clip():
    pieces = stream(encoder(), [5, 3, 1])
    names = [[name for name, _, _ in boxes(piece)] for piece in pieces]
    assert names == [[b"ftyp", b"moov"], *[[b"moof", b"mdat"]] * 3]


@pytest.mark.parametrize("seconds", [2.0, 0])
def test_the_header_depends_on_the_settings_alone(seconds):
    coder = encoder(seconds, metadata={"comment": "made here"})
    header = coder.header()
    coder.clip(pictures(3, WIDTH, HEIGHT))
    assert coder.header() == header == encoder(seconds, metadata={"comment": "made here"}).header()
    assert b"made here" in header and b"avc1" in header
    assert header != encoder(seconds).header()


def test_times_go_on_from_clip_to_clip():
    times, frames, sound = decoded(b"".join(stream(encoder(), [7, 2, 11])))
    np.testing.assert_allclose(times, np.arange(20) / 25)
    np.testing.assert_allclose(sound, (np.arange(len(sound)) - 1) * PACKET / 48_000)
    assert sound[-1] < 20 / 25 <= sound[-1] + PACKET / 48_000
    truth = pictures(20, WIDTH, HEIGHT)
    assert max(np.abs(frame - real.astype(float)).mean() for frame, real in zip(frames, truth, strict=True)) < 4


def test_the_stream_plays_after_every_piece():
    data = b""
    for count, piece in enumerate(stream(encoder(), [3, 3, 3])):
        data += piece
        if count:
            times, _, sound = decoded(data)
            assert len(times) == 3 * count
            assert sound[-1] + PACKET / 48_000 >= 3 * count / 25


@pytest.mark.parametrize("seconds", [2.0, 0.3, 0])
def test_skipping_gives_the_same_pieces(seconds):
    whole = stream(encoder(seconds), [4, 1, 6, 2])
    for clips, frames in [(1, 4), (2, 5), (3, 11)]:
        coder = encoder(seconds)
        coder.skip(clips, frames)
        first, rest = frames, []
        for count in [4, 1, 6, 2][clips:]:
            rest.append(coder.clip(pictures(count, WIDTH, HEIGHT, first)))
            first += count
        assert rest == whole[clips + 1 :]


def test_every_clip_begins_with_a_key_frame_and_stands_alone():
    header, *pieces = stream(encoder(0), [5, 5])
    both = decoded(header + pieces[0] + pieces[1])[1]
    alone = decoded(header + pieces[1])[1]
    for frame, same in zip(both[5:], alone, strict=True):
        np.testing.assert_array_equal(frame, same)


@pytest.mark.parametrize(("width", "height"), [(63, 47), (64, 47), (63, 48), (16, 16)])
def test_odd_sizes_are_padded_by_the_last_row_or_column(width, height):
    coder = FragmentEncoder(width, height, crf=1)
    _, frames, _ = decoded(b"".join(stream(coder, [2], width, height)))
    assert frames[0].shape == (height + height % 2, width + width % 2, 3)
    truth = pictures(1, width, height)[0].astype(float)
    assert np.abs(frames[0][:height, :width] - truth).mean() < 4
    if width % 2:
        assert np.abs(frames[0][:height, -1] - truth[:, -1]).mean() < 6


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 40, 40), (40, 180, 60), (30, 60, 220)])
def test_colours_are_bt709_and_say_so(colour):
    coder = FragmentEncoder(WIDTH, HEIGHT)
    frames = np.full((2, HEIGHT, WIDTH, 3), colour, np.uint8)
    data = coder.header() + coder.clip(frames)
    with av.open(io.BytesIO(data), "r", format="mp4") as container:
        frame = next(container.decode(video=0))
        luma = frame.to_ndarray()[:HEIGHT, :WIDTH].mean()
    red, green, blue = (value / 255 for value in colour)
    assert luma == pytest.approx(16 + 219 * (0.2126 * red + 0.7152 * green + 0.0722 * blue), abs=1)
    assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (1, 1, 1, 1)
    assert np.abs(decoded(data)[1][0].astype(float) - colour).max() <= 4


def test_a_frame_rate_that_is_a_ratio():
    times, _, _ = decoded(b"".join(stream(encoder(1.0, fps=Fraction(30_000, 1001)), [4, 4])))
    np.testing.assert_allclose(times, np.arange(8) * 1001 / 30_000, atol=1e-6)


def test_quality_is_the_caller_s():
    sizes = [len(encoder(0, crf=crf).clip(pictures(5, WIDTH, HEIGHT))) for crf in (10, 30)]
    assert sizes[0] > 1.5 * sizes[1]


def test_frames_of_a_wrong_shape_or_type():
    coder = encoder(0)
    for frames in [
        np.zeros((2, HEIGHT, WIDTH + 2, 3), np.uint8),
        np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        np.zeros((2, HEIGHT, WIDTH, 3), np.float32),
        np.zeros((0, HEIGHT, WIDTH, 3), np.uint8),
    ]:
        with pytest.raises(ValueError, match="frame"):
            coder.clip(frames)
    assert coder.frames == 0


@pytest.mark.parametrize(
    ("rate", "wanted"),
    [(8_000, 48_000), (16_000, 48_000), (22_050, 44_100), (44_100, 44_100), (48_000, 48_000), (96_000, 48_000)],
)
def test_the_rate_of_the_result(rate, wanted):
    assert output_rate(rate) == wanted


def test_the_sound_s_packets_do_not_depend_on_how_they_are_asked_for():
    speech = speech_from_samples(tone(1.0, 44_100, 2), 44_100)
    whole = list(SpeechTrack(speech).packets(60_000))  # beyond the speech: silence follows
    track = SpeechTrack(speech)
    parts = [packet for until in (1, 999, 5000, 5000, 44_100, 60_000) for packet in track.packets(until)]
    assert parts == whole
    assert len(whole) == 1 + -(-60_000 // PACKET)


def test_blocks_of_any_length_are_cut_into_packets():
    samples = tone(0.5, 48_000, 2)
    speech = speech_from_samples(samples, 48_000)
    assert joined(speech.blocks(48_000)).shape == samples.shape
