"""Colours of classes, class codes painted over tissue, and pictures as PNG and JPEG files."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

# Okabe and Ito's palette, told apart with every kind of colour blindness; green first, the complement of pink.
PALETTE = ("#009E73", "#E69F00", "#0072B2", "#F0E442", "#56B4E9", "#D55E00", "#CC79A7", "#000000")
NEUTRAL = "#8A8A8A"  # background in plots, ignored pixels in pictures
TINT, TINT_ONE_CLASS = 0.42, 0.22  # opacity inside an outline; one class alone is told by its thicker outline
OUTLINE_PX, OUTLINE_ONE_CLASS_PX = 1, 3  # on either side of a border; neighbouring classes are both outlined


def painted_classes(classes: Sequence[str], *, background: int | None, ignore: int | None) -> tuple[int, ...]:
    """Return the codes of the classes that are painted and outlined: all but background and the ignored one."""
    return tuple(code for code in range(len(classes)) if code not in (background, ignore))


def class_colours(
    classes: Sequence[str], *, background: int | None, ignore: int | None, own: Sequence[str | None] = ()
) -> tuple[str, ...]:
    """Return one hex colour `#rrggbb` per class in the order of the codes; background and the ignored class are gray.

    Beyond eight painted classes the palette begins again. own: of each class the colour that it has already, None of
    one without; empty where none has one.
    """
    painted = painted_classes(classes, background=background, ignore=ignore)
    colours = {code: PALETTE[number % len(PALETTE)] for number, code in enumerate(painted)}
    colours |= {code: colour for code, colour in enumerate(own) if colour is not None}
    return tuple(colours.get(code, NEUTRAL) for code in range(len(classes)))


def rgb(colour: str) -> tuple[int, int, int]:
    """Return red, green and blue (0..255) of a hex colour `#rrggbb`."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def overlay(
    tissue: np.ndarray, codes: np.ndarray, *, classes: Sequence[str], background: int | None, ignore: int | None,
    own: Sequence[str | None] = (),
) -> np.ndarray:  # fmt: skip
    """Tint and outline the classes over tissue: (h, w, 3) 0..255 and codes (h, w) -> (h, w, 3) float32 0..255.

    Background, the ignored class and codes without a class stay as they are. own: as of `class_colours`.
    """
    colours = class_colours(classes, background=background, ignore=ignore, own=own)
    painted = painted_classes(classes, background=background, ignore=ignore)
    several = len(painted) > 1
    edge = _edges(codes, px=OUTLINE_PX if several else OUTLINE_ONE_CLASS_PX)
    tint = np.zeros(len(classes) + 1)  # by code, the last for codes without a class
    tint[list(painted)] = TINT if several else TINT_ONE_CLASS
    opacity, kept = (
        np.where(
            edge,
            on_edge.astype(np.float32).take(codes, mode="clip"),
            inside.astype(np.float32).take(codes, mode="clip"),
        )
        for inside, on_edge in ((tint, tint > 0), (1 - tint, tint == 0))
    )
    picture = np.empty((*codes.shape, 3), np.float32)
    for channel in range(3):
        colour = np.array([*(rgb(one)[channel] for one in colours), 0], np.float32).take(codes, mode="clip")
        picture[..., channel] = kept * tissue[..., channel] + opacity * colour
    return picture


def blend(picture: np.ndarray, where: np.ndarray, colour: str, opacity: float) -> None:
    """Mix a colour into the pixels `where` (h, w) bool of a picture (h, w, 3) float32, in place; opacity 0..1."""
    picture[where] = (1 - opacity) * picture[where] + opacity * np.array(rgb(colour), np.float32)


def to_uint8(picture: np.ndarray) -> np.ndarray:
    """Round a float picture to uint8, clipped to 0..255."""
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def jpeg_bytes(picture: np.ndarray, *, quality: int = 80) -> bytes:
    """Encode (h, w, 3) uint8 as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def png_bytes(picture: np.ndarray) -> bytes:
    """Encode (h, w) or (h, w, 3) uint8 as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _edges(codes: np.ndarray, *, px: int) -> np.ndarray:
    """(h, w) bool: the pixels within `px` of another class, on both sides of the border."""
    edge = np.zeros(codes.shape, bool)
    for step in range(1, px + 1):
        for axis in (0, 1):
            along, marked = np.moveaxis(codes, axis, 0), np.moveaxis(edge, axis, 0)
            border = along[step:] != along[:-step]
            marked[step:] |= border
            marked[:-step] |= border
    return edge
