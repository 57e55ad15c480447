import json

import numpy as np
import pytest
import shapely
from rasterio.features import rasterize
from scipy import ndimage

from pathseg.train.predict import geojson
from pathseg.train.predict.geojson import OutlineSettings, measured_maps, outline_objects, write_geojson
from pathseg.train.predict.mosaic import Confidence, ConfidenceMap
from pathseg.train.predict.records import ClassObjects

CLASSES = {1: ("gland", "#009E73"), 2: ("stroma", "#E69F00")}


def settings(**changes):
    values = {"classes": CLASSES, "scale": (1.0, 1.0), "mpp": None, "simplify": 0.0, "smallest": 0.0}
    return OutlineSettings(**(values | changes))


def noise(seed=0, side=60):
    return np.random.default_rng(seed).integers(0, 3, (side, side)).astype(np.uint8)


def blobs(seed=0, side=200):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 8)
    return (field > 0).astype(np.uint8) + (field > np.quantile(field, 0.8))


def painted(found, shape):
    codes = np.zeros(shape, np.uint8)
    for code, _, polygon, _ in found:
        codes[rasterize([polygon], out_shape=shape).astype(bool)] = code
    return codes


@pytest.mark.parametrize("simplify", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("codes", [noise(), blobs()], ids=["noise", "blobs"])
def test_no_polygon_is_invalid(codes, simplify):
    found = [polygon for _, _, polygon, _ in outline_objects(codes, settings(simplify=simplify))]
    assert found
    assert all(polygon.is_valid and polygon.geom_type == "Polygon" for polygon in found)


def test_exact_outlines_rasterise_back_to_the_mask():
    codes = noise()
    np.testing.assert_array_equal(painted(outline_objects(codes, settings()), codes.shape), codes)


def test_areas_are_the_pixels_of_the_classes():
    codes = noise()
    for code in CLASSES:
        assert sum(area for c, area, _, _ in outline_objects(codes, settings()) if c == code) == (codes == code).sum()


@pytest.mark.parametrize("simplify", [2.0, 4.0])
def test_thinned_outlines_rasterise_back_within_the_tolerance(simplify):
    codes = blobs()
    again = painted(outline_objects(codes, settings(simplify=simplify)), codes.shape)
    edges = np.ones(codes.shape, bool)  # the image's own rim is a border too
    edges[1:-1, 1:-1] = False
    for axis in (0, 1):
        step = np.diff(codes, axis=axis) != 0
        edges |= np.pad(step, [(0, 1) if a == axis else (0, 0) for a in (0, 1)])
        edges |= np.pad(step, [(1, 0) if a == axis else (0, 0) for a in (0, 1)])
    distance = ndimage.distance_transform_edt(~edges)
    assert (again != codes).any()
    assert distance[again != codes].max() <= simplify + 1


@pytest.mark.parametrize("simplify", [1.0, 2.0])
def test_no_corner_of_an_object_is_further_from_its_outline_than_was_asked(simplify):
    exact, thinned = (list(outline_objects(blobs(), settings(simplify=s))) for s in (0.0, simplify))
    for (_, _, a, _), (_, _, b, _) in zip(exact, thinned, strict=True):
        assert shapely.distance(shapely.points(shapely.get_coordinates(a)), b.boundary).max() <= simplify


def test_of_thousands_of_holes_all_stay():
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((1600, 1600)), 4)
    codes = (noise > np.quantile(noise, 0.25)).astype(np.uint8)
    exact, thinned = (
        max((found.polygon for found in outline_objects(codes, settings(simplify=px))), key=lambda one: one.area)
        for px in (0.0, 2.0)
    )
    assert thinned.is_valid and len(thinned.interiors) == len(exact.interiors) > 2000
    assert shapely.get_num_coordinates(thinned) < shapely.get_num_coordinates(exact) / 3
    distances = shapely.distance(shapely.points(shapely.get_coordinates(exact)[::50]), thinned.boundary)
    assert distances.max() <= 2


def test_thinning_drops_most_corners():
    exact, thinned = (
        sum(len(found.polygon.exterior.coords) for found in outline_objects(blobs(), settings(simplify=px)))
        for px in (0.0, 2.0)
    )
    assert thinned < exact / 3


def test_a_hole_stays_a_hole():
    codes = np.zeros((40, 40), np.uint8)
    codes[5:35, 5:35] = 1
    codes[15:20, 15:20] = 0
    ((_, area, polygon, _),) = outline_objects(codes, settings())
    assert area == 30 * 30 - 5 * 5
    assert [shapely.Polygon(ring).area for ring in polygon.interiors] == [25]


