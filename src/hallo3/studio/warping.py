"""The inner loop that bends a still photograph: every output pixel asks where in the photograph it comes from.

Lengths in face units are multiples of the distance from the eyes' middle to the mouth, the measure that changes least
with expression. Local face coordinates (u, v) start at the middle of the lips: u along them, v towards the chin.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# Order of a frame's parameters, all in face units, radians or 0…1.
FRAME_FIELDS = ("shift_x", "shift_y", "roll", "zoom", "yaw", "pitch", "drift_x", "drift_y", "opening", "width", "blink")

GAP = 0.38  # lips' distance at opening 1
UPPER = 0.18  # the upper lip's share of it


@njit(cache=True, fastmath=True)
def _smooth_step(x: float) -> float:
    x = min(max(x, 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)


@njit(cache=True, fastmath=True)
def _head_inverse(x, y, frame, face, unit):
    """Where a point of the moved head was in the still; far from the head nothing moves."""
    centre_x, centre_y, radius_x, radius_y, pivot_x, pivot_y = face[0], face[1], face[2], face[3], face[4], face[5]
    dx, dy = (x - centre_x) / radius_x, (y - centre_y) / radius_y
    reach = math.sqrt(dx * dx + dy * dy)
    weight = 1.0 - _smooth_step((reach - 1.15) / 1.25)
    if weight <= 0.0:
        return x, y
    cos, sin = math.cos(frame[2]) / frame[3], math.sin(frame[2]) / frame[3]
    px, py = x - pivot_x - frame[0] * unit, y - pivot_y - frame[1] * unit
    moved_x, moved_y = pivot_x + cos * px + sin * py, pivot_y - sin * px + cos * py
    # A turned head is a turned ellipsoid: its middle moves, its outline stays.
    depth = math.sqrt(max(0.0, 1.0 - 0.85 * min(reach, 1.0) ** 2))
    moved_x -= frame[4] * depth * radius_x
    moved_y += frame[5] * depth * radius_y
    return x + weight * (moved_x - x), y + weight * (moved_y - y)


@njit(cache=True, fastmath=True)
def _lens(u: float, half: float) -> float:
    t = u / half
    return math.sqrt(1.0 - t * t) if abs(t) < 1.0 else 0.0


@njit(cache=True, fastmath=True)
def mouth_stretch(width):
    """The mouth's width over its width at rest, for width 0 (round) … 1 (spread)."""
    return 1.0 + (0.75 if width < 0.5 else 0.4) * (width - 0.5)


@njit(cache=True, fastmath=True)
def _mouth_inverse(u, v, opening, width, half, chin):
    """Source (u, v) of an output point near the mouth, and how deep it lies inside the open mouth (0: outside it).

    The third value is 0 outside, else 0 < t < 1 from the upper to the lower lip.
    """
    gap = GAP * opening
    stretch = mouth_stretch(width)
    reach = _smooth_step(1.0 - abs(v) / 0.75) * _smooth_step(1.0 - (abs(u) - half) / 0.7)
    u = u / (1.0 + (stretch - 1.0) * reach)
    # Round mouths gather: the lips' corners come in and the gap stays.
    lens = _lens(u, half * 0.97)
    top, bottom = -UPPER * gap * lens, (1.0 - UPPER) * gap * lens
    if top < v < bottom:
        return u, v, (v - top) / (bottom - top)
    if v <= 0.0:
        source = v
        for _ in range(4):
            source = v + UPPER * gap * lens * _smooth_step(1.0 + source / 0.34)
        return u, min(source, 0.0), 0.0
    broad = math.exp(-((u / 0.75) ** 2))
    source = v
    for _ in range(6):
        along = _smooth_step(source / chin)
        fade = 1.0 - _smooth_step((source - chin) / 0.9)
        source = v - (1.0 - UPPER) * gap * (lens * (1.0 - along) + broad * along) * fade
        source = max(source, 0.0)
    return u, source, 0.0


@njit(cache=True, fastmath=True)
def _blink_inverse(u, v, blink, eye_distance):
    """Source v of a point around an eye whose upper lid comes down over it."""
    weight = blink * _lens(u, 0.36 * eye_distance)
    a, lid, floor, b = -0.27 * eye_distance, -0.10 * eye_distance, 0.07 * eye_distance, 0.2 * eye_distance
    if weight <= 0.0 or v <= a or v >= b:
        return v
    edge = lid + 0.95 * weight * (floor - lid)
    if v < edge:
        return a + (v - a) / (edge - a) * (lid - a)
    if v < floor:
        return lid + (v - edge) / (floor - edge) * (floor - lid)
    return v


