import io
import tracemalloc
import wave

import av
import numpy as np
import pytest
from media_samples import TONE, joined, only_user_errors, tone, write_sound, write_video, write_wav
from PIL import Image

from hallo3.errors import UserError
from hallo3.media.sound import SAMPLE_RATE, decode_sound, read_speech, speech_from_samples

KINDS = [
    ("a.wav", "pcm_u8", 8_000, "mono"),
    ("a.wav", "pcm_s16le", 44_100, "stereo"),
    ("a.wav", "pcm_s24le", 48_000, "mono"),
    ("a.wav", "pcm_s32le", 22_050, "stereo"),
    ("a.wav", "pcm_f32le", 96_000, "stereo"),
    ("a.wav", "pcm_f64le", 11_025, "mono"),
    ("a.wav", "pcm_s16le", 48_000, "5.1"),
    ("a.aiff", "pcm_s16be", 44_100, "mono"),
    ("a.mp3", "libmp3lame", 44_100, "stereo"),
    ("a.m4a", "aac", 48_000, "stereo"),
    ("a.flac", "flac", 44_100, "stereo"),
    ("a.ogg", "libopus", 48_000, "mono"),
    ("a.ogg", "flac", 16_000, "mono"),
    ("a.webm", "libopus", 48_000, "stereo"),
    ("a.mka", "aac", 32_000, "mono"),
]
CHANNELS = {"mono": 1, "stereo": 2, "5.1": 6}


