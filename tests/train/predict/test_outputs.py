"""Where the objects of a slide lie in its file, at every level that they are outlined on."""

import json

import numpy as np
import pytest
import shapely
import tifffile
import zarr

from pathseg.extract.inputs.images import open_input_image
from pathseg.train.predict.config import PredictConfig
from pathseg.train.predict.mosaic import MosaicSettings, join_windows
from pathseg.train.predict.outputs import ImageOutputs
from pathseg.train.predict.records import PredictionIdentity
from pathseg.train.predict.sliding_window import SlidingWindow


@pytest.fixture
def written(tmp_path, colour_head):
    """Write the files of a slide with two glands of which the second reaches its lower right corner."""

    def write(file_px, mpp, *, origin=(0, 0), **settings):
        path = tmp_path / "slide.tif"
        resolution = (1e4 / mpp, 1e4 / mpp)
        blank = np.full((*file_px, 3), 243, np.uint8)
        tifffile.imwrite(path, blank, tile=(256, 256), resolution=resolution, resolutionunit="CENTIMETER")
        head = colour_head()
        image = open_input_image(path, head.sampling)
        image.origin = origin
        config = PredictConfig(simplify=0, smallest=0, **settings)
        identity = PredictionIdentity(
            file="slide.tif", size_bytes=1, content_digest="", size=image.size, mpp=0.5, run=head.name,
            weights_digest="", model_digest="", overlap=0, tissue="all",
        )  # fmt: skip
        windows = SlidingWindow.over(image.size, window=(512, 512), overlap=0)
        gland = np.zeros((2048, 4096), np.float32)
        gland[400:480, 1920:2032] = gland[960:, 1984:] = 1
        corners = [windows.corner(number) for number in windows.selected]
        parts = [gland[y : y + 512, x : x + 512] for y, x in corners]
        mosaic = join_windows(
            [np.stack([1 - part, part]) for part in parts], windows, MosaicSettings(classes=2, fill=0, confidence=True)
        )
        ImageOutputs(tmp_path / "out", image, head, config, identity).write(
            mosaic, windows, confusion=None, earlier=None
        )
        image.close()
        return tmp_path / "out"

    return write


@pytest.mark.parametrize(("outline", "level"), [(4096, 0), (1025, 1), (1023, 2), (511, 3)])
@pytest.mark.parametrize(
    ("file_px", "mpp", "first", "second"),
    [
        ((1025, 2049), 0.5, (1920, 400, 2032, 480), (1984, 960, 2049, 1025)),
        ((2053, 4101), 0.25, (3840, 800, 4064, 960), (3968, 1920, 4100, 2052)),  # read as 2050x1026 px
        ((2051, 4099), 0.25, (3840, 800, 4064, 960), (3968, 1920, 4099, 2051)),  # as that too, half a px beyond it
    ],
)
def test_objects_lie_in_the_same_px_of_the_file_at_every_level(written, file_px, mpp, first, second, outline, level):
    out = written(file_px, mpp, formats=("geojson",), outline=outline)
    assert json.loads((out / "_done" / "slide.json").read_text())["objects"]["of_mask_level"] == level
    features = json.loads((out / "geojson" / "slide.geojson").read_text())["features"]
    found = [shapely.from_geojson(json.dumps(feature["geometry"])) for feature in features]
    assert sorted(polygon.bounds for polygon in found) == sorted([first, second])
    areas = [feature["properties"]["measurements"]["Area µm^2"] for feature in features]
    assert areas == pytest.approx([polygon.area * mpp**2 for polygon in found], rel=1e-4)


def test_a_label_image_begins_where_the_scan_does(written):
    out = written((1025, 2049), 0.25, origin=(40, 100), formats=("mask",), pyramid="ome-zarr")
    group = zarr.open_group(out / "mask" / "slide.ome.zarr", mode="r")
    (multiscale,) = group.attrs["ome"]["multiscales"]
    for level, dataset in enumerate(multiscale["datasets"]):
        assert dataset["coordinateTransformations"] == [
            {"type": "scale", "scale": [0.5 * 2**level, 0.5 * 2**level]},
            {"type": "translation", "translation": [10.0, 25.0]},  # um: 40 and 100 px of 0.25
        ]
