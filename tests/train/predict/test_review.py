"""The regions to annotate next are those whose prediction is least certain."""

import json

import numpy as np
import pytest
import tifffile

from pathseg.extract.inputs.images import open_input_image
from pathseg.extract.inputs.outlines import read_outlines
from pathseg.train.predict.config import PredictConfig
from pathseg.train.predict.feature_sources import ModelFeatures
from pathseg.train.predict.geojson import write_review
from pathseg.train.predict.mosaic import ConfidenceMap
from pathseg.train.predict.predictor import Predictor
from pathseg.train.predict.review import ReviewRegion, most_uncertain_regions


def uncertainty(values):
    """A map from values (H, W), NaN where not computed, in steps of 1/254."""
    return ConfidenceMap(
        (np.where(np.isfinite(values), np.rint(np.nan_to_num(values) * 254), 255).astype(np.uint8),), 1.0
    )


def test_the_most_uncertain_regions_come_first():
    values = np.full((1100, 1030), 10 / 254)
    values[512:768, 256:512] = 200 / 254
    values[0:256, 768:1024] = 100 / 254
    found = most_uncertain_regions(uncertainty(values), 3)
    assert [(y, x) for y, x, _ in found] == [(512, 256), (0, 768), (0, 0)]
    assert [region.uncertainty for region in found] == pytest.approx([200 / 254, 100 / 254, 10 / 254])


def test_regions_do_not_overlap_and_are_no_more_than_there_are():
    found = most_uncertain_regions(uncertainty(np.random.default_rng(0).uniform(0, 1, (1100, 1030))), 100)
    rows = range(0, 1100, 256)  # the last one is cut off to 76 px; a sixth column would have 6 px
    assert sorted((y, x) for y, x, _ in found) == [(y, x) for y in rows for x in range(0, 1024, 256)]


def test_what_was_not_computed_counts_in_no_mean_and_mostly_background_is_no_region():
    values = np.full((512, 512), np.nan)
    values[:256, :140] = 0.5
    values[:256, 256:380] = 1.0  # less than half of a region
    (found,) = most_uncertain_regions(uncertainty(values), 20)
    assert found[:2] == (0, 0) and found.uncertainty == pytest.approx(0.5, abs=0.5 / 254)


@pytest.mark.parametrize(
    ("size", "corners"),
    [
        ((127, 129), []),
        ((128, 128), [(0, 0)]),
        ((256, 319), [(0, 0)]),
        ((256, 320), [(0, 0), (0, 256)]),
        ((384, 256 + 128), [(0, 0), (0, 256), (256, 0), (256, 256)]),
    ],
)
def test_what_the_edges_leave_of_a_square_is_a_region_from_a_quarter_on(size, corners):
    found = most_uncertain_regions(uncertainty(np.full(size, 0.5)), 20)
    assert sorted((y, x) for y, x, _ in found) == corners


def test_of_a_region_at_the_edge_half_must_be_computed_too():
    values = np.full((256, 384), np.nan)
    values[:, :128] = values[:, 256:320] = 0.5
    assert len(most_uncertain_regions(uncertainty(values), 20)) == 2
    values[0, 256:320] = np.nan
    assert len(most_uncertain_regions(uncertainty(values), 20)) == 1


@pytest.fixture
def half_sure(tmp_path):
    """A slide at 0.25 um/px with tissue on the left, in whose lower part the head is in doubt: red is near 128."""
    pixels = np.full((2048, 3072, 3), 243, np.uint8)
    pixels[:1024, :1024], pixels[1024:, :1024] = (220, 130, 180), (130, 90, 160)
    path = tmp_path / "half.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), resolution=(4e4, 4e4), resolutionunit="CENTIMETER", metadata=None)
    return path


def reviewed(tmp_path, path, head, features, **settings):
    config = PredictConfig(formats=("review",), **settings)
    predictor = Predictor(head, ModelFeatures(head, (features,), config), tmp_path / "out", config)
    record = predictor.predict_image(open_input_image(path, head.sampling))
    return json.loads((tmp_path / "out" / "review" / "half.geojson").read_text())["features"], record


def test_a_slide_is_reviewed_in_px_of_its_file_and_on_its_tissue(tmp_path, half_sure, colour_head, colour_features):
    features, _ = reviewed(tmp_path, half_sure, colour_head(), colour_features, regions=6)
    assert [feature["properties"]["measurements"]["Review rank"] for feature in features] == [1, 2, 3, 4, 5, 6]
    ranked = [feature["properties"]["measurements"]["Mean entropy (nats)"] for feature in features]
    assert ranked == sorted(ranked, reverse=True) and ranked[3] > 0.6 > 0.1 > ranked[4]  # ln 2 is the most
    corners = np.array([feature["geometry"]["coordinates"][0] for feature in features])  # (6, 5, 2) of x, y
    assert (np.ptp(corners, axis=1) == 512).all()  # 256 px of 0.5 um in a file of 0.25 um/px
    assert corners[..., 0].max() <= 1024 and corners[:4, :, 1].min() >= 1024


def test_dragging_regions_back_annotates_nothing(tmp_path, half_sure, colour_head, colour_features):
    features, _ = reviewed(tmp_path, half_sure, colour_head(), colour_features)
    found = read_outlines(tmp_path / "out" / "review" / "half.geojson", brush_px=4)
    assert len(found.outlines) == len(features) == 8
    assert {outline.class_name for outline in found.outlines} == {None}


def test_another_number_of_regions_in_one_folder_is_refused(tmp_path, half_sure, colour_head, colour_features):
    reviewed(tmp_path, half_sure, colour_head(), colour_features, regions=2)
    with pytest.raises(ValueError, match=r"regions is 2 there, 3 asked for.*--out"):
        reviewed(tmp_path, half_sure, colour_head(), colour_features, regions=3)


def test_regions_end_with_the_image(tmp_path):
    path = tmp_path / "a.geojson"
    regions = [ReviewRegion(256, 512, 0.5)]
    write_review(path, regions, extent=(400, 700), scale=(2.0, 1.5), measurement="Mean entropy (nats)", source="a")
    (feature,) = json.loads(path.read_text())["features"]
    assert feature["geometry"]["coordinates"] == [
        [[768, 512], [1050, 512], [1050, 800], [768, 800], [768, 512]],
    ]
    assert feature["properties"] == {
        "objectType": "annotation",
        "name": "Review 1",
        "isLocked": False,
        "measurements": {"Review rank": 1, "Mean entropy (nats)": 0.5},
    }


def test_regions_may_be_counted_from_elsewhere(tmp_path):
    path = tmp_path / "a.geojson"
    write_review(
        path,
        [ReviewRegion(0, 0, 0.5)],
        extent=(400, 700),
        scale=(2.0, 2.0),
        measurement="m",
        source="a",
        origin=(7, 100),
    )
    (feature,) = json.loads(path.read_text())["features"]
    assert feature["geometry"]["coordinates"][0][0::2] == [[100, 7], [612, 519], [100, 7]]


def test_an_image_without_regions_has_an_empty_collection(tmp_path):
    write_review(tmp_path / "a.geojson", [], extent=(9, 9), scale=(1, 1), measurement="m", source="a")
    assert json.loads((tmp_path / "a.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
