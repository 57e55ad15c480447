"""A folder of images with one mask each: images/NAME, masks/NAME and an optional splits.csv."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
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
from pathseg.store.classes import background_code
from pathseg.store.grid import PATCH_PX
from pathseg.store.key import Preprocessing

TEST_SHARE = 0.2  # of the images, where there is no splits.csv
MAX_CLASSES = 64  # more codes than this in a mask are instance ids or smoothed edges, not classes

Files = dict[str, Path]  # by id, the file's name without its suffix


def open_folder(options: DatasetOptions) -> Dataset:
    """List a folder of images and masks with equal names (NAME is the id; suffixes may differ).

    Classes: the distinct codes of all masks in ascending order, so masks of 0 and 255 have the classes 0 and 1;
    `options.classes` names them. Every mask is decoded once for this, whatever the limit. The class named
    `background`, if any, is the background. Splits: from splits.csv (columns id,split), else about 20 % are `test`
    by a hash of the id, which does not change when images are added. Size: all images are resized to
    `options.resize` px, or all have one size whose sides are multiples of 256 px.

    Raises FileNotFoundError where there is no image or mask, DatasetError as `open_dataset`.
    """
    root = dataset_root("folder", options)
    images, masks, problems = _pair_files(root)
    sizes = _read_sizes(images, masks, problems)
    codes = _find_codes(masks, options.classes, problems)
    splits = _read_splits(root / "splits.csv", list(images), problems)
    size = (options.resize, options.resize) if options.resize else _common_size(sizes, images, problems)
    if problems:
        raise DatasetError("folder", root, problems=problems)
    test_split = max((split for split in splits.values() if split.startswith("test")), key=_test_order)
    samples = tuple(Sample(id_, splits[id_], *sizes[id_]) for id_ in images)
    classes = options.classes or tuple(f"code {code}" for code in codes)
    return Dataset(
        name="folder",
        samples=limit_samples(samples, options.limit, test_split=test_split),
        load=partial(_load, images, masks, codes, size),
        files=partial(files_of, images, masks),
        classes=classes,
        size=size,
        test_split=test_split,
        preprocessing=Preprocessing(resized=options.resize is not None, settings={"mask_codes": codes}),
        background=background_code(classes),
        mpp=options.mpp,
    )


def _test_order(split: str) -> tuple[bool, str]:
    return split == "test", split


def _pair_files(root: Path) -> tuple[Files, Files, list[str]]:
    """Return the paired images and masks by id, sorted, and a line for each file without a partner."""
    problems: list[str] = []
    listed = {kind: list_files(root / kind) for kind in ("images", "masks")}
    _check_names(root, [path for paths in listed.values() for path in paths])
    found = {}
    for kind, paths in listed.items():
        files: Files = {}
        for path in paths:
            if path.parent != root / kind:
                problems.append(f"{path}: files must lie in {kind} itself, not in a folder below; move the file")
            elif path.stem in files:
                other = files[path.stem].name
                problems.append(f"{path}: a second file of the id {path.stem} beside {other}; keep one of the two")
            files.setdefault(path.stem, path)
        if not files:
            raise FileNotFoundError(missing_data("folder", f"no folder data set: no image files in {root / kind}"))
        found[kind] = files
    images, masks = found["images"], found["masks"]
    problems += [f"{images[id_]}: no mask; masks/{id_}.png is needed" for id_ in images if id_ not in masks]
    problems += [f"{masks[id_]}: no image; images/{id_}.png is needed" for id_ in masks if id_ not in images]
    both = sorted(images.keys() & masks.keys())
    return {id_: images[id_] for id_ in both}, {id_: masks[id_] for id_ in both}, problems


def _check_names(root: Path, paths: list[Path]) -> None:
    """Raise DatasetError for file names that are not valid UTF-8: they can neither be an id nor be printed."""
    strange = [path for path in paths if any("\ud800" <= letter <= "\udfff" for letter in str(path.relative_to(root)))]
    if strange:
        rule = "a file name must be valid UTF-8; rename the file"
        raise DatasetError("folder", root, problems=[f"{str(path)!r}: {rule}" for path in strange])


def _read_sizes(images: Files, masks: Files, problems: list[str]) -> dict[str, tuple[int, int]]:
    sizes = {}
    for id_, path in images.items():
        try:
            sizes[id_] = paired_size(path, masks[id_])
        except ValueError as e:
            problems.append(str(e))
    return sizes


def _find_codes(masks: Files, classes: tuple[str, ...], problems: list[str]) -> tuple[int, ...]:
    """Return the distinct codes of all masks, sorted; add a line to `problems` for each invalid mask."""
    seen: dict[int, Path] = {}  # code -> the first file that has it
    for path in masks.values():
        try:
            found = np.unique(read_mask(path)).tolist()
        except ValueError as e:
            if str(e) not in problems:
                problems.append(str(e))
            continue
        if len(found) > MAX_CLASSES:
            problems.append(
                f"{path}: a mask must hold at most {MAX_CLASSES} class codes, but this one holds {len(found)}: "
                "instance ids or smoothed edges; save class codes"
            )
            continue
        for code in found:
            seen.setdefault(code, path)
    codes = tuple(sorted(seen))
    if not problems:
        problems += _check_codes(seen, classes)
    return codes


def _check_codes(seen: dict[int, Path], classes: tuple[str, ...]) -> list[str]:
    codes = sorted(seen)
    listed = ", ".join(f"{code} (first in {seen[code].name})" for code in codes[:MAX_CLASSES])
    if len(codes) < 2:
        return [f"masks must hold two or more codes, but all hold {listed} alone; give masks that tell classes apart"]
    if len(set(classes)) < len(classes):
        return [f"class names must differ, got --classes {','.join(classes)}; name each class once"]
    if classes and len(classes) != len(codes):
        names = ",".join(classes)
        return [
            f"--classes must name every code of the masks, in order, but the masks hold {len(codes)}: {listed}; "
            f"and --classes {names} names {len(classes)}; name {len(codes)} or correct the masks"
        ]
    if len(codes) > MAX_CLASSES:
        return [f"masks must hold at most {MAX_CLASSES} codes, found {len(codes)}: {listed}, ...; save class codes"]
    return []


def _common_size(sizes: dict[str, tuple[int, int]], images: Files, problems: list[str]) -> tuple[int, int]:
    """Return the size of all images; add a line to `problems` unless they share one that patches divide."""
    if not sizes:
        return (0, 0)
    usual = Counter(sizes.values()).most_common(1)[0][0]
    fits = usual[0] % PATCH_PX == 0 and usual[1] % PATCH_PX == 0
    offenders = [id_ for id_, size in sizes.items() if size != usual or not fits]
    if offenders:
        named = ", ".join(f"{images[id_].name} is {sizes[id_][1]}x{sizes[id_][0]} px" for id_ in offenders[:3])
        more = f" and {len(offenders) - 3} more do not fit" if len(offenders) > 3 else ""
        side = max(1, round(max(usual) / PATCH_PX)) * PATCH_PX
        problems.append(
            f"without --resize all images must have one size with sides that are multiples of the {PATCH_PX} px "
            f"patch, but {named}{more} (most are {usual[1]}x{usual[0]} px); pass --resize {side}"
        )
    return usual


def _read_splits(path: Path, ids: list[str], problems: list[str]) -> dict[str, str]:
    """Return the split of each id: from the csv file if it exists, else by a hash of the id."""
    if not path.is_file():
        return _hash_splits(ids, problems)
    try:
        rows = _split_rows(path)
    except ValueError as e:
        problems.append(str(e))
        return {}
    splits: dict[str, str] = {}
    for line, id_, split in rows:
        if id_ in splits:
            problems.append(f"{path}: line {line}: a second row for {id_!r}; keep one of the two")
        elif id_ not in ids:
            problems.append(f"{path}: line {line}: no image has the id {id_!r}; remove the row or add the image")
        elif split not in ("train", "val") and not split.startswith("test"):
            problems.append(f"{path}: line {line}: a split must be train, val or test..., got {split!r}; rename it")
        splits[id_] = split
    problems += [f"{path}: no row for the image {id_!r}; add one" for id_ in ids if id_ not in splits]
    for needed in ("train", "test"):
        if not any(split.startswith(needed) for split in splits.values()):
            problems.append(f"{path}: no image is in a {needed} split; put at least one there")
    return splits


def _split_rows(path: Path) -> list[tuple[int, str, str]]:
    """Return line number, id and split of each row. Raises ValueError naming the file."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        try:
            header = rows.fieldnames or ()
            if not {"id", "split"} <= set(header):
                found = ",".join(header) or "nothing"
                raise ValueError(f"{path}: the first line must name the columns id,split, found {found}; add it")
            return [(rows.line_num, (row["id"] or "").strip(), (row["split"] or "").strip()) for row in rows]
        except csv.Error as e:
            raise ValueError(f"{path}: line {rows.line_num}: no rows of id,split: {e}; close its quotes") from e


