"""Objects of class codes as polygons with holes, and regions to review, in the GeoJSON that QuPath reads."""

from __future__ import annotations

import math
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from scipy import ndimage

from pathseg.store.runtime.prefetch import prefetch_map
from pathseg.train.colours import rgb
from pathseg.train.predict.mosaic import Confidence, ConfidenceMap
from pathseg.train.predict.records import ClassObjects
from pathseg.train.predict.review import REGION_PX, ReviewRegion

if TYPE_CHECKING:
    from shapely import Geometry, Polygon

Ring = list[list[float]]  # corners (x, y), the first again at the end

ObjectType = Literal["annotation", "detection", "tile"]
OBJECT_TYPES: dict[str, ObjectType] = {"annotations": "annotation", "detections": "detection", "tiles": "tile"}
ASSUMED_MPP = "µm/px assumed"
PROBABILITY, ENTROPY, UNCERTAINTY = "Mean probability", "Mean entropy (nats)", "Mean uncertainty (nats)"
RANK = "Review rank"
BATCH_CORNERS = 50_000  # of the outlines that are made at once
OUTLINE_THREADS = 2
BAND_ROWS = 512
NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 4122's for names of things on the web


@dataclass(frozen=True)
class OutlineSettings:
    """How class codes become polygons.

    classes: those that are outlined, code -> (name, hex colour). scale: px of the image file per px of the codes,
    (down, across). origin: (y, x) that the first px of the codes has in the file of outlines. mpp: um/px of the codes,
    None where it is unknown. simplify: px of the codes that an outline may leave the border of its object by. smallest:
    px of the codes below which an object is dropped. object_type: as what QuPath takes the objects. extent: height and
    width of the image in px of the codes, where it ends within their last px; outlines and areas end there.
    assumed_mpp: um/px of the file where `mpp` rests on an assumption, which each object then says beside its area.
    """

    classes: Mapping[int, tuple[str, str]]
    scale: tuple[float, float]
    mpp: float | None
    simplify: float
    smallest: float
    object_type: ObjectType = "annotation"
    origin: tuple[int, int] = (0, 0)
    extent: tuple[float, float] | None = None
    assumed_mpp: float | None = None


@dataclass(frozen=True)
class LabelledObjects:
    """The 4-connected regions of class codes (H, W) that become polygons, numbered from 1 on.

    labels: (H, W) int32, 0 outside of them. codes: (n + 1,) int64, the class code of each label; -1 of label 0.
    """

    labels: np.ndarray
    codes: np.ndarray


def label_objects(codes: np.ndarray, settings: OutlineSettings) -> LabelledObjects:
    """Label the objects of (H, W) uint8 class codes that are not too small."""
    labels, counts = np.zeros(codes.shape, np.int32), [1]
    for code in settings.classes:
        of_class, count = ndimage.label(codes == code)
        for rows in _bands(codes):
            np.add(of_class[rows], sum(counts) - 1, out=labels[rows], where=of_class[rows] > 0)
        counts.append(count)
        del of_class  # as large as `labels`
    sizes = np.zeros(sum(counts), np.int64)
    for rows in _bands(labels):
        sizes += np.bincount(labels[rows].ravel(), minlength=len(sizes))
    kept = sizes >= max(1, settings.smallest)
    kept[0] = False
    renumbered = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    for rows in _bands(labels):
        labels[rows] = renumbered[labels[rows]]
    of_labels = np.repeat([-1, *settings.classes], counts)
    return LabelledObjects(labels, np.concatenate([of_labels[:1], of_labels[kept]]))


