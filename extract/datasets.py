"""The data sets stage one can read: one table, one kind of record for their samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


SHOWN_PROBLEMS = 50  # lines of a DatasetError; a wrong folder can hold any number of files


@dataclass(frozen=True)
class Pixels:
    """One sample as stage one takes it.

    image: (H, W, 3) uint8 RGB at the data set's working size. mask: (H, W) uint8 class codes at that size.
    instances: (h0, w0) uint16 object ids (0 = background) at the original size, or None where there are none.
    """

    image: np.ndarray
    mask: np.ndarray
    instances: np.ndarray | None = None


@dataclass(frozen=True)
class Sample:
    """One image of a data set: its id (unique, in the noise rule), its split and its original size in px."""

    id: str
    split: str
    height: int
    width: int


@dataclass(frozen=True)
class Dataset:
    """A listed data set: no image is decoded until `load(sample)` is called.

    size is (H, W) in px, the same for all samples. classes name the mask codes 0..K-1; `ignore` is the code
    that counts nowhere, or None. mpp is um/px of the images as they come, before what `preprocessing` states
    (a resize need not keep the aspect ratio), or None when the data set does not say. Splits are `train`,
    optionally `val`, and any that starts with `test`; `test_split` is the one that results are quoted on.
    `preprocessing` states everything done to pixels before the models see them (it goes into the key).

    `load` raises ValueError naming the file when one cannot be decoded or holds what it must not hold.
    """

    name: str
    samples: tuple[Sample, ...]
    load: Callable[[Sample], Pixels]
    classes: tuple[str, ...]
    size: tuple[int, int]
    test_split: str
    ignore: int | None = None
    mpp: float | None = None
    has_instances: bool = False
    preprocessing: str = "none"


@dataclass(frozen=True)
class DatasetOptions:
    """What a user can say about a data set; each data set refuses what does not apply to it."""

    root: Path | None = None
    limit: int | None = None  # take this many images, spread over the splits in proportion
    resize: int | None = None  # side in px; None = the data set's own default
    classes: tuple[str, ...] = ()  # class names in code order; only `folder`
    mpp: float | None = None  # um/px on disk; only where the data set does not say
    seed: int = 0  # for generated tissue; one flag of `extract` that also seeds the noise, so never refused


@dataclass(frozen=True)
class DatasetEntry:
    """A row of DATASETS: what it is, where the data is to be had, how it must lie on disk, who may use it.

    opener is `module:function`, imported when first used; the function takes DatasetOptions, gives a Dataset.
    options are the names of the DatasetOptions that apply, besides `limit` and `seed`.
    """

    summary: str
    opener: str
    source: str
    layout: str
    licence: str
    options: tuple[str, ...]

    def open(self, options: DatasetOptions) -> Dataset:
        """List the data set's samples. Raises as `open_dataset`."""
        module, function = self.opener.split(":")
        dataset: Dataset = getattr(import_module(module), function)(options)
        return dataset


