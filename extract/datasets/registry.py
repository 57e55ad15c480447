"""Data sets that stage one reads: the registry, their options, and the records that every data set gives."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pathseg.store.resolution import MAX_MPP, MIN_MPP, plausible_mpp
from pathseg.store.runtime.workspace import user_data_folder

if TYPE_CHECKING:
    import numpy as np

    from pathseg.store.key import Preprocessing

MOST_BRUSH_UM = 10_000.0  # a cm
PADDED = {"padded": "right and below"}  # setting of `Preprocessing` with --keep-aspect
PADDING_CLASS = "padding"  # the last class then: the pixels that images do not fill
MAX_SHOWN_PROBLEMS = 50  # lines of a DatasetError; a wrong folder can hold any number of files


@dataclass(frozen=True)
class Pixels:
    """The decoded image and masks of one sample.

    image: (H, W, 3) uint8 RGB at the data set's `size`. mask: (H, W) uint8 class codes at that size.
    instances: (h0, w0) uint16 object ids (0 = background) at the file's size, None without instance masks.
    """

    image: np.ndarray
    mask: np.ndarray
    instances: np.ndarray | None = None


@dataclass(frozen=True)
class Sample:
    """One listed image of a data set.

    id: unique; the noise of the image's patches depends on it. split: `train`, `val`, `test...`, or
    `store.contents.UNLABELLED` of a window that is there to be predicted alone. height, width: of
    the file, in px. source: the patient, slide or region that the image is of, where several images share one; the
    images of a source are never divided between training and validation. group: the tile that the image is a crop
    of, or the image that it is a turned one of; training takes one image of a group in each epoch. view: the number of
    the crop, 0 = centre, or of the symmetry, 0 = as in the file. slide, corner: of a window of a slide, the stem of the
    slide's file name and (y, x) of the window's first px at the data set's um/px.
    """

    id: str
    split: str
    height: int
    width: int
    source: str | None = None
    group: str | None = None
    view: int = 0
    slide: str | None = None
    corner: tuple[int, int] | None = None


def _no_files(sample: Sample) -> tuple[Path, ...]:
    """The files of a sample that is generated; a function by name, so that data sets can be sent to workers."""
    return ()


@dataclass(frozen=True)
class Dataset:
    """The listed samples of a data set; pixels are decoded by `load(sample)` only.

    load: decodes one sample; raises ValueError naming the file when it is damaged or has invalid content. classes:
    names of the mask codes 0..K-1. size: (H, W) in px, the same for all samples. test_split: the split that results are
    quoted on. files: those that `load` reads a sample from, those of one slide in a tuple. preprocessing: every setting
    that changes a pixel or a mask code; part of the store's key. background: code of the class that is no object, None
    where every class is one. ignore: code that counts in no loss, class weight or metric, None without one. mpp: um/px,
    None when unknown; of the files, before any resize of `preprocessing`. has_instances: mask codes number the objects
    of one class, so object scores are computed. left_out: message for people about listed images that are no samples,
    or "".
    colours: `#RRGGBB` of each class, None of one without; empty where no class has one.
    masks_per_class: number of masks that hold each class, where all masks were read. warnings: lines for people.
    load_surroundings: returns a sample's image with a margin of so many px of the tissue around it on each side,
    (H + 2m, W + 2m, 3) uint8, at the edges of the file white (slides) or mirrored (regions, plain images); None where
    the files end at the image. Raises as `load`. load_mask: returns the mask
    alone, where that is much quicker than `load`; `files` then gives the image first. Raises as `load`.
    with_splits: lists the data set again, with the given splits of images or, of slides, of slides' names, where splits
    are drawn and not named by its files; None where they are named.
    """

    name: str
    samples: tuple[Sample, ...]
    load: Callable[[Sample], Pixels]
    classes: tuple[str, ...]
    size: tuple[int, int]
    test_split: str
    preprocessing: Preprocessing
    background: int | None = None
    ignore: int | None = None
    mpp: float | None = None
    has_instances: bool = False
    left_out: str = ""
    files: Callable[[Sample], tuple[Path | tuple[Path, ...], ...]] = _no_files
    masks_per_class: Mapping[str, int] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    load_surroundings: Callable[[Sample, int], np.ndarray] | None = None
    load_mask: Callable[[Sample], np.ndarray] | None = None
    colours: tuple[str | None, ...] = ()
    with_splits: Callable[[Mapping[str, str]], Dataset] | None = None


def _flag(default: Any, help: str) -> Any:
    """A field that is also a flag of `extract`, with its help."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class DatasetOptions:
    """Settings of all data sets; `check_options` refuses those that do not apply to one. None: its own default."""

    root: Path | None = None
    limit: int | None = _flag(
        None, "Take this many images, in proportion to the splits; of slides windows, those with labels first."
    )
    resize: int | None = _flag(None, "Side in px, a multiple of 256, that images are brought to.")
    keep_aspect: bool = _flag(
        False,
        "Keep the aspect ratio of the images of glas, or of folder with --resize, and pad to the side; what is added "
        "counts nowhere. The paper stretches.",
    )
    classes: tuple[str, ...] = _flag((), "Class names in code order, for --dataset folder or slides.")
    instances: bool = _flag(False, "Masks of --dataset folder number objects of one class: 1, 2, ...; 0 = background.")
    ignore: int | None = _flag(
        None,
        "Code in masks of --dataset folder that counts in no loss, class weight or metric; --classes leaves it out.",
    )
    mpp: float | None = _flag(None, "um/px of the files, where the data set does not say or says it wrongly.")
    target_mpp: float | None = _flag(
        None, "um/px that bcss regions and slides are brought to.  [default: 0.5, the paper's 20x]"
    )
    image_folder: Literal["images", "rgbs_colorNormalized"] | None = _flag(
        None, "Which of the two kinds of bcss images to take.  [default: images, if it is there]"
    )
    stride: int | None = _flag(None, "Step in px between the 800 px tiles of bcss.  [default: 600]")
    views: int | Literal["flips"] | None = _flag(
        None,
        "Of bcss, 768 px crops kept of each tile to train on, the centre first  [default: 2]. Elsewhere flips: also "
        "store the features of each training image turned and flipped, and train on one of these in each epoch.",
    )
    val_institutes: tuple[str, ...] = _flag((), "Institutes of bcss to validate on: BH,C8,A8,A1,E9 in one suite.")
    window_px: int | None = _flag(None, "Side of the windows of slides, a multiple of 256.  [default: 512]")
    min_labelled_px: int | None = _flag(
        None, "Take windows of slides with at least so many px that have a label.  [default: 1024]"
    )
    windows: Literal["annotated", "tissue", "all"] | None = _flag(
        None,
        "Which windows of slides to take. annotated: those with labels; tissue: also all others with tissue, of slides "
        "without outlines too, whose features predict --store reads; all: every window, for stains that the tissue "
        "rule, made for H&E, does not fit.  [default: annotated]",
    )
    brush_um: float | None = _flag(None, "Width in um of lines and points drawn on slides.  [default: 10]")
    region_class: str | None = _flag(
        None,
        "Class of outlines of slides inside which all that is not outlined is background. Elsewhere what is not "
        "outlined counts nowhere.  [default: Region*, QuPath's own]",
    )
    outline_origin: Literal["bounds", "file"] | None = _flag(
        None,
        "What px of the outlines of slides are counted from: the bounds of what was scanned, where the slide states "
        "any, as QuPath does; or the first px of the file.  [default: bounds]",
    )
    seed: int = 0  # of generated tissue and drawn views; one flag of `extract` that also seeds the noise, never refused

    def __post_init__(self) -> None:
        named = tuple(name.strip().upper() for name in self.val_institutes if name.strip())  # `BH,` and `bh` are BH
        object.__setattr__(self, "val_institutes", named)