@dataclass(frozen=True)
class MeasuredMaps:
    """What the objects of class codes are measured by, all (H, W) as these.

    predicted: the codes before any post-processing. maps: of the same level, with their values by the measurement's
    name.
    """

    predicted: np.ndarray
    maps: Mapping[str, tuple[ConfidenceMap, np.ndarray]]

    def means(self, objects: LabelledObjects) -> dict[str, np.ndarray]:
        """Return the means over those pixels of each object that are predicted as its class, (n + 1,) by label.

        NaN for an object without such pixels, and for label 0.
        """
        labels = len(objects.codes)
        counts, sums = np.zeros(labels, np.int64), {name: np.zeros(labels) for name in self.maps}
        for rows in _bands(objects.labels):
            own = objects.labels[rows]
            own = np.where(self.predicted[rows] == objects.codes[own], own, 0).ravel()
            counts += np.bincount(own, minlength=labels)
            for name, (_, steps) in self.maps.items():
                sums[name] += np.bincount(own, weights=steps[rows].ravel(), minlength=labels)
        measured = np.where(counts > 0, counts, np.nan)
        measured[0] = np.nan
        return {name: values.of_steps(sums[name] / measured) for name, (values, _) in self.maps.items()}


def measured_maps(predicted: np.ndarray, confidence: Confidence, *, level: int) -> MeasuredMaps:
    """Return what objects are measured by on a level of a mosaic with these class codes (h, w)."""
    named = {PROBABILITY: confidence.probability, uncertainty_name(confidence): confidence.uncertainty}
    return MeasuredMaps(predicted, {name: (one, one.levels[level][:, :]) for name, one in named.items()})


def uncertainty_name(confidence: Confidence) -> str:
    """Return the name of the measurement: of an ensemble's uncertainty, else of the entropy of the probabilities."""
    return UNCERTAINTY if confidence.of_ensemble else ENTROPY


class OutlinedObject(NamedTuple):
    """A 4-connected region of one class: class code, area in px of the codes, outline, number of the region."""

    code: int
    area_px: float
    polygon: Polygon
    label: int


def outline_objects(codes: np.ndarray, settings: OutlineSettings) -> Iterator[OutlinedObject]:
    """Yield the objects of (H, W) uint8 class codes.

    Polygons are valid and have their holes. Their corners are those of the pixels, thinned with Douglas and Peucker's
    algorithm where the polygon stays valid.
    """
    objects = label_objects(codes, settings)
    for outlines in _outlines(objects, settings):
        of_objects = objects.codes[outlines.labels].tolist(), outlines.areas_px.tolist(), outlines.polygons
        yield from map(OutlinedObject, *of_objects, outlines.labels.tolist())


@dataclass(frozen=True)
class _Corners:
    """Outlines along the pixels of n objects, of which GDAL gives one after the other.

    labels: (n,) int. rings: (r,) int, the position in `labels` that each ring belongs to, outer rings before holes.
    corners: (c,) int, the ring of each corner. xy: (c, 2) float64, px of the codes.
    """

    labels: np.ndarray
    rings: np.ndarray
    corners: np.ndarray
    xy: np.ndarray


@dataclass(frozen=True)
class _Outlines:
    """Labels (n,) int, areas (n,) float64 in px of the codes, and polygons (n,) of n objects."""

    labels: np.ndarray
    areas_px: np.ndarray
    polygons: np.ndarray


def _outlines(objects: LabelledObjects, settings: OutlineSettings) -> Generator[_Outlines, None, None]:
    """Yield the objects, some thousand at a time; shapely, which releases Python's lock, makes them in threads."""
    make = partial(_polygons, settings=settings)
    found = prefetch_map(make, _corners(objects), threads=OUTLINE_THREADS, size_bytes=lambda one: 8 * one.xy.nbytes)
    with closing(found):
        yield from found


def _corners(objects: LabelledObjects) -> Iterator[_Corners]:
    """Yield the corners of all objects, some thousand objects at a time."""
    from rasterio.features import shapes

    labels: list[int] = []
    rings: list[list[tuple[float, float]]] = []
    of_rings: list[int] = []
    count = 0

    def collected() -> _Corners:
        xy = np.fromiter(chain.from_iterable(chain.from_iterable(rings)), np.float64, 2 * count).reshape(-1, 2)
        return _Corners(np.array(labels), np.array(of_rings), np.repeat(np.arange(len(rings)), [*map(len, rings)]), xy)

    for geometry, label in shapes(objects.labels, mask=objects.labels > 0, connectivity=4):
        own = geometry["coordinates"]
        of_rings += [len(labels)] * len(own)
        labels.append(int(label))
        rings += own
        count += sum(map(len, own))
        if count >= BATCH_CORNERS:
            yield collected()
            labels, rings, of_rings, count = [], [], [], 0
    if labels:
        yield collected()


