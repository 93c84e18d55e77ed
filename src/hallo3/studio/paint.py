"""Compiled painting of surfaces: colour, gloss and small bumps from the coordinates that a surface carries.

Every function writes `surface`: linear colour (0-2), strength and sharpness of the highlight (3, 4), softness of the
skin (5), openness to the surroundings' light (6) and own light such as the glint in an eye (7-9); it may tilt n.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from hallo3.studio.noise import falloff, noise2, noise3
from hallo3.studio.surfaces import DEVICE, METAL, PALM


class Look(NamedTuple):
    """What painting needs of an identity and a frame; colours are linear, lengths are head units."""

    skin: np.ndarray
    lips: np.ndarray
    hair: np.ndarray
    brows: np.ndarray
    iris: np.ndarray
    cloth: np.ndarray
    second: np.ndarray
    hat: np.ndarray
    rim: np.ndarray
    makeup: float
    freckles: float
    wrinkles: float
    blush: float
    eye_x: float
    eye_size: float
    eye_tilt: float
    brow_weight: float
    brow_height: float
    brow_arch: float
    lip_fullness: float
    half_width: float
    nose_y: float
    nose_width: float
    beard: int
    clothes: int
    pattern: int
    hair_kind: int
    seed: float
    blink: float
    gaze_x: float
    gaze_y: float
    brow: float
    glint_x: float
    glint_y: float


@njit(cache=True, fastmath=True)
def _step(low, high, x):
    t = min(1.0, max(0.0, (x - low) / (high - low)))
    return t * t * (3.0 - 2.0 * t)


@njit(cache=True, fastmath=True)
def _mix(surface, colour, amount):
    for k in range(3):
        surface[k] += (colour[k] - surface[k]) * amount


@njit(cache=True, fastmath=True)
def _scale(surface, r, g, b, amount):
    surface[0] *= 1.0 + (r - 1.0) * amount
    surface[1] *= 1.0 + (g - 1.0) * amount
    surface[2] *= 1.0 + (b - 1.0) * amount


@njit(cache=True, fastmath=True)
def _start(surface, colour, spec, gloss, soft, openness):
    for k in range(3):
        surface[k] = colour[k]
        surface[7 + k] = 0.0
    surface[3], surface[4], surface[5], surface[6] = spec, gloss, soft, openness


@njit(cache=True, fastmath=True)
def paint_head(at, look, surface, n):
    """The head: skin, eyes, brows, nostrils, lips, beard, age."""
    x, y, z, q = at[0], at[1], at[2], at[3]
    _start(surface, look.skin, 0.16, 22.0, 1.0, 1.0)
    grain = noise3(9.0 * x + look.seed, 9.0 * y, 9.0 * z)
    _scale(surface, 1.0 + 0.05 * grain, 1.0 + 0.06 * grain, 1.0 + 0.06 * grain, 1.0)
    if z < 0.12:
        surface[6] = 0.85
        return
    ax = abs(x)
    _complexion(x, y, q, ax, look, surface)
    if look.beard > 0:
        _beard(x, y, z, q, ax, look, surface)
    if look.wrinkles > 0.05:
        _wrinkles(x, y, q, ax, look, surface)
    if q > -0.28 and q < 0.22 and ax < 0.45:
        _lips(x, q, ax, look, surface)
    if y > 0.05:
        _brow(ax, y, x, look, surface)
    if y > -0.35 and y < 0.40:
        _eye(x, y, ax, look, surface, n)


@njit(cache=True, fastmath=True)
def _complexion(x, y, q, ax, look, surface):
    """Blush of cheeks and nose, darker sockets, nostrils, shadow under the lip, freckles."""
    cheek = falloff(-(((ax - 0.40) / 0.19) ** 2) - ((y + 0.34) / 0.15) ** 2)
    nose = falloff(-((x / 0.11) ** 2) - ((y - look.nose_y) / 0.11) ** 2)
    _scale(surface, 1.03, 0.80, 0.78, look.blush * cheek + 0.5 * nose)
    socket = falloff(-(((ax - look.eye_x) / 0.20) ** 2) - ((y - 0.03) / 0.15) ** 2)
    _scale(surface, 0.80, 0.70, 0.70, 0.55 * socket)
    surface[6] -= 0.22 * socket
    under = falloff(-((x / 0.2) ** 2) - ((q + 0.20) / 0.05) ** 2)
    below_nose = falloff(-((x / 0.13) ** 2) - ((y - look.nose_y + 0.13) / 0.045) ** 2)
    surface[6] -= 0.18 * under + 0.30 * below_nose
    side = falloff(-(((ax - 0.19 * look.nose_width) / 0.045) ** 2) - ((y - look.nose_y + 0.01) / 0.09) ** 2)
    _scale(surface, 0.80, 0.70, 0.68, 0.55 * side)
    dx, dy = (ax - 0.062 * look.nose_width) / 0.042, (y - look.nose_y + 0.068) / 0.026
    hole = 1.0 - _step(0.5, 1.4, dx * dx + dy * dy)
    _scale(surface, 0.22, 0.14, 0.12, 0.85 * hole)
    surface[3] *= 1.0 - hole
    if look.freckles > 0.0:
        spots = _step(0.35, 0.62, noise2(38.0 * x + look.seed, 38.0 * y))
        spots *= falloff(-((ax / 0.45) ** 4) - ((y + 0.25) / 0.22) ** 2)
        _scale(surface, 0.72, 0.58, 0.50, 0.8 * look.freckles * spots)
    if look.makeup > 0.0:
        lid = falloff(-(((ax - look.eye_x - 0.02) / 0.16) ** 2) - ((y - 0.11) / 0.06) ** 2)
        _scale(surface, 0.72, 0.52, 0.62, 0.7 * look.makeup * lid)


@njit(cache=True, fastmath=True)
def _lips(x, q, ax, look, surface):
    """Lips above and below their line (q = 0), which is dark where they touch."""
    e = ax / (look.half_width * 1.04)
    if e < 1.0:
        bow = 1.0 - 0.30 * falloff(-((x / 0.045) ** 2)) + 0.10 * falloff(-(((ax - 0.07) / 0.05) ** 2))
        upper = 0.088 * look.lip_fullness * (1.0 - e**2.2) * bow
        lower = 0.118 * look.lip_fullness * (1.0 - e * e) ** 0.75
        amount = (
            (1.0 - _step(upper - 0.012, upper + 0.012, q)) if q > 0 else (1.0 - _step(lower - 0.016, lower + 0.016, -q))
        )
        _mix(surface, look.lips, amount)
        surface[3] += 0.30 * amount * (1.0 if q < 0 else 0.4)
        surface[4] += 26.0 * amount
        fine = noise2(60.0 * x, 6.0 * q)
        _scale(surface, 1.0 + 0.1 * fine, 1.0 + 0.1 * fine, 1.0 + 0.1 * fine, amount)
        if q > 0:
            _scale(surface, 0.80, 0.76, 0.78, amount)
    line = falloff(-((q / 0.016) ** 2)) * (1.0 - _step(0.92, 1.12, e))
    corner = falloff(-(((ax - look.half_width) / 0.03) ** 2) - (q / 0.03) ** 2)
    _scale(surface, 0.30, 0.17, 0.17, min(1.0, 0.85 * line + 0.6 * corner))


@njit(cache=True, fastmath=True)
def _brow(ax, y, x, look, surface):
    """An eyebrow of short strands; it rises with the performance's brow."""
    u = (ax - look.eye_x) / 0.22
    if u < -1.3 or u > 1.4:
        return
    middle = 0.225 + 0.025 * look.brow_height + 0.055 * look.brow
    middle += 0.03 * look.brow_arch * (1.0 - (u - 0.25) ** 2) - 0.035 * max(0.0, u - 0.2) ** 2 - 0.012 * look.wrinkles
    inner = 0.85 + 0.15 * _step(-1.0, -0.4, u)
    half = 0.040 * look.brow_weight * inner * (1.0 - 0.62 * _step(0.1, 1.15, u))
    d = abs(y - middle) / half
    amount = (1.0 - _step(0.55, 1.25, d)) * _step(-1.12, -0.78, u) * (1.0 - _step(0.92, 1.22, u))
    strands = 0.72 + 0.28 * noise2(48.0 * (ax - 0.7 * y) + look.seed, 9.0 * y)
    _mix(surface, look.brows, 0.92 * amount * strands)
    surface[3] *= 1.0 - 0.7 * amount


