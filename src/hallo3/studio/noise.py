"""Compiled value noise in -1..1; the same input gives the same value on every run."""

from __future__ import annotations

import numpy as np
from numba import njit

_ORDER = np.random.default_rng(1).permutation(256).astype(np.int32)
_VALUES = np.random.default_rng(2).uniform(-1, 1, 256).astype(np.float32)


@njit(cache=True, fastmath=True)
def falloff(x):
    """A cheap stand-in for exp(x) at x <= 0 that ends: (1 + x/4)^4, and 0 below -4."""
    t = max(0.0, 1.0 + 0.25 * x)
    t *= t
    return t * t


@njit(cache=True)
def hash2(x, y):
    """A number in -1..1 for two integers; repeats every 256."""
    return _VALUES[_ORDER[(_ORDER[int(x) & 255] + int(y)) & 255]]


@njit(cache=True, fastmath=True)
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


@njit(cache=True, fastmath=True)
def noise3(x, y, z):
    """Smooth noise of three coordinates, one knot per unit."""
    fz = np.floor(z)
    k = int(fz)
    w = z - fz
    w = w * w * (3.0 - 2.0 * w)
    low = noise2(x + 57.0 * k, y + 131.0 * k)
    high = noise2(x + 57.0 * (k + 1), y + 131.0 * (k + 1))
    return low + (high - low) * w


@njit(cache=True, fastmath=True)
def cloud2(x, y):
    """Three octaves of noise2."""
    return 0.57 * noise2(x, y) + 0.29 * noise2(2.1 * x + 7.3, 2.1 * y) + 0.14 * noise2(4.3 * x, 4.3 * y + 3.1)