def refusal(path, **options):
    with pytest.raises(UserError) as caught:
        read_speech(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and ";" in message
    return message


def sound_file(path, codec, rate, layout, seconds=2.0):
    return write_sound(path, codec, tone(seconds, rate, CHANNELS[layout]), rate, layout)


@pytest.mark.parametrize(("name", "codec", "rate", "layout"), KINDS)
def test_any_kind_of_sound_becomes_16_khz_mono(tmp_path, name, codec, rate, layout):
    speech = read_speech(sound_file(tmp_path / name, codec, rate, layout))
    assert speech.samples.dtype == np.float32 and speech.samples.ndim == 1
    assert speech.seconds == pytest.approx(2.0, abs=0.05)
    assert speech.sample_rate == rate and speech.channels == min(CHANNELS[layout], 2)
    # The same tone at the same time and as loud as in the file; encoders' delays are cut away.
    truth = tone(2.0, SAMPLE_RATE)[0][1000:30_000]
    heard = speech.samples[1000:30_000]
    assert np.corrcoef(truth, heard)[0, 1] > 0.98
    assert np.abs(heard).max() == pytest.approx(np.abs(truth).max(), rel=0.1)
    spectrum = np.abs(np.fft.rfft(heard))
    assert np.argmax(spectrum) * SAMPLE_RATE / len(heard) == pytest.approx(TONE, abs=2)


def test_16_khz_mono_is_taken_as_it_is(tmp_path):
    samples = tone(1.0, SAMPLE_RATE)
    write_wav(tmp_path / "a.wav", samples, codec="pcm_f32le")
    np.testing.assert_array_equal(read_speech(tmp_path / "a.wav").samples, samples[0])


def test_the_sound_of_a_video_is_read(tmp_path):
    path = write_video(tmp_path / "a.mp4", 2.0, tone(2.0, 44_100, 2))
    speech = read_speech(path)
    assert speech.seconds == pytest.approx(2.0, abs=0.05)
    assert (speech.sample_rate, speech.channels) == (44_100, 2)
    assert "aac" in speech.description and "44100 Hz" in speech.description


def test_channels_are_averaged(tmp_path):
    left, right = tone(1.0, SAMPLE_RATE), np.zeros((1, SAMPLE_RATE), np.float32)
    write_wav(tmp_path / "a.wav", np.concatenate([left, right]), codec="pcm_f32le")
    np.testing.assert_allclose(read_speech(tmp_path / "a.wav").samples, left[0] / 2, atol=1e-6)


@pytest.mark.parametrize(("rate", "channels", "wanted"), [(44_100, 2, 44_100), (96_000, 2, 48_000), (8_000, 1, 48_000)])
def test_the_original_is_streamed_at_its_own_quality(tmp_path, rate, channels, wanted):
    samples = tone(2.0, rate, channels)
    samples[-1] *= 0.5  # the channels differ where there are two
    speech = read_speech(write_wav(tmp_path / "a.wav", samples, rate, "pcm_f32le"))
    streamed = joined(speech.blocks(wanted))
    assert streamed.shape == (channels, 2 * wanted) and streamed.dtype == np.float32
    if rate == wanted:
        np.testing.assert_allclose(streamed, samples, atol=1e-6)
    assert np.abs(streamed[-1]).max() == pytest.approx(np.abs(samples[-1]).max(), rel=0.05)


@pytest.mark.parametrize("channels", [1, 2])
def test_speech_from_an_array_is_the_same_as_from_a_file(tmp_path, channels):
    samples = tone(1.5, 22_050, channels)
    made = speech_from_samples(samples if channels == 2 else samples[0], 22_050)
    read = read_speech(write_wav(tmp_path / "a.wav", samples, 22_050, "pcm_f32le"))
    np.testing.assert_allclose(made.samples, read.samples, atol=1e-5)
    np.testing.assert_allclose(joined(made.blocks(44_100)), joined(read.blocks(44_100)), atol=1e-5)
    assert made.digest() == speech_from_samples(samples, 22_050).digest() != read_digest(samples * 0.9)


def read_digest(samples):
    return speech_from_samples(samples, 22_050).digest()


def test_speech_from_an_array_of_a_wrong_shape_or_rate():
    with pytest.raises(ValueError, match="samples must be"):
        speech_from_samples(np.zeros((3, 100)), 16_000)
    with pytest.raises(ValueError, match="sample_rate"):
        speech_from_samples(np.zeros(100), 1)


def test_files_that_are_no_sound(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.wav")
    assert "folder" in refusal(tmp_path)
    (tmp_path / "empty.wav").touch()
    assert "empty" in refusal(tmp_path / "empty.wav")
    (tmp_path / "text.wav").write_text("a letter, not a sound\n" * 50)
    assert "cannot be read" in refusal(tmp_path / "text.wav")
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    assert "a picture" in refusal(tmp_path / "picture.png")
    write_video(tmp_path / "mute.mp4", 0.4)
    assert "a video without sound" in refusal(tmp_path / "mute.mp4")


@pytest.mark.parametrize("seconds", [0.05, 0.19])
def test_a_sound_too_short(tmp_path, seconds):
    assert "at least 0.2 s" in refusal(write_wav(tmp_path / "a.wav", tone(seconds, SAMPLE_RATE)))


def test_a_wav_of_a_header_alone(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", None))
    assert "at least 0.2 s" in refusal(tmp_path / "a.wav")


def test_a_fifth_of_a_second_is_enough(tmp_path):
    assert len(read_speech(write_wav(tmp_path / "a.wav", tone(0.2, SAMPLE_RATE))).samples) == 3200


@pytest.mark.parametrize("loud", [0.0, 1e-4])
def test_a_silent_sound(tmp_path, loud):
    path = write_wav(tmp_path / "a.wav", tone(1.0, SAMPLE_RATE, loud=loud), codec="pcm_f32le")
    assert "silent" in refusal(path)


def test_a_faint_sound_is_no_silence(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(1.0, SAMPLE_RATE, loud=1e-3), codec="pcm_f32le")
    assert read_speech(path).seconds == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [SAMPLE_RATE, 44_100])
def test_samples_that_are_not_numbers(tmp_path, value, rate):
    samples = tone(2.0, rate)
    samples[0, round(1.5 * rate)] = value
    message = refusal(write_wav(tmp_path / "a.wav", samples, rate, "pcm_f32le"))
    assert "not numbers at 1.5" in message or "not numbers at 1.49" in message


def test_a_sound_over_the_limit(tmp_path):
    for name, codec in [("a.wav", "pcm_s16le"), ("a.aac", "aac")]:  # a length announced, and one found by decoding
        path = sound_file(tmp_path / name, codec, 16_000, "mono", 3.0)
        assert "limit" in refusal(path, max_seconds=2.0)
        assert read_speech(path, max_seconds=4.0).seconds == pytest.approx(3.0, abs=0.1)


CUT = [
    ("a.wav", "pcm_s16le", 44_100, "stereo"),
    ("a.wav", "pcm_f32le", 44_100, "stereo"),
    ("a.aiff", "pcm_s16be", 44_100, "mono"),
    ("a.mp3", "libmp3lame", 44_100, "stereo"),
    ("a.m4a", "aac", 48_000, "stereo"),
    ("a.flac", "flac", 44_100, "stereo"),
    ("a.ogg", "libopus", 48_000, "mono"),
    ("a.mka", "aac", 44_100, "mono"),
]


@pytest.mark.parametrize(("name", "codec", "rate", "layout"), CUT)
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_sound_cut_short_is_refused(tmp_path, name, codec, rate, layout, share):
    path = sound_file(tmp_path / name, codec, rate, layout, 6.0)
    data = path.read_bytes()
    path.write_bytes(data[: round(len(data) * share)])
    message = refusal(path)
    assert "cut short" in message or "cannot be read" in message


@pytest.mark.parametrize(
    ("name", "codec", "rate", "layout"), [kind for kind in CUT if kind[1] in ("aac", "libmp3lame")]
)
def test_rot_half_way_names_the_second(tmp_path, name, codec, rate, layout):
    path = sound_file(tmp_path / name, codec, rate, layout, 6.0)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1500] = np.random.default_rng(1).bytes(1500)
    path.write_bytes(data)
    message = refusal(path)
    assert "damaged at 2." in message or "damaged at 3." in message


@pytest.mark.parametrize(("name", "codec"), [("a.flac", "flac"), ("a.ogg", "flac")])
def test_a_single_changed_bit_is_seen_where_check_sums_are_kept(tmp_path, name, codec):
    path = sound_file(tmp_path / name, codec, 44_100, "mono", 3.0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "damaged" in refusal(path)


def test_tags_behind_the_sound_and_a_start_in_the_middle_are_no_damage(tmp_path):
    path = sound_file(tmp_path / "a.mp3", "libmp3lame", 44_100, "mono", 3.0)
    data = path.read_bytes()
    path.write_bytes(data + b"APETAGEX" + np.random.default_rng(0).bytes(3000) + b"TAG" + bytes(125))
    assert read_speech(path).seconds == pytest.approx(3.0, abs=0.03)
    path.write_bytes(data[len(data) // 3 :])
    assert 1.5 < read_speech(path).seconds < 2.5


def test_a_wav_written_into_a_pipe_has_no_length_to_keep(tmp_path):
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    pipe = Pipe()
    with av.open(pipe, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(1.0, 16_000), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        data = pipe.getvalue()
    (tmp_path / "a.wav").write_bytes(data)
    assert b"\xff\xff\xff\xff" in data[:100]
    assert read_speech(tmp_path / "a.wav").seconds == pytest.approx(1.0, abs=0.01)


def test_a_change_of_rate_on_the_way_is_followed(tmp_path):
    bare = {"write_xing": "0", "id3v2_version": "0"}
    first = write_sound(tmp_path / "a.mp3", "libmp3lame", tone(1.0, 44_100, 2), 44_100, "stereo", options=bare)
    second = write_sound(tmp_path / "b.mp3", "libmp3lame", tone(1.0, 32_000), 32_000, "mono", options=bare)
    (tmp_path / "c.mp3").write_bytes(first.read_bytes() + second.read_bytes())
    samples = joined(decode_sound(tmp_path / "c.mp3", 16_000, 1))
    assert samples.shape[1] / 16_000 == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nb.ts\n#EXT-X-ENDLIST\n"),
        ("a.ffconcat", "ffconcat version 1.0\nfile b.wav\n"),
        ("a.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"),
    ],
)
def test_a_list_never_opens_other_files(tmp_path, name, text):
    write_wav(tmp_path / "b.wav", tone(1.0, 16_000))
    write_sound(tmp_path / "b.ts", "mp2", tone(1.0, 44_100), 44_100, "mono", format="mpegts")
    (tmp_path / name).write_text(text)
    refusal(tmp_path / name)


def test_memory_does_not_grow_beyond_the_result(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(60.0, 8_000), 8_000)
    tracemalloc.start()
    speech = read_speech(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert speech.samples.nbytes == 60 * 16_000 * 4
    assert peak < 1.4 * speech.samples.nbytes


FUZZED = [("a.wav", "pcm_s16le"), ("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.flac", "flac"), ("a.ogg", "libopus")]


@pytest.mark.parametrize(("name", "codec"), FUZZED)
def test_damaged_copies_give_speech_or_a_user_error(tmp_path, name, codec):
    path = sound_file(tmp_path / name, codec, 48_000, "mono", 1.0)

    def read(path):
        for _ in read_speech(path).blocks(48_000):
            pass

    assert only_user_errors(path, path.read_bytes(), read) > 0


def test_damaged_copies_of_a_video_give_speech_or_a_user_error(tmp_path):
    path = write_video(tmp_path / "a.mp4", 1.0, tone(1.0, 44_100))
    assert only_user_errors(path, path.read_bytes(), read_speech) > 0
