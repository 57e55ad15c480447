"""From outlines to a segmented slide on the command line, without a forward pass for the prediction."""

import json

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

from pathseg.cli import main
from pathseg.extract.datasets.synthetic.painting import draw_tissue


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two slides of two windows of 256 px, the first of each outlined, their store, and a run called head."""
    workspace = tmp_path_factory.mktemp("work")
    slides = workspace / "slides"
    slides.mkdir()
    tissue = draw_tissue(np.random.default_rng(0), 512).image
    for name, pixels in (("a", tissue[:256]), ("b", tissue[256:])):
        tifffile.imwrite(slides / f"{name}.tif", pixels, tile=(256, 256), resolution=(2e4, 2e4), resolutionunit=3)
    (slides / "splits.csv").write_text("id,split\na,train\nb,test\n")
    features = []
    for name, (left, right) in {"gland": (10, 120), "stroma": (130, 250)}.items():
        ring = [[left, 10], [right, 10], [right, 250], [left, 250], [left, 10]]
        features.append({
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        })  # fmt: skip
    for name in "ab":
        (slides / f"{name}.geojson").write_text(json.dumps(features))
    for command in (
        ("extract", "--dataset", "slides", "--root", slides, "--windows", "tissue", "--window-px", 256, "--model",
         "mini", "--layout", "native", "--blocks", "4"),
        ("train-head", "--head", "linear", "--lr", "1e-2", "--epochs", 2, "--name", "head"),
    ):  # fmt: skip
        made = run(*command, "--workspace", workspace)
        assert made.exit_code == 0, made.output
    return workspace


def predict(work, out, *more):
    return run("predict", work / "slides" / "a.tif", "--run", "head", "--out", out, "--workspace", work,
               "--store", work / "slides-mini.zarr", *more)  # fmt: skip


def test_a_slide_is_segmented_without_loading_a_model(work, tmp_path, monkeypatch):
    def refuse(*arguments, **more):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("pathseg.extract.models.load.load_model", refuse)
    result = predict(work, tmp_path)
    assert result.exit_code == 0, result.output
    assert "2 of 2 windows" in result.output
    assert set(np.unique(tifffile.imread(tmp_path / "mask/a.tif", key=0))) <= {0, 1}
    assert json.loads((tmp_path / "geojson/a.geojson").read_text())["features"]


def test_the_run_and_the_report_count_labelled_windows_alone(work):
    config = json.loads((work / "heads/head/config.json").read_text())
    assert config["data"]["images"] == {
        "train": ["a_y000000_x000000"], "val": [], "test": ["b_y000000_x000000"]
    }  # fmt: skip
    assert config["data"]["train_images"] == 1
    assert "images  2 of slides (train 1, unlabelled 2, test 1)" in run("info", work / "slides-mini.zarr").output
    assert run("verify", work / "slides-mini.zarr").exit_code == 0
    report = run("report", "--workspace", work)
    assert report.exit_code == 0, report.output
    (scores,) = json.loads((work / "heads/head/metrics.json").read_text())["splits"]["test"]["per_image"]
    assert scores["id"] == "b_y000000_x000000"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "mini"), "--model has no effect with --store"),
        (("--overlap", "64"), "--overlap has no effect with --store"),
        (("--batch-size", "4"), "--batch-size has no effect with --store"),
        (("--mpp", "0.5"), "--mpp has no effect with --store"),
    ],
)
def test_flags_of_a_model_are_refused(work, tmp_path, arguments, words):
    result = predict(work, tmp_path, *arguments)
    assert result.exit_code == 2
    assert words in result.output
