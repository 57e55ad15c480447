"""GeoJSON as QuPath exports it: all its forms are read, and outlines become the mask that a drawer expects."""

import gzip
import json
import time

import numpy as np
import pytest
import shapely
from rasterio.features import shapes

from pathseg.extract.inputs.outlines import rasterise, read_outlines

SQUARE = {"type": "Polygon", "coordinates": [[[10, 10], [30, 10], [30, 30], [10, 30], [10, 10]]]}


def feature(geometry=None, name="Tumor", **properties):
    classification = {} if name is None else {"classification": {"name": name, "color": [200, 0, 0]}}
    properties = {"objectType": "annotation", "isLocked": False, **classification, **properties}
    return {"type": "Feature", "id": "a", "geometry": geometry or SQUARE, "properties": properties}


def strip(number):
    """One of many strips, every other one upright, that all cross each other."""
    first = 10 * (number // 2)
    ring = [[first, 0], [first + 5, 0], [first + 5, 2000], [first, 2000], [first, 0]]
    return [ring if number % 2 else [corner[::-1] for corner in ring]]


@pytest.fixture
def read(tmp_path):
    def read_content(content, *, brush_px=4.0, name="a.geojson", origin=(0, 0)):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return read_outlines(path, brush_px=brush_px, origin=origin)

    return read_content


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda one: {"type": "FeatureCollection", "features": [one]},
        lambda one: [one],
        lambda one: one,
        lambda one: gzip.compress(json.dumps([one]).encode()),
        lambda one: b"\xef\xbb\xbf" + json.dumps([one]).encode(),
    ],
)
def test_every_form_of_a_file_holds_the_same_outline(read, wrapped):
    (outline,) = read(wrapped(feature())).outlines
    assert outline.class_name == "Tumor"
    assert outline.area.equals(shapely.box(10, 10, 30, 30))


def test_holes_and_several_parts_are_kept(read):
    ring, hole = SQUARE["coordinates"][0], [[15, 15], [20, 15], [20, 20], [15, 20], [15, 15]]
    far = [[[50, 50], [60, 50], [60, 60], [50, 60], [50, 50]]]
    parts = {"type": "MultiPolygon", "coordinates": [[ring, hole], far]}
    (outline,) = read([feature(parts)]).outlines
    assert outline.area.area == 400 - 25 + 100
    (collected,) = read([feature({"type": "GeometryCollection", "geometries": [parts]})]).outlines
    assert collected.area.equals(outline.area)


@pytest.mark.parametrize(
    ("geometry", "area"),
    [
        ({"type": "Point", "coordinates": [5, 5]}, np.pi * 2**2),
        ({"type": "MultiPoint", "coordinates": [[5, 5], [50, 50]]}, 2 * np.pi * 2**2),
        ({"type": "LineString", "coordinates": [[0, 0], [100, 0]]}, 4 * 100 + np.pi * 2**2),
    ],
)
def test_points_and_lines_are_as_wide_as_the_brush(read, geometry, area):
    (outline,) = read([feature(geometry)], brush_px=4.0).outlines
    assert outline.area.area == pytest.approx(area, rel=0.01)


def test_a_dense_scribble_is_drawn_at_once(read):
    """2,000 strokes closer to each other than the brush is wide; GEOS's buffer of such a line takes hours."""
    strokes = [[x, y / 10] for y in range(1000) for x in ((0, 300) if y % 2 else (300, 0))]
    started = time.perf_counter()
    (outline,) = read([feature({"type": "LineString", "coordinates": strokes})], brush_px=4.0).outlines
    assert time.perf_counter() - started < 20
    height, width, radius = 99.9, 300, 2
    area = height * width + 2 * radius * (height + width) + np.pi * radius**2
    assert outline.area.area == pytest.approx(area, rel=1e-3) and outline.area.geom_type == "Polygon"


