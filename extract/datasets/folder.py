"""A folder of images with one mask each: images/NAME, masks/NAME and an optional splits.csv."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping
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
    read_mask,
    resize_pair,
)
from pathseg.extract.datasets.patch_names import slides_by_name
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
from pathseg.store.classes import background_code
from pathseg.store.grid import PATCH_PX
from pathseg.store.key import Preprocessing
from pathseg.store.runtime.printable import composed

TEST_SHARE = 0.2  # of the images, where there is no splits.csv
IGNORED = 255  # code in the store of what `options.ignore` names
MAX_CLASSES = 64  # more codes than this in a mask are instance ids or smoothed edges, not classes

MIN_HIGHEST_ID = 4  # masks that hold 1..N each, with other N, hold ids from here on; below, they may well be classes
MIN_ODD_CODES = 10  # above so many codes, codes of which most are in a single mask are ids
INSTANCE_CLASSES = ("background", "object")

Files = dict[str, Path]  # by id, the file's name without its suffix


def open_folder(options: DatasetOptions, kept: Mapping[str, str] | None = None) -> Dataset:
    """List a folder of images and masks with equal names (NAME is the id; suffixes may differ).

    Classes: the distinct codes of all masks in ascending order, so masks of 0 and 255 have the classes 0 and 1;
    `options.classes` names them. Every mask is decoded once for this, whatever the limit. Codes that look like numbers
    of objects are refused unless `options.classes` names them; with `options.instances` they are objects of one class,
    and the ids are kept for object scores. The class named `background`, if any, is the background. The code
    `options.ignore` is of no class, and its px have the ignored code `IGNORED`. Splits: from splits.csv (columns
    id,split and optionally source), else about 20 % are `test` by a hash of the id; images that are in `kept`, by id,
    keep that split. Size: all images are resized to `options.resize` px, or all have one size whose sides are multiples
    of 256 px. With `options.keep_aspect` resized images keep their aspect ratio, and what they do not
    fill is white and of one more class, padding, which is ignored.

    Raises ValueError for `keep_aspect` without `resize` and for `ignore` with `instances` or `keep_aspect`,
    FileNotFoundError where there is no image or mask, DatasetError as `open_dataset`.
    """
    if options.ignore is not None and options.instances:
        raise ValueError(
            f"--ignore {options.ignore} names a class code, but with --instances masks number objects; leave one out"
        )
    if options.ignore is not None and options.keep_aspect:
        raise ValueError(
            f"one code alone can count nowhere, that of --ignore {options.ignore} or the padding of --keep-aspect; "
            "leave one out"
        )
    if options.keep_aspect and options.resize is None:
        raise ValueError("--keep-aspect does nothing without --resize, which images are stretched by; leave it out")
    root = dataset_root("folder", options)
    images, masks, problems = _pair_files(root)
    unpaired = bool(problems)
    sizes = _read_sizes(images, masks, problems)
    counts = {} if options.instances else _count_codes(masks, options.classes, options.ignore, problems)
    codes = tuple(sorted(counts))
    classes = options.classes or (INSTANCE_CLASSES if options.instances else tuple(f"code {code}" for code in codes))
    if options.instances and len(set(classes)) != 2:
        problems.append(f"--instances has two classes, got --classes {','.join(classes)}; name background and object")
    if options.keep_aspect and PADDING_CLASS in classes:
        problems.append(
            f"{PADDING_CLASS} is the class of what --keep-aspect adds; call the class of your masks otherwise"
        )
    # rows of files without a partner would be faulted
    named = root / "splits.csv"
    splits, sources = ({}, {}) if unpaired else read_splits(named, list(images), problems, kept=kept)
    size = (options.resize, options.resize) if options.resize else _common_size(sizes, images, problems)
    if problems:
        raise DatasetError("folder", root, problems=problems)
    test_split = max((split for split in splits.values() if split.startswith("test")), key=test_order)
    samples = tuple(Sample(id_, splits[id_], *sizes[id_], source=sources.get(id_)) for id_ in images)
    padding = len(classes) if options.keep_aspect else None  # its code, after those of the masks
    return Dataset(
        name="folder",
        samples=limit_samples(samples, options.limit, test_split=test_split),
        load=partial(_load_instances, images, masks, size, padding)
        if options.instances
        else partial(_load, images, masks, codes, options.ignore, size, padding),
        files=partial(files_of, images, masks),
        classes=classes if padding is None else (*classes, PADDING_CLASS),
        size=size,
        test_split=test_split,
        preprocessing=Preprocessing(
            resized=options.resize is not None,
            settings={
                **({"masks": "instance ids"} if options.instances else {"mask_codes": codes}),
                **({} if options.ignore is None else {"ignored_code": options.ignore}),
                **(PADDED if options.keep_aspect else {}),
            },
        ),
        background=0 if options.instances else background_code(classes),
        ignore=padding if options.ignore is None else IGNORED,
        mpp=options.mpp,
        has_instances=options.instances,
        masks_per_class={name: counts[code] for name, code in zip(classes, codes, strict=False)},
        warnings=slide_warnings(samples),
        with_splits=None if named.is_file() else partial(open_folder, options),
    )


def test_order(split: str) -> tuple[bool, str]:
    """Order test splits: results are quoted on the last, which is `test` itself where there is one."""
    return split == "test", split


def _pair_files(root: Path) -> tuple[Files, Files, list[str]]:
    """Return the paired images and masks by id, sorted, and a line for each file without a partner.

    Names are compared in composed Unicode (NFC), because file systems differ in it; the id is the image's as it is.
    """
    problems: list[str] = []
    listed = {kind: list_files(root / kind) for kind in ("images", "masks")}
    _check_names(root, [path for paths in listed.values() for path in paths])
    found = {}
    for kind, paths in listed.items():
        files: Files = {}
        for path in paths:
            if path.parent != root / kind:
                problems.append(f"{path}: files must lie in {kind} itself, not in a folder below; move the file")
            elif (name := composed(path.stem)) in files:
                problems.append(f"{path}: a second file of the id {path.stem} beside {files[name].name}; keep one")
            files.setdefault(composed(path.stem), path)
        if not files:
            raise FileNotFoundError(missing_data("folder", f"no folder data set: no image files in {root / kind}"))
        found[kind] = files
    images, masks = found["images"], found["masks"]
    problems += [f"{images[id_]}: no mask; masks/{id_}.png is needed" for id_ in images if id_ not in masks]
    problems += [f"{masks[id_]}: no image; images/{id_}.png is needed" for id_ in masks if id_ not in images]
    both = sorted(images.keys() & masks.keys(), key=lambda name: images[name].stem)
    ids = {name: images[name].stem for name in both}
    return {ids[name]: images[name] for name in both}, {ids[name]: masks[name] for name in both}, problems


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


def _count_codes(masks: Files, classes: tuple[str, ...], ignore: int | None, problems: list[str]) -> dict[int, int]:
    """Return the number of masks that hold each code but `ignore`; add a line to `problems` for each invalid mask.

    Also where no mask holds `ignore`.
    """
    found: dict[Path, list[int]] = {}
    ignored = False
    for path in masks.values():
        try:
            codes = np.unique(read_mask(path)).tolist()
        except ValueError as e:
            if str(e) not in problems:
                problems.append(str(e))
            continue
        ignored |= ignore in codes
        codes = [code for code in codes if code != ignore]
        if len(codes) > MAX_CLASSES:
            problems.append(
                f"{path}: a mask must hold at most {MAX_CLASSES} class codes, but this one holds {len(codes)}: "
                "instance ids or smoothed edges; pass --instances for ids, or save class codes"
            )
            continue
        found[path] = codes
    if not problems and ignore is not None and not ignored:
        held = ", ".join(map(str, sorted({code for codes in found.values() for code in codes})[:MAX_CLASSES]))
        problems.append(
            f"--ignore {ignore}: no mask holds this code, they hold {held}; name one of these or leave it out"
        )
    if not problems:
        problems += _check_codes(found, classes)
    return dict(Counter(code for codes in found.values() for code in codes))


def _check_codes(found: dict[Path, list[int]], classes: tuple[str, ...]) -> list[str]:
    seen: dict[int, Path] = {}  # code -> the first file that has it
    for path, held in found.items():
        for code in held:
            seen.setdefault(code, path)
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
        return [
            f"masks must hold at most {MAX_CLASSES} codes, found {len(codes)}: {listed}, ...; pass --instances if they "
            "number objects, else save class codes"
        ]
    if classes:  # whoever names the codes knows them
        return []
    if _look_like_ids(found.values()):
        highest = seen[codes[-1]]
        return [
            f"{highest}: a mask must hold class codes, but the {len(codes) - 1} codes above 0 of these masks look like "
            f"numbers of objects (this one holds 1 to {codes[-1]}, others fewer, or most codes are in one mask alone); "
            "pass --instances, or name them with --classes if they are classes"
        ]
    if {1, 255} <= seen.keys() <= {0, 1, 255} and not any({1, 255} <= set(held) for held in found.values()):
        return [
            f"{seen[1]} holds 1 and {seen[255]} holds 255, but no mask holds both, so they seem to be one class stored "
            "in two ways (one-bit masks hold 0 and 1); store all alike, or name three --classes"
        ]
    return []


def _look_like_ids(found: Collection[list[int]]) -> bool:
    """Return whether codes number objects: each mask holds 1..N with another N, or most codes are in one mask alone."""
    objects = [set(codes) - {0} for codes in found]
    counts = Counter(code for codes in objects for code in codes)
    highest = [max(codes, default=0) for codes in objects]
    if all(codes == set(range(1, top + 1)) for codes, top in zip(objects, highest, strict=True)):
        return max(highest) >= MIN_HIGHEST_ID and 2 * highest.count(max(highest)) <= len(highest)
    alone = sum(count == 1 for count in counts.values())
    return len(objects) > 2 and len(counts) > MIN_ODD_CODES and 2 * alone > len(counts)


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


def read_splits(
    path: Path,
    ids: list[str],
    problems: list[str],
    *,
    needed: tuple[str, ...] = ("train", "test"),
    optional: Collection[str] = (),
    kept: Mapping[str, str] | None = None,
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the split of each id, from the csv file if it exists, else by a hash of the id; and the named sources.

    Adds lines to `problems`, one for each of the `needed` splits that has no image. Where only `train` is needed, a
    single id is a training image. The csv file may have rows for the `optional` ids too. kept: splits that ids keep
    without a csv file.
    """
    if not path.is_file():
        alone = needed == ("train",) and len(ids) == 1
        return ({ids[0]: "train"} if alone else _hash_splits(ids, problems, kept or {})), {}
    splits: dict[str, str] = {}
    sources: dict[str, str] = {}
    try:
        rows = read_rows(path, required=("id", "split"), optional=("source",))
    except ValueError as e:
        problems.append(str(e))
        return {}, {}
    by_name = {composed(id_): id_ for id_ in [*ids, *optional]}
    for line, row in rows:
        id_, split = by_name.get(composed(row["id"]), row["id"]), row["split"]
        if id_ in splits:
            problems.append(f"{path}: line {line}: a second row for {shown(id_)}; keep one of the two")
        elif id_ not in by_name.values():
            problems.append(f"{path}: line {line}: no image has the id {shown(id_)}; remove the row or add the image")
        elif split not in ("train", "val") and not split.startswith("test"):
            problems.append(
                f"{path}: line {line}: a split must be train, val or test..., got {shown(split)}; rename it"
            )
        splits[id_] = split
        if source := row.get("source"):
            sources[id_] = source
    problems += [f"{path}: no row for the image {id_!r}; add one" for id_ in ids if id_ not in splits]
    for kind in needed:
        if not any(split.startswith(kind) for id_, split in splits.items() if id_ not in optional):
            problems.append(f"{path}: no image is in a {kind} split; put at least one there")
    return splits, sources