@njit(cache=True, fastmath=True)
def _eye(x, y, ax, look, surface, n):
    """An eye between its lids: white, iris, pupil, glint, lashes and the crease above."""
    side = 1.0 if x > 0 else -1.0
    width = 0.178 * look.eye_size
    u = (ax - look.eye_x) / width
    if abs(u) > 1.5:
        return
    v = y - 0.03 * look.eye_tilt * u
    curve = max(0.0, 1.0 - u * u)
    top = 0.098 * look.eye_size * curve**0.62 * (1.0 + 0.12 * look.brow)
    bottom = -0.062 * look.eye_size * curve**0.8
    lid = top + (bottom - top) * look.blink
    crease = falloff(-(((v - top - 0.040) / 0.013) ** 2)) * _step(1.25, 0.7, abs(u))
    _scale(surface, 0.62, 0.50, 0.48, 0.75 * crease * (1.0 - 0.5 * look.blink))
    bag = falloff(-(((v - bottom + 0.045) / 0.02) ** 2)) * _step(1.1, 0.5, abs(u))
    _scale(surface, 0.80, 0.70, 0.70, (0.35 + 0.5 * look.wrinkles) * bag)
    if abs(u) < 1.0 and v < lid and v > bottom:
        _eyeball(x - side * look.eye_x, y, v, lid, bottom, u, look, surface, n)
    lash = falloff(-(((v - lid) / (0.014 + 0.006 * look.makeup)) ** 2)) * _step(1.12, 0.9, abs(u))
    wing = falloff(-(((v - lid - 0.02 * u) / 0.014) ** 2)) * _step(0.8, 1.0, u) * _step(1.28, 1.05, u)
    dark = min(1.0, lash * (0.80 + 0.2 * look.makeup) + wing * (0.25 + 0.6 * look.makeup))
    _scale(surface, 0.10, 0.07, 0.07, dark)
    surface[3] *= 1.0 - dark
    low = falloff(-(((v - bottom) / 0.009) ** 2)) * _step(1.08, 0.8, abs(u))
    _scale(surface, 0.55, 0.38, 0.38, 0.6 * low)


