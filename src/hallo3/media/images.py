"""Reading pictures: anything Pillow reads becomes an upright RGB image of bounded size."""

import os
import warnings

import numpy as np
from PIL import Image, ImageOps

from ..errors import UserError
from .files import require_file

MAX_PIXELS = 100_000_000
MIN_SIDE = 16
_GREY = (128, 128, 128)


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads a picture as RGB: turned upright by its EXIF mark, alpha over neutral grey, an animation's first frame.

    Raises UserError for a missing, empty, damaged or unknown file, a side under 16 pixels or more than `max_pixels`
    (100 megapixels unless told); the size is checked before anything is decoded.
    """
    path = require_file(path, "picture")
    # Pillow warns of large pictures by its own limit; ours is checked below, before decoding.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=_formats()) as image:
                _check_size(image, path, max_pixels)
                image.load()
                return to_rgb(image)
        except UserError:
            raise
        except Image.DecompressionBombError:
            raise UserError(f"{path}: the picture has too many pixels; scale it down") from None
        except Image.UnidentifiedImageError:
            raise UserError(f"{path}: not a picture that can be read; give a PNG, JPEG or WebP file") from None
        except Exception as error:  # Decoders meet damaged files with almost any exception.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{path}: the picture is damaged or cut short ({reason}); copy or export it again"
            ) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as upright RGB: turned by its EXIF mark, deep greys scaled, alpha over neutral grey.

    Raises ValueError if a float picture has values that are not numbers.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, (*_GREY, 255))
    ground.alpha_composite(image)
    return ground.convert("RGB")


def _formats() -> list[str]:
    """Every format Pillow knows but EPS: it is a program, run by Ghostscript."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _check_size(image: Image.Image, path: os.PathLike[str], max_pixels: int) -> None:
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{path}: the picture is {width}×{height} pixels; at least {MIN_SIDE}×{MIN_SIDE} are needed")
    if width * height > max_pixels:
        raise UserError(
            f"{path}: the picture is {width}×{height} pixels, over the limit of {max_pixels / 10**6:g} megapixels;"
            " scale it down"
        )


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Deep greys to 8 bits. Pillow's own conversion clips at 255, which leaves a white picture."""
    values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError("some pixels are not numbers")
    peak = float(values.max())
    if image.mode.startswith("I;16") or peak > 255:
        white = 65535.0 if peak <= 65535 else peak
    else:
        white = 255.0 if image.mode == "I" or peak > 1 else 1.0
    return Image.fromarray((np.clip(values / white, 0, 1) * 255 + 0.5).astype(np.uint8))
