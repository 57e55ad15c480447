"""The data sets stage one can read: one table, one kind of record for their samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np


LEAST_MPP, MOST_MPP = 0.05, 5.0  # um/px that a scan can have: 100x has 0.1, the overview of a slide 4
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
    """One image of a data set: its id (unique, in the noise rule), its split and its original size in px.

    source names the slide or region that it was cut from, where several images share one: they are never parted by
    the choice of validation images. group names the patch that it is a view of, view the view's number, 0 = centre.
    """

    id: str
    split: str
    height: int
    width: int
    source: str | None = None
    group: str | None = None
    view: int = 0


@dataclass(frozen=True)
class Dataset:
    """A listed data set: no image is decoded until `load(sample)` is called.

    size is (H, W) in px, the same for all samples. classes name the mask codes 0..K-1; `ignore` is the code
    that counts nowhere, or None. mpp is um/px of the images, before a resize to one size where `preprocessing`
    states one (it need not keep the aspect ratio), or None when the data set does not say. Splits are `train`,
    optionally `val`, and any that starts with `test`; `test_split` is the one that results are quoted on.
    `preprocessing` states everything done to pixels before the models see them (it goes into the key). `left_out`
    says for a person what was listed but is no sample, and why; nothing where nothing is left out.

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
    left_out: str = ""


def _flag(default: Any, help: str) -> Any:
    """A field that is also a flag of `extract`, with its help."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class DatasetOptions:
    """What a user can say about a data set; each refuses what does not apply to it. None: its own default."""

    root: Path | None = None
    limit: int | None = _flag(None, "Take this many images, spread over the splits.")
    resize: int | None = _flag(None, "Side in px, a multiple of 256, that images are brought to.")
    classes: tuple[str, ...] = _flag((), "Class names in code order, for --dataset folder.")
    mpp: float | None = _flag(None, "um/px of the files, where the data set does not say or says it wrongly.")
    target_mpp: float | None = _flag(None, "um/px that bcss regions are brought to.  [default: 0.5, the paper's 20x]")
    image_folder: Literal["images", "rgbs_colorNormalized"] | None = _flag(
        None, "Which of the two kinds of bcss images to take.  [default: images, if it is there]"
    )
    stride: int | None = _flag(None, "Step in px between the 800 px patches of bcss.  [default: 600]")
    views: int | None = _flag(None, "768 px crops kept of each bcss patch to train on, the centre first.  [default: 2]")
    val_institutes: tuple[str, ...] = _flag((), "Institutes of bcss to validate on: BH,C8,A8,A1,E9 in one suite.")
    seed: int = 0  # of generated tissue and drawn views; one flag of `extract` that also seeds the noise, never refused

    def __post_init__(self) -> None:
        named = tuple(name.strip().upper() for name in self.val_institutes if name.strip())  # `BH,` and `bh` are BH
        object.__setattr__(self, "val_institutes", named)


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
        opener="pathseg.extract.datasets.glas:open_glas",
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
    "bcss": DatasetEntry(
        summary="BCSS (TCGA breast cancer): 151 regions, 106 train, 45 test of six held-out institutes, five classes",
        opener="pathseg.extract.datasets.bcss:open_bcss",
        source="the links in the README of the GitHub repository PathologyDataScience/BCSS (0.25 um/px)",
        layout=(
            "images/TCGA-XX-YYYY-DX1_xmin<n>_ymin<n>_MPP-0.2500.png   8-bit RGB; and/or rgbs_colorNormalized/\n"
            "masks/TCGA-XX-YYYY-DX1_xmin<n>_ymin<n>_MPP-0.2500.png    the 22 codes of gtruth_codes.tsv"
        ),
        licence="CC0 1.0; cite Amgad et al. 2019",
        options=("root", "mpp", "target_mpp", "image_folder", "stride", "views", "val_institutes"),
    ),
    "folder": DatasetEntry(
        summary="your own images with one mask each, in two folders",
        opener="pathseg.extract.datasets.folder:open_folder",
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
        opener="pathseg.extract.datasets.synthetic.dataset:open_synthetic",
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
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value not in (None, ()) and field.name not in (*allowed, "limit", "seed"):
            takes = f"the {name} data set takes {', '.join(_spelt(each) for each in (*allowed, 'limit'))}"
            given = ",".join(value) if isinstance(value, tuple) else value
            flag = _spelt(field.name)
            raise ValueError(f"{flag} does not apply: {takes}, got {flag} {given}; leave it out")
    from pathseg.extract.datasets.bcss_regions import VIEW_PX  # here, so that the table alone imports no numpy
    from pathseg.store.grid import PATCH_PX

    rules = {
        "limit": (lambda value: value >= 1, "must be at least 1 image"),
        "resize": (lambda value: value > 0 and value % PATCH_PX == 0, f"must be a multiple of the {PATCH_PX} px patch"),
        "mpp": (plausible_mpp, f"must be {LEAST_MPP:g} to {MOST_MPP:g} um/px, as scans are"),
        "target_mpp": (plausible_mpp, f"must be {LEAST_MPP:g} to {MOST_MPP:g} um/px, as scans are"),
        "stride": (lambda value: 1 <= value <= VIEW_PX, f"must be 1 to {VIEW_PX} px, or tissue between views is lost"),
        "views": (lambda value: value >= 1, "must be at least 1, the centre"),
    }
    for option, (holds, rule) in rules.items():
        value = getattr(options, option)
        if value is not None and not holds(value):
            raise ValueError(f"{_spelt(option)} {rule}, got {value}")


def plausible_mpp(mpp: float) -> bool:
    """Whether a scan can have so many um/px; not so for inf and nan."""
    return LEAST_MPP <= mpp <= MOST_MPP


def _spelt(option: str) -> str:
    return f"--{option.replace('_', '-')}"


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