@njit(cache=True, fastmath=True)
def _eyeball(dx, y, v, lid, bottom, u, look, surface, n):
    white = 0.80 - 0.18 * u * u
    surface[0], surface[1], surface[2] = white, white * 0.97, white * 0.95
    red = _step(0.75, 1.0, -u)
    _scale(surface, 1.0, 0.62, 0.58, 0.7 * red)
    radius = 0.084
    gx, gy = dx - 0.075 * look.gaze_x, y - 0.008 - 0.045 * look.gaze_y
    r = np.sqrt(gx * gx + gy * gy) / radius
    disc = 1.0 - _step(0.90, 1.06, r)
    if disc > 0.0:
        spokes = 0.85 + 0.25 * noise2(5.0 * np.arctan2(gy, gx), 3.0 * r)
        glow = (0.62 + 0.75 * r * r + 0.5 * max(0.0, -gy / radius)) * spokes
        ring = 1.0 - 0.65 * _step(0.74, 1.0, r)
        for k in range(3):
            surface[k] += (look.iris[k] * glow * ring - surface[k]) * disc
        pupil = 1.0 - _step(0.36, 0.50, r)
        _scale(surface, 0.03, 0.03, 0.03, pupil)
    shade = 0.55 * falloff(-(((lid - v) / 0.035) ** 2))
    _scale(surface, 0.45, 0.42, 0.42, shade)
    surface[3], surface[5], surface[6] = 0.0, 0.35, 0.95
    px, py = (gx - 0.032 * look.glint_x) / 0.024, (gy - 0.034 * look.glint_y) / 0.022
    glint = 1.0 - _step(0.5, 1.6, px * px + py * py)
    qx, qy = (gx + 0.034 * look.glint_x) / 0.018, (gy + 0.040 * look.glint_y) / 0.016
    second = 0.25 * (1.0 - _step(0.4, 1.6, qx * qx + qy * qy))
    for k in range(3):
        surface[7 + k] = 0.85 * glint + second
    n[0] = n[0] * 0.6 + 0.35 * dx / 0.17
    n[1] = n[1] * 0.6
    n[2] = max(n[2], 0.3)