class DatasetError(ValueError):
    """Files of a data set are not as they must be; `problems` holds one line for each of them."""

    def __init__(self, name: str, root: Path, *, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        what = f"the {name} data set at {root} has {count} problem{'s' * (count != 1)}"
        lines = [f"{what}: {self.problems[0]}", *self.problems[1:SHOWN_PROBLEMS]]
        if count > SHOWN_PROBLEMS:
            lines.append(f"and {count - SHOWN_PROBLEMS} more")
        super().__init__("\n".join(lines))


DATASETS: dict[str, DatasetEntry] = {
    "glas": DatasetEntry(
        summary="GlaS (Warwick-QU, MICCAI 2015): 165 images of colon glands, 85 train, 60 testA, 20 testB",
        opener="pathseg.extract.glas:open_glas",
        source="https://glas.grand-challenge.org/Dataset (Warwick QU Dataset, released 2016_07_08)",
        layout=(
            "Warwick QU Dataset (Released 2016_07_08)/\n"
            "  train_1.bmp   train_1_anno.bmp   ... up to train_85\n"
            "  testA_1.bmp   testA_1_anno.bmp   ... up to testA_60\n"
            "  testB_1.bmp   testB_1_anno.bmp   ... up to testB_20\n"
            "in any sub-folders and of any image type (masks lossless); masks may also lie in folders named masks"
        ),
        licence="research use only, no commercial use; cite Sirinukunwattana et al. 2017",
        options=("root", "resize"),
    ),
    "folder": DatasetEntry(
        summary="your own images with one mask each, in two folders",
        opener="pathseg.extract.folder:open_folder",
        source="your own files",
        layout=(
            "images/NAME.png   8-bit RGB, any image type\n"
            "masks/NAME.png    one class code a pixel, same size as the image, any lossless image type\n"
            "splits.csv        optional: columns id,split; id is NAME, split is train, val or test..."
        ),
        licence="yours",
        options=("root", "resize", "classes", "mpp"),
    ),
    "synthetic": DatasetEntry(
        summary="generated H&E-like tissue with exact masks: glands, lumens, epithelium, stroma",
        opener="pathseg.extract.synthetic:open_synthetic",
        source="generated when it is read; nothing to get",
        layout="no files",
        licence="Apache-2.0, as pathseg",
        options=("resize",),
    ),
}


def open_dataset(name: str, options: DatasetOptions) -> Dataset:
    """List the samples of the data set called `name` in DATASETS.

    Raises ValueError for an unknown name, for an option that does not apply to the data set or is out of
    range; FileNotFoundError for a missing root, with where the data is to be had and how it must lie there;
    DatasetError with every file that is not as it must be.
    """
    if name not in DATASETS:
        raise ValueError(f"no data set is called {name!r}; pathseg has {', '.join(DATASETS)}")
    check_options(name, options)
    return DATASETS[name].open(options)


def check_options(name: str, options: DatasetOptions) -> None:
    """Raise ValueError for an option that does not apply to a data set or is out of range."""
    allowed = DATASETS[name].options
    for option in ("root", "resize", "classes", "mpp"):
        value = getattr(options, option)
        if value not in (None, ()) and option not in allowed:
            takes = f"the {name} data set takes {', '.join(f'--{each}' for each in (*allowed, 'limit'))}"
            given = ",".join(value) if option == "classes" else value
            raise ValueError(f"--{option} does not apply: {takes}, got --{option} {given}; leave it out")
    from pathseg.store.grid import PATCH_PX  # here, so that the table alone imports no numpy

    rules = {
        "limit": (options.limit is None or options.limit >= 1, "must be at least 1 image"),
        "resize": (
            options.resize is None or (options.resize > 0 and options.resize % PATCH_PX == 0),
            f"must be a multiple of the {PATCH_PX} px patch",
        ),
        "mpp": (options.mpp is None or options.mpp > 0, "must be above 0 um/px"),
    }
    for option, (holds, rule) in rules.items():
        if not holds:
            raise ValueError(f"--{option} {rule}, got {getattr(options, option)}")


def dataset_root(name: str, options: DatasetOptions) -> Path:
    """The folder of a data set: `options.root`, or `<user data dir>/pathseg/<name>`.

    Raises FileNotFoundError where it is missing: where the data is to be had, the layout, the way out.
    """
    from platformdirs import user_data_path

    root = options.root or user_data_path("pathseg", appauthor=False) / name
    if not root.is_dir():
        raise FileNotFoundError(missing_data(name, f"no {name} data set: there is no folder {root}"))
    return root


def missing_data(name: str, what: str) -> str:
    """A message whose first line stands alone; then where the data is to be had and how it must lie."""
    entry = DATASETS[name]
    layout = entry.layout.replace("\n", "\n  ")
    return (
        f"{what}; put the data there or pass --root DIR\n"
        f"to be had: {entry.source}\n"
        f"licence: {entry.licence}\n"
        f"expected layout of the folder:\n  {layout}"
    )


def spread(samples: tuple[Sample, ...], limit: int | None, *, test_split: str) -> tuple[Sample, ...]:
    """The first `limit` samples, shared out over the splits in proportion, in the order they had.

    Each split gets one before any gets two: `train` first, then `test_split`, then the others by size. A
    larger limit keeps all samples of a smaller one (Sainte-Laguë's method), so a long run builds on a short.
    """
    if limit is None or limit >= len(samples):
        return samples
    waiting: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        waiting.setdefault(sample.split, []).append(index)
    total = {split: len(indices) for split, indices in waiting.items()}
    first = sorted(total, key=lambda split: (split != "train", split != test_split, -total[split]))
    taken: dict[str, int] = dict.fromkeys(first, 0)
    for turn in range(limit):
        if turn < len(first):
            split = first[turn]
        else:
            open_ = [split for split in first if taken[split] < total[split]]
            split = max(open_, key=lambda split: total[split] / (2 * taken[split] + 1))
        taken[split] += 1
    kept = sorted(index for split, indices in waiting.items() for index in indices[: taken[split]])
    return tuple(samples[index] for index in kept)