def test_small_objects_are_dropped_by_their_size():
    codes = np.zeros((40, 40), np.uint8)
    codes[0:10, 0:10], codes[20:23, 20:23] = 1, 1
    assert [area for _, area, _, _ in outline_objects(codes, settings(smallest=10))] == [100]
    assert len(list(outline_objects(codes, settings(smallest=9)))) == 2


def written(tmp_path, codes, *, measured=None, **changes):
    totals = write_geojson(tmp_path / "a.geojson", codes, settings(**changes), source="slide", measured=measured)
    return json.loads((tmp_path / "a.geojson").read_text()), totals


def test_the_file_is_what_qupath_reads(tmp_path):
    codes = np.zeros((40, 40), np.uint8)
    codes[0:10, 0:20] = 1
    content, _ = written(tmp_path, codes)
    (feature,) = content["features"]
    assert content["type"] == "FeatureCollection"
    assert feature["type"] == "Feature"
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["properties"]["isLocked"] is False
    assert feature["properties"]["classification"] == {"name": "gland", "color": [0, 0x9E, 0x73]}
    assert len(feature["id"]) == 36
    assert shapely.from_geojson(json.dumps(feature["geometry"])).area == 200


def test_coordinates_are_px_of_the_file(tmp_path):
    codes = np.zeros((40, 40), np.uint8)
    codes[10:20, 0:20] = 1
    content, _ = written(tmp_path, codes, scale=(2.0, 3.0))
    x = [point[0] for point in content["features"][0]["geometry"]["coordinates"][0]]
    y = [point[1] for point in content["features"][0]["geometry"]["coordinates"][0]]
    assert (min(x), max(x), min(y), max(y)) == (0, 60, 20, 40)


def test_coordinates_may_begin_elsewhere_than_the_codes(tmp_path):
    """A slide whose bounds begin at x 100, y 7, in px of the whole file."""
    codes = np.zeros((40, 40), np.uint8)
    codes[10:20, 0:20] = 1
    content, _ = written(tmp_path, codes, scale=(2.0, 3.0), origin=(7, 100))
    polygon = shapely.from_geojson(json.dumps(content["features"][0]["geometry"]))
    assert polygon.bounds == (100 + 0, 7 + 20, 100 + 60, 7 + 40)


def test_areas_are_um2_where_the_resolution_is_known(tmp_path):
    codes = np.zeros((40, 40), np.uint8)
    codes[0:10, 0:20], codes[30:40, 30:40] = 1, 1
    content, totals = written(tmp_path, codes, mpp=0.5, scale=(4.0, 4.0))
    areas = [feature["properties"]["measurements"]["Area µm^2"] for feature in content["features"]]
    assert sorted(areas) == [25, 50]  # 100 and 200 px of 0.25 um2
    assert totals == {"gland": ClassObjects(2, area_um2=75.0), "stroma": ClassObjects(0, area_um2=0.0)}


def test_areas_are_px_of_the_file_where_it_is_not(tmp_path):
    codes = np.zeros((40, 40), np.uint8)
    codes[0:10, 0:20] = 2
    _, totals = written(tmp_path, codes, scale=(2.0, 3.0))
    assert totals["stroma"] == ClassObjects(1, area_px=1200.0)


@pytest.mark.parametrize("simplify", [0.0, 2.0])
def test_outlines_and_areas_end_with_the_image_within_the_last_px(tmp_path, simplify):
    codes = np.ones((40, 30), np.uint8)
    _, totals = written(tmp_path, codes, scale=(4.0, 4.0), extent=(39.25, 29.5), simplify=simplify)
    assert totals["gland"] == ClassObjects(1, area_px=157.0 * 118.0)
    ragged = np.random.default_rng(0).integers(1, 3, (40, 30)).astype(np.uint8)
    found = list(outline_objects(ragged, settings(extent=(39.25, 29.5), simplify=simplify)))
    assert all(one.polygon.is_valid for one in found)
    assert sum(one.area_px for one in found) == pytest.approx(39.25 * 29.5)
    assert max(one.polygon.bounds[2] for one in found) == 29.5
    assert max(one.polygon.bounds[3] for one in found) == 39.25


@pytest.mark.parametrize("kind", ["detection", "tile"])
def test_many_objects_may_be_detections_or_tiles(tmp_path, kind):
    codes = np.zeros((40, 40), np.uint8)
    codes[0:10, 0:20] = 1
    content, _ = written(tmp_path, codes, object_type=kind)
    assert [feature["properties"]["objectType"] for feature in content["features"]] == [kind]