@dataclass(frozen=True)
class DatasetEntry:
    """A row of DATASETS.

    opener: `module:function`, imported on first use; the function takes DatasetOptions and returns a Dataset.
    source: where to download the files. layout: the expected files below `root`. options: names of the
    DatasetOptions that apply, besides `limit` and `seed`. views: what `--views` takes, a number of crops or flips.
    """

    summary: str
    opener: str
    source: str
    layout: str
    licence: str
    options: tuple[str, ...]
    views: Literal["crops", "flips"] = "flips"

    def open(self, options: DatasetOptions) -> Dataset:
        """List the data set's samples. Raises as `open_dataset`."""
        module, function = self.opener.split(":")
        dataset: Dataset = getattr(import_module(module), function)(options)
        if options.views != "flips":
            return dataset
        from pathseg.extract.datasets.symmetries import with_symmetries  # here, so that the table imports no numpy

        return with_symmetries(dataset)


class DatasetError(ValueError):
    """Invalid or missing files of a data set; `problems` has one line for each."""

    def __init__(self, name: str, root: Path, *, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        what = f"the {name} data set at {root} has {count} problem{'s' * (count != 1)}"
        lines = [f"{what}: {self.problems[0]}", *self.problems[1:MAX_SHOWN_PROBLEMS]]
        if count > MAX_SHOWN_PROBLEMS:
            lines.append(f"and {count - MAX_SHOWN_PROBLEMS} more")
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
            "in any sub-folders and of any image type (masks lossless); masks may also lie in folders named masks;\n"
            "numbers alone will do as names in folders named train, testA, testB or test\n"
            "  Grade.csv     optional: columns name, patient ID; keeps the images of a patient together"
        ),
        licence="research use only, no commercial use; cite Sirinukunwattana et al. 2017",
        options=("root", "resize", "keep_aspect", "views"),
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
        views="crops",
    ),
    "folder": DatasetEntry(
        summary="your own images with one mask each, in two folders",
        opener="pathseg.extract.datasets.folder:open_folder",
        source="your own files",
        layout=(
            "images/NAME.png   8-bit RGB, any image type\n"
            "masks/NAME.png    one class code a pixel, same size as the image, any lossless image type\n"
            "splits.csv        optional: columns id,split and optionally source; id is NAME, split is train, val or\n"
            "                  test..., source the patient or slide that is never divided"
        ),
        licence="yours",
        options=("root", "resize", "keep_aspect", "classes", "instances", "ignore", "mpp", "views"),
    ),
    "slides": DatasetEntry(
        summary="your own whole slides (or images) with outlines drawn in QuPath",
        opener="pathseg.extract.datasets.slides:open_slides",
        source="your own slides; in QuPath: File, Export objects as GeoJSON",
        layout=(
            "NAME.svs          any slide that OpenSlide reads, or an image; in any sub-folders\n"
            "NAME.geojson      its outlines (or NAME.svs.geojson, .json, gzipped)\n"
            "splits.csv        optional: columns id,split and optionally source; id is NAME, split is train, val or\n"
            "                  test..., source the patient who is never divided"
        ),
        licence="yours",
        options=(
            "root",
            "classes",
            "mpp",
            "target_mpp",
            "views",
            "window_px",
            "min_labelled_px",
            "windows",
            "brush_um",
            "region_class",
            "outline_origin",
        ),
    ),
    "synthetic": DatasetEntry(
        summary="generated H&E-like tissue with exact masks: glands, lumens, epithelium, stroma",
        opener="pathseg.extract.datasets.synthetic.dataset:open_synthetic",
        source="generated when it is read; nothing to get",
        layout="no files",
        licence="Apache-2.0, as pathseg",
        options=("resize", "views"),
    ),
}


