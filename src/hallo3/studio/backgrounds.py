"""Compiled two-dimensional surroundings behind a character; time moves those that can move.

Coordinates: u across and v down, both in heights of the frame, u = 0 in the middle and v = 0 at the top. Colours are
linear. `palette` (3,3) holds three colours whose meaning each place gives itself.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from hallo3.studio.noise import cloud2, falloff, hash2, noise2


@njit(cache=True, fastmath=True)
def _step(low, high, x):
    t = min(1.0, max(0.0, (x - low) / (high - low)))
    return t * t * (3.0 - 2.0 * t)


@njit(cache=True, fastmath=True)
def _set(out, colour, gain):
    for k in range(3):
        out[k] = colour[k] * gain


@njit(cache=True, fastmath=True)
def _toward(out, r, g, b, amount):
    out[0] += (r - out[0]) * amount
    out[1] += (g - out[1]) * amount
    out[2] += (b - out[2]) * amount


@njit(cache=True, fastmath=True)
def _backdrop(u, v, palette, seed, out):
    """A studio's paper backdrop: light behind the head, dark corners, faint mottling."""
    r = np.sqrt(u * u + (v - 0.42) * (v - 0.42))
    glow = 1.25 * falloff(-((r / 0.62) ** 2))
    mottle = 1.0 + 0.10 * cloud2(2.2 * u + seed, 2.2 * v)
    for k in range(3):
        out[k] = (palette[1, k] + (palette[0, k] - palette[1, k]) * min(1.0, glow)) * mottle


@njit(cache=True, fastmath=True)
def _room(u, v, palette, seed, out):
    """A wall with a bright window, a picture and a dark skirting, out of focus."""
    side = 1.0 if seed - np.floor(seed) > 0.5 else -1.0
    _set(out, palette[0], 1.05 - 0.35 * v + 0.25 * side * u)
    wx, wy = abs(side * u - 0.52), abs(v - 0.33)
    window = _step(0.235, 0.205, wx) * _step(0.305, 0.275, wy)
    bars = max(_step(0.022, 0.010, wx), _step(0.020, 0.008, abs(v - 0.31)))
    _toward(out, 1.15, 1.12, 1.02, window * (1.0 - 0.75 * bars))
    glow = falloff(-((wx / 0.42) ** 2) - (wy / 0.5) ** 2)
    for k in range(3):
        out[k] += 0.14 * glow * (1.0 - 0.15 * k)
    fx, fy = abs(side * u + 0.50), abs(v - 0.30)
    frame = _step(0.165, 0.150, fx) * _step(0.135, 0.120, fy)
    _toward(out, palette[1, 0], palette[1, 1], palette[1, 2], frame)
    art = _step(0.140, 0.128, fx) * _step(0.110, 0.098, fy)
    tint = 0.75 + 0.45 * noise2(9.0 * u + seed, 9.0 * v)
    _toward(out, palette[2, 0] * tint, palette[2, 1] * tint, palette[2, 2] * tint, art)
    low = _step(0.80, 0.84, v)
    _toward(out, palette[1, 0], palette[1, 1], palette[1, 2], 0.85 * low)


@njit(cache=True, fastmath=True)
def _bookshelf(u, v, palette, seed, out):
    """Shelves of books in many colours."""
    shelf = (v + 0.08) * 3.1
    row = np.floor(shelf)
    fy = shelf - row
    x = u * 17.0 + 5.0 * hash2(row, 3) + seed
    book = np.floor(x)
    fx = x - book
    tall = 0.70 + 0.16 * hash2(book + 17 * row, 5)
    if fy > 0.93:
        _set(out, palette[1], 1.4)
    elif fy > 0.93 - tall:
        hue = 0.5 + 0.5 * hash2(book, 11 + row)
        value = 0.16 + 0.14 * (0.5 + 0.5 * hash2(book, 29 + row))
        for k in range(3):
            wave = 0.55 + 0.45 * np.cos(6.283 * (hue + k / 3.0))
            out[k] = value * (0.35 + 0.65 * wave) + 0.2 * palette[0, k] * value
        gap = _step(0.0, 0.14, fx) * _step(1.0, 0.88, fx)
        for k in range(3):
            out[k] *= 0.35 + 0.65 * gap
        band = _step(0.05, 0.02, abs(fy - 0.93 + tall * 0.72))
        _toward(out, 0.55, 0.46, 0.25, 0.45 * band * gap)
    else:
        _set(out, palette[1], 0.35)