@njit(cache=True, fastmath=True)
def _beard(x, y, z, q, ax, look, surface):
    """Stubble (1), moustache (2), goatee (3) or a full beard (4)."""
    amount = 0.0
    if look.beard == 2 or look.beard == 4 or look.beard == 3:
        droop = 0.030 * _step(0.05, 0.3, ax)
        amount = falloff(-(((q - 0.115 + droop) / 0.048) ** 4)) * (1.0 - _step(0.24, 0.33, ax))
    if look.beard == 3:
        chin = (1.0 - _step(0.13, 0.22, ax)) * _step(-0.14, -0.19, q)
        amount = max(amount, chin)
    if look.beard == 4 or look.beard == 1:
        line = 0.02 + 0.60 * _step(0.36, 0.80, ax) - 0.16 * _step(0.2, 0.4, ax) * (1.0 - _step(0.4, 0.55, ax))
        jaw = _step(line + 0.05, line - 0.05, q) if ax > 0.27 else _step(-0.13, -0.18, q)
        round_mouth = _step(0.26, 0.36, ax) * _step(0.20, 0.05, q)
        amount = max(amount, jaw, round_mouth) * (1.0 - _step(0.10, -0.05, y))
        if look.beard == 1:
            amount = max(amount, falloff(-(((q - 0.11) / 0.06) ** 4)) * (1.0 - _step(0.22, 0.36, ax)))
    if amount <= 0.0:
        return
    strands = noise2(42.0 * (x + 0.15 * q) + look.seed, 13.0 * y) * 0.6 + 0.4 * noise3(24.0 * x, 24.0 * y, 24.0 * z)
    if look.beard == 1:
        _scale(surface, 0.60, 0.60, 0.64, amount * (0.75 + 0.5 * strands))
    else:
        edge = _step(0.25, 0.6, amount + 0.25 * strands)
        tone = 0.85 + 0.5 * strands
        for k in range(3):
            surface[k] += (look.hair[k] * tone - surface[k]) * edge
        surface[3] *= 1.0 - 0.75 * edge
        surface[5] *= 1.0 - 0.8 * edge


@njit(cache=True, fastmath=True)
def _wrinkles(x, y, q, ax, look, surface):
    fold = (
        falloff(-(((ax - 0.20 - 0.42 * (0.30 - q) * 0.55) / 0.020) ** 2)) * _step(-0.12, 0.05, q) * _step(0.36, 0.2, q)
    )
    lines = 0.0
    for k in range(3):
        wave = 0.44 + 0.085 * k + 0.018 * np.sin(5.0 * x + 2.0 * k)
        lines += falloff(-(((y - wave) / 0.011) ** 2))
    lines *= 1.0 - _step(0.25, 0.48, ax)
    feet = falloff(-(((abs(y + 0.01) - 0.30 * (ax - look.eye_x - 0.17)) / 0.013) ** 2)) * _step(
        0.18, 0.22, ax - look.eye_x
    )
    feet *= 1.0 - _step(0.26, 0.36, ax - look.eye_x)
    _scale(surface, 0.68, 0.58, 0.56, look.wrinkles * min(1.0, 0.8 * fold + 0.40 * lines + 0.5 * feet))


