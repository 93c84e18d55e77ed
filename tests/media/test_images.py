import struct
import zlib

import numpy as np
import pytest
from media_samples import only_user_errors
from PIL import Image, ImageFile

from hallo3.errors import UserError
from hallo3.media.images import MAX_PIXELS, read_image, to_rgb

GREY = (128, 128, 128)


def picture(width=48, height=32):
    """Red left, blue right, green lowest quarter."""
    array = np.zeros((height, width, 3), np.uint8)
    array[:, : width // 2] = (250, 10, 10)
    array[:, width // 2 :] = (10, 10, 250)
    array[-height // 4 :] = (10, 250, 10)
    return Image.fromarray(array)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.bmp", "a.tif", "a.gif", "a.jp2", "a.ppm", "a.tga"])
def test_every_common_format_is_read_as_rgb(tmp_path, name):
    picture().save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    image = read_image(tmp_path / name)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(picture()))


@pytest.mark.parametrize("name", ["a.jpg", "a.avif"])
def test_lossy_formats_are_close(tmp_path, name):
    picture().save(tmp_path / name, quality=95)
    assert np.abs(np.asarray(read_image(tmp_path / name), float) - np.asarray(picture())).mean() < 6


def test_a_text_name_does_not_matter_only_the_content(tmp_path):
    picture().save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.txt")
    assert read_image(tmp_path / "a.txt").size == (48, 32)


def test_exif_orientation_turns_the_picture_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate 90° clockwise to see it upright
    picture().rotate(90, expand=True).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(picture()))


def test_alpha_lies_over_neutral_grey(tmp_path):
    image = picture().convert("RGBA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 8, 8))
    alpha.paste(128, (8, 0, 16, 8))
    image.putalpha(alpha)
    image.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.getpixel((2, 2)) == GREY
    assert read.getpixel((12, 2)) == pytest.approx((189, 69, 69), abs=1)
    assert read.getpixel((20, 2)) == (250, 10, 10)


@pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGB", (7, 7, 7)), ("P", 0)])
def test_a_transparent_colour_lies_over_neutral_grey(tmp_path, mode, colour):
    Image.new(mode, (32, 32), colour).save(tmp_path / "a.png", transparency=colour)
    assert read_image(tmp_path / "a.png").getpixel((4, 4)) == GREY


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16", "I", "F"])
def test_every_mode_keeps_its_brightness(mode):
    ramp = np.tile(np.linspace(0, 1, 64), (32, 1))
    if mode == "I;16":
        image = Image.fromarray((ramp * 65535).astype(np.uint16))
    elif mode == "I":
        image = Image.fromarray((ramp * 65535).astype(np.int32))
    elif mode == "F":
        image = Image.fromarray(ramp.astype(np.float32))
    else:
        image = Image.fromarray((ramp * 255).astype(np.uint8)).convert("RGB" if mode == "CMYK" else "L").convert(mode)
    seen = np.asarray(to_rgb(image), float).mean(axis=(0, 2)) / 255
    if mode == "1":
        seen, ramp = seen.reshape(4, 16).mean(axis=1), ramp[:, :].reshape(32, 4, 16).mean(axis=2)
    np.testing.assert_allclose(seen, ramp[0], atol=0.02 if mode != "1" else 0.1)


def test_a_float_picture_with_nan_is_refused(tmp_path):
    values = np.zeros((32, 32), np.float32)
    values[3, 4] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="not numbers"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_an_animation_gives_its_first_frame(tmp_path, name):
    second = Image.new("RGB", (48, 32), (0, 0, 0))
    picture().save(tmp_path / name, save_all=True, append_images=[second], duration=100, lossless=True)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / name)), np.asarray(picture()))


def refusal(path):
    with pytest.raises(UserError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert ";" in message  # what is wrong; what to do
    return message


def test_bad_files_are_named_in_one_line(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.png")
    assert "folder" in refusal(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "empty" in refusal(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("a letter, not a picture\n" * 20)
    assert "not a picture" in refusal(tmp_path / "text.png")
    assert "cannot be read" in refusal(tmp_path / "x\0y.png")
    (tmp_path / "file").write_text("x")
    assert "cannot be read" in refusal(tmp_path / "file" / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.tif"])
def test_a_picture_cut_short_is_refused(tmp_path, name):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert "damaged" in refusal(tmp_path / name) or "not a picture" in refusal(tmp_path / name)


@pytest.mark.parametrize("size", [(15, 400), (400, 15), (1, 1)])
def test_a_picture_too_small_is_refused(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert f"{size[0]}×{size[1]}" in refusal(tmp_path / "a.png")


def png(width, height, data=b""):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("size", [(0, 0), (0, 100)])
def test_a_picture_without_pixels_is_refused(tmp_path, size):
    (tmp_path / "a.png").write_bytes(png(*size))
    refusal(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(10_001, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_decoding(tmp_path, size):
    assert size[0] * size[1] > MAX_PIXELS
    (tmp_path / "a.png").write_bytes(png(*size))  # no pixels follow: decoding would say "damaged"
    message = refusal(tmp_path / "a.png")
    assert "pixels" in message and "scale it down" in message


def test_a_picture_at_the_limit_is_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(png(10_000, 10_000))
    assert "damaged" in refusal(tmp_path / "a.png")


def test_postscript_is_never_run(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")
    assert "not a picture" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.tif", "a.bmp", "a.avif", "a.jp2", "a.ico"])
def test_damaged_copies_give_a_picture_or_a_user_error(tmp_path, name):
    picture(64, 48).save(tmp_path / name)
    refused = only_user_errors(tmp_path / name, (tmp_path / name).read_bytes(), read_image)
    assert refused > 0