@njit(cache=True, fastmath=True)
def _sea(u, v, time, palette, seed, horizon, out):
    """Sky over the sea with waves that roll towards a beach; frozen time makes a calm sea."""
    if v < horizon:
        t = max(0.0, v / horizon)  # a camera that looks up sees more sky than a picture's
        for k in range(3):
            out[k] = palette[0, k] + (palette[1, k] - palette[0, k]) * t**1.4
        cloud = _step(0.05, 0.55, cloud2(2.4 * u + seed + 0.02 * time, 7.0 * v + seed))
        _toward(out, 0.95, 0.93, 0.92, 0.6 * cloud * (1.0 - 0.5 * t))
        return
    d = (v - horizon) / (1.0 - horizon) + 0.015
    depth = 1.0 / d
    moving = 1.0 if time > -0.5 else 0.25
    sway = noise2(1.6 * u * depth + seed, 1.3 * depth + 0.35 * time)
    phase = 5.5 * depth + 1.5 * time + 0.9 * sway
    near = _step(0.0, 0.16, d)
    wave = near * (np.sin(phase) + 0.4 * np.sin(2.1 * phase + 3.0 * u * depth))
    ripple = (0.3 + 0.7 * near) * noise2(13.0 * u * depth**0.5 + seed, 30.0 * d - 1.2 * time)
    for k in range(3):
        sky = palette[1, k] * (0.62 - 0.45 * min(1.0, d * 1.4))
        out[k] = palette[2, k] * (1.0 + 0.3 * moving * wave) + sky * (0.55 + 0.30 * ripple + 0.22 * moving * wave)
    crest = _step(0.82, 1.25, wave + 0.35 * ripple) * _step(0.06, 0.25, d) * moving
    _toward(out, 0.92, 0.95, 0.96, 0.8 * crest)
    surf = 0.80 + 0.05 * np.sin(1.1 * max(time, 0.0)) + 0.03 * noise2(3.0 * u + seed, 0.4 * time)
    foam = falloff(-(((d - surf) / 0.035) ** 2))
    sand = _step(surf - 0.01, surf + 0.02, d)
    _toward(out, 0.62, 0.49, 0.33, sand)
    _toward(out, 0.93, 0.94, 0.94, 0.85 * foam)


@njit(cache=True, fastmath=True)
def _foliage(u, v, time, palette, seed, out):
    """Layers of leaves with light between them; wind moves them."""
    wind = max(time, 0.0)
    _set(out, palette[1], 1.0)
    light = _step(-0.1, 0.6, cloud2(2.2 * u + seed, 2.2 * v - 1.0) + 0.55 - 0.9 * v)
    _toward(out, palette[2, 0], palette[2, 1], palette[2, 2], 0.75 * light)
    for layer in range(3):
        size = 5.0 + 3.2 * layer
        gust = 0.03 * np.sin(1.9 * wind + 2.4 * u + 1.3 * layer) + 0.014 * np.sin(4.7 * wind + 6.0 * u + 4.0 * v)
        x = size * (u + gust) + 11.0 * layer + seed
        y = size * (v + 0.5 * gust)
        leaf = noise2(x, 1.3 * y) + 0.55 * noise2(2.3 * x + 4.0, 2.6 * y)
        cover = _step(-0.10, 0.42, leaf - 0.12 + 0.16 * layer * (v - 0.3))
        tone = 0.62 + 0.62 * (0.5 + 0.5 * noise2(1.7 * x, 1.7 * y + 3.0)) * (1.1 - 0.25 * layer)
        _toward(out, palette[0, 0] * tone, palette[0, 1] * tone, palette[0, 2] * tone, 0.85 * cover)


@njit(cache=True, fastmath=True)
def _street(u, v, time, palette, seed, out):
    """A street at night out of focus: dark houses, discs of light; dynamic: the lights of traffic pass."""
    _set(out, palette[0], 0.7 + 0.8 * (1.0 - v))
    house = np.floor(3.2 * u + seed)
    tone = 0.75 + 0.3 * hash2(house, 7)
    for k in range(3):
        out[k] = out[k] * tone + 0.004
    lamp = falloff(-(((v - 0.72) / 0.25) ** 2))
    _toward(out, 0.13, 0.08, 0.06, 0.5 * lamp)
    for i in range(34):
        traffic = i >= 18
        r = 0.030 + 0.026 * (0.5 + 0.5 * hash2(i, 41))
        if traffic:
            lane = 0.66 + 0.10 * (0.5 + 0.5 * hash2(i, 9))
            speed = (0.16 + 0.10 * (0.5 + 0.5 * hash2(i, 2))) * (1.0 if i % 2 else -1.0)
            px = (hash2(i, 13) * 1.2 + seed + speed * max(time, 0.0) + 1.2) % 2.4 - 1.2
            py = lane
        else:
            px, py = 1.1 * hash2(i, 21 + int(seed * 3)), 0.30 + 0.32 * hash2(i, 31)
        d2 = ((u - px) ** 2 + (v - py) ** 2) / (r * r)
        if d2 < 1.3:
            disc = (1.0 - _step(0.75, 1.2, d2)) * (0.62 + 0.38 * d2)
            pick = i % 4
            for k in range(3):
                warm = (1.0, 0.62, 0.25)[k] if pick < 2 else palette[pick - 1, k] * 1.1
                if traffic:
                    warm = (1.0, 0.93, 0.75)[k] if i % 2 else (0.95, 0.10, 0.06)[k]
                out[k] += 0.42 * disc * warm


