"""An invisible watermark in the pictures themselves: it outlives tags, compression, resizing and cropping.

Spread spectrum. A frame's brightness is seen through lapped cosines (the basis of the modified discrete cosine
transform) on a grid of nearly square cells, the same for every resolution. Each cosine carries two chips, signs drawn
from the key; a bit of the identifier turns the signs of its chips. What is added swings once in a second, one chip by a
cosine, one by a sine: what stands still in the picture, which is far stronger than the mark, then cancels.

A reader demodulates two seconds or more into one complex picture, so that a search for what a crop has taken away costs
no second look at the frames. It states how likely an unmarked video looks like this, by Hoeffding's inequality over the
draw of the key, times the number of places, phases and identifiers tried: a bound that needs no model of pictures.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SCHEME = "hallo3-1"
BITS = 24
FPS = 25
WINDOW = 2 * FPS  # frames that are demodulated together: two swings
SHORTEST = FPS  # frames; with fewer than one swing nothing can be told
MOST_WINDOWS = 10
FALSE_POSITIVES = 1e-6

_CELLS = 96  # of the grid, about
_CELL = 16  # unit of length: a cell has this many of them, so that 128×192 pixels are one each
_ORDERS = 4
_PAIRS = [(a, b) for a in range(_ORDERS) for b in range(_ORDERS) if math.hypot(a + 0.5, b + 0.5) < 3.2]
_ROW_ORDER, _COLUMN_ORDER = np.array(_PAIRS).T
# Pictures have less the finer they are; so the mark may have too.
_PROFILE = (np.hypot(_ROW_ORDER + 0.5, _COLUMN_ORDER + 0.5) / 2.5) ** -1.0
_SETS = BITS + 1  # one for each bit, and one that is always +1: it tells the identifier from its complement
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
_DARK = 80.0  # grey level
_WHOLE = (0.0, 1.0, 0.0, 1.0)
_MOST_CROPPED = 0.13  # of height or width, both sides together
_PHASES = np.exp(-1j * np.pi * np.arange(8) / 8).astype(np.complex64)  # the rest differ by a sign

Rect = tuple[float, float, float, float]


@dataclass(frozen=True)
class Strength:
    """How strong the mark is, in grey levels of one cosine: base + texture · what is there, at most `limit`."""

    base: float = 4.0
    texture: float = 0.1
    limit: float = 13.0


class Watermark:
    """Marks frames of one size with an identifier.

    identifier: 0 ≤ identifier < 2**24. height, width: of the frames, in pixels; what the reader withstands is measured
    from 128×192 up (docs/responsible-use.md). Frame n is the same whichever clip it comes in, so a resumed run marks
    as an uninterrupted one.
    """

    def __init__(self, identifier: int, height: int, width: int, *, fps: float = FPS, strength: Strength | None = None):
        if not 0 <= identifier < 1 << BITS:
            raise ValueError(f"identifier must have {BITS} bits")
        self.strength = strength or default_strength(height, width)
        self._fps = float(fps)
        grid = _grid(height, width)
        self._view = _View.of(grid, height, width)
        chips, owner = _key(grid)
        signs = np.append(_signs(identifier), 1)
        self._chips = chips * signs[owner].astype(np.float32)

    def apply(self, frames: NDArray[np.uint8], first: int) -> NDArray[np.uint8]:
        """Marked copies. frames: (F, height, width, 3) uint8 RGB. first: the first one's number in the video."""
        marked = np.empty_like(frames)
        for number, frame in enumerate(frames, first):
            swing = np.exp(2j * np.pi * number / self._fps)
            wave = (self._chips.conj() * np.complex64(swing)).real
            luma = frame @ _LUMA
            seen = self._view.look(luma)
            added = self._view.draw(wave.reshape(seen.shape) * self._amplitude(seen))
            added *= np.clip(luma / _DARK, 0.75, 1)  # the eye sees more of it in the dark
            np.rint(np.clip(frame + added[..., None], 0, 255), out=marked[number - first], casting="unsafe")
        return marked

    def _amplitude(self, seen: NDArray[np.float32]) -> NDArray[np.float32]:
        """Strength of each cosine: more where the picture has structure that hides it."""
        s = self.strength
        structure = _smooth((np.abs(seen) / _PROFILE).mean(-1))
        level = np.minimum(s.base + s.texture * structure, s.limit)[..., None]
        return (level * np.sqrt(np.minimum(_PROFILE, 1.5))).astype(np.float32)


def default_strength(height: int, width: int) -> Strength:
    """Less for larger frames, where compression leaves more of it; chosen by benchmarks/watermark.py."""
    full = Strength()
    factor = min(1.0, max(0.6, (height * width / (128 * 192)) ** -0.22))
    return Strength(full.base * factor, full.texture * factor, full.limit * factor)


