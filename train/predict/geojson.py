"""Objects of a class mask as polygons with holes, in the GeoJSON that QuPath reads."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from shapely import Polygon

NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 4122's for names of things on the web


@dataclass(frozen=True)
class Outlining:
    """What polygons are made of. classes: those that are outlined, code -> (name, hex colour).

    scale: px of the file in one px of the mask, (down, across). mpp: um in one px of the mask, None where nobody knows.
    simplify: px of the mask that an outline may leave its object's border by. smallest: px of the mask below which an
    object is dropped.
    """

    classes: Mapping[int, tuple[str, str]]
    scale: tuple[float, float]
    mpp: float | None
    simplify: float
    smallest: float


def outline(codes: np.ndarray, how: Outlining) -> Iterator[tuple[int, int, Polygon]]:
    """Code, area in px and polygon of each object of (H, W) uint8 codes, in px of the mask.

    An object is a 4-connected region of one class. Its polygon is valid, and has its holes; its corners are those of
    the pixels, thinned by Douglas and Peucker's rule where that leaves it valid.
    """
    import shapely
    from rasterio.features import shapes

    wanted = np.isin(codes, list(how.classes))
    for geometry, value in shapes(codes, mask=wanted, connectivity=4):
        exact = shapely.geometry.shape(geometry)
        area = round(exact.area)
        if area < max(1, how.smallest):
            continue
        exact = exact if exact.is_valid else _largest(shapely.make_valid(exact))
        # half: where a ring closes, GEOS takes a corner away after the others, which may double what they are off by
        thinned = exact.simplify(how.simplify / 2, preserve_topology=True) if how.simplify else exact
        sound = thinned.is_valid and thinned.geom_type == "Polygon" and not thinned.is_empty
        yield int(value), area, thinned if sound else exact


def write_geojson(path: Path, codes: np.ndarray, how: Outlining, *, source: str) -> dict[str, dict[str, Any]]:
    """Write the objects as a FeatureCollection of QuPath annotations, in px of the file; objects go out one by one.

    Each has its class with a colour and its area (um2 where um/px is known, px of the file else). Gives for each class
    the number of objects and their area. source: what the ids are made of, so that the same mask gives the same file.
    """
    unit, factor = ("µm^2", how.mpp**2) if how.mpp else ("px^2", how.scale[0] * how.scale[1])
    key = "area_um2" if how.mpp else "area_px"
    totals: dict[str, dict[str, Any]] = {name: {"count": 0, key: 0.0} for name, _ in how.classes.values()}
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for number, (code, area, polygon) in enumerate(outline(codes, how)):
            name, colour = how.classes[code]
            totals[name]["count"] += 1
            totals[name][key] += area * factor
            feature = {
                "type": "Feature",
                "id": str(uuid.uuid5(NAMESPACE, f"{source}/{number}")),
                "geometry": {"type": "Polygon", "coordinates": _rings(polygon, how.scale)},
                "properties": {
                    "objectType": "annotation",
                    "name": f"{name} {totals[name]['count']}",
                    "classification": {"name": name, "color": [int(colour[i : i + 2], 16) for i in (1, 3, 5)]},
                    "measurements": {f"Area {unit}": round(area * factor, 3), "Holes": len(polygon.interiors)},
                },
            }
            file.write((",\n" if number else "\n") + json.dumps(feature))
        file.write("\n]}\n")
    return totals


def _rings(polygon: Polygon, scale: tuple[float, float]) -> list[list[list[float]]]:
    """The outer ring and the holes, (x, y) in px of the file."""
    rings: Sequence = (polygon.exterior, *polygon.interiors)
    return [[[round(x * scale[1], 2), round(y * scale[0], 2)] for x, y in ring.coords] for ring in rings]


def _largest(geometry: Any) -> Any:
    parts = [part for part in getattr(geometry, "geoms", [geometry]) if part.geom_type == "Polygon"]
    return max(parts, key=lambda part: part.area)
