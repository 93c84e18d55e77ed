"""What the watermark withstands and costs: `python benchmarks/watermark.py [--size 128x192] [--photographs FOLDER]`.

Drawn people and, where a folder of labelled portraits is given, bent photographs, two seconds each. Every marked video
is written at CRF 18 as the product writes it, attacked, and read again. Beside ours stands what `invisible-watermark`
offers, where it is installed (`pip install --no-deps invisible-watermark PyWavelets`, and opencv-python): its 32 bits,
pooled over the same frames, with rivaGAN embedded at a canonical 256×384 where frames are smaller, and the residual
scaled back.
"""

import io
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import av
import numpy as np
import typer
from PIL import Image

from hallo3.media.watermark import BITS, WINDOW, Watermark, detect

IDENTIFIER = 0xA53C71
Frames = np.ndarray
Reader = Callable[[Frames], float]


def compressed(frames: Frames, crf: int) -> Frames:
    """Through H.264 and back."""
    file = io.BytesIO()
    height, width = (size - size % 2 for size in frames.shape[1:3])
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": str(crf), "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames[:, :height, :width]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def resized(frames: Frames, height: int, width: int) -> Frames:
    """Bicubic."""
    size = (width, height)
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BICUBIC)) for f in frames])


def half(frames: Frames) -> Frames:
    """Half as high and wide."""
    return resized(frames, frames.shape[1] // 2, frames.shape[2] // 2)


def cropped(frames: Frames) -> Frames:
    """A tenth less high and wide, from uneven sides."""
    height, width = frames.shape[1:3]
    top, left = height // 33, width // 13
    return frames[:, top : top + height * 9 // 10, left : left + width * 9 // 10]


ATTACKS: dict[str, Callable[[Frames], Frames]] = {
    "as written": lambda frames: frames,
    "CRF 28": lambda frames: compressed(frames, 28),
    "half": half,
    "half, CRF 18": lambda frames: compressed(half(frames), 18),
    "crop 10 %": cropped,
    "crop 10 %, CRF 28": lambda frames: compressed(cropped(frames), 28),
    "half, CRF 28": lambda frames: compressed(half(frames), 28),
}


def videos(height: int, width: int, count: int, recordings: Path, photographs: Path | None) -> Iterator[Frames]:
    """Two seconds each: drawn people, then bent photographs."""
    from hallo3.studio.dataset import Material, sample

    kinds = [Material.find(recordings)] + ([Material.find(recordings, photographs, 1.0)] if photographs else [])
    for material in kinds:
        for seed in range(100, 100 + count):
            yield sample(seed, split="test", frames=WINDOW, height=height, width=width, material=material).frames


def ours(frames: Frames) -> tuple[Frames, Reader, Reader]:
    """Our mark: marked frames, share of right bits, decimal logarithm of the bound on chance."""
    marked = Watermark(IDENTIFIER, *frames.shape[1:3]).apply(frames, 7)

    def share(seen: Frames) -> float:
        return 1 - (detect(seen).identifier ^ IDENTIFIER).bit_count() / BITS

    return marked, share, lambda seen: detect(seen).log10_chance


def theirs(method: str) -> Callable[[Frames], tuple[Frames, Reader, None]]:
    """A method of `invisible-watermark`, bits pooled over frames by their mean."""
    from imwatermark import WatermarkDecoder, WatermarkEncoder

    bits = np.random.default_rng(5).integers(0, 2, 32)
    if method == "rivaGan":
        WatermarkEncoder.loadModel()
        WatermarkDecoder.loadModel()

    def mark(frames: Frames) -> tuple[Frames, Reader, None]:
        encoder = WatermarkEncoder()
        encoder.set_watermark("bits", list(map(int, bits)))
        shape = frames.shape[1:3]
        canonical = frames if min(shape) >= 256 else resized(frames, 256, 384)
        added = np.stack([encoder.encode(np.ascontiguousarray(f), method) for f in canonical]).astype(int) - canonical
        if min(shape) < 256:
            shifted = np.clip(added + 128, 0, 255).astype(np.uint8)
            added = resized(shifted, *shape).astype(int) - 128
        return np.clip(frames + added, 0, 255).astype(np.uint8), read, None

    def read(frames: Frames) -> float:
        decoder = WatermarkDecoder("bits", 32)
        seen = frames if min(frames.shape[1:3]) >= 256 else resized(frames, 256, 384)
        votes = np.mean([np.asarray(decoder.decode(np.ascontiguousarray(f), method), float) for f in seen], axis=0)
        return float(((votes > 0.5) == bits).mean())

    return mark


def methods() -> dict[str, Callable[[Frames], tuple[Frames, Reader, Reader | None]]]:
    """Ours, and what is installed of others."""
    known: dict[str, Callable[[Frames], tuple[Frames, Reader, Reader | None]]] = {"hallo3": ours}
    try:
        known |= {"dwtDct": theirs("dwtDct"), "rivaGan": theirs("rivaGan")}
    except ImportError:
        print("invisible-watermark is not installed: ours alone")
    return known


def similarity(one: Frames, two: Frames) -> tuple[float, float]:
    """PSNR in decibels and mean SSIM."""
    from skimage.metrics import structural_similarity

    psnr = 10 * math.log10(255**2 / ((one.astype(float) - two) ** 2).mean())
    few = [structural_similarity(one[i], two[i], channel_axis=2, data_range=255) for i in range(0, len(one), 10)]
    return psnr, float(np.mean(few))


def main(
    size: Annotated[str, typer.Option(help="Height and width of the frames.")] = "128x192",
    count: Annotated[int, typer.Option(help="Videos of each kind.")] = 4,
    recordings: Annotated[Path, typer.Option(help="Folder with speech.")] = Path("src/hallo3/embedded/sample"),
    photographs: Annotated[Path | None, typer.Option(help="Folder with labelled portraits.")] = None,
    only: Annotated[str, typer.Option(help="Methods, with commas between; all that are there by default.")] = "",
) -> None:
    """Prints one line a method and attack: mean and lowest share of right bits, weakest bound on chance."""
    height, width = map(int, size.split("x"))
    speech = _splits(recordings)
    films = list(videos(height, width, count, speech, photographs))
    known = {name: mark for name, mark in methods().items() if not only or name in only.split(",")}
    for name, mark in known.items():
        marked = [mark(film) for film in films]
        psnr, ssim = np.mean([similarity(film, one[0]) for film, one in zip(films, marked, strict=True)], axis=0)
        print(f"{name} at {size}, {len(films)} videos: PSNR {psnr:.1f} dB, SSIM {ssim:.4f}", flush=True)
        written = [compressed(one[0], 18) for one in marked]
        for attack, apply in ATTACKS.items():
            seen = [apply(film) for film in written]
            shares = [one[1](film) for film, one in zip(seen, marked, strict=True)]
            bounds = [one[2](film) for film, one in zip(seen, marked, strict=True) if one[2] is not None]
            least = f", chance at most 1e{max(bounds):.0f}" if bounds else ""
            print(f"  {attack:18} bits {np.mean(shares):.3f} (lowest {min(shares):.3f}){least}", flush=True)


def _splits(folder: Path) -> Path:
    """A folder in which both halves of the split have a recording: copies of what there is under other names."""
    import shutil
    import tempfile

    sounds = sorted(path for path in folder.iterdir() if path.suffix in (".wav", ".flac", ".mp3"))
    made = Path(tempfile.mkdtemp())
    for held_out in (True, False):
        number = next(n for n in range(99) if (zlib.crc32(f"{n}.wav".encode()) % 5 == 0) == held_out)
        shutil.copy(sounds[0], made / f"{number}.wav")
    return made


if __name__ == "__main__":
    typer.run(main)
