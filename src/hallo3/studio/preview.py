"""A contact sheet of the studio."""

from __future__ import annotations

import numpy as np

from hallo3.studio.identity import Identity
from hallo3.studio.performance import performance
from hallo3.studio.renderer import render
from hallo3.studio.scene import Scene

MOUTHS = ((0.0, 0.5), (0.45, 1.0), (1.0, 0.55), (0.5, 0.0))
"""Openings and widths of a row: closed, /i/, /a/, /u/."""


def contact_sheet(
    seed: int, rows: int, columns: int, height: int, width: int, style: str | None = None, light: str = "steady"
) -> np.ndarray:
    """Identities in random surroundings, each with the mouths of `MOUTHS`: (rows*height, columns*4*width, 3) uint8."""
    lines = []
    for row in range(rows):
        cells = []
        for column in range(columns):
            rng = np.random.default_rng([seed, row, column])
            identity, scene = Identity.sample(rng), Scene.sample(rng, lighting=light)
            opening, mouth_width = (np.repeat([m[k] for m in MOUTHS], 20) for k in (0, 1))
            acted = performance(rng, opening, mouth_width, style)[::20]
            cells.append(np.concatenate(list(render(identity, scene, acted, height, width).frames), axis=1))
        lines.append(np.concatenate(cells, axis=1))
    return np.concatenate(lines)
