"""Compiled value noise in -1..1; the same input gives the same value on every run."""

from __future__ import annotations

import numpy as np
from numba import njit

_MASK = np.int64(0xFFFFFFFF)


@njit(cache=True)
def hash2(x, y):
    """A number in -1..1 for two integers."""
    n = np.int64(x) * np.int64(0x1B873593) + np.int64(y) * np.int64(0x19D699A5)
    n = (n ^ ((n & _MASK) >> np.int64(15))) * np.int64(0x2C1B3C6D)
    n = (n & _MASK) ^ ((n & _MASK) >> np.int64(12))
    n = (n * np.int64(0x297A2D39)) & _MASK
    n = n ^ (n >> np.int64(15))
    return np.float64(n & np.int64(0xFFFF)) / 32767.5 - 1.0


@njit(cache=True)
def hash3(x, y, z):
    """A number in -1..1 for three integers."""
    return hash2(x + 57 * z, y + 131 * z)


@njit(cache=True)
def noise2(x, y):
    """Smooth noise of two coordinates, one knot per unit."""
    fx, fy = np.floor(x), np.floor(y)
    i, j = int(fx), int(fy)
    u, v = x - fx, y - fy
    u, v = u * u * (3.0 - 2.0 * u), v * v * (3.0 - 2.0 * v)
    a, b = hash2(i, j), hash2(i + 1, j)
    c, d = hash2(i, j + 1), hash2(i + 1, j + 1)
    low = a + (b - a) * u
    return low + (c + (d - c) * u - low) * v


@njit(cache=True)
def noise3(x, y, z):
    """Smooth noise of three coordinates, one knot per unit."""
    fz = np.floor(z)
    k = int(fz)
    w = z - fz
    w = w * w * (3.0 - 2.0 * w)
    low = noise2(x + 57.0 * k, y + 131.0 * k)
    high = noise2(x + 57.0 * (k + 1), y + 131.0 * (k + 1))
    return low + (high - low) * w


@njit(cache=True)
def cloud2(x, y):
    """Three octaves of noise2."""
    return 0.57 * noise2(x, y) + 0.29 * noise2(2.1 * x + 7.3, 2.1 * y) + 0.14 * noise2(4.3 * x, 4.3 * y + 3.1)