def written(identifier: int) -> str:
    """An identifier as people and tags see it: 0x0A3C71 → `0a3c71`."""
    return f"{identifier:0{BITS // 4}x}"


@dataclass(frozen=True)
class Detection:
    """What a reader has seen.

    found: a mark, at a false positive rate of at most 1e-6. identifier: its bits as most likely read. certainty: for
    each bit, how many standard deviations of chance it stands out by. log10_chance: upper bound of the chance that the
    best of all places looks like this in a video without a mark. kept: top, bottom, left and right edge of what is
    shown, in shares of the marked picture. mirrored: shown the other way round. frames: how many were looked at.
    """

    found: bool
    identifier: int
    certainty: tuple[float, ...]
    score: float
    log10_chance: float
    kept: Rect
    mirrored: bool
    frames: int

    @property
    def too_short(self) -> bool:
        """Fewer frames than a statement needs."""
        return self.frames < SHORTEST


def detect(frames: Iterable[NDArray[np.uint8]], *, cropped: bool = True, key: str = SCHEME) -> Detection:
    """Looks for the mark in frames (height, width, 3) uint8 RGB at 25 a second; memory does not grow with their number.

    The first 20 seconds are read: together, then, where that shows nothing, two seconds at a time. cropped: search for
    edges cut away, up to 13 % of height and width. key: another one is for measuring false positives.
    """
    windows, shape, count = _demodulated(frames)
    if not windows:
        return Detection(False, 0, (0.0,) * BITS, 0.0, 0.0, _WHOLE, False, count)
    search = _Search(*shape, key=key)
    pictures = [np.sum(windows, axis=0), *(windows if len(windows) > 1 else ())]
    tried = math.log10(2 * len(pictures) * search.places * len(_PHASES)) + _SETS * math.log10(2)
    best: Detection | None = None
    for wide, picture, mirrored in product((False, True) if cropped else (False,), pictures, (False, True)):
        seen = search.best(picture[:, ::-1] if mirrored else picture, wide)
        chance = min(0.0, tried - seen.score**2 / 2 / math.log(10))
        now = Detection(False, seen.identifier, seen.certainty, seen.score, chance, seen.kept, mirrored, count)
        if best is None or now.score > best.score:
            best = now
        if chance <= math.log10(FALSE_POSITIVES):
            return replace(now, found=True)
    assert best is not None
    return best


def _demodulated(
    frames: Iterable[NDArray[np.uint8]],
) -> tuple[list[NDArray[np.complex64]], tuple[int, int], int]:
    """Complex pictures of two seconds each (of less, if that is all), the frames' size, and how many were read.

    Two seconds are two whole swings, so that the pictures of all windows are in phase and may be added.
    """
    done: list[NDArray[np.complex64]] = []
    window: list[NDArray[np.float32]] = []
    shape, count = (0, 0), 0
    for frame in frames:
        if count == MOST_WINDOWS * WINDOW or (count and frame.shape[:2] != shape):
            break
        shape, count = frame.shape[:2], count + 1
        window.append(frame @ _LUMA)
        if len(window) == WINDOW:
            done.append(_demodulate(window))
            window = []
    if not done and len(window) >= SHORTEST:
        done.append(_demodulate(window))
    return done, shape, count


def _demodulate(window: list[NDArray[np.float32]]) -> NDArray[np.complex64]:
    time = np.arange(len(window))
    template = np.exp(-2j * np.pi * time / FPS)
    # What stands still, drifts or speeds up evenly has no part in the result.
    slow = np.linalg.qr(np.vander(time / len(window), 3))[0]
    template = (2 / len(window) * (template - slow @ (slow.T @ template))).astype(np.complex64)
    total = np.zeros(window[0].shape, np.complex64)
    for weight, luma in zip(template, window, strict=True):
        total += weight * luma
    return total


class _Seen(NamedTuple):
    score: float
    kept: Rect
    identifier: int
    certainty: tuple[float, ...]