def slide_warnings(samples: tuple[Sample, ...]) -> tuple[str, ...]:
    """Return a line where images of one source are in several splits, or seem to be and no source is named.

    Without a source, patches of a slide are files whose names differ in coordinates alone, see `slides_by_name`.
    """
    named = any(sample.source is not None for sample in samples)
    slides = {} if named else slides_by_name(sample.id for sample in samples)
    splits: dict[str, list[str]] = {}
    for sample in samples:
        if source := sample.source if named else slides.get(sample.id):
            splits.setdefault(source, []).append(sample.split)
    divided = [source for source, of_source in splits.items() if len(set(of_source)) > 1]
    if divided:
        where = " and ".join(sorted(set(splits[divided[0]])))
        way_out = "put each source into one split" if named else "name id,split,source of each image in splits.csv"
        return (f"{len(divided)} slides or patients have images in several splits ({shown(divided[0])}: {where}), so "
                f"scores will be too good; {way_out}",)  # fmt: skip
    if not named and any(len(of_source) > 1 for of_source in splits.values()):
        slide = next(source for source, of_source in splits.items() if len(of_source) > 1)
        return (f"{slide} and other names seem to have several patches, which a validation split may divide; name the "
                "slides in the column source of splits.csv",)  # fmt: skip
    return ()


