"""Vocals out of a mixture, by Kim_Vocal_2, an MDX-Net in ONNX (spec section 1); needs the extra `vocals`.

The network sees spectrograms of 256 columns, about 6 s. The mixture is cut into overlapping pieces of that length, and
the results are added under Hann windows, because those of a piece's ends are poor. A piece costs the same wherever it
lies, and nothing else is kept, so a recording of any length is separated in constant memory.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UserError

SAMPLE_RATE = 44_100
N_FFT = 7680
BINS = 3072  # of N_FFT/2 + 1: up to 17.6 kHz
COLUMNS = 256
HOP = 1024
COMPENSATE = 1.009  # the network answers a little too quietly
SILENT_BINS = 3  # below 17 Hz there is only rumble
PIECE = HOP * (COLUMNS - 1)
STEP = PIECE * 3 // 4
LEAD = N_FFT // 2  # silence before the first sample, which would otherwise lie where the first window is zero


def separate_vocals(samples: NDArray[np.float32], model: str | Path) -> NDArray[np.float32]:
    """The voice in a recording.

    Args:
        samples: `(1 or 2, n)` at 44.1 kHz.
        model: The file Kim_Vocal_2.onnx.

    Returns:
        `(2, n)` at 44.1 kHz.

    Raises:
        UserError: as `stream_vocals`.
    """
    return np.concatenate([np.zeros((2, 0), np.float32), *stream_vocals([samples], model)], axis=1)


def stream_vocals(blocks: Iterable[NDArray[np.float32]], model: str | Path) -> Iterator[NDArray[np.float32]]:
    """As `separate_vocals` for a recording that comes in blocks (1 or 2, n): yields blocks (2, n) as they are done.

    Raises UserError when onnxruntime is not installed or `model` is missing, unreadable or another network. That is
    checked at once, not when the first block is asked for.
    """
    return _stream(blocks, _load(Path(model)))


def _stream(blocks: Iterable[NDArray[np.float32]], session: Any) -> Iterator[NDArray[np.float32]]:
    window = np.hanning(PIECE).astype(np.float32)
    waiting = np.zeros((2, LEAD), np.float32)  # samples from the current piece's start on
    voice, weight = np.zeros((2, PIECE), np.float32), np.zeros(PIECE, np.float32)  # sums over pieces, from there too
    skip = LEAD  # samples of the silence that still have to be left out of the result

    def step(mixture: NDArray[np.float32]) -> None:
        nonlocal voice, weight
        voice += _separate(session, mixture) * window
        weight += window

    for block in blocks:
        waiting = np.concatenate([waiting, np.broadcast_to(block, (2, block.shape[1]))], axis=1)
        while waiting.shape[1] >= PIECE:
            step(waiting[:, :PIECE])
            yield _done(voice, weight, STEP)[:, skip:]
            skip = 0
            waiting, voice, weight = waiting[:, STEP:], _shift(voice), _shift(weight)
    while (length := waiting.shape[1]) > skip:
        step(np.pad(waiting, ((0, 0), (0, PIECE - length))))
        yield _done(voice, weight, min(STEP, length))[:, skip:]
        skip = 0
        waiting, voice, weight = waiting[:, STEP:], _shift(voice), _shift(weight)


def _done(voice: NDArray[np.float32], weight: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The first samples, to which no later piece adds. The very first weight is zero, in the leading silence."""
    return (COMPENSATE * voice[:, :count] / np.maximum(weight[:count], 1e-12)).astype(np.float32)


def _shift(sums: NDArray[np.float32]) -> NDArray[np.float32]:
    moved = np.zeros_like(sums)
    moved[..., :-STEP] = sums[..., STEP:]
    return moved


def _separate(session: Any, mixture: NDArray[np.float32]) -> NDArray[np.float32]:
    """One piece (2, PIECE) → its voice (2, PIECE)."""
    window = torch.hann_window(N_FFT)
    spectrum = torch.stft(
        torch.from_numpy(np.ascontiguousarray(mixture)), N_FFT, HOP, window=window, center=True, return_complex=True
    )
    spectrum[:, :SILENT_BINS] = 0
    # Channels for the network: left real, left imaginary, right real, right imaginary.
    planes = torch.view_as_real(spectrum[:, :BINS]).permute(0, 3, 1, 2).reshape(1, 4, BINS, COLUMNS)
    answer = session.run(None, {session.get_inputs()[0].name: planes.contiguous().numpy()})[0]
    planes = torch.from_numpy(answer).reshape(2, 2, BINS, COLUMNS).permute(0, 2, 3, 1).contiguous()
    spectrum = torch.zeros_like(spectrum)
    spectrum[:, :BINS] = torch.view_as_complex(planes)
    return torch.istft(spectrum, N_FFT, HOP, window=window, center=True, length=PIECE).numpy()


def _load(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError("--separate-vocals: needs onnxruntime; install it with `pip install hallo3[vocals]`") from None
    if not path.is_file():
        raise UserError(f"{path}: no such file; give Kim_Vocal_2.onnx (audio_separator/ of the published files)")
    wanted = [
        p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in onnxruntime.get_available_providers()
    ]
    try:
        session = onnxruntime.InferenceSession(str(path), providers=wanted)
    except Exception as error:  # onnxruntime has no common base class for its errors
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is not an ONNX network ({reason}); copy or download Kim_Vocal_2.onnx again") from None
    shape = session.get_inputs()[0].shape
    expected = (4, BINS, COLUMNS)
    known = [n if isinstance(n, int) else None for n in shape[1:]]
    if len(shape) != 4 or any(n not in (None, e) for n, e in zip(known, expected, strict=True)):
        raise UserError(f"{path}: a network for input {shape}, not [1, 4, {BINS}, {COLUMNS}]; give Kim_Vocal_2.onnx")
    return session