class _Search:
    """Where in a marked picture the frames shown may lie: all of it, or all but cropped edges."""

    def __init__(self, height: int, width: int, *, key: str) -> None:
        self._size = (height, width)
        self._grids = _grids_near(height, width)
        self._keys = {grid: _key(grid, key) for grid in self._grids}
        steps = [tuple(_edges(2 / (_CELL * cells)) for cells in grid) for grid in self._grids]
        self._edges = dict(zip(self._grids, steps, strict=True))
        refinements = 2 * 8
        self.places = len(self._grids) + sum(len(rows) * len(columns) + refinements for rows, columns in steps)

    def best(self, picture: NDArray[np.complex64], wide: bool) -> _Seen:
        """The most striking place in a complex picture; wide: also where edges are cut away."""
        found = [self._wide(picture, grid) if wide else (self._score(picture, grid, _WHOLE), _WHOLE, grid)
                 for grid in self._grids]  # fmt: skip
        score, kept, grid = max(found, key=lambda one: one[0])
        return self._read(picture, grid, kept, score)

    def _wide(self, picture: NDArray[np.complex64], grid: tuple[int, int]) -> tuple[float, Rect, tuple[int, int]]:
        rows, columns = self._edges[grid]
        looks = [
            _looks(cells, size, edges) for cells, size, edges in zip(grid, self._size, (rows, columns), strict=True)
        ]
        seen = (looks[0] @ picture) @ looks[1].T
        seen = seen.reshape(len(rows), grid[0] - 1, _ORDERS, len(columns), grid[1] - 1, _ORDERS)
        score, kept = -1.0, _WHOLE
        for row, part in zip(rows, seen, strict=True):
            scores = self._scores(part.transpose(2, 0, 3, 1, 4)[..., _ROW_ORDER, _COLUMN_ORDER], grid)
            at = int(scores.argmax())
            if scores[at] > score:
                score, kept = float(scores[at]), (*row, *columns[at])
        for step in (1.0, 0.5):
            for edge, sign in product(range(4), (-1, 1)):
                moved = list(kept)
                moved[edge] += sign * step / (_CELL * grid[edge // 2])
                other = (moved[0], moved[1], moved[2], moved[3])
                if (now := self._score(picture, grid, other)) > score:
                    score, kept = now, other
        return score, kept, grid

    def _score(self, picture: NDArray[np.complex64], grid: tuple[int, int], kept: Rect) -> float:
        return float(self._scores(_View.of(grid, *self._size, kept).look(picture)[None], grid)[0])

    def _scores(self, seen: NDArray[np.complex64], grid: tuple[int, int]) -> NDArray[np.float32]:
        """(n,) scores of (n, rows, columns, cosines): the best sum over phases and identifiers, in deviations."""
        chips, owner = self._keys[grid]
        even = _even(seen).reshape(len(seen), -1)
        spread = np.zeros((len(chips), _SETS), np.complex64)
        spread[np.arange(len(chips)), owner] = chips
        sums = (even @ spread)[..., None] * _PHASES
        total = np.abs(sums.real).sum(1).max(-1)
        return total / np.sqrt((even.real**2 + even.imag**2).sum(-1) + 1e-12)

    def _read(self, picture: NDArray[np.complex64], grid: tuple[int, int], kept: Rect, score: float) -> _Seen:
        chips, owner = self._keys[grid]
        even = _even(_View.of(grid, *self._size, kept).look(picture)).ravel()
        products = even * chips
        sums = np.array([products[owner == index].sum() for index in range(_SETS)])
        phase = np.angle((sums**2).sum()) / 2  # the square forgets the bits' signs
        values = (sums * np.exp(-1j * phase)).real
        values *= 1 if values[-1] >= 0 else -1
        chance = [math.sqrt((np.abs(even[owner == index]) ** 2).sum() + 1e-12) for index in range(BITS)]
        certainty = tuple(float(abs(v) / c) for v, c in zip(values, chance, strict=False))
        identifier = sum(1 << index for index in range(BITS) if values[index] > 0)
        return _Seen(score, kept, identifier, certainty)


class _View:
    """The cosines of a grid over frames of one size: `look` measures them, `draw` adds them up."""

    def __init__(self, rows: tuple[NDArray, NDArray], columns: tuple[NDArray, NDArray]) -> None:
        self._rows, self._columns = rows, columns

    @classmethod
    def of(cls, grid: tuple[int, int], height: int, width: int, kept: Rect = _WHOLE) -> "_View":
        return cls(_cosines(grid[0], height, *kept[:2]), _cosines(grid[1], width, *kept[2:]))

    def look(self, picture: NDArray) -> NDArray:
        """(height, width) → (rows, columns, cosines)."""
        rows, columns = (part[0].reshape(-1, part[0].shape[-1]) for part in (self._rows, self._columns))
        seen = (rows @ picture) @ columns.T
        count = len(self._rows[0]), len(self._columns[0])
        seen = seen.reshape(count[0], _ORDERS, count[1], _ORDERS).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(seen[..., _ROW_ORDER, _COLUMN_ORDER])

    def draw(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(rows, columns, cosines) → (height, width)."""
        rows, columns = (part[1].reshape(-1, part[1].shape[-1]) for part in (self._rows, self._columns))
        count = values.shape[:2]
        full = np.zeros((*count, _ORDERS, _ORDERS), np.float32)
        full[..., _ROW_ORDER, _COLUMN_ORDER] = values
        flat = full.transpose(0, 2, 1, 3).reshape(count[0] * _ORDERS, count[1] * _ORDERS)
        return (rows.T @ flat) @ columns


def _cosines(cells: int, size: int, start: float = 0.0, end: float = 1.0) -> tuple[NDArray, NDArray]:
    """Lapped cosines (cells − 1, orders, size) for looking and for drawing, at pixels of a part of the whole picture.

    Each spans two cells under a sine window. They are orthonormal where pixels are many, in units of a sixteenth cell.
    """
    time = (start + (end - start) * (np.arange(size) + 0.5) / size) * cells
    place = time - np.arange(cells - 1)[:, None]
    window = np.where((place > 0) & (place < 2), np.sin(np.pi * place / 2), 0.0)
    order = np.arange(_ORDERS)[:, None]
    wave = math.sqrt(2) * window[:, None] * np.cos(np.pi * (place[:, None] + 0.5) * (order + 0.5))
    step = (end - start) * cells / size
    return (wave * (step * math.sqrt(_CELL))).astype(np.float32), (wave / math.sqrt(_CELL)).astype(np.float32)


def _looks(cells: int, size: int, edges: list[tuple[float, float]]) -> NDArray[np.float32]:
    return np.concatenate([_cosines(cells, size, *pair)[0].reshape(-1, size) for pair in edges])


def _edges(step: float) -> list[tuple[float, float]]:
    """Pairs of first and last edge: what cropping may have left of a height or a width, in steps."""
    count = int(_MOST_CROPPED / step) + 1
    pairs = product(range(count), range(count))
    return [(first * step, 1 - last * step) for first, last in pairs if (first + last) * step <= _MOST_CROPPED]


def _even(seen: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Weighs the cosines alike, whether much moves where they are or little: their sizes matter up to a bound."""
    around = _smooth(np.abs(seen).mean(-1))[..., None]
    even = seen / (2.0 + around)
    return even / np.maximum(1.0, np.abs(even) / 0.6)


def _smooth(values: NDArray) -> NDArray:
    """Weighted means over 3×3 neighbours in the last two dimensions."""
    for axis in (-2, -1):
        padded = np.pad(values, [(1, 1) if index == values.ndim + axis else (0, 0) for index in range(values.ndim)],
                        mode="edge")  # fmt: skip
        before, middle, after = (np.take(padded, np.arange(k, k + values.shape[axis]), axis) for k in range(3))
        values = (before + 2 * middle + after) / 4
    return values


def _aspect(number: int) -> tuple[int, int]:
    aspect = 2 ** (number / 4)
    rows = max(3, round(math.sqrt(_CELLS / aspect)))
    return rows, max(3, round(_CELLS / rows))


def _grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of cells for a format: few grids serve all, so that a cropped picture's is among the nearest."""
    return _aspect(round(4 * math.log2(width / height)))


def _grids_near(height: int, width: int) -> list[tuple[int, int]]:
    slack = math.log2(1 / (1 - _MOST_CROPPED))
    place = math.log2(width / height)
    numbers = range(round(4 * (place - slack)), round(4 * (place + slack)) + 1)
    grids = {_aspect(number): None for number in sorted(numbers, key=lambda number: abs(number - 4 * place))}
    return list(grids)


@lru_cache(maxsize=64)
def _key(grid: tuple[int, int], key: str = SCHEME) -> tuple[NDArray[np.complex64], NDArray[np.int64]]:
    """Chips ±1 ± i of all cosines, and to which set each belongs."""
    count = (grid[0] - 1) * (grid[1] - 1) * len(_PAIRS)
    bits = np.fromiter(_bits(f"{key} chips {grid}", 2 * count), np.float32, 2 * count).reshape(2, count) * 2 - 1
    order = np.argsort([hashlib.sha256(f"{key} order {grid} {index}".encode()).digest() for index in range(count)])
    owner = np.empty(count, np.int64)
    owner[order] = np.arange(count) % _SETS
    return (bits[0] + 1j * bits[1]).astype(np.complex64), owner


def _bits(seed: str, count: int) -> Iterator[int]:
    """Bits from SHAKE-256: the same on every machine and with every version of numpy."""
    data = hashlib.shake_256(seed.encode()).digest((count + 7) // 8)
    return (data[index // 8] >> index % 8 & 1 for index in range(count))


def _signs(identifier: int) -> NDArray[np.int64]:
    return np.array([1 if identifier >> index & 1 else -1 for index in range(BITS)])
