"""Input images of `predict`: listing files, opening them at the resolution of a head, reading their ground truth."""

from __future__ import annotations

import glob
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pathseg.extract.datasets.image_files import (
    IMAGE_SUFFIXES,
    SAME_MPP,
    list_files,
    mirrored_region,
    named_mpp,
    read_image,
    read_mask,
    require_link_target,
    resize_image,
    stated_mpp,
    tagged_mpp,
)
from pathseg.store.grid import fitted_size
from pathseg.store.resolution import MAX_MPP, MIN_MPP, MppSource, require_plausible_mpp
from pathseg.store.runtime.printable import composed
from pathseg.store.runtime.regular_files import read_file
from pathseg.store.sampling import InputImage, Sampling

SLIDE_SUFFIXES = frozenset({".bif", ".czi", ".dcm", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".vms", ".vmu"})
MASK_ENDINGS = ("", "_anno", "_mask")  # NAME_anno is how GlaS calls the mask of NAME
MAX_SIZE_RATIO = 2.0  # of a file to the training images, where both are resized: beyond it tissue looks too different

RESIZED_MPP = 0.05  # relative difference of um/px from the training files up to which an image is resized as they were


class ImageFile:
    """An image file, decoded whole; an `InputImage`."""

    slide = False
    origin = (0, 0)

    def __init__(self, path: Path, sampling: Sampling, *, file_mpp: float | None = None) -> None:
        """Decode an image and resize it to the head's resolution.

        file_mpp: um/px of the file. Without it that of its tags, else of its name, is taken if a scan can have it, and
        the image is brought to the um/px of the training images by it. Where nothing is stated, the file is assumed to
        have the um/px of the training files. If those were resized, so is an image of their um/px or of none; with
        `file_mpp` only where it is about as large as they were.

        Raises ValueError naming the file when it cannot be read, is no 8-bit RGB image, or would be resized though its
        size is far from that of the training images.
        """
        self.id, self.path = path.stem, path
        self.files: tuple[Path, ...] = (path,)
        self._file = read_image(path)
        self.digest = hashlib.sha256(read_file(path)).hexdigest()
        self.file_px: tuple[int, int] = self._file.shape[:2]
        self.mpp = sampling.mpp
        self.mpp_from: MppSource | None = None if self.mpp is None else "flag"
        self.mpp_note: str | None = None
        stated = None
        if file_mpp is not None and _as_training_files(file_mpp, self.file_px, sampling):
            stated, file_mpp = file_mpp, None
        elif file_mpp is None and self.mpp is not None:
            stated, self.mpp_from = _stated_mpp(path)
            trained = sampling.file_mpp
            assert trained is not None, "known with the um/px after a resize"
            if stated is None:
                self.mpp_note = _ignored_note(path, trained)
            elif abs(stated / trained - 1) > (RESIZED_MPP if sampling.resized else SAME_MPP):
                file_mpp = stated
                if sampling.resized:
                    self.mpp_note = _not_resized_note(path, stated, sampling)
            elif abs(stated / trained - 1) <= SAME_MPP:
                stated = None  # the same but for rounding
        if file_mpp is not None:
            self.size = _divided(self.file_px, _trained_mpp(sampling, path) / file_mpp)
        elif sampling.resized:
            _require_similar_size(path, self.file_px, sampling)
            self.size = fitted_size(self.file_px, sampling.size) if sampling.padded else sampling.size
            own = sampling.file_mpp if stated is None and sampling.padded else stated
            if own is not None:
                self.mpp = own * math.sqrt(math.prod(self.file_px) / math.prod(self.size))
            elif self.mpp is not None:  # files are assumed to share one resolution, so a larger one is shrunk more
                self.mpp *= math.sqrt(math.prod(self.file_px) / math.prod(sampling.original_px))
        else:
            self.size = self.file_px
        self.scale = self.file_px[0] / self.size[0], self.file_px[1] / self.size[1]
        self._pixels = resize_image(self._file, self.size)

    def read(self, y: int, x: int, height: int, width: int, *, mirrored: bool = False) -> np.ndarray:
        """Return a region, (height, width, 3) uint8 RGB; beyond the edges it is white or, if `mirrored`, mirrored."""
        if mirrored:
            return mirrored_region(self._pixels, y, x, height, width)
        inside = self._pixels[y : y + height, x : x + width]
        missing = ((0, height - inside.shape[0]), (0, width - inside.shape[1]), (0, 0))
        return np.pad(inside, missing, constant_values=255)

    def overview(self, longest_px: int) -> np.ndarray:
        """Return the image in the file's aspect ratio, longer side at most `longest_px`."""
        return resize_image(self._file, _divided(self.file_px, max(1.0, max(self.file_px) / longest_px)))

    def tissue(self) -> None:
        """Return None: an image has no tissue mask, all of it is predicted."""

    def close(self) -> None:
        """Do nothing: the file is closed once it is decoded."""


