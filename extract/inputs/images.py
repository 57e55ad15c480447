"""What predictions are made from: plain images and whole slides, brought to what a head was trained on."""

from __future__ import annotations

import glob
import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pathseg.extract.datasets.image_files import IMAGE_SUFFIXES, list_files, read_image, read_mask, resize_image
from pathseg.store.sampling import InputImage, Sampling

SLIDE_SUFFIXES = frozenset({".bif", ".czi", ".dcm", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".vms", ".vmu"})
MASK_ENDINGS = ("", "_anno", "_mask")  # NAME_anno is how GlaS calls the mask of NAME
MOST_SHRUNK = 2.0  # times what a resize did to the training images: beyond it tissue has another size


class PlainPicture:
    """An image file, decoded whole; a `sampling.InputImage`."""

    slide = False

    def __init__(self, path: Path, sampling: Sampling, *, file_mpp: float | None = None) -> None:
        """file_mpp: um/px of the file. Without it the image is taken as those of the training were: resized as they
        were, or as it is.

        Raises ValueError for a file that cannot be read or is no 8-bit RGB image, or that is far from the size of the
        images that the head was trained on.
        """
        self.id, self.path = path.stem, path
        self._file = read_image(path)
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.file_px = self._file.shape[:2]
        self.mpp = sampling.mpp
        if file_mpp is not None:
            times = _trained_mpp(sampling, path) / file_mpp
            self.size = tuple(max(1, round(side / times)) for side in self.file_px)
        elif sampling.resized:
            _require_alike(path, self.file_px, sampling)
            self.size = sampling.size
            if self.mpp is not None:  # the files are taken to be of one resolution, so a larger one was shrunk more
                self.mpp *= math.sqrt(math.prod(self.file_px) / math.prod(sampling.original_px))
        else:
            self.size = self.file_px
        self.scale = tuple(a / b for a, b in zip(self.file_px, self.size, strict=True))
        self._pixels = resize_image(self._file, self.size)

    def read(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        """A region of the decoded image."""
        inside = self._pixels[y : y + height, x : x + width]
        missing = ((0, height - inside.shape[0]), (0, width - inside.shape[1]), (0, 0))
        return np.pad(inside, missing, constant_values=255)

    def overview(self, longest_px: int) -> np.ndarray:
        """The decoded image, shrunk if need be."""
        times = max(1.0, max(self.file_px) / longest_px)
        return resize_image(self._file, tuple(max(1, round(side / times)) for side in self.file_px))

    def tissue(self) -> None:
        """An image is taken to be of tissue throughout."""

    def close(self) -> None:
        """The file was closed when it had been decoded."""


def open_picture(path: Path, sampling: Sampling, *, file_mpp: float | None = None) -> InputImage:
    """Open an image or a slide for a head that was trained on images of this sampling.

    A slide is read at the head's um/px, from the slide's own or from `file_mpp`. Raises ValueError, naming the file and
    the flag that helps; FileNotFoundError.
    """
    from pathseg.extract.inputs.slides import Slide, is_slide  # here: images alone need no OpenSlide

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty; replace it")
    if is_slide(path):
        return Slide(path, mpp=_trained_mpp(sampling, path), file_mpp=file_mpp)
    if path.suffix.lower() in SLIDE_SUFFIXES:
        raise ValueError(f"{path}: not a slide that OpenSlide reads: damaged, cut short or of a newer kind; replace it")
    return PlainPicture(path, sampling, file_mpp=file_mpp)


def list_pictures(arguments: Sequence[str]) -> list[Path]:
    """The files that are meant: each argument is a file, a folder (all images and slides in it) or a glob.

    Raises FileNotFoundError for an argument without a file, ValueError where two files have one name, because
    results are named after the files.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        paths = _files_of(argument)
        if not paths:
            raise FileNotFoundError(
                f"{argument}: there is no image or slide of this name; give files, folders or globs"
            )
        found |= dict.fromkeys(paths)
    by_id: dict[str, Path] = {}
    for path in found:
        if (other := by_id.setdefault(path.stem, path)) != path:
            raise ValueError(f"{path} and {other} would both give results called {path.stem}; predict them apart")
    return list(found)


def truth_reader(folder: Path) -> Callable[[str], np.ndarray | None]:
    """From an image's id to its mask, (h, w) codes as in the file, None where there is none.

    A mask is NAME, NAME_anno or NAME_mask with any lossless suffix. Raises FileNotFoundError where there is no such
    folder; what it gives raises as `images.read_mask`, and ValueError where two files could be meant.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; --truth takes a folder of masks named after the images")
    masks: dict[str, list[Path]] = {}
    for path in list_files(folder):
        masks.setdefault(path.stem, []).append(path)
    return partial(_read_truth, masks)


def _read_truth(masks: dict[str, list[Path]], image_id: str) -> np.ndarray | None:
    found = next((masks[image_id + end] for end in reversed(MASK_ENDINGS) if image_id + end in masks), None)
    if found is None:
        return None
    if len(found) > 1:
        raise ValueError(f"{found[0]} and {found[1]} could both be the mask of {image_id}; pass a narrower --truth")
    return read_mask(found[0])


def _files_of(argument: str) -> list[Path]:
    path = Path(argument)
    if path.is_dir():
        wanted = IMAGE_SUFFIXES | SLIDE_SUFFIXES
        return sorted(p for p in path.iterdir() if p.suffix.lower() in wanted and p.is_file() and p.name[0] != ".")
    if path.exists():
        return [path]
    return sorted(p for p in map(Path, glob.glob(argument, recursive=True)) if p.is_file())  # noqa: PTH207


def _trained_mpp(sampling: Sampling, path: Path) -> float:
    if sampling.mpp is None:
        raise ValueError(f"{path}: the head's run does not say the um/px of its images; pass --trained-mpp")
    return sampling.mpp


def _require_alike(path: Path, size: tuple[int, int], sampling: Sampling) -> None:
    ratio = math.sqrt(math.prod(size) / math.prod(sampling.original_px))
    if not 1 / MOST_SHRUNK <= ratio <= MOST_SHRUNK:
        (h, w), (oh, ow), (sh, sw) = size, sampling.original_px, sampling.size
        raise ValueError(
            f"{path}: the head was trained on images of about {ow}x{oh} px, resized to {sw}x{sh}, but this one is "
            f"{w}x{h} px and would not show tissue at the same size; pass its um/px as --mpp"
        )