def open_dataset(name: str, options: DatasetOptions) -> Dataset:
    """List the samples of the data set called `name` in DATASETS.

    Raises ValueError for an unknown name and for an option that does not apply or is out of range; FileNotFoundError
    for a missing root, naming the download source and the expected layout; DatasetError listing every invalid file.
    """
    if name not in DATASETS:
        raise ValueError(f"no data set is called {name!r}; pathseg has {', '.join(DATASETS)}")
    check_options(name, options)
    return DATASETS[name].open(options)


def check_options(name: str, options: DatasetOptions) -> None:
    """Raise ValueError for an option that does not apply to the data set or is out of range."""
    allowed = DATASETS[name].options
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value not in (None, ()) and value is not False and field.name not in (*allowed, "limit", "seed"):
            takes = f"the {name} data set takes {', '.join(_flag_name(each) for each in (*allowed, 'limit'))}"
            given = ",".join(value) if isinstance(value, tuple) else value
            flag = _flag_name(field.name)
            raise ValueError(f"{flag} does not apply: {takes}, got {flag} {given}; leave it out")
    kind = DATASETS[name].views
    if options.views is not None and (options.views == "flips") != (kind == "flips"):
        takes = "flips" if kind == "flips" else "with a number of crops"
        raise ValueError(
            f"--views does not apply: the {name} data set takes --views {takes}, got --views {options.views}; leave "
            "it out"
        )
    from pathseg.extract.datasets.bcss_regions import VIEW_PX  # here, so that the table alone imports no numpy
    from pathseg.store.grid import PATCH_PX

    def patches(value: int) -> bool:
        return value > 0 and value % PATCH_PX == 0

    rules = {
        "limit": (lambda value: value >= 1, "must be at least 1 image"),
        "resize": (patches, f"must be a multiple of the {PATCH_PX} px patch"),
        "mpp": (plausible_mpp, f"must be {MIN_MPP:g} to {MAX_MPP:g} um/px, as scans are"),
        "target_mpp": (plausible_mpp, f"must be {MIN_MPP:g} to {MAX_MPP:g} um/px, as scans are"),
        "stride": (lambda value: 1 <= value <= VIEW_PX, f"must be 1 to {VIEW_PX} px, or tissue between views is lost"),
        "views": (lambda value: value == "flips" or value >= 1, "must be at least 1, the centre"),
        "window_px": (
            lambda value: value > 0 and value % PATCH_PX == 0,
            f"must be a multiple of the {PATCH_PX} px patch",
        ),
        "min_labelled_px": (lambda value: value >= 1, "must be at least 1 px"),
        "brush_um": (lambda value: 0 < value <= MOST_BRUSH_UM, f"must be above 0 and at most {MOST_BRUSH_UM:g} um"),
    }
    for option, (holds, rule) in rules.items():
        value = getattr(options, option)
        if value is not None and not holds(value):
            raise ValueError(f"{_flag_name(option)} {rule}, got {value}")