def open_input_image(path: Path, sampling: Sampling, *, file_mpp: float | None = None) -> InputImage:
    """Open an image or a slide for a head that was trained on images of this sampling.

    file_mpp: um/px of the file; for a slide it replaces what the slide states. Raises FileNotFoundError; ValueError
    naming the file and the flag to pass.
    """
    from pathseg.extract.inputs.slides import Slide, is_slide  # here: images alone need no OpenSlide

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty; replace it")
    if file_mpp is not None:
        require_plausible_mpp(file_mpp, source=str(path), flag="--mpp")
    if sampling.mpp is not None:
        require_plausible_mpp(sampling.mpp, source="the head's training images", flag="--trained-mpp")
    if is_slide(path):
        return Slide(path, mpp=_trained_mpp(sampling, path), file_mpp=file_mpp)
    if path.suffix.lower() in SLIDE_SUFFIXES:
        raise ValueError(f"{path}: not a slide that OpenSlide reads: damaged, cut short or of a newer kind; replace it")
    return ImageFile(path, sampling, file_mpp=file_mpp)


def list_input_images(arguments: Sequence[str]) -> list[Path]:
    """Return the files that the arguments name: files, folders (all images and slides below them) or globs.

    A DICOM slide is its first file: OpenSlide finds the others of its series beside it. Raises FileNotFoundError for
    an argument without a file; ValueError for a dead link, and where two files have the same stem, after which results
    are named.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        paths = _files_of(argument)
        if not paths:
            raise FileNotFoundError(
                f"{argument}: there is no image or slide of this name; give files, folders or globs"
            )
        found |= dict.fromkeys(paths)
    files = one_per_series(found)
    by_id: dict[str, Path] = {}
    for path in files:
        if (other := by_id.setdefault(path.stem, path)) != path:
            raise ValueError(f"{path} and {other} would both give results called {path.stem}; predict them apart")
    return files


def one_per_series(paths: Iterable[Path]) -> list[Path]:
    """Return the files without further ones of a DICOM series in one folder, which OpenSlide reads as one slide."""
    from pathseg.extract.inputs.slides import dicom_series

    kept, series = [], set[tuple[Path, str]]()
    for path in paths:
        if path.suffix.lower() == ".dcm" and (uid := dicom_series(path)) is not None:
            if (path.parent, uid) in series:
                continue
            series.add((path.parent, uid))
        kept.append(path)
    return kept


def ground_truth_reader(folder: Path) -> Callable[[str], np.ndarray | None]:
    """Return a function from an image's id to its ground truth mask, (h, w) codes as in the file, None without one.

    A mask is NAME, NAME_anno or NAME_mask with any lossless suffix. Raises FileNotFoundError without that folder. The
    returned function raises as `image_files.read_mask`, and ValueError where two files are masks of one image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; --truth takes a folder of masks named after the images")
    masks: dict[str, list[Path]] = {}
    for path in list_files(folder):
        masks.setdefault(composed(path.stem), []).append(path)
    return partial(_read_ground_truth, masks)


