"""Outlines drawn in QuPath: reading its GeoJSON, and rasterising the outlines to a mask of class codes."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from pathseg.store.runtime.printable import composed
from pathseg.store.runtime.regular_files import open_file

if TYPE_CHECKING:
    from shapely import Geometry

OUTLINE_SUFFIXES = (".geojson", ".geojson.gz", ".json", ".json.gz")
MAX_BYTES = 2**30  # of an unpacked file: some ten million corners
MAX_RATIO = 200  # unpacked bytes for each of a gzipped file, ten times those of outlines; files under MIN_BYTES any
MIN_BYTES = 2**20
MOST_CROSSINGS = 1000  # of an outline with itself: the time to mend it grows with their square
MOST_OVERLAPS = 20_000  # crossings among the lines and parts of an object: half a second to unite them
EDGE_PAIRS = 10**6  # compared at once
SEGMENTS = 10_000  # of a line that are drawn at once: 5 MB
FARTHEST_PX = 1e8  # from the corner of a slide: beyond, rasterising would overflow
GEOMETRIES = (
    "Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon", "GeometryCollection",
)  # fmt: skip
UNCLASSIFIED = None
# ids by which older exports tell objects that are no annotations, in place of `objectType`
OTHER_OBJECTS = frozenset(
    {"PathDetectionObject", "PathCellObject", "PathTileObject", "PathRootObject", "TMACoreObject"}
)


@dataclass(frozen=True)
class Outline:
    """An annotation: its class, None without one, and its area, a valid shapely geometry in px of the image file.

    colour: of the class, `#RRGGBB`; None where the file gives none, or none that can be read.
    """

    class_name: str | None
    area: Geometry
    colour: str | None = None


@dataclass(frozen=True)
class Outlines:
    """The annotations of one file.

    left_out: number of objects that are no annotations (detections, cells, tiles). mended: number of outlines that
    crossed themselves. flat: numbers, from 1, of the objects that were left out because they have no area.
    """

    outlines: tuple[Outline, ...]
    left_out: int
    mended: int
    flat: tuple[int, ...] = ()


def read_outlines(path: Path, *, brush_px: float, origin: tuple[int, int] = (0, 0)) -> Outlines:
    """Read the annotations of a GeoJSON file as QuPath exports it: a FeatureCollection, an array, or one Feature.

    Also gzipped. Objects inside of others (`childObjects`) count as their own. origin: (y, x) that the first px of the
    image has in the file. Points and lines become areas `brush_px` px of the image file wide. An outline that crosses
    itself is mended (`shapely.make_valid`). Derived classes are named as QuPath shows them, `Tumor: Positive`. Raises
    ValueError naming the file, and the object by its number: no GeoJSON, no geometry or one that cannot be read,
    coordinates that are not finite.
    """
    import shapely
    import shapely.affinity

    outlines: list[Outline] = []
    flat: list[int] = []
    left_out = mended = 0
    for number, feature in enumerate(_features(path), 1):
        if not feature.is_annotation:
            left_out += 1
            continue
        try:
            if feature.geometry is None:
                raise ValueError("it has no geometry")
            geometry = _geometry(feature.geometry)
            if geometry.is_empty:
                raise ValueError("it has no coordinates")
            if not all(abs(px) <= FARTHEST_PX for px in geometry.bounds):  # NaN too
                raise ValueError(f"its coordinates are not finite, or farther than {FARTHEST_PX:.0e} px")
            area = _united(geometry, brush_px)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, shapely.errors.ShapelyError) as e:
            raise ValueError(f"{path}: object {number} is no outline: {_first_line(e)}; remove it") from e
        if not area.area:
            flat.append(number)
            continue
        mended += not all(one.is_valid for one in _single_geometries(geometry))
        area = shapely.affinity.translate(area, xoff=-origin[1], yoff=-origin[0]) if any(origin) else area
        outlines.append(Outline(feature.class_name or UNCLASSIFIED, area, feature.class_colour))
    return Outlines(tuple(outlines), left_out, mended, tuple(flat))


def rasterise(
    areas: Sequence[tuple[Geometry, int]],
    *,
    corner: tuple[int, int],
    size: tuple[int, int],
    scale: tuple[float, float],
    fill: int,
) -> np.ndarray:
    """Rasterise areas in px of the image file with their codes to a window, (H, W) uint8; elsewhere `fill`.

    A px gets the code of the areas that its centre lies in, the smallest one where they overlap; of equally large ones
    the last. corner: (y, x) of the window, in px that measure `scale` (down, across) px of the file.
    """
    from rasterio.features import rasterize
    from rasterio.transform import Affine

    ordered = sorted(areas, key=lambda pair: -pair[0].area)
    if not ordered:
        return np.full(size, fill, np.uint8)
    (y, x), (down, across) = corner, scale
    transform = Affine(across, 0, x * across, 0, down, y * down)
    codes: np.ndarray = rasterize(ordered, out_shape=size, fill=fill, transform=transform, dtype=np.uint8)
    return codes


class _Classification(msgspec.Struct, frozen=True):
    name: str | None = None
    names: tuple[str, ...] = ()  # of a derived class, in place of `name`
    color: Any = None  # an odd one is none: it must refuse no file
    colorRGB: Any = None  # of older exports


class _Properties(msgspec.Struct, frozen=True):
    objectType: str | None = None
    object_type: str | None = None  # of older exports
    type: str | None = None  # of files that other programs wrote for QuPath
    classification: _Classification | str | None = None
    childObjects: list[_Feature] = []


class _Feature(msgspec.Struct, frozen=True, tag_field="type", tag="Feature"):
    id: Any = None
    geometry: dict[str, Any] | None = None
    properties: _Properties | None = None

    @property
    def is_annotation(self) -> bool:
        """Return whether the object is an annotation, as one that does not say what it is."""
        properties = self.properties or _Properties()
        kind = properties.objectType or properties.object_type or properties.type
        return self.id not in OTHER_OBJECTS if kind is None else kind == "annotation"

    @property
    def class_name(self) -> str | None:
        """Return the name of the class in composed Unicode, of a derived one as QuPath shows it; None without one."""
        named = None if self.properties is None else self.properties.classification
        if isinstance(named, _Classification):
            named = named.name or ": ".join(named.names)
        return None if named is None else composed(named)

    @property
    def class_colour(self) -> str | None:
        """Return the colour of the class as `#RRGGBB`, None without one that can be read."""
        classification = None if self.properties is None else self.properties.classification
        if not isinstance(classification, _Classification):
            return None
        return _hex_colour(classification.colorRGB if classification.color is None else classification.color)


class _FeatureCollection(msgspec.Struct, frozen=True, tag_field="type", tag="FeatureCollection"):
    features: list[_Feature]


def _features(path: Path) -> list[_Feature]:
    content = _content(path)
    try:
        found = msgspec.json.decode(content, type=_FeatureCollection | _Feature | list[_Feature])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ValueError(f"{path}: no GeoJSON as QuPath exports it: {_first_line(e)}; export it again") from e
    if isinstance(found, _FeatureCollection):
        found = found.features
    return list(_with_children([found] if isinstance(found, _Feature) else found))


def _hex_colour(value: Any) -> str | None:
    """Return `#RRGGBB` of [r, g, b] or [r, g, b, alpha], 0..255, or of a number with RGB in its last 24 bits."""
    if type(value) is int:
        return f"#{value & 0xFFFFFF:06X}"
    if not isinstance(value, list) or len(value) not in (3, 4):
        return None
    red, green, blue = value[:3]
    if any(type(one) is not int or not 0 <= one <= 255 for one in (red, green, blue)):
        return None
    return f"#{red:02X}{green:02X}{blue:02X}"


def _with_children(features: Sequence[_Feature]) -> Iterator[_Feature]:
    for feature in features:
        yield feature
        if feature.properties is not None:
            yield from _with_children(feature.properties.childObjects)


def _content(path: Path) -> bytes:
    try:
        with open_file(path) as file:
            most, packed = os.fstat(file.fileno()).st_size, file.peek(2)[:2] == b"\x1f\x8b"
            if packed:
                most = max(MAX_RATIO * most, MIN_BYTES)
            stream: io.BufferedIOBase = gzip.GzipFile(fileobj=file) if packed else file
            content = stream.read(min(most, MAX_BYTES) + 1)
    except (OSError, EOFError, zlib.error) as e:
        raise ValueError(f"{path}: the file cannot be read: {_first_line(e)}; export it again") from e
    if len(content) > min(most, MAX_BYTES):
        raise ValueError(
            f"{path}: more than {min(most, MAX_BYTES) // 2**20} MiB of GeoJSON; export annotations alone, not gzipped"
        )
    return content.removeprefix(b"\xef\xbb\xbf")


def _geometry(values: Mapping[str, Any]) -> Geometry:
    import shapely

    kind = values.get("type")
    if kind not in GEOMETRIES:
        raise ValueError(f"its geometry is {kind!r:.40}, not one of {', '.join(GEOMETRIES)}")
    return shapely.geometry.shape(values)


def _single_geometries(geometry: Geometry) -> Iterator[Geometry]:
    if hasattr(geometry, "geoms"):
        for one in geometry.geoms:
            yield from _single_geometries(one)
    else:
        yield geometry


def _united(geometry: Geometry, brush_px: float) -> Geometry:
    """Return the area of a geometry whose lines and points are drawn with a brush.

    Raises ValueError where its lines and parts cross so often that this would take minutes.
    """
    import shapely

    singles = list(_single_geometries(geometry))
    if geometry.geom_type not in ("Polygon", "Point", "MultiPoint") and not (
        geometry.geom_type == "MultiPolygon" and geometry.is_valid
    ):
        _require_few_crossings(singles, MOST_OVERLAPS, "its lines and parts cross each other")
    return shapely.union_all([_areal(one, brush_px) for one in singles])


def _areal(geometry: Geometry, brush_px: float) -> Geometry:
    """Return the area of a polygon, a line or a point; of a polygon that crosses itself that of its mended parts."""
    import shapely

    if geometry.geom_type == "Point":
        return geometry.buffer(brush_px / 2)
    if geometry.geom_type != "Polygon":
        return _drawn(geometry, brush_px)
    if geometry.is_valid:
        return geometry
    _require_few_crossings([geometry], MOST_CROSSINGS, "it crosses itself")
    parts = [one for one in _single_geometries(shapely.make_valid(geometry)) if one.geom_type == "Polygon"]
    return shapely.union_all(parts)


def _drawn(line: Geometry, brush_px: float) -> Geometry:
    """Return the area of a line drawn with a brush: the union of its segments, each with round ends.

    GEOS's buffer of the whole line takes time with the cube of the strokes where these lie closer than the brush is
    wide: 18 s for 100, for which this takes 0.05 s.
    """
    import shapely

    segments = shapely.linestrings(_edges([line]))
    chunks = (segments[first : first + SEGMENTS] for first in range(0, len(segments), SEGMENTS))
    return shapely.union_all([shapely.union_all(shapely.buffer(chunk, brush_px / 2)) for chunk in chunks])


def _edges(geometries: Sequence[Geometry]) -> np.ndarray:
    """Return the edges of polygons and lines, (n, 2, 2) x, y of both ends."""
    import shapely

    polygons = [one for one in geometries if one.geom_type == "Polygon"]
    lines = [one for one in geometries if one.geom_type not in ("Polygon", "Point")]
    corners, of_line = shapely.get_coordinates([*shapely.get_rings(polygons), *lines], return_index=True)
    inside = of_line[:-1] == of_line[1:]  # else an edge would join two lines
    return np.stack([corners[:-1][inside], corners[1:][inside]], axis=1)


def _require_few_crossings(geometries: Sequence[Geometry], most: int, what: str) -> None:
    """Raise ValueError for polygons and lines whose edges cross each other more than `most` times."""
    import shapely

    edges = shapely.linestrings(_edges(geometries))
    tree, found, step = shapely.STRtree(edges), 0, max(1, EDGE_PAIRS // max(1, len(edges)))
    for first in range(0, len(edges), step):
        found += tree.query(edges[first : first + step], predicate="crosses").shape[1]  # each crossing twice
        if found > 2 * most:
            raise ValueError(f"{what} more than {most} times")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