def _flag_name(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def dataset_root(name: str, options: DatasetOptions) -> Path:
    """Return the folder of a data set: `options.root`, or `<user data dir>/pathseg/<name>`.

    Raises FileNotFoundError where it is missing, naming the download source, the expected layout and --root.
    """
    root = options.root or user_data_folder() / name
    if not root.is_dir():
        raise FileNotFoundError(missing_data(name, f"no {name} data set: there is no folder {root}"))
    return root


def missing_data(name: str, what: str) -> str:
    """Return `what` as the first line of a message, then the download source, licence and layout of a data set."""
    entry = DATASETS[name]
    layout = entry.layout.replace("\n", "\n  ")
    return (
        f"{what}; put the data there or pass --root DIR\n"
        f"to be had: {entry.source}\n"
        f"licence: {entry.licence}\n"
        f"expected layout of the folder:\n  {layout}"
    )


def limit_samples(samples: tuple[Sample, ...], limit: int | None, *, test_split: str) -> tuple[Sample, ...]:
    """Take `limit` samples in proportion to the sizes of the splits; their order is kept.

    Each split gets one before any gets two: `train` first, then `test_split`, then the others by size. A larger
    limit contains the samples of a smaller one (Sainte-Laguë method).
    """
    if limit is None or limit >= len(samples):
        return samples
    indices: dict[str, list[int]] = {}  # split -> indices of its samples
    for index, sample in enumerate(samples):
        indices.setdefault(sample.split, []).append(index)
    total = {split: len(listed) for split, listed in indices.items()}
    first = sorted(total, key=lambda split: (split != "train", split != test_split, -total[split]))
    taken: dict[str, int] = dict.fromkeys(first, 0)
    for turn in range(limit):
        if turn < len(first):
            split = first[turn]
        else:
            unfinished = [split for split in first if taken[split] < total[split]]
            split = max(unfinished, key=lambda split: total[split] / (2 * taken[split] + 1))
        taken[split] += 1
    kept = sorted(index for split, listed in indices.items() for index in listed[: taken[split]])
    return tuple(samples[index] for index in kept)


def limit_over_sources(samples: Sequence[Sample], limit: int | None, *, test_split: str) -> tuple[Sample, ...]:
    """Limit as `limit_samples`, taking one sample of each source before a second of any; their order is kept."""
    seen: Counter[str | None] = Counter()
    ranks = {}
    for sample in samples:
        ranks[sample] = seen[sample.source]
        seen[sample.source] += 1
    kept = set(limit_samples(tuple(sorted(samples, key=ranks.__getitem__)), limit, test_split=test_split))
    return tuple(sample for sample in samples if sample in kept)
