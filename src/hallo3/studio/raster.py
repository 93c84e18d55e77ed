"""Compiled loops over vertices and triangles: the face's deformation, posing, normals and a depth buffer."""

from __future__ import annotations

import numpy as np
from numba import njit

HINGE_Y, HINGE_Z = -0.25, -0.05
JAW_ANGLE = 0.40
PIVOT = (0.0, -0.95, -0.30)
"""The point in head space about which the head turns on the body."""
CAMERA = 9.0
"""Distance of the camera from the head's plane, in head units."""


@njit(cache=True, fastmath=True)
def deform_face(rest, q, lower, half_width, opening, width, smile, out):
    """Move the face's vertices: jaw, lips, corners of the mouth. Shapes: rest, out (V,3); q, lower (V,)."""
    stretch = 0.66 + 0.58 * width
    round_lips = max(0.0, 0.55 - width) * 2.0
    for i in range(rest.shape[0]):
        x, y, z = rest[i, 0], rest[i, 1], rest[i, 2]
        if z > -0.35 and y < 0.3:
            ax, d = abs(x), q[i]
            e = min(1.0, ax / half_width)
            corner = 1.0 - np.sqrt(max(0.0, 1.0 - e * e))
            t = min(1.0, max(0.0, (ax / half_width - 0.6)))
            reach = 0.13 + 0.26 * t * t * (3.0 - 2.0 * t)
            fade = np.exp(-(d / reach) * (d / reach))
            near = np.exp(-(d / 0.13) * (d / 0.13))
            behind = min(1.0, (z + 0.35) / 0.5)
            if lower[i] > 0:
                jaw = (1.0 - 0.5 * corner * fade) * behind
            else:
                jaw = 0.5 * corner * fade * behind
                y += opening * 0.055 * (1.0 - corner) * near
            # Width and rounding act on the lips only.
            weight = np.exp(-((d / 0.26) ** 2) - (ax / 0.62) ** 4) * behind
            x *= 1.0 + (stretch - 1.0) * weight
            z += 0.10 * round_lips * np.exp(-((ax / 0.27) ** 2) - (d / 0.16) ** 2)
            lift = np.exp(-(((ax - half_width) / 0.13) ** 2) - (d / 0.14) ** 2)
            y += 0.055 * smile * lift
            z -= 0.02 * smile * lift
            cheek = np.exp(-(((ax - 0.42) / 0.16) ** 2) - ((d - 0.34) / 0.14) ** 2)
            z += 0.035 * smile * cheek * behind
            angle = JAW_ANGLE * opening * jaw
            c, s = np.cos(angle), np.sin(angle)
            dy, dz = y - HINGE_Y, z - HINGE_Z
            y = HINGE_Y + dy * c - dz * s
            z = HINGE_Z + dz * c + dy * s
        out[i, 0], out[i, 1], out[i, 2] = x, y, z


@njit(cache=True, fastmath=True)
def fill_mouth(vertices, attributes, rest, upper, lower, start, rows, half_width):
    """Place the mouth's inside between the lips. Attributes: x over the half width, distance below the upper lip,
    distance above the lower lip, opening in the middle (head units)."""
    columns = upper.shape[0]
    gap_middle = 0.0
    for c in range(columns):
        gap_middle = max(gap_middle, vertices[upper[c], 1] - vertices[lower[c], 1])
    for r in range(rows):
        v = r / (rows - 1.0)
        depth = 0.20 * np.sqrt(np.sin(np.pi * v) + 1e-6)
        for c in range(columns):
            a, b = upper[c], lower[c]
            u = rest[a, 0] / half_width
            gap = vertices[a, 1] - vertices[b, 1]
            k = start + r * columns + c
            for j in range(3):
                vertices[k, j] = vertices[a, j] * (1.0 - v) + vertices[b, j] * v
            vertices[k, 2] -= depth * max(0.0, 1.0 - u * u) * min(1.0, gap * 8.0)
            attributes[k, 0] = u
            attributes[k, 1] = gap * v
            attributes[k, 2] = gap * (1.0 - v)
            attributes[k, 3] = gap_middle


