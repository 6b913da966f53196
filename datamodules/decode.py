"""From an image file to uint8 pixels of the wanted size."""

import math
import os

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

RESIZE = 256 / 224  # the shorter side before the central crop, as a share of the crop
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Share of the image's area and width / height of a random resized crop (Inception's augmentation)."""

DEEP = ("I", "F")
"""Beginnings of Pillow's modes of more than 8 bits a channel."""


class BrokenImageError(ValueError):
    """A file that should be an image and is not; the message names it."""


def open_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """The decoded image as RGB. Raises BrokenImageError with path and cause for an absent, damaged or other file, and
    for pixels of 16 bits or floats, which Pillow would clip at 255."""
    try:
        with Image.open(path) as image:
            mode = image.mode
            if not mode.startswith(DEEP):
                return image.convert("RGB")
    except FileNotFoundError:
        raise BrokenImageError(f"{path}: listed, but there is no such file") from None
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BrokenImageError(f"{path}: {os.stat(path).st_size} bytes that are not a whole image ({cause})") from None
    raise BrokenImageError(f"{path}: pixels of mode {mode}; expected 8 bits a channel")


def central_crop(image: Image.Image, side: int) -> Tensor:
    """The shorter side scaled to 256/224 of `side`, then the centre: uint8 [3, side, side]."""
    width, height = image.size
    window = min(width, height) / RESIZE
    left, top = (width - window) / 2, (height - window) / 2
    return _scaled(image, side, (left, top, left + window, top + window))


def random_resized_crop(image: Image.Image, side: int, chance: np.random.Generator) -> Tensor:
    """A window of random area and shape, scaled to uint8 [3, side, side]; ten tries to fit one in, else the centre."""
    width, height = image.size
    for _ in range(10):
        area = chance.uniform(*AREA) * width * height
        ratio = math.exp(chance.uniform(*map(math.log, RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(chance.integers(width - w + 1)), int(chance.integers(height - h + 1))
            return _scaled(image, side, (left, top, left + w, top + h))
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return _scaled(image, side, (left, top, left + w, top + h))


def flip(pixels: Tensor, mirrored: bool) -> Tensor:
    """[C, H, W], left and right exchanged where asked."""
    return pixels.flip(-1) if mirrored else pixels


def _scaled(image: Image.Image, side: int, box: tuple[float, float, float, float]) -> Tensor:
    pixels = np.array(image.resize((side, side), Image.Resampling.BILINEAR, box=box))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