@njit(cache=True, fastmath=True)
def paint_mouth(at, look, surface, n):
    """Inside of the mouth: teeth, tongue and the dark behind. at: across, below upper lip, above lower lip, opening."""
    u, below, above, opening = at[0], at[1], at[2], at[3]
    # Teeth and tongue stand upright behind the lips, whatever way the sack between the lips is bent.
    n[0], n[1], n[2] = 0.3 * n[0] + 0.25 * u, 0.12, 0.9
    dark = 0.030
    surface[0], surface[1], surface[2] = dark * 2.3, dark * 0.55, dark * 0.6
    surface[3], surface[4], surface[5], surface[6] = 0.0, 20.0, 0.2, 0.55
    surface[7] = surface[8] = surface[9] = 0.0
    if above < 0.16:
        tongue = (1.0 - _step(0.55, 0.80, abs(u))) * (1.0 - _step(0.10, 0.15, above)) * _step(0.10, 0.18, opening)
        surface[0] += (0.52 - surface[0]) * tongue
        surface[1] += (0.16 - surface[1]) * tongue
        surface[2] += (0.17 - surface[2]) * tongue
        groove = falloff(-((u / 0.08) ** 2))
        _scale(surface, 0.75, 0.7, 0.7, tongue * groove)
        surface[3] = 0.12 * tongue
    height = 0.092 * (1.0 - 0.45 * u * u)
    teeth = 1.0 - _step(height - 0.012, height + 0.012, below)
    low = (1.0 - _step(0.030, 0.050, above)) * _step(0.24, 0.30, opening)
    amount = max(teeth, low) * (1.0 - _step(0.80, 0.97, abs(u)))
    white = 0.74 * (1.0 - 0.40 * u * u) * (0.55 + 0.45 * _step(0.0, 0.035, below))
    white *= 1.0 - 0.25 * low
    gaps = 1.0 - 0.12 * _step(0.90, 1.0, np.cos(u * 21.0))
    surface[0] += (white * gaps - surface[0]) * amount
    surface[1] += (white * 0.96 * gaps - surface[1]) * amount
    surface[2] += (white * 0.90 * gaps - surface[2]) * amount
    surface[3] += 0.12 * amount
    surface[6] = 0.50 + 0.40 * amount


@njit(cache=True, fastmath=True)
def paint_hair(at, look, surface, n, inside):
    """Strands along the shell, a soft band of light across them."""
    u, y, t = at[0], at[1], at[2]
    if look.hair_kind == 1:
        locks = noise3(70.0 * u + look.seed, 14.0 * y, 3.0 * t)
        fine = noise2(190.0 * u, 30.0 * y)
    else:
        locks = noise2(46.0 * u + look.seed, 1.6 * y + 2.0 * t)
        fine = noise2(170.0 * u + look.seed, 3.0 * y)
    tone = 0.92 + 0.34 * locks + 0.26 * fine
    _start(surface, look.hair, 0.0, 16.0, 0.25, 0.92)
    for k in range(3):
        surface[k] *= max(0.15, tone) * (0.80 + 0.25 * t)
    if inside:
        for k in range(3):
            surface[k] *= 0.35
        surface[6] = 0.35
        return
    tilt = 0.28 * locks + 0.22 * fine
    if look.hair_kind == 1:
        n[1] += 0.30 * noise2(60.0 * u + 9.0, 13.0 * y)
    n[0] += tilt * n[2]
    n[2] -= tilt * n[0]
    length = 1.0 / np.sqrt(n[0] ** 2 + n[1] ** 2 + n[2] ** 2 + 1e-9)
    for k in range(3):
        n[k] *= length
    shine = falloff(-(((n[1] - 0.42 + 0.06 * fine + 0.08 * locks) / 0.26) ** 2)) * max(0.0, n[2])
    surface[3] = 0.05
    amount = (0.10 + 0.16 * shine) * shine * (0.4 if look.hair_kind == 1 else 1.0)
    for k in range(3):
        surface[k] += amount * (0.35 + 0.65 * look.hair[k])