def _hash_splits(ids: list[str], problems: list[str]) -> dict[str, str]:
    """Assign about TEST_SHARE of the images to `test`, at least one to each of `train` and `test`."""
    if len(ids) < 2:
        problems.append(f"two images are needed at least, to train on and to test on, found {len(ids)}; add some")
        return dict.fromkeys(ids, "test")
    ranked = sorted(ids, key=_hash_fraction)
    share = sum(_hash_fraction(id_) < TEST_SHARE for id_ in ids)
    test = set(ranked[: min(max(share, 1), len(ids) - 1)])
    return {id_: "test" if id_ in test else "train" for id_ in ids}


def _hash_fraction(id_: str) -> float:
    """Return a number in [0, 1) that depends on the id alone."""
    return int.from_bytes(hashlib.sha256(f"split/{id_}".encode()).digest()[:8], "big") / 2**64


def _load(images: Files, masks: Files, codes: tuple[int, ...], size: tuple[int, int], sample: Sample) -> Pixels:
    raw = read_mask(masks[sample.id])
    mask = np.searchsorted(codes, raw)
    strange = np.take(codes, mask, mode="clip") != raw
    if strange.any():
        raise ValueError(
            f"{masks[sample.id]}: code {raw[strange].flat[0]} is none of the codes {', '.join(map(str, codes))} that "
            "the masks held when they were listed; the file has changed, run again"
        )
    return Pixels(
        image=resize_image(read_image(images[sample.id]), size),
        mask=resize_mask(mask.astype(np.uint8), size),
    )
