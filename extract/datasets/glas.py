"""GlaS (Warwick-QU, MICCAI 2015): colon glands, the official release or a re-upload of it."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from pathseg.extract.datasets.image_files import (
    files_of,
    list_files,
    paired_size,
    read_image,
    read_mask,
    resize_image,
    resize_mask,
)
from pathseg.extract.datasets.registry import (
    Dataset,
    DatasetError,
    DatasetOptions,
    Pixels,
    Sample,
    dataset_root,
    limit_samples,
    missing_data,
)
from pathseg.store.key import Preprocessing

SPLITS = {"train": 85, "testA": 60, "testB": 20}  # images of the official release
MPP = 0.62  # um/px of the release, 20x
SIDE_PX = 768  # what the paper resizes to
MASK_FOLDERS = frozenset({"mask", "masks", "anno", "annotation", "annotations", "label", "labels", "gt"})
NAME = re.compile(r"(train|testA|testB)_0*([1-9][0-9]*)(_anno)?", re.IGNORECASE)
OFFICIAL_NAMES = ", ".join(f"{split}_1..{count}" for split, count in SPLITS.items())

Files = dict[str, Path]  # by official name


def open_glas(options: DatasetOptions) -> Dataset:
    """List GlaS: ids are the official names, in their order; classes background and gland.

    A mask is a file whose name ends in `_anno`, or any file in a folder called masks, labels or the like;
    names are matched without regard to case. Images are resized to `options.resize` px, 768 by default as in
    the paper. Raises FileNotFoundError where there is no image at all, DatasetError as `open_dataset`.
    """
    root, side = dataset_root("glas", options), options.resize or SIDE_PX
    images, masks, problems = _sort_files(root)
    if not images and not masks and not problems:
        raise FileNotFoundError(missing_data("glas", f"no glas data set: there is no image in {root}"))
    samples = _pair(images, masks, problems)
    present = {sample.split for sample in samples}
    if not problems:
        if "train" not in present:
            problems.append("no image of the train split: train_1..85 are needed; add them")
        if not present & {"testA", "testB"}:
            problems.append("no image of a test split: testA_1..60 or testB_1..20 are needed; add them")
    if problems:
        raise DatasetError("glas", root, problems=problems)
    test_split = "testB" if "testB" in present else "testA"
    return Dataset(
        name="glas",
        samples=limit_samples(samples, options.limit, test_split=test_split),
        load=partial(_load, images, masks, side),
        files=partial(files_of, images, masks),
        classes=("background", "gland"),
        size=(side, side),
        test_split=test_split,
        preprocessing=Preprocessing(resized=True),
        background=0,
        mpp=MPP,
        has_instances=True,
    )


def _sort_files(root: Path) -> tuple[Files, Files, list[str]]:
    """Return images and masks by official name, and a line for each file that is neither."""
    images: Files = {}
    masks: Files = {}
    problems = []
    for path in list_files(root):
        found = NAME.fullmatch(path.stem)
        name = _official(found) if found else None
        if not found or not name:
            problems.append(f"{path}: no GlaS name; these are {OFFICIAL_NAMES}, masks end in _anno; move the file away")
            continue
        is_mask = bool(found[3]) or path.relative_to(root).parent.name.lower() in MASK_FOLDERS
        files = masks if is_mask else images
        if name in files:
            kind = "mask" if is_mask else "image"
            problems.append(f"{path}: a second {kind} of {name} beside {files[name]}; keep one of the two")
        files.setdefault(name, path)
    return images, masks, problems


def _official(found: re.Match[str]) -> str | None:
    """Return the name as the release spells it, None for a number that the release does not have."""
    split = next(split for split in SPLITS if split.lower() == found[1].lower())
    number = int(found[2])
    return f"{split}_{number}" if number <= SPLITS[split] else None


def _pair(images: Files, masks: Files, problems: list[str]) -> tuple[Sample, ...]:
    """Return a sample for each image with a mask of its size; add a line to `problems` for every other file."""
    for name in sorted(images.keys() - masks.keys(), key=_order):
        problems.append(f"{images[name]}: no mask; a file {name}_anno is needed, in any lossless image type")
    for name in sorted(masks.keys() - images.keys(), key=_order):
        problems.append(f"{masks[name]}: a mask without image; a file {name} is needed, in any image type")
    samples = []
    for name in sorted(images.keys() & masks.keys(), key=_order):
        try:
            height, width = paired_size(images[name], masks[name])
        except ValueError as e:
            problems.append(str(e))
        else:
            samples.append(Sample(id=name, split=name.split("_")[0], height=height, width=width))
    return tuple(samples)


def _order(name: str) -> tuple[int, int]:
    split, number = name.split("_")
    return list(SPLITS).index(split), int(number)


def _load(images: Files, masks: Files, side: int, sample: Sample) -> Pixels:
    """Decode one sample; the gland ids stay at the size of the file."""
    path = masks[sample.id]
    ids = read_mask(path)
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest > np.iinfo(np.uint16).max:
        raise ValueError(f"{path}: gland ids must be 0..65535, found {lowest}..{highest}; number them anew")
    if highest == 255 and not np.any((ids > 0) & (ids < 255)):
        raise ValueError(
            f"{path}: a GlaS mask numbers its glands 1, 2, ..., but this one holds 255 alone, so glands cannot be "
            "told apart; get the official masks, or use --dataset folder for classes only"
        )
    return Pixels(
        image=resize_image(read_image(images[sample.id]), (side, side)),
        mask=resize_mask((ids > 0).astype(np.uint8), (side, side)),
        instances=ids.astype(np.uint16),
    )
