"""Slides with outlines drawn in QuPath: windows of what is outlined or of all tissue, and masks of the outlines."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from pathseg.extract.datasets.csv_rows import shown
from pathseg.extract.datasets.folder import read_splits, slide_warnings, test_order
from pathseg.extract.datasets.image_files import DONE, IMAGE_SUFFIXES, list_files, require_stated_mpp
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
from pathseg.extract.inputs.images import SLIDE_SUFFIXES, one_per_series, open_input_image
from pathseg.extract.inputs.outlines import OUTLINE_SUFFIXES, UNCLASSIFIED, Outlines, rasterise, read_outlines
from pathseg.store.classes import background_code
from pathseg.store.contents import UNLABELLED, Contents
from pathseg.store.key import Preprocessing, Setting, StoreKey
from pathseg.store.runtime.printable import composed
from pathseg.store.sampling import InputImage, Sampling, read_field, scaled_range

if TYPE_CHECKING:
    from shapely import Geometry

TARGET_MPP = 0.5  # um/px, 20x: the paper's, and of its model's training
WINDOW_PX = 512
MIN_LABELLED_PX = 1024
BRUSH_UM = 10.0
IGNORED = 255  # code of pixels that count in no loss, class weight or metric
REGION_CLASS = "Region*"  # QuPath's own class for a region of interest
IGNORE_CLASS = "Ignore*"  # QuPath's own class for what is not to be counted
BACKGROUND = "background"
MAX_CLASSES = 64
LONGEST_NAME = 200  # letters of a class

Files = dict[str, Path]  # by name of the slide
Slides = dict[str, "AnnotatedSlide"]  # by name
Windows = dict[str, tuple[str, int, int]]  # by id of the sample: name of the slide, (y, x) of the first px


class SlideShape(NamedTuple):
    """(H, W) of a slide in px of its file and at the target um/px; px of the file per px of these, (down, across)."""

    file_px: tuple[int, int]
    size: tuple[int, int]
    scale: tuple[float, float]


@dataclass(frozen=True)
class AnnotatedSlide:
    """A slide and what is outlined on it.

    files: all that hold the slide, the one that is opened first. outlines: the file, None of a slide without. areas:
    outlines in px of the slide with their codes, `IGNORED` for ignored ones. regions: of interest, inside which what no
    outline covers is background; they may overlap.
    """

    files: tuple[Path, ...]
    outlines: Path | None
    shape: SlideShape
    areas: tuple[tuple[Geometry, int], ...]
    regions: tuple[Geometry, ...]

    @cached_property
    def _bounds(self) -> np.ndarray:
        return np.array([area.bounds for area, _ in self.areas]).reshape(-1, 4)  # left, top, right, bottom

    def mask(self, y: int, x: int, side: int, *, background: int | None) -> np.ndarray:
        """Return the class codes of a window, (side, side) uint8, beyond the slide `IGNORED`.

        y, x: of its first px, at the target um/px. background: code inside the region of interest.
        """
        draw = partial(rasterise, corner=(y, x), size=(side, side), scale=self.shape.scale)
        (down, across), (left, top, right, bottom) = self.shape.scale, self._bounds.T
        near = (left < (x + side) * across) & (right > x * across) & (top < (y + side) * down) & (bottom > y * down)
        areas = [self.areas[number] for number in np.flatnonzero(near)]
        codes = draw(areas, fill=IGNORED)
        if self.regions and background is not None:
            inside = draw([(region, 1) for region in self.regions], fill=0)
            outlined = draw([(area, 1) for area, _ in areas], fill=0)  # also by what is ignored
            codes[(inside == 1) & (outlined == 0)] = background
        codes[max(0, self.shape.size[0] - y) :] = IGNORED
        codes[:, max(0, self.shape.size[1] - x) :] = IGNORED
        return codes


class SlideReader:
    """Read regions of slides at `mpp` um/px, and keep the last one open.

    file_mpp: um/px of the files, in place of what they state. Thread-safe.
    """

    def __init__(self, mpp: float, file_mpp: float | None) -> None:
        self._mpp, self._file_mpp = mpp, file_mpp
        self._lock = threading.Lock()
        self._last: InputImage | None = None

    def __reduce__(self) -> tuple:  # another process opens its own
        return SlideReader, (self._mpp, self._file_mpp)

    def open(self, path: Path) -> InputImage:
        """Return a slide or an image, valid until the next call. Raises ValueError naming a file that cannot be read.

        Also where a file states no um/px and none was given.
        """
        if self._last is None or self._last.path != path:
            if self._last is not None:
                self._last.close()
                self._last = None
            size = WINDOW_PX, WINDOW_PX
            image = open_input_image(path, Sampling(size, self._mpp, False, size), file_mpp=self._file_mpp)
            if not image.slide and self._file_mpp is None:
                require_stated_mpp(path)
            self._last = image
        return self._last

    def read(self, path: Path, y: int, x: int, side: int, *, margin: int = 0) -> np.ndarray:
        """Return a window with a margin, (side + 2m, side + 2m, 3) uint8 RGB, as `read_field` gives it."""
        with self._lock:
            return read_field(self.open(path), y, x, side, side, margin=margin)


def open_slides(options: DatasetOptions, kept: Mapping[str, str] | None = None) -> Dataset:
    """List the annotated windows of a folder of slides, each with the GeoJSON of its outlines (`inputs.outlines`).

    The outlines of NAME.svs are NAME.geojson or NAME.svs.geojson, also `.json` and gzipped. Windows of
    `options.window_px` lie side by side from the slide's first px, at `options.target_mpp` um/px; those with at least
    `options.min_labelled_px` labelled px are samples. A px has the class of the smallest outline that its centre lies
    in. Inside outlines of the class `options.region_class`, px without another outline are background. All other px,
    and those in outlines of IGNORE_CLASS, count nowhere. Classes: those of all files by name, `background` first, or
    `options.classes`. Splits: of whole slides, as in a folder of images, id being the slide's name, also in `kept`.

    With `options.windows` "tissue", the other windows with tissue (`InputImage.tissue`) of all slides are samples too,
    with "all" all other windows, of the split `UNLABELLED`; their masks are `IGNORED` everywhere, and their files are
    the slide alone. `options.limit` takes windows with labels first.

    Raises FileNotFoundError where there is no slide or no outline, DatasetError as `open_dataset`.
    """
    root = dataset_root("slides", options)
    slides, labels, foreign, problems = _pair_files(root)
    wanted, side = options.windows or "annotated", options.window_px or WINDOW_PX
    unlabelled = wanted != "annotated"
    target = options.target_mpp or TARGET_MPP
    reader = SlideReader(target, options.mpp)
    outlines: dict[str, Outlines] = {}
    shapes: dict[str, SlideShape] = {}
    files: dict[str, tuple[Path, ...]] = {}
    to_store: dict[str, list[tuple[int, int]]] = {}  # windows, with labels or not
    region_class, brush_um = composed(options.region_class or REGION_CLASS), options.brush_um or BRUSH_UM
    named = tuple(map(composed, options.classes))
    for name in slides if unlabelled else labels:
        try:
            image = reader.open(slides[name])
            shapes[name] = SlideShape(image.file_px, image.size, image.scale)
            files[name] = image.files
            if name in labels:
                outlines[name] = read_outlines(
                    labels[name],
                    brush_px=brush_um / target * image.scale[1],
                    origin=image.origin if options.outline_origin == "file" else (0, 0),
                )
            tissue = image.tissue() if wanted == "tissue" else None
            to_store[name] = _windows(image, side, tissue) if unlabelled else []
        except (ValueError, FileNotFoundError) as e:
            problems.append(str(e))
    if problems:  # classes and splits of the other files alone would be faulted for what these lack
        raise DatasetError("slides", root, problems=problems)
    outlined = {one.class_name for own in outlines.values() for one in own.outlines}
    classes = _classes(outlined, named, region_class, problems, root)
    background = background_code(classes)
    codes = {name: code for code, name in enumerate(classes)} | {IGNORE_CLASS: IGNORED}
    annotated = {
        name: _annotated(files[name], labels[name], shapes[name], own, codes, region_class, problems)
        for name, own in outlines.items()
    }
    bare = [name for name in slides if name not in labels]
    splits_file = root / "splits.csv"
    splits, sources = read_splits(splits_file, list(labels), problems, needed=("train",), optional=bare, kept=kept)
    if problems:
        raise DatasetError("slides", root, problems=problems)
    for name in bare if unlabelled else ():
        annotated[name] = AnnotatedSlide(files[name], None, shapes[name], (), ())
    settings: dict[str, Setting] = {"target_mpp": target, "brush_um": brush_um, "region_class": region_class}
    if options.outline_origin == "file":
        settings["outline_origin"] = "file"
    if options.mpp is not None:
        settings["file_mpp"] = options.mpp
    least = options.min_labelled_px or MIN_LABELLED_PX
    samples, windows, counts, poor = [], {}, Counter[int](), 0
    for name in (name for name in slides if name in annotated):
        found = dict.fromkeys(to_store[name], UNLABELLED)
        for y, x in _candidates(annotated[name], side):
            mask = annotated[name].mask(y, x, side, background=background)
            if np.count_nonzero(mask != IGNORED) >= least:
                found[y, x] = splits[name]
                counts.update(np.unique(mask).tolist())
            else:
                poor += (y, x) not in found
        for (y, x), split in sorted(found.items()):
            id_, source = f"{name}_y{y:06d}_x{x:06d}", sources.get(name, name)
            samples.append(Sample(id_, split, side, side, source=source, slide=name, corner=(y, x)))
            windows[id_] = name, y, x
    if not any(sample.split == "train" for sample in samples):
        of_train = " of the training slides" if samples else ""
        few = (
            f"no window of {side}x{side} px{of_train} has {least} labelled px; outline more or pass a lower "
            "--min-labelled-px"
        )
        raise DatasetError("slides", root, problems=[few])
    test_split = max(
        (sample.split for sample in samples if sample.split.startswith("test")), key=test_order, default="test"
    )
    left_out = [f"{len(bare)} slides without outlines"] * bool(bare and not unlabelled)
    left_out += [f"{foreign} .json files that are named after no slide"] * bool(foreign)
    left_out += [f"{poor} windows with fewer than {least} labelled px"] * bool(poor)
    return Dataset(
        name="slides",
        samples=_limited(samples, options.limit, test_split=test_split),
        load=partial(_load, reader, annotated, windows, side, background),
        load_surroundings=partial(_load_surroundings, reader, annotated, windows, side),
        load_mask=partial(_load_mask, annotated, windows, side, background),
        files=partial(_files_of, annotated, windows),
        classes=classes,
        size=(side, side),
        test_split=test_split,
        preprocessing=Preprocessing(settings=settings),
        background=background,
        ignore=IGNORED,
        mpp=target,
        left_out="; ".join(left_out),
        masks_per_class={name: counts[code] for code, name in enumerate(classes)},
        colours=_class_colours(classes, outlines),
        with_splits=None if splits_file.is_file() else partial(open_slides, options),
        warnings=(
            *_outline_warnings(labels, outlines),
            *slide_warnings(tuple(sample for sample in samples if sample.split != UNLABELLED)),
        ),
    )


def recorded_options(key: StoreKey) -> DatasetOptions:
    """Return the settings of slides that the key of a store of slides records."""
    settings: dict[str, Any] = dict(key.preprocessing.settings)
    names = ("target_mpp", "brush_um", "region_class", "outline_origin", "views")
    kept = {name: settings[name] for name in names if name in settings}
    return DatasetOptions(window_px=key.size[0], mpp=settings.get("file_mpp"), **kept)


def stored_windows(contents: Contents, options: DatasetOptions) -> Literal["tissue", "all"]:
    """Return which windows of slides a store follows: "all" where it lists one without labels and without tissue.

    Every window of all its slides must be listed then, so that a store of windows with tissue stays one where another
    rule of what tissue is finds less. options: with the folder of the slides, and how the store's windows were read;
    slides that are not in the folder or cannot be read tell nothing. Raises as `open_slides` for the folder.
    """
    side, target = options.window_px or WINDOW_PX, options.target_mpp or TARGET_MPP
    listed: dict[str, dict[tuple[int, int], str]] = {}  # split of each window by its corner, by composed name
    for entry in (contents.images[index] for index in contents.listed):
        if entry.slide is not None and entry.corner is not None:
            listed.setdefault(composed(entry.slide), {})[entry.corner] = entry.split
    if not any(UNLABELLED in splits.values() for splits in listed.values()):
        return "tissue"
    slides, reader, beside = _pair_files(dataset_root("slides", options))[0], SlideReader(target, options.mpp), False
    for name, path in slides.items():
        if (splits := listed.get(composed(name))) is None:
            continue
        try:
            image = reader.open(path)
            if not splits.keys() >= set(_windows(image, side, None)):
                return "tissue"
            if not beside and UNLABELLED in splits.values() and (tissue := image.tissue()) is not None:
                without = splits.keys() - _windows(image, side, tissue)
                beside = any(splits[corner] == UNLABELLED for corner in without)
        except (ValueError, FileNotFoundError):  # `open_slides` names it with its other faults
            continue
    return "all" if beside else "tissue"


def _pair_files(root: Path) -> tuple[Files, Files, int, list[str]]:
    """Return all slides by name, the outlines of those that have some, the number of other JSON files, and problems.

    Problems are lines: a GeoJSON file that fits no slide, two files of outlines of one slide, two slides of one name.
    Names are compared in composed Unicode (NFC), as in a folder of images.
    """
    if (root / DONE).is_dir():  # below the root such folders are left out
        mixed = f"it holds a folder {DONE}, so it is a store or holds results of predict, which may be taken for slides"
        raise DatasetError("slides", root, problems=[f"{mixed} and outlines; move the slides to a folder of their own"])
    problems: list[str] = []
    listed: Files = {}  # by composed name
    for path in one_per_series(list_files(root, suffixes=IMAGE_SUFFIXES | SLIDE_SUFFIXES)):
        if (other := listed.setdefault(composed(path.stem), path)) != path:
            problems.append(f"{path}: {other} is called {path.stem} too, but slides must differ in name; rename one")
    if not listed:
        raise FileNotFoundError(missing_data("slides", f"no slides data set: there is no slide or image in {root}"))
    slides = {path.stem: path for path in listed.values()}
    by_name = {composed(path.name): name for name, path in slides.items()} | {composed(name): name for name in slides}
    labels: Files = {}
    foreign = 0
    for path in list_files(root, suffixes=(".geojson", ".json", ".gz")):
        ending = next((ending for ending in OUTLINE_SUFFIXES if path.name.lower().endswith(ending)), None)
        if ending is None:
            continue
        name = by_name.get(composed(path.name[: -len(ending)]))
        if name is None and ending.startswith(".json"):  # a QuPath project has some of its own
            foreign += 1
        elif name is None:
            problems.append(
                f"{path}: no slide or image is called {path.name[: -len(ending)]}; rename it or add the slide"
            )
        elif name in labels:
            problems.append(f"{path}: outlines of {slides[name].name} are also in {labels[name].name}; keep one file")
        else:
            labels[name] = path
    if not labels and not problems:
        raise FileNotFoundError(missing_data("slides", f"no slides data set: no slide in {root} has outlines"))
    return slides, {name: labels[name] for name in slides if name in labels}, foreign, problems


def _classes(
    outlined: set[str | None], given: tuple[str, ...], region_class: str, problems: list[str], root: Path
) -> tuple[str, ...]:
    """Return the classes in code order; add a line to `problems` where they do not fit the outlines."""
    names = sorted(name for name in outlined if name not in (UNCLASSIFIED, region_class, IGNORE_CLASS))
    has_region = region_class in outlined
    if given and (unknown := [name for name in names if name not in given]):
        problems.append(
            f"{root}: outlines have the classes {', '.join(names)}, but --classes lacks {', '.join(unknown)}"
        )
    if long := [name for name in names if len(name) > LONGEST_NAME]:
        problems.append(f"{root}: a class name has at most {LONGEST_NAME} letters, but outlines have {shown(long[0])}")
    if len(set(given)) < len(given):
        problems.append(f"class names must differ, got --classes {','.join(given)}; name each class once")
    classes = list(given or names)
    background = background_code(classes)
    if background is None and has_region:
        classes.insert(0, BACKGROUND)
    elif background and not given:
        classes.insert(0, classes.pop(background))
    if len(classes) < 2:
        problems.append(
            f"{root}: outlines must be of two classes or more, but have {', '.join(classes) or 'no class at all'}; "
            f"outline a second class, or a region of the class {region_class} inside which all else is background"
        )
    if len(classes) > MAX_CLASSES:
        problems.append(f"{root}: outlines have {len(classes)} classes, at most {MAX_CLASSES} are possible; merge some")
    return tuple(classes)


def _class_colours(classes: tuple[str, ...], outlines: dict[str, Outlines]) -> tuple[str | None, ...]:
    """Return the colour that most outlines of each class have, of equally frequent ones the first."""
    found: dict[str | None, Counter[str]] = {}
    for own in outlines.values():
        for outline in own.outlines:
            if outline.colour is not None:
                found.setdefault(outline.class_name, Counter())[outline.colour] += 1
    colours = tuple(found[name].most_common(1)[0][0] if name in found else None for name in classes)
    return colours if any(colours) else ()


def _annotated(
    files: tuple[Path, ...], labels: Path, shape: SlideShape, outlines: Outlines, codes: dict[str, int],
    region_class: str, problems: list[str],
) -> AnnotatedSlide:  # fmt: skip
    """Give the outlines of a slide their codes; add a line to `problems` for those that lie beside it."""
    height, width = shape.file_px
    areas, regions = [], []
    for number, outline in enumerate(outlines.outlines, 1):
        left, top, right, bottom = outline.area.bounds
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            where = f"around x {(left + right) / 2:.0f}, y {(top + bottom) / 2:.0f}"
            problems.append(
                f"{labels}: annotation {number} ({outline.class_name}, {where}) lies beside {files[0].name}, which has "
                f"{width}x{height} px; export the outlines of this slide"
            )
        elif outline.class_name == region_class:
            regions.append(outline.area)
        elif outline.class_name in codes:
            areas.append((outline.area, codes[outline.class_name]))
    return AnnotatedSlide(files, labels, shape, tuple(areas), tuple(regions))


def _candidates(slide: AnnotatedSlide, side: int) -> Iterator[tuple[int, int]]:
    """Yield (y, x) of the windows that an outline or a region may lie in, row by row."""
    import shapely

    # the parts of the region one by one: the box around scattered ones would hold most of the slide
    regions = shapely.get_parts(list(slide.regions))
    drawn = shapely.STRtree([*(area for area, _ in slide.areas), *regions])
    down, across = slide.shape.scale
    for y in range(0, slide.shape.size[0], side):
        for x in range(0, slide.shape.size[1], side):
            if len(drawn.query(shapely.box(x * across, y * down, (x + side) * across, (y + side) * down))):
                yield y, x


def _limited(samples: list[Sample], limit: int | None, *, test_split: str) -> tuple[Sample, ...]:
    """Limit as `limit_over_sources`, taking samples without labels only where those with labels leave room."""
    labelled = [sample for sample in samples if sample.split != UNLABELLED]
    others = [sample for sample in samples if sample.split == UNLABELLED]
    room = None if limit is None else max(0, limit - len(labelled))
    kept = {
        *limit_over_sources(labelled, limit, test_split=test_split),
        *limit_over_sources(others, room, test_split=test_split),
    }
    return tuple(sample for sample in samples if sample in kept)


def _windows(image: InputImage, side: int, tissue: np.ndarray | None) -> list[tuple[int, int]]:
    """Return (y, x) of the windows that have a px of a tissue mask of the whole slide, row by row; without one of all.

    tissue: (h, w) bool in any resolution.
    """
    rows, cols = (range(0, length, side) for length in image.size)
    if tissue is None:
        return [(y, x) for y in rows for x in cols]
    (height, width), (h, w) = image.size, tissue.shape
    down = {y: scaled_range(y, min(y + side, height), length=height, mask_length=h) for y in rows}
    across = {x: scaled_range(x, min(x + side, width), length=width, mask_length=w) for x in cols}
    return [(y, x) for y in rows for x in cols if tissue[down[y], across[x]].any()]


def _outline_warnings(labels: Files, outlines: dict[str, Outlines]) -> tuple[str, ...]:
    found = list(outlines.values())
    flat = [f"{labels[name]}: object {number}" for name, own in outlines.items() for number in own.flat]
    unclassified = sum(one.class_name is UNCLASSIFIED for own in found for one in own.outlines)
    mended, others = sum(own.mended for own in found), sum(own.left_out for own in found)
    lines = {
        f"{unclassified} annotations without a class are not used; set a class in QuPath": unclassified,
        f"{mended} outlines cross themselves; their parts were taken as areas": mended,
        f"{others} objects are detections, cells or tiles; annotations alone are used": others,
        f"{len(flat)} outlines have no area and are not used, the first is {''.join(flat[:1])}; remove them": len(flat),
    }
    return tuple(line for line, count in lines.items() if count)


def _load(
    reader: SlideReader, slides: Slides, windows: Windows, side: int, background: int | None, sample: Sample
) -> Pixels:
    name, y, x = windows[sample.id]
    image = reader.read(slides[name].files[0], y, x, side)
    return Pixels(image, _load_mask(slides, windows, side, background, sample))


def _load_mask(slides: Slides, windows: Windows, side: int, background: int | None, sample: Sample) -> np.ndarray:
    if sample.split == UNLABELLED:
        return np.full((side, side), IGNORED, np.uint8)
    name, y, x = windows[sample.id]
    return slides[name].mask(y, x, side, background=background)


def _load_surroundings(
    reader: SlideReader, slides: Slides, windows: Windows, side: int, sample: Sample, margin: int
) -> np.ndarray:
    name, y, x = windows[sample.id]
    return reader.read(slides[name].files[0], y, x, side, margin=margin)


def _files_of(slides: Slides, windows: Windows, sample: Sample) -> tuple[Path | tuple[Path, ...], ...]:
    slide = slides[windows[sample.id][0]]
    if sample.split == UNLABELLED or slide.outlines is None:  # what is outlined changes nothing in it
        return (slide.files,)
    return slide.files, slide.outlines