def _polygons(found: _Corners, *, settings: OutlineSettings) -> _Outlines:
    """Make polygons that end with the image, are valid and thinned."""
    import shapely

    xy = found.xy
    if settings.extent is not None:
        # the edges of the last px of an axis lie beyond; corners keep their order, so that a valid polygon stays valid
        height, width = settings.extent
        xy = np.minimum(xy, (width, height))
    polygons = shapely.polygons(shapely.linearrings(xy, indices=found.corners), indices=found.rings)
    areas = shapely.area(polygons)
    for number in np.flatnonzero(~shapely.is_valid(polygons)):
        polygons[number] = _largest_polygon(shapely.make_valid(polygons[number]))
    if settings.simplify:
        # half: where a ring closes, GEOS drops a corner after the others, which may double the deviation
        polygons = _thinned(polygons, settings.simplify / 2)
    return _Outlines(found.labels, np.array([round(area, 6) for area in areas.tolist()]), polygons)


def _thinned(polygons: np.ndarray, tolerance: float) -> np.ndarray:
    """Thin the rings of polygons (n,), each by itself, or all of a polygon together where they would cross then.

    With 6,000 holes GEOS takes fifteen times as long for all together.
    """
    import shapely

    rings, of_rings = shapely.get_rings(polygons, return_index=True)
    alone = shapely.simplify(shapely.polygons(rings), tolerance, preserve_topology=True)
    thinned = shapely.polygons(shapely.get_exterior_ring(alone), indices=of_rings)
    for number in np.flatnonzero(~shapely.is_valid(thinned) | shapely.is_empty(thinned)):
        found = shapely.simplify(polygons[number], tolerance, preserve_topology=True)
        usable = found.is_valid and found.geom_type == "Polygon" and not found.is_empty
        thinned[number] = found if usable else polygons[number]
    return thinned


def write_geojson(
    path: Path, codes: np.ndarray, settings: OutlineSettings, *, source: str, measured: MeasuredMaps | None = None
) -> dict[str, ClassObjects]:
    """Write the objects as a FeatureCollection as QuPath reads it, in px of the image file, one object at a time.

    An object has its class with a colour and its area, in um2 where um/px is known, else in px of the file. Returns
    number and total area of the objects of each class by its name. source: text that the ids of the objects are
    derived from, so that the same codes give the same file. measured: what else is measured of each object.
    """
    known = settings.mpp is not None
    unit = "µm^2" if known else "px^2"
    factor = settings.mpp**2 if settings.mpp is not None else settings.scale[0] * settings.scale[1]
    counts, areas = dict.fromkeys(settings.classes, 0), dict.fromkeys(settings.classes, 0.0)
    objects = label_objects(codes, settings)
    means = {} if measured is None else measured.means(objects)
    assumed = {} if settings.assumed_mpp is None else {ASSUMED_MPP: round(settings.assumed_mpp, 4)}
    with path.open("wb") as file, closing(_outlines(objects, settings)) as found:
        file.write(b'{"type": "FeatureCollection", "features": [')
        number = 0
        for outlines in found:
            rings = _rings(outlines.polygons, settings.scale, settings.origin)
            of_objects = objects.codes[outlines.labels].tolist(), outlines.areas_px.tolist(), rings
            for code, area_px, own, label in zip(*of_objects, outlines.labels.tolist(), strict=True):
                name, colour = settings.classes[code]
                counts[code] += 1
                areas[code] += area_px * factor
                of_label = {key: float(values[label]) for key, values in means.items()}
                feature = _Feature(
                    id=str(uuid.uuid5(NAMESPACE, f"{source}/{number}")),
                    geometry=_PolygonGeometry(own),
                    properties=_Properties(
                        object_type=settings.object_type,
                        name=f"{name} {counts[code]}",
                        classification=_Classification(name, rgb(colour)),
                        measurements={
                            f"Area {unit}": round(area_px * factor, 3),
                            **assumed,
                            "Holes": len(own) - 1,
                            **{key: round(mean, 4) for key, mean in of_label.items() if math.isfinite(mean)},
                        },
                    ),
                )
                file.write((b",\n" if number else b"\n") + msgspec.json.encode(feature))
                number += 1
        file.write(b"\n]}\n")
    area = "area_um2" if known else "area_px"
    return {name: ClassObjects(counts[code], **{area: areas[code]}) for code, (name, _) in settings.classes.items()}


