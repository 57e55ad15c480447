"""OME-Zarr 0.5 labels: the rules of https://ngff.openmicroscopy.org/0.5/ for axes, multiscales and image-label."""

import json

import numpy as np
import pytest
import zarr

from pathseg.train.predict.mosaic import Mosaic
from pathseg.train.predict.ome_zarr import write_ome_zarr

CLASSES, COLOURS = ("background", "gland"), ("#8A8A8A", "#009E73")


@pytest.fixture
def codes():
    codes = np.zeros((601, 1100), np.uint8)
    codes[200:500, 300:900] = 1
    return codes


@pytest.fixture
def path(tmp_path, codes):
    mosaic = Mosaic(tuple(codes[:: 2**level, :: 2**level] for level in range(3)), 0, np.array([0, 0]))
    path = tmp_path / "a.ome.zarr"
    write_ome_zarr(mosaic, path, name="a", mpp=0.25, classes=CLASSES, colours=COLOURS, background=0)
    return path


@pytest.fixture
def ome(path):
    return json.loads((path / "zarr.json").read_text())["attributes"]["ome"]


def test_zarr_opens_every_level_with_the_codes(path, ome, codes):
    group = zarr.open_group(path, mode="r")
    assert group.metadata.zarr_format == 3
    for level, dataset in enumerate(ome["multiscales"][0]["datasets"]):
        np.testing.assert_array_equal(group[dataset["path"]][:], codes[:: 2**level, :: 2**level])


def test_axes_are_those_of_the_arrays_in_micrometers(path, ome):
    (multiscale,) = ome["multiscales"]
    assert multiscale["axes"] == [{"name": name, "type": "space", "unit": "micrometer"} for name in ("y", "x")]
    for dataset in multiscale["datasets"]:
        array = json.loads((path / dataset["path"] / "zarr.json").read_text())
        assert (array["dimension_names"], len(array["shape"]), array["data_type"]) == (["y", "x"], 2, "uint8")


def test_each_level_has_one_scale_and_they_are_ordered_from_the_finest(ome):
    datasets = ome["multiscales"][0]["datasets"]
    assert [dataset["coordinateTransformations"] for dataset in datasets] == [
        [{"type": "scale", "scale": [side, side]}] for side in (0.25, 0.5, 1.0)
    ]


def test_the_version_stands_where_the_specification_wants_it_and_what_should_be_there_is(ome):
    assert ome["version"] == "0.5" == ome["image-label"]["version"]
    assert {"name", "type", "metadata"} <= ome["multiscales"][0].keys()


def test_each_class_has_its_name_and_colour_once_and_the_background_is_transparent(ome):
    label = ome["image-label"]
    assert label["properties"] == [{"label-value": code, "class": name} for code, name in enumerate(CLASSES)]
    assert label["colors"] == [
        {"label-value": 0, "rgba": [0x8A, 0x8A, 0x8A, 0]},
        {"label-value": 1, "rgba": [0, 0x9E, 0x73, 255]},
    ]


def test_what_was_not_computed_has_its_name_and_is_transparent_where_no_class_is_the_background(tmp_path, codes):
    mosaic = Mosaic((np.where(codes, 1, 255).astype(np.uint8),), 255, np.array([0, 0]))
    write_ome_zarr(mosaic, tmp_path / "b", name="b", mpp=1, classes=CLASSES, colours=COLOURS, background=None)
    label = json.loads((tmp_path / "b" / "zarr.json").read_text())["attributes"]["ome"]["image-label"]
    assert label["properties"][2:] == [{"label-value": 255, "class": "not computed"}]
    assert [colour["rgba"][3] for colour in label["colors"]] == [255, 255, 0]
    assert label["colors"][2] == {"label-value": 255, "rgba": [0, 0, 0, 0]}


def test_tiles_without_prediction_take_no_bytes(path):
    assert {chunk.relative_to(path).as_posix() for chunk in (path / "0").rglob("c/*/*")} == {"0/c/0/0", "0/c/0/1"}