def confidence_of(probability, uncertainty, *, of_ensemble=False):
    """Confidence in memory from values (H, W); NaN is not computed."""
    maps = []
    for values, maximum in ((probability, 1.0), (uncertainty, float(np.log(2)))):
        steps = np.where(np.isfinite(values), np.rint(np.nan_to_num(values) / maximum * 254), 255)
        maps.append(ConfidenceMap((steps.astype(np.uint8),), maximum))
    return Confidence(*maps, of_ensemble)


@pytest.mark.parametrize(("of_ensemble", "name"), [(False, "Mean entropy (nats)"), (True, "Mean uncertainty (nats)")])
def test_each_object_has_the_means_over_its_own_pixels(tmp_path, of_ensemble, name):
    codes = np.zeros((40, 40), np.uint8)
    codes[0:10, 0:20], codes[20:40, 20:40] = 1, 2
    codes[25:35, 25:35] = 1  # an object in a hole of another
    probability, uncertainty = np.where(codes == 1, 0.75, 0.5), np.where(codes == 2, 0.6, 0.2)
    probability[0:10, 0:10] = 0.95
    confidence = confidence_of(probability, uncertainty, of_ensemble=of_ensemble)
    content, _ = written(tmp_path, codes, measured=measured_maps(codes, confidence, level=0))
    found = {(feature["properties"]["name"]): feature["properties"]["measurements"] for feature in content["features"]}
    means = {key: (values["Mean probability"], values[name]) for key, values in found.items()}
    step = 0.5 / 254 + 1e-4  # of rounding
    assert means == {
        "gland 1": (pytest.approx(0.85, abs=step), pytest.approx(0.2, abs=step)),
        "gland 2": (pytest.approx(0.75, abs=step), pytest.approx(0.2, abs=step)),
        "stroma 1": (pytest.approx(0.5, abs=step), pytest.approx(0.6, abs=step)),
    }


@pytest.mark.parametrize("smallest", [0, 12])
@pytest.mark.parametrize("codes", [noise(), blobs()], ids=["noise", "blobs"])
def test_means_are_those_over_the_pixels_that_rasterio_draws_of_each_object(tmp_path, codes, smallest):
    rng = np.random.default_rng(1)
    values = {"Mean probability": rng.random(codes.shape), "Mean entropy (nats)": rng.random(codes.shape) * 0.69}
    measured = measured_maps(codes, confidence_of(*values.values()), level=0)
    content, _ = written(tmp_path, codes, measured=measured, smallest=smallest)
    assert len(content["features"]) > 5
    for feature in content["features"]:
        inside = rasterize([feature["geometry"]], out_shape=codes.shape).astype(bool)
        assert np.count_nonzero(inside) == feature["properties"]["measurements"]["Area px^2"] >= max(1, smallest)
        for name, of_map in values.items():
            step = 0.5 * of_map.max() / 254 + 1e-4  # of rounding
            assert feature["properties"]["measurements"][name] == pytest.approx(of_map[inside].mean(), abs=step)


def test_outlines_do_not_depend_on_how_many_are_made_at_once(tmp_path, monkeypatch):
    whole = written(tmp_path, noise(), simplify=1.0)
    monkeypatch.setattr(geojson, "BATCH_CORNERS", 50)
    monkeypatch.setattr(geojson, "BAND_ROWS", 7)
    assert written(tmp_path, noise(), simplify=1.0) == whole


def test_pixels_that_post_processing_added_to_an_object_do_not_count_in_its_means(tmp_path):
    predicted = np.zeros((40, 40), np.uint8)
    predicted[5:35, 5:35] = 1
    predicted[10:20, 10:20] = 0  # a hole that is filled
    filled = np.where(np.pad(np.ones((30, 30)), 5), 1, 0).astype(np.uint8)
    confidence = confidence_of(np.where(predicted == 1, 0.9, 0.6), np.full(predicted.shape, 0.3))
    content, _ = written(tmp_path, filled, measured=measured_maps(predicted, confidence, level=0))
    (feature,) = content["features"]
    assert feature["properties"]["measurements"]["Mean probability"] == pytest.approx(0.9, abs=0.5 / 254 + 1e-4)


def test_a_mask_without_objects_is_an_empty_collection(tmp_path):
    content, _ = written(tmp_path, np.zeros((10, 10), np.uint8))
    assert content == {"type": "FeatureCollection", "features": []}


def test_the_same_mask_gives_the_same_file(tmp_path):
    assert written(tmp_path, blobs()) == written(tmp_path, blobs())