@njit(cache=True, fastmath=True)
def _sample(image, x, y, out):
    height, width = image.shape[0], image.shape[1]
    x, y = min(max(x, 0.0), width - 1.001), min(max(y, 0.0), height - 1.001)
    column, row = int(x), int(y)
    fx, fy = x - column, y - row
    for channel in range(3):
        upper = image[row, column, channel] * (1 - fx) + image[row, column + 1, channel] * fx
        lower = image[row + 1, column, channel] * (1 - fx) + image[row + 1, column + 1, channel] * fx
        out[channel] = upper * (1 - fy) + lower * fy


@njit(cache=True, fastmath=True)
def _inside_mouth(depth, u, half, opening, face, out):
    """Colour behind the lips: upper teeth, darkness, tongue."""
    light = face[16]
    teeth = 0.0
    if abs(u) < 0.82 * half:
        teeth = (1.0 - _smooth_step((depth - 0.30) / 0.14)) * _smooth_step(opening / 0.25)
    tongue = _smooth_step((depth - 0.62) / 0.25) * _smooth_step((0.75 * half - abs(u)) / (0.3 * half))
    for channel in range(3):
        dark = face[17 + channel] * 0.16
        red = dark + tongue * (face[17 + channel] * (0.62 if channel == 0 else 0.34) - dark) * 0.7
        out[channel] = red + teeth * (light * (0.88, 0.86, 0.80)[channel] - red)


@njit(cache=True, fastmath=True)
def bend(image, canvas, face, frames, height, width):
    """All frames of an animated still.

    image: (h, w, 3) float32. canvas: (7,) origin x, y and step in image pixels per canvas pixel, then the picture's
    left, top, right and bottom on the canvas (outside: black). face: (20,) head ellipse centre x, y, radii x, y, pivot
    x, y, lips' middle x, y, cosine and sine of the roll, half the mouth's width in units, unit in image pixels, chin
    below the lips in units, eyes in (u, v) … see `photographs.face_parameters`. frames: (F, 11) as `FRAME_FIELDS`.
    Returns (F, height, width, 3) uint8.
    """
    result = np.zeros((len(frames), height, width, 3), np.uint8)
    colour, total = np.zeros(3, np.float32), np.zeros(3, np.float32)
    unit, half, chin = face[11], face[10], face[12]
    eye_distance, eye_v, eye_u = face[13], face[14], face[15]
    for index in range(len(frames)):
        frame = frames[index]
        for row in range(height):
            for column in range(width):
                if not (canvas[3] <= column < canvas[5] and canvas[4] <= row < canvas[6]):
                    continue
                total[:] = 0.0
                for sub in range(4):
                    x = canvas[0] + (column + 0.25 + 0.5 * (sub % 2)) * canvas[2] + frame[6] * unit
                    y = canvas[1] + (row + 0.25 + 0.5 * (sub // 2)) * canvas[2] + frame[7] * unit
                    x, y = _head_inverse(x, y, frame, face, unit)
                    dx, dy = (x - face[6]) / unit, (y - face[7]) / unit
                    u, v = face[8] * dx + face[9] * dy, -face[9] * dx + face[8] * dy
                    depth = 0.0
                    if abs(u) < 2.0 and -0.8 < v < 2.2:
                        u, v, depth = _mouth_inverse(u, v, frame[8], frame[9], half, chin)
                    if frame[10] > 0.0 and abs(v - eye_v) < eye_distance:
                        side = eye_u + (0.5 if u > eye_u else -0.5) * eye_distance
                        v = eye_v + _blink_inverse(u - side, v - eye_v, frame[10], eye_distance)
                    if depth > 0.0:
                        _inside_mouth(depth, u, half, frame[8], face, colour)
                    else:
                        x = face[6] + unit * (face[8] * u - face[9] * v)
                        y = face[7] + unit * (face[9] * u + face[8] * v)
                        _sample(image, x - 0.5, y - 0.5, colour)
                    for channel in range(3):
                        total[channel] += colour[channel]
                for channel in range(3):
                    result[index, row, column, channel] = np.uint8(min(max(total[channel] * 0.25 + 0.5, 0.0), 255.0))
    return result