def _hash_splits(ids: list[str], problems: list[str], kept: Mapping[str, str]) -> dict[str, str]:
    """Assign about TEST_SHARE of the images to `test` by a hash of the id, unless they are `kept` in a split.

    Where `train` or a test split would be without an image, the one whose hash is nearest to it goes there; one that is
    kept in another split only if there is no other.
    """
    if len(ids) < 2:
        problems.append(f"two images are needed at least, to train on and to test on, found {len(ids)}; add some")
        return dict.fromkeys(ids, "test")
    splits = {id_: kept.get(id_) or ("test" if _hash_fraction(id_) < TEST_SHARE else "train") for id_ in ids}
    free = [id_ for id_ in ids if id_ not in kept] or ids
    if not any(split.startswith("test") for split in splits.values()):
        splits[min(free, key=_hash_fraction)] = "test"
    if "train" not in splits.values():
        splits[max(free, key=_hash_fraction)] = "train"
    return splits


def _hash_fraction(id_: str) -> float:
    """Return a number in [0, 1) that depends on the id alone."""
    return int.from_bytes(hashlib.sha256(f"split/{id_}".encode()).digest()[:8], "big") / 2**64


def _load(
    images: Files,
    masks: Files,
    codes: tuple[int, ...],
    ignore: int | None,
    size: tuple[int, int],
    padding: int | None,
    sample: Sample,
) -> Pixels:
    raw = read_mask(masks[sample.id])
    mask = np.searchsorted(codes, raw)
    strange = np.take(codes, mask, mode="clip") != raw
    if ignore is not None:
        strange &= raw != ignore
        mask[raw == ignore] = IGNORED
    if strange.any():
        raise ValueError(
            f"{masks[sample.id]}: code {raw[strange].flat[0]} is none of the codes {', '.join(map(str, codes))} that "
            "the masks held when they were listed; the file has changed, run again"
        )
    return Pixels(*resize_pair(read_image(images[sample.id]), mask.astype(np.uint8), size, padding=padding))


def _load_instances(images: Files, masks: Files, size: tuple[int, int], padding: int | None, sample: Sample) -> Pixels:
    """Decode one sample; the object ids stay at the size of the file."""
    ids = read_instances(masks[sample.id])
    image, mask = resize_pair(read_image(images[sample.id]), (ids > 0).astype(np.uint8), size, padding=padding)
    return Pixels(image, mask, ids)
