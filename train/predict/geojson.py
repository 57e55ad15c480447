"""Objects of class codes as polygons with holes, and regions to review, in the GeoJSON that QuPath reads."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from pathseg.train.colours import rgb
from pathseg.train.predict.mosaic import Confidence, ConfidenceMap
from pathseg.train.predict.records import ClassObjects
from pathseg.train.predict.review import REGION_PX, ReviewRegion

if TYPE_CHECKING:
    from shapely import Geometry, Polygon

ObjectType = Literal["annotation", "detection", "tile"]
OBJECT_TYPES: dict[str, ObjectType] = {"annotations": "annotation", "detections": "detection", "tiles": "tile"}
PROBABILITY, ENTROPY, UNCERTAINTY = "Mean probability", "Mean entropy (nats)", "Mean uncertainty (nats)"
RANK = "Review rank"
NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 4122's for names of things on the web


@dataclass(frozen=True)
class OutlineSettings:
    """How class codes become polygons.

    classes: those that are outlined, code -> (name, hex colour). scale: px of the image file per px of the codes,
    (down, across). origin: (y, x) that the first px of the codes has in the file of outlines. mpp: um/px of the codes,
    None where it is unknown. simplify: px of the codes that an outline may leave the border of its object by. smallest:
    px of the codes below which an object is dropped. object_type: as what QuPath takes the objects. extent: height and
    width of the image in px of the codes, where it ends within their last px; outlines and areas end there.
    """

    classes: Mapping[int, tuple[str, str]]
    scale: tuple[float, float]
    mpp: float | None
    simplify: float
    smallest: float
    object_type: ObjectType = "annotation"
    origin: tuple[int, int] = (0, 0)
    extent: tuple[float, float] | None = None


@dataclass(frozen=True)
class MeasuredMaps:
    """What the objects of class codes are measured by, all (H, W) as these.

    predicted: the codes before any post-processing. maps: of the same level, with their values by the measurement's
    name.
    """

    predicted: np.ndarray
    maps: Mapping[str, tuple[ConfidenceMap, np.ndarray]]

    def of_object(self, found: OutlinedObject) -> dict[str, float]:
        """Return the means over those pixels of an object that are predicted as its class; nothing without any."""
        from rasterio.features import rasterize
        from rasterio.transform import Affine

        left, top, right, bottom = (round(side) for side in found.exact.bounds)
        part = slice(top, bottom), slice(left, right)
        moved = Affine.translation(left, top)
        inside = rasterize([(found.exact, 1)], out_shape=(bottom - top, right - left), transform=moved, dtype=np.uint8)
        own = (inside == 1) & (self.predicted[part] == found.code)
        means = {name: values.mean(steps[part][own]) for name, (values, steps) in self.maps.items()}
        return {name: round(mean, 4) for name, mean in means.items() if math.isfinite(mean)}


def measured_maps(predicted: np.ndarray, confidence: Confidence, *, level: int) -> MeasuredMaps:
    """Return what objects are measured by on a level of a mosaic with these class codes (h, w)."""
    named = {PROBABILITY: confidence.probability, uncertainty_name(confidence): confidence.uncertainty}
    return MeasuredMaps(predicted, {name: (one, np.asarray(one.levels[level][:])) for name, one in named.items()})


def uncertainty_name(confidence: Confidence) -> str:
    """Return the name of the measurement: of an ensemble's uncertainty, else of the entropy of the probabilities."""
    return UNCERTAINTY if confidence.of_ensemble else ENTROPY


class OutlinedObject(NamedTuple):
    """A 4-connected region of one class: class code, area in px of the codes, outline and the polygon of its pixels."""

    code: int
    area_px: float
    polygon: Polygon
    exact: Polygon


