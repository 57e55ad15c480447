"""BCSS (Amgad et al. 2019): regions of TCGA breast cancer slides, the official release at any resolution."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from pathseg.extract.datasets.bcss_classes import CLASSES, class_codes
from pathseg.extract.datasets.bcss_regions import (
    IGNORED,
    TILE_PX,
    VIEW_PX,
    Region,
    RegionReader,
    pad_to_tile,
    scaled_size,
    shrink_image,
    shrink_mask,
    tile_starts,
    view_offset,
)
from pathseg.extract.datasets.image_files import decoded_image, decoded_mask, mirrored_region, paired_size
from pathseg.extract.datasets.registry import (
    Dataset,
    DatasetError,
    DatasetOptions,
    Pixels,
    Sample,
    dataset_root,
    limit_over_sources,
    missing_data,
)
from pathseg.store.key import Preprocessing, Setting
from pathseg.store.resolution import MAX_MPP, MIN_MPP, plausible_mpp

TEST_INSTITUTES = ("OL", "LL", "E2", "EW", "GM", "S3")  # 45 of the 151 regions; the second field of a TCGA barcode
IMAGE_FOLDERS = ("images", "rgbs_colorNormalized")  # as scanned; colour-normalised. Different inputs, never mixed
TARGET_MPP = 0.5  # um/px, 20x: the paper's, and of its model's training
STRIDE_PX = 600  # the paper's tiles overlap, it does not say by how much; a quarter limits the disk space
VIEWS = 2  # the fewest that differ from epoch to epoch; each further view stores the training features once more
DROP_ABOVE = 0.9  # share of ignored pixels above which a tile is dropped; the paper's
NAME = re.compile(r"TCGA-([A-Z0-9]{2})-[A-Z0-9]{4}-DX[0-9A-Z]+_xmin\d+_ymin\d+(?:_MPP-(\d+\.\d+))?")


@dataclass(frozen=True)
class RegionFile:
    """The files of a region.

    institute: second field of the TCGA barcode. mpp: um/px of the files. factor: how many px of the file make one px at
    the target resolution. size: height and width in px at the target resolution.
    """

    image: Path
    mask: Path
    institute: str
    mpp: float
    factor: float
    size: tuple[int, int]


def open_bcss(options: DatasetOptions) -> Dataset:
    """List BCSS: an image is a 768 px crop (view) of an 800 px tile of a region; 106 regions train, 45 test.

    Patches with more than 90 % ignored pixels are dropped, for which all masks are decoded, one after another. A
    training tile has `options.views` views, any other its centre. The regions of `options.val_institutes` are
    moved from `train` to `val`. `options.limit` takes one image of each region before a second of any.

    Raises FileNotFoundError where a folder is missing; ValueError for institutes that cannot be used to validate;
    DatasetError as `open_dataset`, and for a split of which every tile is dropped.
    """
    root = dataset_root("bcss", options)
    folder = _image_folder(root, options.image_folder)
    files, problems = _pair_files(root, folder, options)
    if not files and not problems:
        raise FileNotFoundError(missing_data("bcss", f"no bcss data set: there is no png in {root / folder}"))
    if not problems:
        _check_institutes(files, options.val_institutes, problems)
    kept: dict[str, list[tuple[int, int]]] = {}  # region -> (y, x) of the first px of each tile that is kept
    for region in files if not problems else ():
        try:
            kept[region] = list(_tiles(files[region], options.stride or STRIDE_PX))
        except ValueError as e:
            problems.append(str(e))
    if not problems:
        problems += _emptied_splits(files, kept, options)
    if problems:
        raise DatasetError("bcss", root, problems=problems)
    windows: dict[str, tuple[int, int]] = {}  # id -> (y, x) of the view's first px in its region
    samples: list[Sample] = []
    for region, starts in kept.items():
        split = _split(files[region].institute, options.val_institutes)
        for sample, window in _views(region, split, starts, options):
            samples.append(sample)
            windows[sample.id] = window
    reader = RegionReader(partial(_decode, files))
    return Dataset(
        name="bcss",
        samples=limit_over_sources(samples, options.limit, test_split="test"),
        load=partial(_load, reader, windows),
        load_surroundings=partial(_load_surroundings, reader, windows),
        files=partial(_files_of, files),
        classes=CLASSES,
        size=(VIEW_PX, VIEW_PX),
        test_split="test",
        preprocessing=_preprocessing(folder, files, options),
        ignore=IGNORED,
        mpp=options.target_mpp or TARGET_MPP,
        left_out=_left_out(files, kept, options.stride or STRIDE_PX),
    )


def _image_folder(root: Path, chosen: str | None) -> str:
    """Return the folder of images: the chosen one, else the first that exists."""
    names = (chosen,) if chosen else IMAGE_FOLDERS
    for needed in (names, ("masks",)):
        if not any((root / name).is_dir() for name in needed):
            raise FileNotFoundError(
                missing_data("bcss", f"no bcss data set: there is no folder {' or '.join(needed)} in {root}")
            )
    return next(name for name in names if (root / name).is_dir())


def _pair_files(root: Path, folder: str, options: DatasetOptions) -> tuple[dict[str, RegionFile], list[str]]:
    """Return the regions by file name, sorted, and a line for each invalid file."""
    images, masks = (_pngs(root / name) for name in (folder, "masks"))
    problems = [f"{images[name]}: no mask; masks/{name}.png is needed" for name in images if name not in masks]
    problems += [f"{masks[name]}: no image; {folder}/{name}.png is needed" for name in masks if name not in images]
    files = {}
    for name in sorted(images.keys() & masks.keys()):
        try:
            files[name] = _region_file(images[name], masks[name], options)
        except ValueError as e:
            problems.append(str(e))
    return files, problems


def _pngs(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.png")) if not path.name.startswith(".")}


def _region_file(image: Path, mask: Path, options: DatasetOptions) -> RegionFile:
    """Check name, um/px and size of a region's files. Raises ValueError naming the file."""
    found = NAME.fullmatch(image.stem)
    if not found:
        rule = "TCGA-XX-YYYY-DX1_xmin<n>_ymin<n>_MPP-<um/px>.png"
        raise ValueError(f"{image}: no name of a BCSS region, which is {rule}; give the file its official name")
    mpp, target = options.mpp or float(found[2] or 0), options.target_mpp or TARGET_MPP
    if not mpp:
        raise ValueError(f"{image}: the name states no um/px (MPP-0.2500); pass --mpp with that of the files")
    if not plausible_mpp(mpp):
        raise ValueError(
            f"{image}: the name states {mpp:g} um/px, but scans have {MIN_MPP:g} to {MAX_MPP:g}; pass --mpp with "
            "that of the files"
        )
    if mpp > target:
        raise ValueError(
            f"{image}: regions are shrunk, never enlarged, but the file has {mpp:g} um/px and the target "
            f"is {target:g}; pass --target-mpp {mpp:g} or more"
        )
    size = scaled_size(paired_size(image, mask), target / mpp)
    return RegionFile(image, mask, found[1], mpp, target / mpp, size)


