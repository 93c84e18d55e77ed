"""Compiled shading: light on whatever surface the depth buffer shows, resolved to pixels with anti-aliasing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from hallo3.studio.noise import falloff
from hallo3.studio.paint import Look, paint_cloth, paint_hair, paint_hat, paint_head, paint_mouth, paint_plain
from hallo3.studio.surfaces import CLOTH, HAIR, HAT, HEAD, MOUTH, PALM, SKIN

SAMPLES = 2
"""Sub-samples per pixel along each side."""
SHADOW_SIZE = 176
_SHADOW_REACH = 2.6


class Light(NamedTuple):
    """Light in linear colours (3,): key with direction, fill from above, bounce from below, and a rim from behind.

    hardness: 0..1, how sharply the key light ends in shadow, and how little of it strays.
    """

    direction: np.ndarray
    key: np.ndarray
    fill: np.ndarray
    bounce: np.ndarray
    rim: np.ndarray
    hardness: np.float32


@njit(cache=True, fastmath=True)
def shadow_view(world, direction, out):
    """Coordinates (V,3) of the world as the key light sees it, scaled to the shadow map; z is nearness to it."""
    dx, dy, dz = direction[0], direction[1], direction[2]
    n = 1.0 / np.sqrt(dx * dx + dz * dz + 1e-9)
    rx, rz = dz * n, -dx * n
    ux, uy, uz = dy * rz, dz * rx - dx * rz, -dy * rx
    if uy < 0:
        ux, uy, uz = -ux, -uy, -uz
    scale = SHADOW_SIZE * 0.5 / _SHADOW_REACH
    for i in range(world.shape[0]):
        x, y, z = world[i, 0], world[i, 1] + 0.45, world[i, 2]
        out[i, 0] = SHADOW_SIZE * 0.5 + scale * (rx * x + rz * z)
        out[i, 1] = SHADOW_SIZE * 0.5 - scale * (ux * x + uy * y + uz * z)
        out[i, 2] = dx * x + dy * y + dz * z


@njit(cache=True, fastmath=True)
def _lit(view_x, view_y, nearness, shadow, bias):
    """Share of the key light that arrives, filtered over the shadow map."""
    if view_x < 1.5 or view_y < 1.5 or view_x > SHADOW_SIZE - 2.5 or view_y > SHADOW_SIZE - 2.5:
        return 1.0
    fx, fy = view_x - 0.5, view_y - 0.5
    ix, iy = int(np.floor(fx)), int(np.floor(fy))
    tx, ty = fx - ix, fy - iy
    total = 0.0
    for j in range(-1, 3):
        wy = 1.0 - ty if j == -1 else (ty if j == 2 else 1.0)
        for i in range(-1, 3):
            wx = 1.0 - tx if i == -1 else (tx if i == 2 else 1.0)
            if shadow[iy + j, ix + i] < nearness + bias:
                total += wx * wy
    return total / 9.0


@njit(cache=True, fastmath=True)
def _light(surface, n, light, lit, out):
    """Write the colour of a painted surface with normal n into out (3,). The viewer is at +z."""
    d = light.direction
    ndl = n[0] * d[0] + n[1] * d[1] + n[2] * d[2]
    straying = 1.0 - light.hardness
    # Hard light is bright right up to where its shadow begins.
    sharp = light.hardness * max(0.0, 1.3 * ndl / (0.3 + max(0.0, ndl)))
    soft = surface[5] * straying
    hx, hy, hz = d[0], d[1], d[2] + 1.0
    h = 1.0 / np.sqrt(hx * hx + hy * hy + hz * hz)
    ndh = max(0.0, (n[0] * hx + n[1] * hy + n[2] * hz) * h)
    gloss = surface[4]
    spec = surface[3] * falloff(gloss * (ndh - 1.0)) * lit * max(0.0, min(1.0, 4.0 * ndl))
    facing = max(0.0, n[2])
    edge = (1.0 - facing) * (1.0 - facing)
    up = 0.5 + 0.5 * n[1]
    rim = edge * edge * max(0.0, 0.3 + 0.7 * (n[1] - d[0] * n[0])) * surface[6]
    for k in range(3):
        wrap = soft * (0.42 if k == 0 else (0.20 if k == 1 else 0.14))
        diffuse = straying * max(0.0, (ndl + wrap) / (1.0 + wrap)) + sharp
        shade = lit + (1.0 - lit) * (0.20 * soft if k == 0 else 0.06 * soft)
        ambient = (light.bounce[k] * (1.0 - up) + light.fill[k] * up) * surface[6]
        front = 0.16 * straying * light.key[k] * facing * surface[6]
        colour = surface[k] * (diffuse * shade * light.key[k] * 0.80 + ambient + front)
        out[k] = colour + spec * light.key[k] * 0.5 + rim * light.rim[k] * (0.35 + 0.65 * surface[k])


@njit(cache=True, fastmath=True)
def _sample(t, w1, w2, arrays, look, light, shadow, surface, n, at, out):
    """Shade one sub-sample: triangle t with weights w1, w2."""
    triangles, materials, attributes, normals, view = arrays
    a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
    w0 = 1.0 - w1 - w2
    for k in range(4):
        at[k] = w0 * attributes[a, k] + w1 * attributes[b, k] + w2 * attributes[c, k]
    length = 1e-9
    for k in range(3):
        n[k] = w0 * normals[a, k] + w1 * normals[b, k] + w2 * normals[c, k]
        length += n[k] * n[k]
    length = 1.0 / np.sqrt(length)
    for k in range(3):
        n[k] *= length
    kind = materials[t]
    inside = n[2] < 0 and kind in (HAIR, HAT)
    if inside:
        for k in range(3):
            n[k] = -n[k]
    if kind == HEAD:
        paint_head(at, look, surface, n)
    elif kind in (SKIN, PALM):
        paint_plain(kind, at, look, surface, n)
    elif kind == HAIR:
        paint_hair(at, look, surface, n, inside)
    elif kind == MOUTH:
        paint_mouth(at, look, surface, n)
    elif kind == CLOTH:
        paint_cloth(at, look, surface, n)
    elif kind == HAT:
        paint_hat(at, look, surface, n, inside)
    else:
        paint_plain(kind, at, look, surface, n)
    vx = w0 * view[a, 0] + w1 * view[b, 0] + w2 * view[c, 0]
    vy = w0 * view[a, 1] + w1 * view[b, 1] + w2 * view[c, 1]
    vz = w0 * view[a, 2] + w1 * view[b, 2] + w2 * view[c, 2]
    lit = _lit(vx, vy, vz, shadow, 0.07)
    if light.hardness > 0.0:
        lit = min(1.0, max(0.0, 0.5 + (lit - 0.5) * (1.0 + 3.0 * light.hardness)))
    if kind == MOUTH:
        lit = 0.55 + 0.45 * lit
    _light(surface, n, light, lit, out)
    for k in range(3):
        out[k] += surface[7 + k]


@njit(cache=True)
def _uniform(owner, materials, y, x):
    """Whether one material covers all of a pixel; then the samples on its diagonal are enough."""
    first = owner[y * SAMPLES, x * SAMPLES]
    if first < 0 or materials[first] == MOUTH:
        return False
    for sy in range(SAMPLES):
        for sx in range(SAMPLES):
            t = owner[y * SAMPLES + sy, x * SAMPLES + sx]
            if t < 0 or materials[t] != materials[first]:
                return False
    return True


@njit(cache=True, fastmath=True)
def resolve(owner, bary, arrays, look: Look, light: Light, shadow, background, tone, frame, mask):
    """Shade all sub-samples and write pixels.

    owner (2h,2w), bary (2h,2w,2): the depth buffer's result; background (h,w,3) linear; tone: table from linear light
    in 0..4 (on a square-root scale) to 0..255; frame (h,w,3) uint8 and mask (h,w) uint8 are written.
    """
    height, width = mask.shape
    surface, n, at, out = np.empty(10, np.float32), np.empty(3, np.float32), np.empty(4, np.float32), np.empty(3)
    steps = tone.shape[0] - 1
    total = np.empty(3)
    materials = arrays[1]
    for y in range(height):
        for x in range(width):
            covered, shaded = 0, 0
            total[:] = 0.0
            uniform = _uniform(owner, materials, y, x)
            for sy in range(SAMPLES):
                for sx in range(SAMPLES):
                    yy, xx = y * SAMPLES + sy, x * SAMPLES + sx
                    t = owner[yy, xx]
                    covered += t >= 0
                    if t >= 0 and (sx == sy or not uniform):
                        shaded += 1
                        _sample(t, bary[yy, xx, 0], bary[yy, xx, 1], arrays, look, light, shadow, surface, n, at, out)
                        for k in range(3):
                            # Highlights are compressed before they are averaged, so that edges stay smooth.
                            total[k] += min(out[k], 1.6)
            mask[y, x] = 1 if 2 * covered >= SAMPLES * SAMPLES else 0
            share = covered / (SAMPLES * SAMPLES)
            inverse = share / max(1, shaded)
            for k in range(3):
                value = total[k] * inverse + (1.0 - share) * background[y, x, k]
                index = int(np.sqrt(max(0.0, min(4.0, value)) * 0.25) * steps + 0.5)
                frame[y, x, k] = tone[index]


def tone_table(steps: int = 4096) -> np.ndarray:
    """The curve from linear light to pixel values: linear in the shadows, a soft shoulder, then sRGB."""
    linear = 4.0 * np.linspace(0, 1, steps + 1) ** 2
    knee = 0.55
    over = np.maximum(linear - knee, 0)
    bent = np.where(linear < knee, linear, knee + (1 - knee) * (1 - np.exp(-over / (1 - knee))))
    srgb = np.where(bent <= 0.0031308, 12.92 * bent, 1.055 * np.maximum(bent, 1e-9) ** (1 / 2.4) - 0.055)
    return np.clip(np.round(srgb * 255), 0, 255).astype(np.uint8)
