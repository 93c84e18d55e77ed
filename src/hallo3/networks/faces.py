"""The embedded bundle's face networks: where a face is, and whose it is.

The published system takes InsightFace's detector and recogniser (512 numbers, spec section 1). Their weights can't ship
with the package, so the embedded bundle carries these two small convolutional networks of its own. They are trained by
`hallo3.training.encoders_face`.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

Box = tuple[float, float, float, float]

CROP_MARGIN = 1.25  # side of the encoder's square crop, in longer sides of the face box
STRIDE = 4  # pixels of the locator's canvas per cell of its maps


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with group norms around a shortcut; halves the grid with `stride=2`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(4, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(4, out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(y)) + self.shortcut(x))


class FaceLocator(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Finds faces: a heat map of face centres at stride 4 and, per cell, the distances to the four sides of the box.

    Args:
        height, width: Canvas the network sees, in pixels, multiples of 32. Other images are fitted onto it; half the
            embedded bundle's frame is enough to see that something is a face.
        channels: Channels at strides 2, 4, 8, 16 and 32, multiples of 4.
        neck_channels: Channels of the maps at strides 8 and 4, the latter being what the outputs are read from.
    """

    @register_to_config
    def __init__(
        self,
        height: int = 64,
        width: int = 96,
        channels: tuple[int, ...] = (12, 24, 40, 56, 72),
        neck_channels: int = 24,
    ):
        super().__init__()
        c2, c4, c8, c16, c32 = channels
        self.stem = nn.Sequential(nn.Conv2d(3, c2, 3, 2, 1, bias=False), nn.GroupNorm(4, c2), nn.SiLU())
        self.stage4 = ResidualBlock(c2, c4, 2)
        self.stage8 = ResidualBlock(c4, c8, 2)
        self.stage16 = ResidualBlock(c8, c16, 2)
        self.stage32 = ResidualBlock(c16, c32, 2)
        self.laterals = nn.ModuleList(nn.Conv2d(c, neck_channels, 1) for c in (c4, c8, c16, c32))
        self.neck8 = ResidualBlock(neck_channels, neck_channels)
        self.neck4 = nn.Conv2d(neck_channels, neck_channels, 3, 1, 1, bias=False)
        self.norm = nn.GroupNorm(4, neck_channels)
        self.heat = nn.Conv2d(neck_channels, 1, 1)
        self.sides = nn.Conv2d(neck_channels, 4, 1)
        nn.init.constant_(self.heat.get_parameter("bias"), -4.0)  # few cells hold a face: start by saying so

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of a canvas.

        Args:
            image: `(B, 3, height, width)` in [-1, 1].

        Returns:
            heat: `(B, 1, height/4, width/4)` logits of "the centre of a face is here".
            sides: `(B, 4, height/4, width/4)` distances in pixels from the cell's centre to the left, top, right and
                bottom side of the box.
        """
        x4 = self.stage4(self.stem(image))
        x8 = self.stage8(x4)
        x16 = self.stage16(x8)
        down = (x4, x8, x16, self.stage32(x16))
        to4, to8, to16, up = (lateral(x) for lateral, x in zip(self.laterals, down, strict=True))
        up = to16 + F.interpolate(up, size=to16.shape[-2:])
        up = self.neck8(to8 + F.interpolate(up, size=to8.shape[-2:]))
        neck = F.silu(self.norm(self.neck4(to4 + F.interpolate(up, size=to4.shape[-2:]))))
        return self.heat(neck), self.sides(neck).clamp(-3, 4).exp() * STRIDE

    @torch.no_grad()
    def locate(self, image: Tensor, threshold: float = 0.3, max_faces: int = 8) -> list[list[tuple[Box, float]]]:
        """Faces in images of any size; each image is fitted onto the canvas whole, the rest black.

        Each face is looked at again from close by, which makes its box exact.

        Args:
            image: `(B, 3, H, W)` in [-1, 1].
            threshold: Least score (0…1) of a face.
            max_faces: Most faces returned per image.

        Returns:
            Per image, the faces found, best first: `((x, y, w, h), score)` in pixels of the given image, cut to it.
        """
        found = []
        for picture, (scores, corners) in zip(image, self._search(image), strict=True):
            keep = keep_best(scores, corners, threshold, max_faces)
            closer = [self._look_closer(picture, corners[i], threshold) for i in keep]
            found.append([(_to_box(box), float(scores[i])) for i, box in zip(keep, closer, strict=True)])
        return found

    def _search(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per image of `(B, 3, H, W)`, scores `(cells,)` and corners `(cells, 4)` in pixels of the image, cut to it."""
        height, width = image.shape[-2:]
        canvas, scale, left, top = fit(image.to(self.dtype), self.config["height"], self.config["width"])
        scores, corners = decode_maps(*self._maps(canvas))
        corners = (corners - corners.new_tensor([left, top, left, top])) / scale
        corners = corners.clamp(min=0).minimum(corners.new_tensor([width, height, width, height]))
        return list(zip(scores, corners, strict=True))

    def _maps(self, canvas: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, averaged over the canvas and its mirror image: what is a face in one is one in the other."""
        heat, sides = self(torch.cat([canvas, canvas.flip(-1)]))
        (heat, mirrored_heat), (sides, mirrored_sides) = heat.float().chunk(2), sides.float().chunk(2)
        mirrored_sides = mirrored_sides.flip(-1)[:, [2, 1, 0, 3]]
        return (heat + mirrored_heat.flip(-1)) / 2, (sides * mirrored_sides).sqrt()

    def _look_closer(self, picture: Tensor, box: Tensor, threshold: float) -> Tensor:
        """The corners of a face found again in the part of the picture around it."""
        limit = box.new_tensor(picture.shape[:0:-1])
        reach = (box[2:] - box[:2]).max() * box.new_tensor([self.config["width"] / self.config["height"], 1.0])
        centre = (box[:2] + box[2:]) / 2
        low = (centre - reach).clamp(min=0).floor().int()
        high = (centre + reach).minimum(limit).ceil().int()
        if (high - low).min() < 8:
            return box
        part = picture[None, :, low[1] : high[1], low[0] : high[0]]
        scores, corners = self._search(part)[0]
        corners = corners + torch.cat([low, low])
        best = (scores * box_iou(corners, box)).argmax()
        return corners[best] if scores[best] >= threshold and box_iou(corners[best], box) > 0.25 else box


class FaceEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Describes whose face a crop shows by numbers of about zero mean and unit variance, not normalised to a length.

    Args:
        channels: Channels at strides 2, 4, 8 and 16, multiples of 4.
        embed_dim: Numbers per face.
        size: Side of the crop in pixels, a multiple of 16.
    """

    @register_to_config
    def __init__(self, channels: tuple[int, ...] = (16, 32, 64, 96), embed_dim: int = 64, size: int = 64):
        super().__init__()
        c2, c4, c8, c16 = channels
        self.stem = nn.Sequential(nn.Conv2d(3, c2, 3, 2, 1, bias=False), nn.GroupNorm(4, c2), nn.SiLU())
        self.stages = nn.Sequential(
            ResidualBlock(c2, c4, 2), ResidualBlock(c4, c8, 2), ResidualBlock(c8, c16, 2), ResidualBlock(c16, c16)
        )
        # Features keep their places until here: faces are aligned by their box, so position says which feature it is.
        self.reduce = nn.Conv2d(c16, 32, 1)
        self.project = nn.Linear(32 * (size // 16) ** 2, embed_dim)

    def forward(self, crop: Tensor) -> Tensor:
        """`(B, 3, size, size)` in [-1, 1], as `crop_face` cuts it → `(B, embed_dim)`."""
        x = self.reduce(self.stages(self.stem(crop)))
        return self.project(x.flatten(1))


def crop_face(image: Tensor, box: Box, size: int = 64, margin: float = CROP_MARGIN) -> Tensor:
    """The square around a face box, resized for `FaceEncoder`.

    Args:
        image: `(3, H, W)` in [-1, 1].
        box: `(x, y, w, h)` of the face in pixels; may reach outside the image.
        size: Side of the result in pixels.
        margin: Side of the square in longer sides of the box.

    Returns:
        `(3, size, size)` in [-1, 1]; black outside the image.
    """
    x, y, w, h = box
    side = max(2, round(max(w, h) * margin))
    left, top = round(x + w / 2 - side / 2), round(y + h / 2 - side / 2)
    inside = image[:, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)]
    square = image.new_full((3, side, side), -1.0)
    y0, x0 = max(0, -top), max(0, -left)
    square[:, y0 : y0 + inside.shape[1], x0 : x0 + inside.shape[2]] = inside
    return F.interpolate(square[None], size=(size, size), mode="bilinear", antialias=True)[0]


def fit(image: Tensor, height: int, width: int) -> tuple[Tensor, float, int, int]:
    """Scales images `(B, 3, H, W)` to lie whole and centred on a black canvas; returns canvas, scale, left and top."""
    if image.shape[-2:] == (height, width):
        return image, 1.0, 0, 0
    scale = min(height / image.shape[-2], width / image.shape[-1])
    h = max(1, min(height, round(image.shape[-2] * scale)))
    w = max(1, min(width, round(image.shape[-1] * scale)))
    # Antialiased resizing has no bfloat16 kernel on CPU.
    small = F.interpolate(image.float(), size=(h, w), mode="bilinear", antialias=True).to(image.dtype)
    left, top = (width - w) // 2, (height - h) // 2
    return F.pad(small, (left, width - w - left, top, height - h - top), value=-1.0), scale, left, top


def decode_maps(heat: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """Scores `(B, cells)`, 0 but at local peaks, and corners `(B, cells, 4)` (x0, y0, x1, y1) in canvas pixels."""
    scores = heat.sigmoid()
    scores = scores * (F.max_pool2d(scores, 3, 1, 1) == scores)
    rows, columns = heat.shape[-2:]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    centre = (torch.stack([x, y, x, y]).to(sides) + 0.5) * STRIDE
    corners = centre + sides * sides.new_tensor([-1, -1, 1, 1])[:, None, None]
    return scores.flatten(1), corners.flatten(2).transpose(1, 2)


def keep_best(scores: Tensor, corners: Tensor, threshold: float, most: int) -> list[int]:
    """Indices of boxes above the threshold, best first, without those that overlap (IoU > 0.4) a better one."""
    kept: list[int] = []
    for i in scores.argsort(descending=True)[: 4 * most].tolist():
        if scores[i] < threshold or len(kept) == most:
            break
        if all(box_iou(corners[i], corners[j]) <= 0.4 for j in kept):
            kept.append(i)
    return kept


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes `(..., 4)` given as x0, y0, x1, y1."""
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    areas = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1) + (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1)
    return overlap / (areas - overlap).clamp(min=1e-6)


def _to_box(corners: Tensor) -> Box:
    x0, y0, x1, y1 = corners.tolist()
    return x0, y0, x1 - x0, y1 - y0