@njit(cache=True, fastmath=True)
def _snow(u, v, time, palette, seed, out):
    """Snowy hills and firs; dynamic: flakes fall."""
    _set(out, palette[0], 1.0)
    _toward(out, palette[1, 0], palette[1, 1], palette[1, 2], v)
    for layer in range(2):
        x = (3.6 - 1.2 * layer) * u + 7.0 * layer + seed
        tree = x * 2.4
        peak = abs(tree - np.floor(tree) - 0.5) * 2.0
        height = (
            0.46 + 0.13 * layer + 0.03 * noise2(x, 3.0) - 0.16 * (1.0 - peak) * (0.7 + 0.3 * hash2(np.floor(tree), 3))
        )
        jag = 0.018 * noise2(26.0 * u, 26.0 * v)
        cover = _step(-0.012, 0.012, v - height - jag)
        haze = 0.55 - 0.35 * layer
        flakes = 0.25 * _step(0.1, 0.5, noise2(18.0 * u + seed, 22.0 * v))
        for k in range(3):
            tone = palette[2, k] + (palette[1, k] - palette[2, k]) * (haze + flakes)
            out[k] += (tone - out[k]) * cover
    ground = _step(-0.01, 0.02, v - 0.74 - 0.03 * noise2(2.0 * u + seed, 1.0))
    _toward(out, 0.80, 0.84, 0.90, ground)
    if time < 0.0:
        return
    for layer in range(3):
        size = 7.0 + 4.0 * layer
        x = size * (u + 0.03 * np.sin(time + 3.0 * v)) + 5.0 * layer + 0.35 * time
        y = size * v - (2.9 - 0.5 * layer) * time
        i, j = int(np.floor(x)), int(np.floor(y))
        fx, fy = x - i - 0.5 - 0.3 * hash2(i, j + 9 * layer), y - j - 0.5 - 0.3 * hash2(i + 5, j)
        r2 = (fx * fx + fy * fy) / (0.011 + 0.006 * layer)
        if r2 < 1.0:
            _toward(out, 0.95, 0.97, 1.0, 0.9 * (1.0 - r2 * r2))


@njit(cache=True, fastmath=True)
def _fire(u, v, time, palette, seed, out):
    """A camp fire at night beside the character; dynamic: the flames flicker and sparks rise."""
    now = max(time, 0.0)
    side = 1.0 if seed - np.floor(seed) > 0.5 else -1.0
    x, y = u - 0.50 * side, v - 0.90
    _set(out, palette[0], 1.0 + 0.8 * (1.0 - v))
    tree = _step(0.1, 0.5, cloud2(3.0 * u + seed, 2.0 * v)) * _step(0.7, 0.3, v)
    _toward(out, 0.004, 0.006, 0.008, 0.8 * tree)
    flicker = 1.0 + 0.16 * noise2(5.0 * now, seed) if time >= 0.0 else 1.0
    halo = falloff(-((x / 0.42) ** 2) - (y / 0.55) ** 2) * flicker
    for k in range(3):
        out[k] += 0.34 * halo * palette[1, k]
    ground = _step(0.86, 0.92, v)
    _toward(out, 0.07 * flicker, 0.035 * flicker, 0.015, ground)
    h = -y / 0.62
    if h > -0.1 and h < 1.1:
        lick = 0.075 * noise2(5.0 * v + 3.4 * now, 2.0 * u + seed) + 0.04 * noise2(11.0 * v + 6.0 * now, 5.0 * u)
        half = 0.20 * max(0.0, 1.0 - h) * (0.45 + 1.2 * max(0.0, h + 0.1)) * flicker
        tongue = noise2(9.0 * u + seed, 5.0 * v + 4.6 * now)
        heat = _step(1.1, 0.1, abs(x + lick * (h + 0.2)) / (half + 0.02) + 0.5 * h + 0.35 * tongue)
        _toward(out, 1.3, 0.45 + 0.65 * heat, 0.05 + 0.45 * heat * heat, heat)
    log = _step(0.030, 0.020, abs(y - 0.02 - 0.12 * x)) * _step(0.24, 0.22, abs(x))
    _toward(out, 0.05, 0.022, 0.010, 0.9 * log)
    if time >= 0.0:
        for i in range(14):
            age = (0.45 * now + 0.5 + 0.5 * hash2(i, 5)) % 1.0
            px = 0.12 * hash2(i, 8) + 0.08 * np.sin(5.0 * age + i)
            d2 = (x - px) ** 2 + (y + 0.1 + 0.75 * age) ** 2
            if d2 < 0.00012:
                _toward(out, 1.4, 0.6, 0.15, 0.9 * (1.0 - age))