def outline_objects(codes: np.ndarray, settings: OutlineSettings) -> Iterator[OutlinedObject]:
    """Yield the objects of (H, W) uint8 class codes.

    Polygons are valid and have their holes. Their corners are those of the pixels, thinned with Douglas and Peucker's
    algorithm where the polygon stays valid.
    """
    import shapely
    from rasterio.features import shapes

    wanted = np.isin(codes, list(settings.classes))
    for geometry, value in shapes(codes, mask=wanted, connectivity=4):
        found = shapely.geometry.shape(geometry)
        if round(found.area) < max(1, settings.smallest):
            continue
        ended = found if settings.extent is None else _ended(found, settings.extent)
        whole, exact = (one if one.is_valid else _largest_polygon(shapely.make_valid(one)) for one in (found, ended))
        # half: where a ring closes, GEOS drops a corner after the others, which may double the deviation
        thinned = _thinned(exact, settings.simplify / 2) if settings.simplify else exact
        yield OutlinedObject(int(value), round(ended.area, 6), thinned, whole)


def _thinned(polygon: Polygon, tolerance: float) -> Polygon:
    """Thin the rings of a polygon, each by itself, or all together where they would cross then.

    With 6,000 holes GEOS takes fifteen times as long for all together.
    """
    import shapely

    rings = shapely.simplify(shapely.polygons(shapely.get_rings(polygon)), tolerance, preserve_topology=True)
    outer, *holes = shapely.get_exterior_ring(rings)
    for thinned in (lambda: shapely.Polygon(outer, holes), lambda: polygon.simplify(tolerance, preserve_topology=True)):
        found = thinned()
        if found.is_valid and found.geom_type == "Polygon" and not found.is_empty:
            return found
    return polygon


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
    with path.open("wb") as file:
        file.write(b'{"type": "FeatureCollection", "features": [')
        for number, found in enumerate(outline_objects(codes, settings)):
            code, area_px, polygon, _ = found
            name, colour = settings.classes[code]
            counts[code] += 1
            areas[code] += area_px * factor
            feature = _Feature(
                id=str(uuid.uuid5(NAMESPACE, f"{source}/{number}")),
                geometry=_PolygonGeometry(_rings(polygon, settings.scale, settings.origin)),
                properties=_Properties(
                    object_type=settings.object_type,
                    name=f"{name} {counts[code]}",
                    classification=_Classification(name, rgb(colour)),
                    measurements={
                        f"Area {unit}": round(area_px * factor, 3),
                        "Holes": len(polygon.interiors),
                        **({} if measured is None else measured.of_object(found)),
                    },
                ),
            )
            file.write((b",\n" if number else b"\n") + msgspec.json.encode(feature))
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
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        features.append(
            _Feature(
                id=str(uuid.uuid5(NAMESPACE, f"{source}/review/{y}/{x}")),
                geometry=_PolygonGeometry([[(round(across, 2), round(down, 2)) for across, down in corners]]),
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
    coordinates: list[list[tuple[float, float]]]  # outer ring, then holes; (x, y) px of the file


class _Feature(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="Feature"):
    id: str
    geometry: _PolygonGeometry
    properties: _Properties


def _rings(polygon: Polygon, scale: tuple[float, float], origin: tuple[int, int]) -> list[list[tuple[float, float]]]:
    """The outer ring and the holes, (x, y) in px of the image file."""
    (down, across), (top, left) = scale, origin
    rings = (polygon.exterior, *polygon.interiors)
    return [[(round(left + x * across, 2), round(top + y * down, 2)) for x, y in ring.coords] for ring in rings]


def _ended(polygon: Polygon, extent: tuple[float, float]) -> Polygon:
    """Move the edges of pixels that lie beyond (height, width) there.

    Only the last px of an axis reach beyond, so that corners keep their order and a valid polygon stays valid.
    """
    import shapely

    height, width = extent
    _, _, right, bottom = polygon.bounds
    if right <= width and bottom <= height:
        return polygon
    return shapely.transform(polygon, lambda corners: np.minimum(corners, (width, height)))


def _largest_polygon(geometry: Geometry) -> Polygon:
    polygons = [one for one in getattr(geometry, "geoms", [geometry]) if one.geom_type == "Polygon"]
    return max(polygons, key=lambda polygon: polygon.area)
