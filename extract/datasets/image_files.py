"""Reading and checking image and mask files: bmp, png, tif, jpg and whatever else Pillow reads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import error as StructError

import numpy as np
from PIL import Image

IMAGE_SUFFIXES = frozenset({".bmp", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MASK_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16L", "I;16B"})  # one integer a pixel
LOSSY_FORMATS = frozenset({"JPEG", "MPO"})  # a JPEG changes the codes along every edge
NOT_RGB = {  # what a person calls Pillow's modes
    "RGBA": "has an alpha channel (RGBA)",
    "LA": "is grayscale with an alpha channel (LA)",
    "L": "is grayscale (L)",
    "1": "is black and white (1)",
    "P": "has a palette (P)",
    "F": "is floating point (F)",
}
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, StructError)  # what Pillow raises on a damaged file
_LIMIT = threading.Lock()


def read_image(path: Path) -> np.ndarray:
    """Decode an image: (H, W, 3) uint8 RGB; of a file with several pages the first.

    Raises FileNotFoundError, or ValueError naming the file: unreadable, damaged, not 8-bit RGB.
    """
    with decoded_image(path) as file:
        return np.array(file)


def read_mask(path: Path) -> np.ndarray:
    """Decode a mask: (H, W) in the file's own integers (uint8, uint16, int32); of a palette file the indices.

    Raises FileNotFoundError, or ValueError naming the file: unreadable, damaged, lossy, not one code a pixel.
    """
    with decoded_mask(path) as file:
        return codes_of(file)


@contextmanager
def decoded_image(path: Path) -> Iterator[Image.Image]:
    """An image as Pillow holds it, 4 bytes a pixel, for whoever needs no array of all of it. Raises as `read_image`."""
    with _opened(path) as file:
        _require_rgb(path, file)
        _load(path, file)
        yield file


@contextmanager
def decoded_mask(path: Path) -> Iterator[Image.Image]:
    """A mask as Pillow holds it, for whoever needs no array of all of it. Raises as `read_mask`."""
    with _opened(path) as file:
        _require_codes(path, file)
        _load(path, file)
        yield file


def codes_of(mask: Image.Image) -> np.ndarray:
    """The codes of a decoded mask or a part of one, (H, W) in its own integers and the machine's byte order."""
    codes = np.array(mask)
    if codes.dtype == bool:
        return codes.astype(np.uint8)
    return codes.astype(codes.dtype.newbyteorder("="), copy=False)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width in px from the header; the pixels are not decoded. Raises as `read_image`."""
    with _opened(path) as file:
        _require_rgb(path, file)
        return file.height, file.width


def mask_size(path: Path) -> tuple[int, int]:
    """Height and width in px from the header; the pixels are not decoded. Raises as `read_mask`."""
    with _opened(path) as file:
        _require_codes(path, file)
        return file.height, file.width


def paired_size(image: Path, mask: Path) -> tuple[int, int]:
    """Height and width in px of an image and its mask, from the headers; ValueError where they differ."""
    height, width = image_size(image)
    found = mask_size(mask)
    if found != (height, width):
        raise ValueError(
            f"{mask}: a mask must have its image's size, but it is {found[1]}x{found[0]} px and "
            f"{image.name} is {width}x{height} px; give the mask made for this image"
        )
    return height, width


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 to a size (height, width) by Pillow's bicubic filter, which antialiases when shrinking."""
    height, width = size
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) to a size (height, width), same dtype: the value at the centre of each new pixel (nearest)."""
    height, width = size
    rows = ((np.arange(height) + 0.5) * (mask.shape[0] / height)).astype(np.intp)
    cols = ((np.arange(width) + 0.5) * (mask.shape[1] / width)).astype(np.intp)
    return mask[rows[:, None], cols]


def list_files(root: Path) -> list[Path]:
    """All image files under a folder, sorted; hidden files and what macOS adds to archives are left out."""
    found = (path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return sorted(path for path in found if not _hidden(path.relative_to(root)))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file with its header read."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with _no_size_limit():
        try:
            file = Image.open(path)
        except UNREADABLE as e:
            raise ValueError(f"{path}: not a readable image: {_reason(e)}; replace the file") from e
    with file:
        yield file


@contextmanager
def _no_size_limit() -> Iterator[None]:
    """Lift Pillow's limit on the pixels of a file, which guards web servers and stops whole-slide regions.

    The limit is a global of Pillow that it looks at while opening: one thread at a time, and put back.
    """
    with _LIMIT:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def _load(path: Path, file: Image.Image) -> None:
    try:
        file.load()
    except UNREADABLE as e:
        raise ValueError(f"{path}: the file is damaged or cut short: {_reason(e)}; replace the file") from e


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _require_rgb(path: Path, file: Image.Image) -> None:
    # Pillow calls 16-bit RGB files RGB too and would drop their lower bytes; only its plan for decoding tells.
    deep = ";16" in repr(getattr(file, "tile", ""))
    if file.mode == "RGB" and not deep:
        return
    deep = deep or file.mode.startswith("I")
    kind = "has 16 bits or more a channel" if deep else NOT_RGB.get(file.mode, f"is {file.mode}")
    raise ValueError(f"{path}: an image must be 8-bit RGB, but this one {kind}; convert it to 8-bit RGB")


def _require_codes(path: Path, file: Image.Image) -> None:
    rule = "a mask must hold one integer code a pixel"
    if file.mode not in MASK_MODES:
        raise ValueError(f"{path}: {rule}, but this one is {file.mode}; save it as an 8-bit grayscale png")
    if file.format in LOSSY_FORMATS:
        raise ValueError(f"{path}: {rule}, but {file.format} changes codes; use a lossless type such as png")
