"""Reading and checking image and mask files: BMP, JPEG, JPEG 2000, PNG, PNM, TIFF and WebP."""

from __future__ import annotations

import ctypes
import math
import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from pathseg.extract.datasets.registry import Sample
from pathseg.store.format.names import FOLDER
from pathseg.store.grid import fitted_size
from pathseg.store.resolution import plausible_mpp
from pathseg.store.runtime.memory import free_machine_memory
from pathseg.store.runtime.workspace import heads_path

FORMATS = ("BMP", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # by content; not EPS, which starts Ghostscript

IMAGE_SUFFIXES = frozenset({".bmp", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MASK_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16L", "I;16B"})  # one integer a pixel
LOSSY_FORMATS = {  # format of Pillow -> its name
    "JPEG": "JPEG", "MPO": "JPEG",  # changes the codes along every edge
    "JPEG2000": "JPEG 2000",  # also with the lossless wavelet its last bits may be cut off, which no header says
}  # fmt: skip
LOSSY_TIFF = {  # TIFF compression -> its name
    6: "JPEG", 7: "JPEG", 34892: "JPEG", 33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000",
    34712: "JPEG 2000", 34887: "LERC", 34927: "WebP", 50001: "WebP", 50002: "JPEG XL",
}  # fmt: skip
COMPRESSION, PHOTOMETRIC, WHITE_IS_ZERO = 259, 262, 0  # tags of TIFF
MODE_NAMES = {  # Pillow's modes other than RGB, in words
    "RGBA": "has an alpha channel (RGBA)",
    "LA": "is grayscale with an alpha channel (LA)",
    "L": "is grayscale (L)",
    "1": "is black and white (1)",
    "P": "has a palette (P)",
    "F": "is floating point (F)",
}
MAX_PIXELS = 2**29  # of an image that is decoded whole, 23,170 px squared: 3.8 GB; a region of BCSS has 24 Mpx
DECODED_BYTES = 7  # of a px: 4 in Pillow's memory, 3 in the array
DONE = FOLDER  # of stores, and of the folders that `predict` writes
OF_A_WORKSPACE = frozenset({"heads", "report"})
SAME_MPP = 0.01  # relative difference of um/px below which they count as one
NAMED_MPP = re.compile(r"_MPP-(\d+\.\d+)")  # as in the names of BCSS
_PIXEL_LIMIT_LOCK = threading.Lock()


def read_image(path: Path) -> np.ndarray:
    """Decode an image: (H, W, 3) uint8 RGB, the first page of a file with several.

    Raises FileNotFoundError, or ValueError naming the file: of no type in FORMATS, damaged, too large to be decoded
    whole, to be turned (EXIF), not 8-bit RGB.
    """
    with decoded_image(path) as file:
        return np.array(file)


def read_mask(path: Path) -> np.ndarray:
    """Decode a mask: (H, W) uint8, uint16 or int32 as in the file; see `mask_codes` for palettes and one-bit files.

    Raises FileNotFoundError, or ValueError naming the file: as `read_image`, lossy, not one code a pixel.
    """
    with decoded_mask(path) as file:
        return mask_codes(file)


def read_instances(path: Path) -> np.ndarray:
    """Decode a mask of numbered objects: (H, W) uint16 ids, 0 = background.

    Raises as `read_mask`, and ValueError where the objects are not numbered.
    """
    ids = read_mask(path)
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest > np.iinfo(np.uint16).max:
        raise ValueError(f"{path}: object ids must be 0..65535, found {lowest}..{highest}; number them anew")
    if highest == 255 and not np.any((ids > 0) & (ids < 255)):
        raise ValueError(
            f"{path}: a mask of objects numbers them 1, 2, ..., but this one holds 255 alone, so they cannot be told "
            "apart; get the numbered masks, or use --dataset folder for classes only"
        )
    return ids.astype(np.uint16)


@contextmanager
def decoded_image(path: Path) -> Iterator[Image.Image]:
    """Decode an image in Pillow's memory (4 bytes/px) without a NumPy copy. Raises as `read_image`."""
    with _opened(path) as file:
        _require_rgb(path, file)
        _load(path, file)
        yield file


@contextmanager
def decoded_mask(path: Path) -> Iterator[Image.Image]:
    """Decode a mask in Pillow's memory without a NumPy copy. Raises as `read_mask`."""
    with _opened(path) as file:
        _require_codes(path, file)
        _load(path, file)
        _require_different_greys(path, file)
        yield file


def mask_codes(mask: Image.Image) -> np.ndarray:
    """Return the codes of a decoded mask: (H, W), dtype of the file in native byte order, bool as uint8.

    A palette of greys alone gives their values, any other the indices. One bit gives 0 (black) and 1 (white).
    """
    codes = np.array(mask)
    if (greys := _grey_palette(mask)) is not None:
        return greys[codes]
    if codes.dtype == bool:
        return codes.astype(np.uint8)
    return codes.astype(codes.dtype.newbyteorder("="), copy=False)


def _grey_palette(mask: Image.Image) -> np.ndarray | None:
    """Return the grey value of each index, (256,) uint8; None for a palette with colours, or without a palette."""
    if mask.mode != "P":
        return None
    colours = np.array(mask.getpalette(), np.uint8).reshape(-1, 3)
    if (colours != colours[:, :1]).any():
        return None
    return np.pad(colours[:, 0], (0, 256 - len(colours)))


def _require_different_greys(path: Path, mask: Image.Image) -> None:
    greys = _grey_palette(mask)
    if greys is None:
        return
    used = np.flatnonzero(mask.histogram())
    if len(set(greys[used].tolist())) < len(used):
        raise ValueError(
            f"{path}: the palette gives {len(used)} codes {len(set(greys[used].tolist()))} greys, so they cannot be "
            "told apart by grey; save it as an 8-bit grayscale png without palette"
        )


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width in px from the header; no pixel is decoded. Raises as `read_image`."""
    with _opened(path) as file:
        _require_rgb(path, file)
        return file.height, file.width


def mask_size(path: Path) -> tuple[int, int]:
    """Return height and width in px from the header; no pixel is decoded. Raises as `read_mask`."""
    with _opened(path) as file:
        _require_codes(path, file)
        return file.height, file.width


def stated_mpp(path: Path) -> float | None:
    """Return the um/px in the tags of an image, None unless both axes state one that a scan can have.

    Most programs write the 72 dpi of a screen or the 300 dpi of a printer, which say nothing of the tissue. Raises as
    `read_image`.
    """
    across, down = tagged_mpp(path)
    if not plausible_mpp(across) or not plausible_mpp(down) or abs(across / down - 1) > SAME_MPP:
        return None
    return (across + down) / 2


def named_mpp(path: Path) -> float | None:
    """Return the um/px in the name of a file (`_MPP-0.2500`), None unless it states one that a scan can have."""
    found = NAMED_MPP.search(path.stem)
    return float(found[1]) if found and plausible_mpp(float(found[1])) else None


def require_stated_mpp(path: Path) -> None:
    """Raise ValueError, naming what the tags of an image state, where `stated_mpp` is None."""
    if stated_mpp(path) is not None:
        return
    found = [f"{mpp:.3g} um/px {axis}" for mpp, axis in zip(tagged_mpp(path), ("across", "down"), strict=True)
             if math.isfinite(mpp)]  # fmt: skip
    says = f"says {' and '.join(found)}, which no scan has" if found else "does not say its um/px"
    raise ValueError(f"{path}: the image {says}; pass --mpp")


def tagged_mpp(path: Path) -> tuple[float, float]:
    """Return the um/px in the tags of an image, across and down, inf where there is none."""
    with _opened(path) as file:
        dpi = file.info.get("dpi", (0, 0))
    across, down = (25_400 / float(value) if value else math.inf for value in dpi)
    return across, down


def paired_size(image: Path, mask: Path) -> tuple[int, int]:
    """Return height and width in px of an image and its mask from the headers. Raises ValueError where they differ."""
    height, width = image_size(image)
    found = mask_size(mask)
    if found != (height, width):
        raise ValueError(
            f"{mask}: a mask must have its image's size, but it is {found[1]}x{found[0]} px and "
            f"{image.name} is {width}x{height} px; give the mask made for this image"
        )
    return height, width


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (height, width) with Pillow's bicubic filter, which antialiases when shrinking."""
    height, width = size
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) to (height, width) by nearest neighbour, the value at the centre of each new pixel; dtype kept."""
    height, width = size
    rows = ((np.arange(height) + 0.5) * (mask.shape[0] / height)).astype(np.intp)
    cols = ((np.arange(width) + 0.5) * (mask.shape[1] / width)).astype(np.intp)
    return mask[rows[:, None], cols]


def resize_pair(
    image: np.ndarray, mask: np.ndarray, size: tuple[int, int], *, padding: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Resize an image (H, W, 3) uint8 and its mask (H, W) to (height, width).

    padding: None to stretch both; else they keep their aspect ratio in the upper left, and the rest is white, as beyond
    the edges in `predict`, and of this code in the mask.
    """
    if padding is None:
        return resize_image(image, size), resize_mask(mask, size)
    filled = fitted_size((image.shape[0], image.shape[1]), size)
    missing = ((0, size[0] - filled[0]), (0, size[1] - filled[1]))
    return (
        np.pad(resize_image(image, filled), (*missing, (0, 0)), constant_values=255),
        np.pad(resize_mask(mask, filled), missing, constant_values=padding),
    )


def files_of(images: Mapping[str, Path], masks: Mapping[str, Path], sample: Sample) -> tuple[Path, ...]:
    """Return the image and the mask of a sample, given those of all samples by id."""
    return images[sample.id], masks[sample.id]


def list_files(root: Path, *, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Return all files below a folder with one of the suffixes, sorted; linked folders are entered, once each.

    Hidden files and macOS's `__MACOSX` folders are left out, and so is what pathseg wrote below the folder: stores and
    results of `predict` (folders that hold DONE), and the runs and the report of a workspace. Raises ValueError for a
    dead link, OSError for a folder that cannot be read.
    """
    found: list[Path] = []
    entered: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_raise) if root.is_dir() else ():
        folders[:] = sorted(name for name in folders if not _hidden(name))
        if (real := os.path.realpath(folder)) in entered:  # a link to a folder above would never end
            folders.clear()
            continue
        entered.add(real)
        if DONE in folders and folder != os.fspath(root):
            folders.clear()
            continue
        if "heads" in folders and any(heads_path(Path(folder)).glob("*/config.json")):
            folders[:] = [name for name in folders if name not in OF_A_WORKSPACE]
        for name in names:
            path = Path(folder, name)
            if _hidden(name) or path.suffix.lower() not in {*suffixes, ""}:
                continue
            require_link_target(path)
            if path.suffix and path.is_file():
                found.append(path)
    return sorted(found)


def require_link_target(path: Path) -> None:
    """Raise ValueError for a link to a file or folder that is not there."""
    if path.is_symlink() and not path.exists():
        raise ValueError(
            f"{path}: a link to {os.readlink(path)}, which is not there; fetch it (dvc pull, datalad get) or remove "  # noqa: PTH115
            "the link"
        )


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _raise(error: OSError) -> None:
    raise error


@cache
def _silence_libtiff() -> None:
    """Keep libtiff from printing what is wrong with a file; Pillow raises it too. Found by name in Pillow's module."""
    pillow = ctypes.CDLL(Image.core.__file__)
    for handler in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        if function := getattr(pillow, handler, None):  # a build may hide them
            function(None)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a file with Pillow, which reads the header only. Raises FileNotFoundError, ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    _silence_libtiff()
    with no_size_limit():
        try:
            file = Image.open(path, formats=FORMATS)
        except Exception as e:  # damaged files make Pillow's decoders raise errors of any type
            raise ValueError(f"{path}: not a readable image: {_reason(e)}; replace the file") from e
    with file:
        _require_decodable(path, file)
        if file.format != "PNG" or "exif" in file.info:  # else Pillow decodes all pixels to look for EXIF behind them
            require_upright(path, file)
        yield file


@contextmanager
def no_size_limit() -> Iterator[None]:
    """Lift Pillow's limit on the pixels of a file, which regions of slides exceed, while a file is opened.

    The limit is a global of Pillow, so the lock admits one thread at a time.
    """
    with _PIXEL_LIMIT_LOCK:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def _load(path: Path, file: Image.Image) -> None:
    try:
        if file.format == "PNG":
            _check_png(path)
        file.load()
    except Exception as e:  # as in `_opened`
        raise ValueError(f"{path}: the file is damaged or cut short: {_reason(e)}; replace the file") from e
    require_upright(path, file)


def _check_png(path: Path) -> None:
    """Compare every chunk with its CRC-32, which Pillow does not do for pixels that it decodes. Raises SyntaxError."""
    with no_size_limit():
        file = Image.open(path, formats=("PNG",))
    with file:
        file.verify()


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _require_decodable(path: Path, file: Image.Image) -> None:
    """Refuse by its declared size what a few bytes may blow up to. Raises ValueError naming the file."""
    size = f"{path}: the header declares {file.width}x{file.height} px"
    way_out = "replace the file, cut it up, or for predict save it as a tiled TIFF, which is read by region"
    if file.width * file.height > MAX_PIXELS:
        raise ValueError(f"{size}, but an image that is decoded whole has at most {MAX_PIXELS:,} px; {way_out}")
    needed, free = file.width * file.height * DECODED_BYTES, free_machine_memory()
    if needed > free:
        raise ValueError(
            f"{size}, which take {needed / 1e9:.1f} GB of memory, but {free / 1e9:.1f} GB are free; {way_out}"
        )


def require_upright(path: Path, file: Image.Image) -> None:
    """Refuse an EXIF turn: programs differ in applying it, so the mask may be drawn on the turned image or not.

    Raises ValueError naming the file.
    """
    try:
        orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF turns nothing
        return
    if orientation in range(2, 9):
        raise ValueError(
            f"{path}: an image must be stored upright, but this one is to be turned for display (EXIF orientation "
            f"{orientation}), and its mask may follow that or not; save both upright, then remove the tag"
        )


def _require_rgb(path: Path, file: Image.Image) -> None:
    # Pillow's mode is RGB for 16-bit files too, of which it drops the lower bytes; only `tile` shows the depth
    deep = ";16" in repr(getattr(file, "tile", ""))
    if file.mode == "RGB" and not deep:
        return
    deep = deep or file.mode.startswith("I")
    kind = "has 16 bits or more a channel" if deep else MODE_NAMES.get(file.mode, f"is {file.mode}")
    raise ValueError(f"{path}: an image must be 8-bit RGB, but this one {kind}; convert it to 8-bit RGB")


def _require_codes(path: Path, file: Image.Image) -> None:
    rule = "a mask must hold one integer code a pixel"
    if file.mode not in MASK_MODES:
        raise ValueError(
            f"{path}: {rule}, but this one is {file.mode}; colours are no codes: number the classes and save it as an "
            "8-bit grayscale png"
        )
    tags = getattr(file, "tag_v2", {})  # of TIFF
    if lossy := LOSSY_FORMATS.get(file.format or "") or LOSSY_TIFF.get(tags.get(COMPRESSION, 0)):
        raise ValueError(
            f"{path}: {rule}, but {lossy} may change codes; save the mask anew from its source as png, or as a TIFF "
            "with lossless compression"
        )
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO and file.mode != "1":
        raise ValueError(f"{path}: {rule}, but this TIFF stores them inverted (WhiteIsZero); save it as a png")


def mirrored_region(image: np.ndarray, y: int, x: int, height: int, width: int) -> np.ndarray:
    """Return a region (height, width, C) of an image (H, W, C) that goes on mirrored beyond its edges.

    y, x: of the first px, also negative. As `numpy.pad(mode="reflect")`: the px at an edge is not repeated.
    """

    def mirrored(first: int, count: int, side: int) -> np.ndarray:
        period = max(1, 2 * (side - 1))
        inside = np.arange(first, first + count) % period
        return np.minimum(inside, period - inside) if side > 1 else np.zeros_like(inside)

    rows, cols = mirrored(y, height, image.shape[0]), mirrored(x, width, image.shape[1])
    return image[rows[:, None], cols]