def test_an_outline_that_crosses_itself_becomes_its_parts(read):
    bow_tie = {"type": "Polygon", "coordinates": [[[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]]}
    found = read([feature(bow_tie), feature()])
    assert found.mended == 1 and found.outlines[0].area.area == 2 * 25 and found.outlines[0].area.is_valid


def test_detections_cells_and_tiles_are_counted_and_left_out(read):
    kinds = ("detection", "cell", "tile", "annotation")
    found = read([feature(objectType=kind) for kind in kinds])
    assert (len(found.outlines), found.left_out) == (1, 3)


def test_objects_of_older_exports_say_what_they_are_in_their_id_or_in_snake_case(read):
    ids = ("PathDetectionObject", "PathCellObject", "PathTileObject", "PathRootObject", "PathAnnotationObject")
    older = [{**feature(objectType=None), "id": name} for name in ids]
    snake = [feature(objectType=None, object_type=kind) for kind in ("detection", "annotation")]
    found = read([*older, *snake])
    assert (len(found.outlines), found.left_out) == (2, 5)


def test_files_of_other_programs_may_say_the_type_and_the_class_in_a_word(read):
    """QuPath's reader takes `type` for `objectType`, and a text for a classification."""
    found = read([feature(objectType=None, type=kind, classification="Stroma") for kind in ("tile", "annotation")])
    assert ([one.class_name for one in found.outlines], found.left_out) == (["Stroma"], 1)


def test_locks_measurements_and_metadata_change_nothing(read):
    written = {
        "isLocked": True, "color": [1, 2, 3], "metadata": {"by": "me"}, "isMissing": False,
        "measurements": {"Area": 1.0},
    }  # fmt: skip
    older = {"isLocked": "yes", "measurements": [{"name": "Area", "value": 1.0}], "metadata": None, "color": -1}
    plain = read([feature()])
    assert read([feature(**written)]) == read([feature(**older)]) == plain


def test_objects_inside_of_others_are_read_too(read):
    inner = feature(name="Stroma")
    outer = feature(childObjects=[inner, feature(objectType="detection")])
    found = read([outer])
    assert ([one.class_name for one in found.outlines], found.left_out) == (["Tumor", "Stroma"], 1)


def test_px_of_the_whole_file_become_those_of_the_scanned_bounds(read):
    """A slide whose bounds begin at x 100, y 7: what is drawn at its first px has these coordinates in the file."""
    (outline,) = read([feature()], origin=(7, 100)).outlines
    assert outline.area.equals(shapely.box(10 - 100, 10 - 7, 30 - 100, 30 - 7))


@pytest.mark.parametrize(
    ("classification", "colour"),
    [
        ({"color": [200, 0, 16]}, "#C80010"),
        ({"color": [200, 0, 16, 128]}, "#C80010"),
        ({"colorRGB": -3670000}, "#C80010"),  # ARGB ffc80010 as a signed number
        ({}, None),
        ({"color": None}, None),
        ({"color": "red"}, None),
        ({"color": [200, 0]}, None),
        ({"color": [200, 0, 256]}, None),
        ({"color": [200, 0, 1.5]}, None),
        ({"color": {"r": 200}}, None),
    ],
)
def test_the_colour_of_a_class_is_read_and_an_odd_one_is_none(read, classification, colour):
    (outline,) = read([feature(classification={"name": "Tumor"} | classification)]).outlines
    assert (outline.class_name, outline.colour) == ("Tumor", colour)


def test_an_id_does_not_outweigh_the_type(read):
    found = read([{**feature(), "id": "PathDetectionObject"}, {**feature(), "id": 7}])
    assert (len(found.outlines), found.left_out) == (2, 0)


def test_a_derived_class_is_named_as_qupath_shows_it(read):
    derived = feature(classification={"names": ["Tumor", "Positive"], "color": [200, 0, 0]})
    found = read([derived])
    assert found.outlines[0].class_name == "Tumor: Positive"


def test_an_outline_without_an_area_is_left_out_by_its_number(read):
    collapsed = {"type": "Polygon", "coordinates": [[[5, 5], [9, 9], [5, 5], [5, 5]]]}
    found = read([feature(), feature(collapsed)])
    assert (len(found.outlines), found.flat) == (1, (2,))


@pytest.mark.parametrize("without", [{"type": "Feature", "geometry": None}, {"type": "Feature"}])
def test_an_object_without_a_geometry_is_named_by_its_number(read, without):
    with pytest.raises(ValueError, match=r"a\.geojson: object 2 .*no geometry; remove it"):
        read([feature(), without])


def test_a_missing_class_is_none_and_old_exports_name_theirs_alike(read):
    old = feature(name=None)
    old["properties"]["classification"] = {"name": "Stroma", "colorRGB": -3670016}  # ARGB ffc80000
    found = read([feature(name=None), feature(), old])
    assert [one.class_name for one in found.outlines] == [None, "Tumor", "Stroma"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"\x1f\x8b\x08 cut",
        b"[" * 100_000,
        {"type": "Topology"},
        [{"type": "Feature", "geometry": {"type": "Circle", "coordinates": []}}],
        [feature({"type": "Polygon", "coordinates": []})],
        [feature({"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]})],
        [feature({"type": "Polygon", "coordinates": "x"})],
        [feature({"type": "Point", "coordinates": [float("nan"), 1]})],
        [feature({"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [5]}]})],
        [feature({"type": "Polygon"})],
    ],
)
def test_what_is_no_outline_is_named_in_one_line(read, content):
    with pytest.raises(ValueError, match=r"a\.geojson: ") as caught:
        read(content)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ({"type": "Polygon", "coordinates": [[[-1e300, 0], [1e300, 0], [0, 1e300], [-1e300, 0]]]}, "farther than"),
        ({"type": "LineString", "coordinates": [[0, 0], [1e308, 1e308]]}, "farther than"),
        (
            {"type": "Polygon", "coordinates": [np.random.default_rng(0).integers(0, 500, (1000, 2)).tolist()]},
            "crosses itself more than 1000 times",
        ),
        (
            {"type": "LineString", "coordinates": np.random.default_rng(0).integers(0, 500, (1000, 2)).tolist()},
            "cross each other more than 20000 times",
        ),
        ({"type": "MultiPolygon", "coordinates": [*map(strip, range(400))]}, "cross each other more than 20000 times"),
    ],
    ids=["polygon", "line", "crossings", "crossing line", "crossing parts"],
)
def test_an_outline_that_cannot_be_drawn_is_refused_at_once(read, geometry, message):
    with pytest.raises(ValueError, match=f"a.geojson: object 2 is no outline: .*{message}"):
        read([feature(), feature(geometry)])


def test_a_gzipped_file_cannot_hold_much_more_than_itself(read):
    bomb = gzip.compress(b"[" + b'{"type":"Feature"},' * 10**6 + b"{}]", 9)
    with pytest.raises(ValueError, match="MiB of GeoJSON"):
        read(bomb)


def test_masks_come_back_from_their_own_outlines():
    """rasterio's polygons of random class codes, drawn again, are the codes."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        codes = np.kron(rng.integers(0, 4, (12, 9)), np.ones((5, 5), int)).astype(np.uint8)
        areas = [(shapely.geometry.shape(one), int(code)) for one, code in shapes(codes)]
        drawn = rasterise(areas, corner=(0, 0), size=codes.shape, scale=(1.0, 1.0), fill=255)
        np.testing.assert_array_equal(drawn, codes)


def test_a_px_belongs_to_the_outline_that_its_centre_lies_in_at_any_scale_and_corner():
    rng = np.random.default_rng(1)
    for _ in range(30):
        corners = rng.uniform(0, 400, (5, 2))
        polygon = shapely.MultiPoint(corners).convex_hull
        (y, x), scale = rng.integers(0, 40, 2).tolist(), tuple(rng.uniform(0.7, 5, 2))
        drawn = rasterise([(polygon, 1)], corner=(y, x), size=(40, 50), scale=scale, fill=0)
        down, across = np.mgrid[0:40, 0:50]
        centres = shapely.points((across + x + 0.5) * scale[1], (down + y + 0.5) * scale[0])
        near = shapely.distance(polygon.boundary, centres) < 1e-6
        np.testing.assert_array_equal(drawn[~near], shapely.contains(polygon, centres)[~near])


def test_the_smaller_outline_lies_on_top_whatever_the_order():
    large, small = (shapely.box(0, 0, 10, 10), 1), (shapely.box(2, 2, 5, 5), 2)
    for areas in ([large, small], [small, large]):
        drawn = rasterise(areas, corner=(0, 0), size=(12, 12), scale=(1.0, 1.0), fill=255)
        assert (np.bincount(drawn.ravel(), minlength=256)[[1, 2, 255]] == [91, 9, 44]).all()