def _check_institutes(files: dict[str, RegionFile], val: tuple[str, ...], problems: list[str]) -> None:
    present = Counter(_split(file.institute, val) for file in files.values())
    train = sorted({file.institute for file in files.values()} - {*TEST_INSTITUTES})
    if odd := [name for name in val if name not in train]:
        why = "is held out for testing" if odd[0] in TEST_INSTITUTES else "has no region here"
        raise ValueError(f"--val-institutes names {odd[0]}, which {why}; choose from {', '.join(train)}")
    if not present["train"]:
        problems.append("no region to train on; add regions of other institutes")
    if not present["test"]:
        problems.append(f"no region of a test institute ({', '.join(TEST_INSTITUTES)}); add some")


def _split(institute: str, val: tuple[str, ...]) -> str:
    if institute in TEST_INSTITUTES:
        return "test"
    return "val" if institute in val else "train"


def _tile_starts(file: RegionFile, stride: int) -> Iterator[tuple[int, int]]:
    """Yield (y, x) of the first px of each tile of a region."""
    return product(tile_starts(file.size[0], stride), tile_starts(file.size[1], stride))


def _tiles(file: RegionFile, stride: int) -> Iterator[tuple[int, int]]:
    """Yield those of `_tile_starts` whose tile is not dropped as ignored. Decodes the mask."""
    codes = pad_to_tile(_codes(file), mirrored=False)
    for y, x in _tile_starts(file, stride):
        if np.mean(codes[y : y + TILE_PX, x : x + TILE_PX] == IGNORED) <= DROP_ABOVE:
            yield y, x


