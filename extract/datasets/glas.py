"""GlaS (Warwick-QU, MICCAI 2015): colon glands, the official release or a re-upload of it."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from pathseg.extract.datasets.csv_rows import read_rows, shown
from pathseg.extract.datasets.image_files import (
    files_of,
    list_files,
    paired_size,
    read_image,
    read_instances,
    resize_pair,
)
from pathseg.extract.datasets.registry import (
    PADDED,
    PADDING_CLASS,
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
MASK_FOLDER = re.compile(r"(?:.*[ _-])?(?:masks?|anno|annotations?|labels?|labelcol|gt)", re.IGNORECASE)
PADDING = 2  # code of the pixels that images do not fill with --keep-aspect
NAME = re.compile(r"(train|testA|testB)_0*([1-9][0-9]*)(_anno)?", re.IGNORECASE)
NUMBER = re.compile(r"0*([1-9][0-9]*)(_anno|_mask)?", re.IGNORECASE)  # of re-uploads, which name the split as a folder
SPLIT_FOLDER = re.compile(r"(train|test[ _-]?A|test[ _-]?B|test)(?:ing)?(?:[ _-].*)?", re.IGNORECASE)
OFFICIAL_NAMES = ", ".join(f"{split}_1..{count}" for split, count in SPLITS.items())
COUNTS = {**SPLITS, "test": sum(SPLITS.values())}  # test A and B in one folder, which cannot be told apart
PATIENTS = "Grade.csv"  # of the release, beside its images

NO_PATIENTS = (
    f"no {PATIENTS} of the release beside the images, so patients are unknown and images of one patient may be on both "
    "sides of the validation split"
)

Files = dict[str, Path]  # by official name


def open_glas(options: DatasetOptions) -> Dataset:
    """List GlaS: ids are the official names, in their order; classes background and gland.

    A mask is a file whose name ends in `_anno`, or any file in a folder called masks, labels or the like;
    names are matched without regard to case. Numbers will do as names below a folder called train, testA, testB or
    test; `test` is then a split of its own. The patients of Grade.csv, where it is there, are the sources. Images are
    resized to `options.resize` px, 768 by default as in the paper; with `options.keep_aspect` they keep their aspect
    ratio, and what they do not fill is white and of the ignored class padding.

    Raises FileNotFoundError where there is no image at all, DatasetError as `open_dataset`.
    """
    root, side = dataset_root("glas", options), options.resize or SIDE_PX
    images, masks, problems = _sort_files(root)
    if not images and not masks and not problems:
        raise FileNotFoundError(missing_data("glas", f"no glas data set: there is no image in {root}"))
    patients = _read_patients(root, images, problems)
    samples = _pair(images, masks, patients, problems)
    present = {sample.split for sample in samples}
    if not problems:
        if "train" not in present:
            problems.append("no image of the train split: train_1..85 are needed; add them")
        if not present - {"train"}:
            problems.append("no image of a test split: testA_1..60 or testB_1..20 are needed; add them")
    if problems:
        raise DatasetError("glas", root, problems=problems)
    test_split = next(split for split in ("testB", "testA", "test") if split in present)
    return Dataset(
        name="glas",
        samples=limit_samples(samples, options.limit, test_split=test_split),
        load=partial(_load, images, masks, side, PADDING if options.keep_aspect else None),
        files=partial(files_of, images, masks),
        classes=("background", "gland", PADDING_CLASS) if options.keep_aspect else ("background", "gland"),
        size=(side, side),
        test_split=test_split,
        preprocessing=Preprocessing(resized=True, settings=PADDED if options.keep_aspect else {}),
        background=0,
        ignore=PADDING if options.keep_aspect else None,
        mpp=MPP,
        has_instances=True,
        warnings=_patient_warnings(samples) if patients else (NO_PATIENTS,),
    )


def _sort_files(root: Path) -> tuple[Files, Files, list[str]]:
    """Return images and masks by official name, and a line for each file that is neither."""
    images: Files = {}
    masks: Files = {}
    problems = []
    for path in list_files(root):
        folders = path.relative_to(root).parent.parts
        name, ending = _official_name(path.stem, folders)
        if name is None:
            problems.append(
                f"{path}: no GlaS name; these are {OFFICIAL_NAMES}, or numbers in folders called train, testA, testB "
                "or test; masks end in _anno; rename the file or move it away"
            )
            continue
        is_mask = bool(ending) or any(MASK_FOLDER.fullmatch(folder) for folder in folders)
        files = masks if is_mask else images
        if name in files:
            kind = "mask" if is_mask else "image"
            problems.append(f"{path}: a second {kind} of {name} beside {files[name]}; keep one of the two")
        files.setdefault(name, path)
    return images, masks, problems


def _official_name(stem: str, folders: tuple[str, ...] = ()) -> tuple[str | None, str | None]:
    """Return the name as the release spells it and the ending that marks a mask.

    folders: above the file, of which the lowest that names a split counts where the name is a number. The name is None
    for one that the release does not have.
    """
    if found := NAME.fullmatch(stem):
        split, number, ending = found.groups()
    elif found := NUMBER.fullmatch(stem):
        named = [match[1] for match in map(SPLIT_FOLDER.fullmatch, folders) if match]
        split, number, ending = named[-1] if named else "", *found.groups()
    else:
        return None, None
    spelled = {split.lower(): split for split in COUNTS}.get(re.sub("[ _-]", "", split.lower()))
    return (f"{spelled}_{int(number)}" if spelled and int(number) <= COUNTS[spelled] else None), ending


def _read_patients(root: Path, images: Files, problems: list[str]) -> dict[str, str]:
    """Return the patient of each image by official name; no one where there is no Grade.csv, or one without rows.

    Adds a line to `problems` for each invalid row, and one for images without a row.
    """
    found = [path for path in sorted(root.rglob("*.csv")) if path.name.lower() == PATIENTS.lower()]
    if len(found) > 1:
        problems.append(f"{found[1]}: a second {PATIENTS} beside {found[0]}; keep one of the two")
    if not found:
        return {}
    path, patients = found[0], dict[str, str]()
    try:
        rows = read_rows(path, required=("name", "patient id"), optional=("grade*",))
    except ValueError as e:
        problems.append(str(e))
        return {}
    for line, row in rows:
        name, ending = _official_name(row["name"])
        if name is None or ending:
            problems.append(f"{path}: line {line}: {shown(row['name'])} is none of {OFFICIAL_NAMES}; correct the row")
        elif name in patients:
            problems.append(f"{path}: line {line}: a second row for {name}; keep one of the two")
        elif not row["patient id"]:
            problems.append(f"{path}: line {line}: no patient ID for {name}; add it")
        else:
            patients[name] = row["patient id"]
    if patients and (lacking := [name for name in images if name not in patients]):
        more = f" and {len(lacking) - 1} more images" if len(lacking) > 1 else ""
        problems.append(
            f"{path}: no row for {lacking[0]}{more}; add name and patient ID, or move the file away and do without"
        )
    return patients


def _patient_warnings(samples: tuple[Sample, ...]) -> tuple[str, ...]:
    """Return a line where patients have images both in the train and in a test split, as the release divides them."""
    patients: dict[str, set[str]] = {}
    for sample in samples:
        patients.setdefault(sample.split, set()).add(str(sample.source))
    train = patients.pop("train", set())
    shared = {split: len(train & own) for split, own in patients.items() if train & own}
    if not shared:
        return ()
    counts = ", ".join(f"{count} of {len(patients[split])} in {split}" for split, count in shared.items())
    return (
        f"patients of the train split are also in test splits ({counts}), as {PATIENTS} and the release's splits have "
        "it, so test scores are not those of unseen patients; the report says so too",
    )


def _pair(images: Files, masks: Files, patients: dict[str, str], problems: list[str]) -> tuple[Sample, ...]:
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
            samples.append(Sample(name, name.split("_")[0], height, width, source=patients.get(name)))
    return tuple(samples)


def _order(name: str) -> tuple[int, int]:
    split, number = name.split("_")
    return list(COUNTS).index(split), int(number)


def _load(images: Files, masks: Files, side: int, padding: int | None, sample: Sample) -> Pixels:
    """Decode one sample; the gland ids stay at the size of the file."""
    ids = read_instances(masks[sample.id])
    image, mask = resize_pair(read_image(images[sample.id]), (ids > 0).astype(np.uint8), (side, side), padding=padding)
    return Pixels(image, mask, ids)