@njit(cache=True, fastmath=True)
def _rain(u, v, time, palette, seed, out):
    """A window on a grey day: blurred town, drops on the glass; dynamic: drops run down."""
    now = max(time, 0.0)
    _set(out, palette[1], 1.25 - 0.7 * v)
    house = _step(-0.02, 0.03, v - 0.42 - 0.12 * noise2(np.floor(4.0 * u + seed), 2.0))
    _toward(out, palette[0, 0], palette[0, 1], palette[0, 2], 0.7 * house)
    wx, wy = 8.0 * u + seed, 9.0 * v
    lit = _step(0.35, 0.5, hash2(np.floor(wx), np.floor(wy))) * house * _step(0.42, 0.30, abs(wx - np.floor(wx) - 0.5))
    _toward(out, 0.85, 0.62, 0.30, 0.55 * lit * _step(0.42, 0.30, abs(wy - np.floor(wy) - 0.5)))
    for layer in range(2):
        size = 9.0 + 5.0 * layer
        x = size * u + 3.0 * layer + seed
        i = int(np.floor(x))
        speed = 1.1 + 0.8 * hash2(i, 77)
        y = 0.55 * size * v - (speed * now if layer == 0 else 0.0) + 9.0 * hash2(i, 3)
        j = int(np.floor(y))
        if hash2(i, j + 50) > -0.25:
            fx = x - i - 0.5 - 0.22 * hash2(i, j)
            fy = y - j - 0.5
            d2 = (fx / 0.15) ** 2 + (fy / 0.20) ** 2
            trail = _step(0.10, 0.03, abs(fx)) * _step(-0.5, -0.2, fy) * _step(0.1, -0.05, fy) * (1.0 - layer)
            if d2 < 1.0:
                gain = 0.70 - 0.85 * fy / 0.20 * 0.5
                _toward(out, gain * 0.75, gain * 0.82, gain * 0.9, 0.75 * (1.0 - d2 * d2))
            _toward(out, 0.50, 0.56, 0.62, 0.35 * trail)
    if time >= 0.0:
        streak = noise2(90.0 * u + 20.0 * v + seed, 3.0 * v - 9.0 * now)
        _toward(out, 0.60, 0.65, 0.70, 0.30 * _step(0.45, 0.9, streak))


@njit(cache=True, fastmath=True)
def _sky(u, v, time, palette, seed, horizon, out):
    """Mountains or meadows under clouds; dynamic: the clouds drift."""
    now = max(time, 0.0)
    t = min(1.0, v / 0.8)
    for k in range(3):
        out[k] = palette[0, k] + (palette[1, k] - palette[0, k]) * t
    cloud = cloud2(2.0 * u + seed + 0.35 * now, 4.2 * v + 0.04 * now)
    cover = _step(0.0, 0.38, cloud + 0.10)
    shade = 0.78 + 0.22 * _step(0.0, 0.4, cloud2(2.0 * u + seed + 0.35 * now, 4.2 * v - 0.25))
    _toward(out, shade, shade * 0.99, shade, 0.92 * cover)
    ridge = horizon + 0.16 + 0.16 * noise2(1.5 * u + seed, 4.0) + 0.05 * noise2(6.0 * u + seed, 9.0)
    far = _step(-0.006, 0.006, v - ridge)
    face = 0.5 + 0.5 * noise2(7.0 * u + 5.0 * v, 9.0 * v + seed)
    _toward(out, 0.15 + 0.07 * face, 0.21 + 0.07 * face, 0.32 + 0.06 * face, far)
    snow = far * _step(0.10, 0.02, v - ridge) * _step(0.3, 0.6, face + 0.1)
    _toward(out, 0.85, 0.88, 0.93, 0.8 * snow)
    hill = horizon + 0.33 + 0.05 * noise2(1.1 * u + seed, 14.0)
    near = _step(-0.008, 0.008, v - hill)
    tone = 0.75 + 0.5 * noise2(14.0 * u, 30.0 * v)
    _toward(out, palette[2, 0] * tone, palette[2, 1] * tone, palette[2, 2] * tone, near)