def _emptied_splits(
    files: dict[str, RegionFile], kept: dict[str, list[tuple[int, int]]], options: DatasetOptions
) -> list[str]:
    """Return a line for each split that has regions but no tile."""
    regions, tiles = Counter[str](), Counter[str]()
    for region, file in files.items():
        split = _split(file.institute, options.val_institutes)
        regions[split] += 1
        tiles[split] += len(kept[region])
    return [
        f"every tile of the {split} regions ({count}) is above {DROP_ABOVE:.0%} ignored (code 0, or beyond the edge "
        f"of a region below {TILE_PX} px); check the masks and --mpp, or add regions"
        for split, count in regions.items()
        if not tiles[split]
    ]


def _left_out(files: dict[str, RegionFile], kept: dict[str, list[tuple[int, int]]], stride: int) -> str:
    """Return a message counting the dropped tiles and regions, "" where there are none."""
    tiles = sum(sum(1 for _ in _tile_starts(file, stride)) for file in files.values())
    dropped = tiles - sum(map(len, kept.values()))
    whole = sum(not starts for starts in kept.values())
    if not dropped:
        return ""
    return (
        f"{dropped} of {tiles} tiles, which are above {DROP_ABOVE:.0%} ignored; {whole} of {len(files)} regions "
        "have no other"
    )


def _views(
    region: str, split: str, starts: list[tuple[int, int]], options: DatasetOptions
) -> Iterator[tuple[Sample, tuple[int, int]]]:
    """Yield each sample of a region with (y, x) of its first px."""
    for y, x in starts:
        tile = f"{region}_y{y:04d}_x{x:04d}"
        for view in range(_view_count(options) if split == "train" else 1):
            down, right = view_offset(tile, view, seed=options.seed)
            sample = Sample(f"{tile}_v{view}", split, VIEW_PX, VIEW_PX, source=region, group=tile, view=view)
            yield sample, (y + down, x + right)


def _view_count(options: DatasetOptions) -> int:
    """Return the number of views of a training tile."""
    return options.views if isinstance(options.views, int) else VIEWS


def _preprocessing(folder: str, files: dict[str, RegionFile], options: DatasetOptions) -> Preprocessing:
    """Return the settings under the names that `Preprocessing.from_sentence` gives them, so that old stores fit."""
    views = _view_count(options)
    settings: dict[str, Setting] = {
        "image_folder": folder,
        "file_mpp": tuple(sorted({_six_digits(file.mpp) for file in files.values()})),
        "target_mpp": _six_digits(options.target_mpp or TARGET_MPP),
        "patch_px": TILE_PX,
        "stride_px": options.stride or STRIDE_PX,
        "drop_above_ignored": DROP_ABOVE,
        "view_px": VIEW_PX,
        "views": views,
    }
    if views > 1:
        settings["view_seed"] = options.seed
    return Preprocessing(settings=settings)


def _six_digits(mpp: float) -> float:
    """Round um/px to the six significant digits that stores of format 1 have."""
    return float(f"{mpp:g}")


def _codes(file: RegionFile) -> np.ndarray:
    with decoded_mask(file.mask) as mask:
        return class_codes(shrink_mask(mask, file.factor), path=file.mask)


def _decode(files: dict[str, RegionFile], region: str) -> Region:
    """Decode image and class codes of a region at the target resolution, at least as large as a tile."""
    file = files[region]
    codes = pad_to_tile(_codes(file), mirrored=False)
    with decoded_image(file.image) as image:
        small = shrink_image(image, file.factor)
    return pad_to_tile(small, mirrored=True), codes


def _files_of(files: dict[str, RegionFile], sample: Sample) -> tuple[Path, ...]:
    file = files[str(sample.source)]
    return file.image, file.mask


def _load_surroundings(
    reader: RegionReader, windows: dict[str, tuple[int, int]], sample: Sample, margin: int
) -> np.ndarray:
    """Return a view with a margin of its region, beyond whose edges the region is mirrored."""
    image, _ = reader.read(str(sample.source))
    y, x = windows[sample.id]
    return mirrored_region(image, y - margin, x - margin, VIEW_PX + 2 * margin, VIEW_PX + 2 * margin)


def _load(reader: RegionReader, windows: dict[str, tuple[int, int]], sample: Sample) -> Pixels:
    image, codes = reader.read(str(sample.source))
    y, x = windows[sample.id]
    window = slice(y, y + VIEW_PX), slice(x, x + VIEW_PX)
    return Pixels(image[window].copy(), codes[window].copy())