@njit(cache=True, fastmath=True)
def pose(vertices, head_weight, head, body, shift, out):
    """Blend every vertex between the head's and the body's rotation (3,3) about the pivot, then shift it."""
    px, py, pz = PIVOT
    for i in range(vertices.shape[0]):
        w = head_weight[i]
        x, y, z = vertices[i, 0] - px, vertices[i, 1] - py, vertices[i, 2] - pz
        for j in range(3):
            h = head[j, 0] * x + head[j, 1] * y + head[j, 2] * z
            b = body[j, 0] * x + body[j, 1] * y + body[j, 2] * z
            out[i, j] = w * h + (1.0 - w) * b
        out[i, 0] += px + shift[0]
        out[i, 1] += py + shift[1]
        out[i, 2] += pz


@njit(cache=True, fastmath=True)
def project(world, scale, cx, cy, out):
    """Perspective projection: out (V,3) holds x, y in pixels (y down) and nearness z."""
    for i in range(world.shape[0]):
        k = scale * CAMERA / (CAMERA - world[i, 2])
        out[i, 0] = cx + k * world[i, 0]
        out[i, 1] = cy - k * world[i, 1]
        out[i, 2] = world[i, 2]


@njit(cache=True, fastmath=True)
def vertex_normals(world, triangles, upper, lower, out):
    """Area-weighted normals of all vertices; the two rims of the lips' line share theirs where they touch."""
    out[:] = 0.0
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ux, uy, uz = world[b, 0] - world[a, 0], world[b, 1] - world[a, 1], world[b, 2] - world[a, 2]
        vx, vy, vz = world[c, 0] - world[a, 0], world[c, 1] - world[a, 1], world[c, 2] - world[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for i in (a, b, c):
            out[i, 0] += nx
            out[i, 1] += ny
            out[i, 2] += nz
    for k in range(upper.shape[0]):
        for j in range(3):
            total = out[upper[k], j] + out[lower[k], j]
            out[upper[k], j] = total
            out[lower[k], j] = total
    for i in range(out.shape[0]):
        n = 1.0 / np.sqrt(out[i, 0] ** 2 + out[i, 1] ** 2 + out[i, 2] ** 2 + 1e-20)
        out[i, 0] *= n
        out[i, 1] *= n
        out[i, 2] *= n


@njit(cache=True, fastmath=True)
def rasterise(screen, triangles, two_sided, depth, owner, bary):
    """Fill the depth buffer (h,w) with the nearest triangles: owner (h,w) index or -1, bary (h,w,2) weights."""
    height, width = depth.shape
    depth[:] = -1e9
    owner[:] = -1
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ax, ay, bx, by, cx, cy = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1], screen[c, 0], screen[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area > -1e-6 and (not two_sided[t] or area < 1e-6):
            continue
        x0, x1 = max(0, int(np.ceil(min(ax, bx, cx) - 0.5))), min(width - 1, int(np.floor(max(ax, bx, cx) - 0.5)))
        y0, y1 = max(0, int(np.ceil(min(ay, by, cy) - 0.5))), min(height - 1, int(np.floor(max(ay, by, cy) - 0.5)))
        if x1 < x0 or y1 < y0:
            continue
        inverse = 1.0 / area
        za, zb, zc = screen[a, 2], screen[b, 2], screen[c, 2]
        dx1, dx2 = (cy - ay) * inverse, -(by - ay) * inverse
        for y in range(y0, y1 + 1):
            py = y + 0.5 - ay
            px = x0 + 0.5 - ax
            w1 = (px * (cy - ay) - py * (cx - ax)) * inverse
            w2 = (py * (bx - ax) - px * (by - ay)) * inverse
            for x in range(x0, x1 + 1):
                if w1 >= 0.0 and w2 >= 0.0 and w1 + w2 <= 1.0:
                    z = za + w1 * (zb - za) + w2 * (zc - za)
                    if z > depth[y, x]:
                        depth[y, x] = z
                        owner[y, x] = t
                        bary[y, x, 0] = w1
                        bary[y, x, 1] = w2
                w1 += dx1
                w2 += dx2


@njit(cache=True)
def owner_bounds(owner, chosen):
    """Lowest and highest corner (2,2) as (x, y) of the samples of chosen triangles; zeros if there are none."""
    height, width = owner.shape
    out = np.zeros((2, 2), np.float32)
    x0, y0, x1, y1 = width, height, 0, 0
    for y in range(height):
        for x in range(width):
            t = owner[y, x]
            if t >= 0 and chosen[t]:
                x0, x1 = min(x0, x), max(x1, x + 1)
                y0, y1 = min(y0, y), max(y1, y + 1)
    if x1 > 0:
        out[0, 0], out[0, 1], out[1, 0], out[1, 1] = x0, y0, x1, y1
    return out