@njit(cache=True, fastmath=True)
def paint_plain(kind, at, look, surface, n):
    """Neck, ears and hands, and the simple things: glasses, devices, metal."""
    if kind == DEVICE:
        _start(surface, look.rim, 0.5, 60.0, 0.0, 1.0)
        surface[0], surface[1], surface[2] = 0.020, 0.021, 0.024
    elif kind == METAL:
        _start(surface, look.rim, 0.9, 50.0, 0.0, 1.0)
        mesh = 0.7 + 0.3 * np.sin(26.0 * at[0]) * np.sin(26.0 * at[1])
        surface[0], surface[1], surface[2] = 0.30 * mesh, 0.29 * mesh, 0.27 * mesh
    elif kind == PALM:
        _start(surface, look.skin, 0.12, 20.0, 1.0, 0.95)
        surface[1] *= 0.92
        surface[2] *= 0.90
    elif at[3] > 0.5:
        _start(surface, look.skin, 0.12, 20.0, 1.0, 0.95)
        d = np.sqrt(at[1] * at[1] + 2.2 * at[2] * at[2])
        bowl = falloff(-(((d - 0.50) / 0.22) ** 2))
        _scale(surface, 0.85, 0.68, 0.66, 0.8 * bowl + 0.3)
    elif kind > 5:
        _start(surface, look.rim, 0.7, 50.0, 0.0, 1.0)
    else:
        _start(surface, look.skin, 0.12, 18.0, 1.0, 1.0)
        near = _step(-1.25, -0.75, at[1])
        _scale(surface, 0.80, 0.70, 0.68, 0.8 * near)
        surface[6] = 1.0 - 0.45 * near
        cord = falloff(-(((abs(at[0]) - 0.20 - 0.3 * (at[1] + 1.4)) / 0.05) ** 2)) * max(0.0, n[2])
        _scale(surface, 0.93, 0.88, 0.87, cord)


@njit(cache=True, fastmath=True)
def _neckline(x, clothes):
    """Height of the neckline at the front."""
    ax = abs(x)
    if clothes == 1 or clothes == 4:
        return -1.86 + 1.05 * ax
    if clothes == 6:
        return -1.74 + 0.42 * ax * ax * 2.2
    return -1.56 + 0.5 * ax * ax


@njit(cache=True, fastmath=True)
def _pattern(at, look):
    """Share of the second colour at a place on the cloth."""
    x, y = at[0], at[1]
    if look.pattern == 1:
        return _step(0.40, 0.60, 0.5 + 0.5 * np.sin(26.0 * y))
    if look.pattern == 2:
        a = _step(0.55, 0.75, 0.5 + 0.5 * np.sin(20.0 * x))
        return 0.5 * (a + _step(0.55, 0.75, 0.5 + 0.5 * np.sin(20.0 * y)))
    if look.pattern == 3:
        row = np.floor(y * 6.0)
        fx = x * 6.0 + 0.5 * (row - 2.0 * np.floor(row * 0.5))
        dx, dy = fx - np.floor(fx) - 0.5, y * 6.0 - row - 0.5
        return 1.0 - _step(0.05, 0.08, dx * dx + dy * dy)
    return 0.0


@njit(cache=True, fastmath=True)
def paint_cloth(at, look, surface, n):
    """Clothes with a neckline, collar, buttons and pattern; skin above the neckline. clothes: index in CLOTHES."""
    x, y, z = at[0], at[1], at[2]
    if at[3] > 0.5:
        _start(surface, look.cloth, 0.03, 8.0, 0.15, 0.95)
        return
    line = _neckline(x, look.clothes)
    _start(surface, look.cloth, 0.03, 8.0, 0.15, 1.0)
    fold = noise3(3.0 * x + look.seed, 2.2 * y, 3.0 * z)
    n[0] += 0.12 * fold
    n[1] += 0.10 * noise3(3.0 * x, 2.5 * y + look.seed, 3.0 * z)
    _mix(surface, look.second, _pattern(at, look))
    if look.pattern == 4:
        knit = np.sin(60.0 * x) * np.sin(44.0 * y)
        _scale(surface, 0.82, 0.82, 0.82, 0.5 + 0.5 * knit)
    if look.clothes == 3:
        rib = 0.5 + 0.5 * np.sin(70.0 * np.arctan2(x, z + 0.26))
        _scale(surface, 0.85, 0.85, 0.85, rib * _step(-1.5, -1.4, y))
        return
    if z < -0.25:
        return
    if y > line:
        if look.clothes == 4 and y < line + 0.55 and y < -1.46 + 0.12 * abs(x):
            _start(surface, look.second, 0.03, 8.0, 0.15, 0.85)
        else:
            _start(surface, look.skin, 0.10, 18.0, 1.0, 0.95)
            bone = falloff(-(((y + 1.60 - 0.12 * abs(x)) / 0.03) ** 2)) * _step(0.08, 0.2, abs(x))
            _scale(surface, 0.90, 0.84, 0.82, 0.8 * bone)
        edge = falloff(-(((y - line) / 0.05) ** 2))
        _scale(surface, 0.6, 0.55, 0.55, 0.7 * edge)
        return
    _details(x, y, line, look, surface)


