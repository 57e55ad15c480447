"""Objects of class codes as polygons with holes, in the GeoJSON that QuPath reads."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from pathseg.train.colours import rgb
from pathseg.train.predict.records import ClassObjects

if TYPE_CHECKING:
    from shapely import Geometry, Polygon

NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 4122's for names of things on the web


@dataclass(frozen=True)
class OutlineSettings:
    """How class codes become polygons.

    classes: those that are outlined, code -> (name, hex colour). scale: px of the image file per px of the codes,
    (down, across). mpp: um/px of the codes, None where it is unknown. simplify: px of the codes that an outline may
    leave the border of its object by. smallest: px of the codes below which an object is dropped.
    """

    classes: Mapping[int, tuple[str, str]]
    scale: tuple[float, float]
    mpp: float | None
    simplify: float
    smallest: float


class OutlinedObject(NamedTuple):
    """A 4-connected region of one class: class code, area and polygon in px of the codes."""

    code: int
    area_px: int
    polygon: Polygon


def outline_objects(codes: np.ndarray, settings: OutlineSettings) -> Iterator[OutlinedObject]:
    """Yield the objects of (H, W) uint8 class codes.

    Polygons are valid and have their holes. Their corners are those of the pixels, thinned with Douglas and Peucker's
    algorithm where the polygon stays valid.
    """
    import shapely
    from rasterio.features import shapes

    wanted = np.isin(codes, list(settings.classes))
    for geometry, value in shapes(codes, mask=wanted, connectivity=4):
        exact = shapely.geometry.shape(geometry)
        area = round(exact.area)
        if area < max(1, settings.smallest):
            continue
        exact = exact if exact.is_valid else _largest_polygon(shapely.make_valid(exact))
        # half: where a ring closes, GEOS drops a corner after the others, which may double the deviation
        thinned = exact.simplify(settings.simplify / 2, preserve_topology=True) if settings.simplify else exact
        sound = thinned.is_valid and thinned.geom_type == "Polygon" and not thinned.is_empty
        yield OutlinedObject(int(value), area, thinned if sound else exact)


def write_geojson(path: Path, codes: np.ndarray, settings: OutlineSettings, *, source: str) -> dict[str, ClassObjects]:
    """Write the objects as a FeatureCollection of QuPath annotations, in px of the image file, one object at a time.

    An annotation has its class with a colour and its area, in um2 where um/px is known, else in px of the file. Returns
    number and total area of the objects of each class by its name. source: text that the ids of the annotations are
    derived from, so that the same codes give the same file.
    """
    known = settings.mpp is not None
    unit = "µm^2" if known else "px^2"
    factor = settings.mpp**2 if settings.mpp is not None else settings.scale[0] * settings.scale[1]
    counts, areas = dict.fromkeys(settings.classes, 0), dict.fromkeys(settings.classes, 0.0)
    with path.open("wb") as file:
        file.write(b'{"type": "FeatureCollection", "features": [')
        for number, (code, area_px, polygon) in enumerate(outline_objects(codes, settings)):
            name, colour = settings.classes[code]
            counts[code] += 1
            areas[code] += area_px * factor
            annotation = _Annotation(
                id=str(uuid.uuid5(NAMESPACE, f"{source}/{number}")),
                geometry=_PolygonGeometry(_rings(polygon, settings.scale)),
                properties=_Properties(
                    name=f"{name} {counts[code]}",
                    classification=_Classification(name, rgb(colour)),
                    measurements={f"Area {unit}": round(area_px * factor, 3), "Holes": len(polygon.interiors)},
                ),
            )
            file.write((b",\n" if number else b"\n") + msgspec.json.encode(annotation))
        file.write(b"\n]}\n")
    area = "area_um2" if known else "area_px"
    return {name: ClassObjects(counts[code], **{area: areas[code]}) for code, (name, _) in settings.classes.items()}


class _Classification(msgspec.Struct, frozen=True):
    name: str
    color: tuple[int, int, int]


class _Properties(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    object_type: str = "annotation"
    name: str
    classification: _Classification
    measurements: dict[str, float]


class _PolygonGeometry(msgspec.Struct, frozen=True, tag_field="type", tag="Polygon"):
    coordinates: list[list[tuple[float, float]]]  # outer ring, then holes; (x, y) px of the file


class _Annotation(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="Feature"):
    id: str
    geometry: _PolygonGeometry
    properties: _Properties


def _rings(polygon: Polygon, scale: tuple[float, float]) -> list[list[tuple[float, float]]]:
    """The outer ring and the holes, (x, y) in px of the image file."""
    rings = (polygon.exterior, *polygon.interiors)
    return [[(round(x * scale[1], 2), round(y * scale[0], 2)) for x, y in ring.coords] for ring in rings]


def _largest_polygon(geometry: Geometry) -> Polygon:
    polygons = [one for one in getattr(geometry, "geoms", [geometry]) if one.geom_type == "Polygon"]
    return max(polygons, key=lambda polygon: polygon.area)