@njit(cache=True, fastmath=True)
def paint_background(place, time, palette, seed, horizon, shift_x, shift_y, zoom, grain, out):
    """Fill out (h,w,3) with the place of that index in `scene.PLACES`. time < 0 means: nothing moves.

    shift_x, shift_y: the camera's shift in heights of the frame; zoom: how much larger all is; grain: strength of a
    lens' vignette, 0..1.
    """
    height, width = out.shape[0], out.shape[1]
    smaller = 1.0 - 1.0 / zoom
    for y in range(height):
        for x in range(width):
            a, b = (x + 0.5 - 0.5 * width) / height, (y + 0.5) / height
            u, v = a - shift_x, b - shift_y
            u, v = u - u * smaller, v - (v - 0.5) * smaller
            pixel = out[y, x]
            if place == 0:
                _backdrop(u, v, palette, seed, pixel)
            elif place == 1:
                _room(u, v, palette, seed, pixel)
            elif place == 2:
                _bookshelf(u, v, palette, seed, pixel)
            elif place == 3:
                _sea(u, v, time, palette, seed, horizon, pixel)
            elif place == 4:
                _foliage(u, v, time, palette, seed, pixel)
            elif place == 5:
                _street(u, v, time, palette, seed, pixel)
            elif place == 6:
                _snow(u, v, time, palette, seed, pixel)
            elif place == 7:
                _fire(u, v, time, palette, seed, pixel)
            elif place == 8:
                _rain(u, v, time, palette, seed, pixel)
            else:
                _sky(u, v, time, palette, seed, horizon, pixel)
            fall = 1.0 - grain * (a * a + (b - 0.5) * (b - 0.5))
            for k in range(3):
                pixel[k] *= fall


@njit(cache=True, fastmath=True)
def paint_foreground(kind, time, seed, shift_x, shift_y, frame, mask):
    """Draw blurred things before the character in a lower corner, over frame (h,w,3) uint8; they leave the mask (h,w).

    kind: 1 leaves that sway, 2 discs of light. time < 0 means: nothing moves.
    """
    height, width = mask.shape
    now = max(time, 0.0)
    side = 1.0 if seed - np.floor(seed) > 0.5 else -1.0
    edge = 0.5 * width / height
    for i in range(9):
        grow = 0.5 + 0.5 * hash2(i, 71)
        cx = side * (edge - 0.02 - 0.30 * (0.5 + 0.5 * hash2(i, 5 + int(seed * 7) % 50))) + shift_x
        cy = 0.99 - 0.22 * grow + shift_y
        if kind == 1:
            angle = 1.2 * hash2(i, 9) + 0.22 * np.sin(1.7 * now + i)
            long, short = 0.11 + 0.07 * grow, 0.030 + 0.016 * grow
            r, g, b, strength = 34 + 30 * grow, 84 + 46 * grow, 30 + 14 * grow, 0.92
        else:
            angle = 0.0
            long = short = 0.045 + 0.040 * grow
            twinkle = 0.75 + 0.25 * np.sin(2.6 * now + 2.1 * i)
            r, g, b = 255, 170 + 60 * grow, 90 + 90 * grow
            strength = 0.45 * twinkle
        c, s = np.cos(angle), np.sin(angle)
        reach = 1.3 * max(long, short)
        x0, x1 = int((cx - reach + edge) * height), int((cx + reach + edge) * height) + 1
        y0, y1 = int((cy - reach) * height), int((cy + reach) * height) + 1
        for y in range(max(0, y0), min(height, y1)):
            for x in range(max(0, x0), min(width, x1)):
                u, v = (x + 0.5) / height - edge - cx, (y + 0.5) / height - cy
                p, q = (c * v + s * u) / long, (c * u - s * v) / short
                cover = _step(1.25, 0.60, p * p + q * q + 0.25 * abs(p)) * strength
                if cover > 0.0:
                    if cover > 0.5:
                        mask[y, x] = 0
                    frame[y, x, 0] = int(frame[y, x, 0] + (r - frame[y, x, 0]) * cover)
                    frame[y, x, 1] = int(frame[y, x, 1] + (g - frame[y, x, 1]) * cover)
                    frame[y, x, 2] = int(frame[y, x, 2] + (b - frame[y, x, 2]) * cover)