def _read_ground_truth(masks: dict[str, list[Path]], image_id: str) -> np.ndarray | None:
    name = composed(image_id)
    found = next((masks[name + ending] for ending in reversed(MASK_ENDINGS) if name + ending in masks), None)
    if found is None:
        return None
    if len(found) > 1:
        raise ValueError(f"{found[0]} and {found[1]} could both be the mask of {image_id}; pass a narrower --truth")
    return read_mask(found[0])


def _files_of(argument: str) -> list[Path]:
    path = Path(argument if os.path.lexists(argument) else os.path.expanduser(argument))  # noqa: PTH111
    require_link_target(path)
    if path.is_dir():
        return list_files(path, suffixes=IMAGE_SUFFIXES | SLIDE_SUFFIXES)
    if path.exists():
        return [path]
    folder = next(parent for parent in path.parents if parent.is_dir())  # brackets in its name are no pattern
    pattern = str(path.relative_to(folder))
    found = [folder / name for name in sorted(glob.glob(pattern, root_dir=folder, recursive=True))]  # noqa: PTH207
    for file in found:
        require_link_target(file)
    return [file for file in found if file.is_file()]


def _divided(size: tuple[int, int], factor: float) -> tuple[int, int]:
    height, width = (max(1, round(side / factor)) for side in size)
    return height, width


def _stated_mpp(path: Path) -> tuple[float | None, MppSource]:
    """Return the um/px that an image file states and where; None and `training` where it states none of a scan."""
    if (tagged := stated_mpp(path)) is not None:
        return tagged, "tag"
    if (named := named_mpp(path)) is not None:
        return named, "name"
    return None, "training"


def _ignored_note(path: Path, assumed: float) -> str | None:
    """Name the um/px in the tags of an image that is not believed, None where there is none."""
    found = [mpp for mpp in tagged_mpp(path) if math.isfinite(mpp)]
    if not found:
        return None
    values = " and ".join(dict.fromkeys(f"{mpp:.4g}" for mpp in found))
    return (
        f"{path}: its tags state {values} um/px, but a scan has one value of {MIN_MPP:g} to {MAX_MPP:g}; {assumed:.3g} "
        "um/px as of the training images is assumed instead; pass the true --mpp"
    )


def _not_resized_note(path: Path, stated: float, sampling: Sampling) -> str:
    height, width = sampling.size
    return (
        f"{path}: it states {stated:.3g} um/px, but the head's training images had {sampling.file_mpp:.3g} before they "
        f"were resized to {width}x{height} px; it is brought to their {sampling.mpp:.3g} um/px instead of that size; "
        "if what it states is wrong, pass the true --mpp"
    )


def _trained_mpp(sampling: Sampling, path: Path) -> float:
    if sampling.mpp is None:
        raise ValueError(f"{path}: the head's run does not say the um/px of its images; pass --trained-mpp")
    return sampling.mpp


def _as_training_files(file_mpp: float, size: tuple[int, int], sampling: Sampling) -> bool:
    """Return whether a file has the um/px of training files that were resized, and about their size."""
    trained = sampling.file_mpp if sampling.resized else None
    return trained is not None and abs(file_mpp / trained - 1) <= RESIZED_MPP and _similar_size(size, sampling)


def _similar_size(size: tuple[int, int], sampling: Sampling) -> bool:
    ratio = math.sqrt(math.prod(size) / math.prod(sampling.original_px))
    return 1 / MAX_SIZE_RATIO <= ratio <= MAX_SIZE_RATIO


def _require_similar_size(path: Path, size: tuple[int, int], sampling: Sampling) -> None:
    if not _similar_size(size, sampling):
        (h, w), (oh, ow), (sh, sw) = size, sampling.original_px, sampling.size
        raise ValueError(
            f"{path}: the head was trained on images of about {ow}x{oh} px, resized to {sw}x{sh}, but this one is "
            f"{w}x{h} px and would not show tissue at the same size; pass its um/px as --mpp"
        )