def write_review(
    path: Path, regions: Sequence[ReviewRegion], *, extent: tuple[float, float], scale: tuple[float, float],
    measurement: str, source: str, origin: tuple[int, int] = (0, 0),
) -> None:  # fmt: skip
    """Write regions as a FeatureCollection of QuPath annotations without a class, ranked by a measurement, in order.

    extent: height and width of the image in px of the mosaic, where regions end. scale: px of the image file per px of
    the mosaic, (down, across). measurement: name of what the regions are ranked by. source: as of `write_geojson`.
    origin: (y, x) that the first px of the mosaic has in the file of regions.
    """
    features = []
    for rank, (y, x, uncertainty) in enumerate(regions, 1):
        top, bottom = (origin[0] + edge * scale[0] for edge in (y, min(y + REGION_PX, extent[0])))
        left, right = (origin[1] + edge * scale[1] for edge in (x, min(x + REGION_PX, extent[1])))
        corners = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        features.append(
            _Feature(
                id=str(uuid.uuid5(NAMESPACE, f"{source}/review/{y}/{x}")),
                geometry=_PolygonGeometry([[[round(across, 2), round(down, 2)] for across, down in corners]]),
                properties=_Properties(
                    object_type="annotation",
                    name=f"Review {rank}",
                    measurements={RANK: rank, measurement: round(uncertainty, 4)},
                ),
            )
        )
    lines = b",\n".join(msgspec.json.encode(feature) for feature in features)
    path.write_bytes(b'{"type": "FeatureCollection", "features": [\n' + lines + b"\n]}\n")


class _Classification(msgspec.Struct, frozen=True):
    name: str
    color: tuple[int, int, int]


class _Properties(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    object_type: ObjectType
    name: str
    classification: _Classification | UnsetType = UNSET
    is_locked: bool = False
    measurements: dict[str, float]


class _PolygonGeometry(msgspec.Struct, frozen=True, tag_field="type", tag="Polygon"):
    coordinates: list[Ring]  # outer ring, then holes; px of the file


class _Feature(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="Feature"):
    id: str
    geometry: _PolygonGeometry
    properties: _Properties


def _rings(polygons: np.ndarray, scale: tuple[float, float], origin: tuple[int, int]) -> list[list[Ring]]:
    """The outer ring, then the holes of polygons (n,), (x, y) in px of the image file with two decimals."""
    import shapely

    (down, across), (top, left) = scale, origin
    rings, of_rings = shapely.get_rings(polygons, return_index=True)
    corners = shapely.get_coordinates(rings) * (across, down) + (left, top)
    # each value once, as most are of few rows and columns, by Python's `round`, which NumPy's differs from
    values, positions = np.unique(corners, return_inverse=True)
    rounded = np.array([round(value, 2) for value in values.tolist()])
    points = rounded[positions].reshape(corners.shape).tolist()
    ends = np.cumsum(shapely.get_num_coordinates(rings)).tolist()
    found: list[list[Ring]] = [[] for _ in polygons]
    for start, end, number in zip([0, *ends], ends, of_rings.tolist(), strict=False):
        found[number].append(points[start:end])
    return found


def _bands(pixels: np.ndarray) -> Iterator[slice]:
    """The rows of (H, W), some hundred at a time, for steps that need several times the memory of their pixels."""
    return (slice(row, row + BAND_ROWS) for row in range(0, len(pixels), BAND_ROWS))


def _largest_polygon(geometry: Geometry) -> Polygon:
    polygons = [one for one in getattr(geometry, "geoms", [geometry]) if one.geom_type == "Polygon"]
    return max(polygons, key=lambda polygon: polygon.area)