@njit(cache=True, fastmath=True)
def _details(x, y, line, look, surface):
    """Hems, collars, lapels, zips and buttons by kind of clothes."""
    ax = abs(x)
    below = line - y
    if look.clothes == 0 or look.clothes == 2 or look.clothes == 6:
        hem = falloff(-(((below - 0.06) / 0.012) ** 2))
        _scale(surface, 0.60, 0.60, 0.60, hem)
    elif look.clothes == 1:
        if below < 0.20 and ax > 0.02:
            _mix(surface, look.cloth, 1.0)
            _scale(surface, 1.12, 1.12, 1.12, 1.0)
            _scale(surface, 0.5, 0.5, 0.5, _step(0.165, 0.195, below))
        placket = falloff(-(((x - 0.05) / 0.010) ** 2))
        _scale(surface, 0.65, 0.65, 0.65, placket)
        by = (y * 3.3 - np.floor(y * 3.3)) - 0.5
        button = 1.0 - _step(0.5, 1.2, (x / 0.028) ** 2 + (by / 0.09) ** 2)
        _scale(surface, 0.35, 0.35, 0.35, button)
    elif look.clothes == 4:
        lapel = below / (0.26 + 0.05 * np.sin(9.0 * y))
        _scale(surface, 0.45, 0.45, 0.45, falloff(-(((lapel - 1.0) / 0.07) ** 2)))
        if lapel < 1.0:
            _scale(surface, 1.18, 1.18, 1.18, 1.0)
        _scale(surface, 0.4, 0.4, 0.4, falloff(-(((x - 0.02) / 0.012) ** 2)))
    elif look.clothes == 5:
        collar = falloff(-(((below - 0.14) / 0.03) ** 2))
        _scale(surface, 0.55, 0.55, 0.55, collar)
        cord = falloff(-(((ax - 0.16) / 0.016) ** 2)) * _step(-2.35, -2.3, y)
        _mix(surface, look.second, 0.9 * cord)


@njit(cache=True, fastmath=True)
def paint_hat(at, look, surface, n, inside):
    """Hats (0 beanie, 1 cap, 2 brim) and the headscarf (3)."""
    phi, t, kind = at[0], at[1], at[2]
    _start(surface, look.hat, 0.04, 10.0, 0.15, 0.95)
    if kind < 0.5:
        rib = 0.5 + 0.5 * np.sin(46.0 * phi)
        rows = 0.5 + 0.5 * np.sin(70.0 * t)
        _scale(surface, 0.72, 0.72, 0.72, 0.7 * rib + 0.3 * rows)
        if t > 0.80:
            _scale(surface, 1.15, 1.15, 1.15, 1.0)
    elif kind < 1.5:
        seam = falloff(-((np.sin(3.0 * phi) / 0.10) ** 2))
        _scale(surface, 0.72, 0.72, 0.72, seam)
    elif kind < 2.5:
        if t > 0.72 and t < 0.89:
            _scale(surface, 0.35, 0.35, 0.35, 1.0)
        weave = noise2(60.0 * phi, 60.0 * t)
        _scale(surface, 0.9, 0.9, 0.9, weave)
    else:
        fold = np.sin(22.0 * phi + 6.0 * t) * _step(0.25, 0.8, t)
        _scale(surface, 0.86, 0.86, 0.86, 0.5 + 0.5 * fold)
        n[0] += 0.15 * fold
    if inside:
        _scale(surface, 0.4, 0.4, 0.4, 1.0)
        surface[6] = 0.4
