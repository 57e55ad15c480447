"""The command as a person calls it, with the bundled model and a head of one epoch."""

import json
import shutil
from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely
import tifffile
from click.testing import CliRunner
from PIL import Image
from rasterio.features import rasterize
from scipy import ndimage

from pathseg.cli import main
from pathseg.extract.datasets.image_files import resize_mask
from pathseg.store.features import FeatureStore
from pathseg.store.runtime.workspace import store_path

SHARED = Path(__file__).parents[4] / "shared" / "data"


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A workspace with a run called head, and the images it was made from in images/ and masks/."""
    workspace = tmp_path_factory.mktemp("work")
    made = run("extract", "--dataset", "synthetic", "--model", "mini", "--resize", 256, "--limit", 3, "--blocks", "0-1",
               "--layout", "native", "--workspace", workspace)  # fmt: skip
    assert made.exit_code == 0, made.output
    trained = run("train-head", "--blocks", "0-1", "--head", "linear", "--epochs", 1, "--lr", "1e-2", "--name", "head",
                  "--workspace", workspace)  # fmt: skip
    assert trained.exit_code == 0, trained.output
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathseg.train.heads.pixel_ensemble.MODELS", 2)  # for speed
        trained = run("train-head", "--blocks", "0-1", "--head", "pixel-ensemble", "--epochs", 1, "--pixels", 64,
                      "--name", "ensemble", "--workspace", workspace)  # fmt: skip
    assert trained.exit_code == 0, trained.output
    store = FeatureStore.open(store_path(workspace, "synthetic", "mini"))
    for folder, read in (("images", store.image), ("masks", store.mask)):
        (workspace / folder).mkdir()
        for index, name in enumerate(store.ids):
            Image.fromarray(read(index)).save(workspace / folder / f"{name}.png")
    return workspace


def predict(work, out, *arguments):
    return run("predict", *arguments, "--run", "head", "--out", out, "--workspace", work)


def test_an_image_of_the_store_is_predicted_as_the_run_did_with_the_same_scores(work, tmp_path):
    result = predict(work, tmp_path, work / "images", "--truth", work / "masks")
    assert result.exit_code == 0, result.output
    (path,) = (work / "heads" / "head" / "predictions").iterdir()  # the test split is one image
    mask = np.asarray(Image.open(tmp_path / "mask" / path.name))
    np.testing.assert_array_equal(mask, np.asarray(Image.open(path)))
    ours, runs = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, work / "heads" / "head"))
    (expected,) = runs["splits"]["test"]["per_image"]
    assert expected.pop("loss") > 0  # of training; a prediction keeps class codes alone
    assert expected in ours["per_image"]


@pytest.mark.parametrize("flags", [["--weights", "w.safetensors"], ["--context", "c.safetensors"]])
def test_a_file_that_the_features_of_the_head_do_not_need_is_refused(work, tmp_path, flags):
    result = predict(work, tmp_path / "out", work / "images", *flags)
    assert result.exit_code == 2 and f"{flags[0]} does not apply" in result.output and not (tmp_path / "out").exists()


def test_a_head_on_patches_in_their_surroundings_predicts_as_its_run_did(work, tmp_path):
    wide = tmp_path / "wide.zarr"
    for command in (
        ("extract", "--dataset", "synthetic", "--model", "mini", "--resize", 256, "--limit", 3, "--blocks", "1",
         "--surroundings", 2, "--store", wide),
        ("train-head", "--head", "linear", "--epochs", 1, "--lr", "1e-2", "--name", "wide", "--store", wide),
        ("predict", work / "images", "--run", "wide", "--out", tmp_path / "out"),
    ):  # fmt: skip
        result = run(*command, "--workspace", tmp_path)
        assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "heads" / "wide" / "predictions").iterdir()
    mask = np.asarray(Image.open(tmp_path / "out" / "mask" / path.name))
    np.testing.assert_array_equal(mask, np.asarray(Image.open(path)))


@pytest.mark.usefixtures("two_networks")
def test_an_ensemble_predicts_an_image_of_the_store_by_the_vote_of_its_run(work, tmp_path):
    (path,) = (work / "heads" / "ensemble" / "predictions").iterdir()
    result = run("predict", work / "images" / path.name, "--run", "ensemble", "--out", tmp_path, "--workspace", work)
    assert result.exit_code == 0, result.output
    mask = np.asarray(Image.open(tmp_path / "mask" / path.name))
    np.testing.assert_array_equal(mask, np.asarray(Image.open(path)))


def test_a_slide_goes_from_end_to_end(work, tmp_path):
    store = FeatureStore.open(store_path(work, "synthetic", "mini"))
    pixels = np.full((600, 900, 3), 243, np.uint8)
    pixels[100:356, 300:556] = store.image(0)
    tifffile.imwrite(tmp_path / "slide.tif", pixels, tile=(256, 256), resolution=(2e4, 2e4),
                     resolutionunit="CENTIMETER", metadata=None)  # fmt: skip
    result = predict(work, tmp_path / "out", tmp_path / "slide.tif", "--format", "mask,overlay,geojson,probabilities")
    assert result.exit_code == 0, result.output
    assert tifffile.imread(tmp_path / "out/mask/slide.tif", key=0).shape == (600, 900)
    assert np.asarray(Image.open(tmp_path / "out/overlay/slide.jpg")).shape == (600, 900, 3)
    features = json.loads((tmp_path / "out/geojson/slide.geojson").read_text())["features"]
    assert features
    assert all(shapely.from_geojson(json.dumps(feature["geometry"])).is_valid for feature in features)


def test_odd_files_get_a_line_each_and_the_rest_goes_on(work, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(next((work / "images").iterdir()), folder / "good.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "broken.svs").write_bytes(b"no slide")
    Image.new("CMYK", (256, 256)).save(folder / "cmyk.tif")
    tifffile.imwrite(folder / "unknown.tif", np.zeros((300, 300, 3), np.uint8), tile=(256, 256), metadata=None)
    result = predict(work, tmp_path / "out", folder)
    assert result.exit_code == 1
    lines = result.output.split("Error: ")[1].splitlines()
    assert lines[0] == "4 of 5 images were set aside:"
    for name, words in {
        "empty.png": "empty",
        "broken.svs": "OpenSlide",
        "cmyk.tif": "CMYK",
        "unknown.tif": "--mpp",
    }.items():
        assert [words in line for line in lines if name in line] == [True]
    assert (tmp_path / "out" / "mask" / "good.png").is_file()


def test_another_model_than_the_heads_is_refused_before_anything_is_written(work, tmp_path):
    other = tmp_path / "heads" / "head"
    shutil.copytree(work / "heads" / "head", other)
    config = json.loads((other / "config.json").read_text())
    config["data"]["sources"][0]["key"]["model_digest"] = "ab" * 32
    (other / "config.json").write_text(json.dumps(config))
    (other / "checksums.json").unlink()
    result = predict(tmp_path, tmp_path / "out", work / "images")
    assert result.exit_code == 1
    assert "ab" * 32 in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--format", "svg"), 2, "'svg' is no format"),
        (("--overlap", "0"), 2, "overlap must be at least 1 px"),
        (("--mpp", "0"), 2, "--mpp"),
        (("--truth", "nowhere"), 1, "no such folder"),
        (("--model", "nowhere"), 1, "nowhere"),
    ],
)
def test_wrong_flags_are_named(work, tmp_path, arguments, code, words):
    result = predict(work, tmp_path / "out", work / "images", *arguments)
    assert result.exit_code == code
    assert words in result.output


def test_a_run_that_is_not_there_is_named(work, tmp_path):
    result = run("predict", work / "images", "--run", "other", "--out", tmp_path, "--workspace", work)
    assert result.exit_code == 1
    assert "there is no run other" in result.output


@pytest.fixture(scope="module")
def glas(tmp_path_factory):
    """A workspace with a run called head, trained on six real GlaS images at 256 px, 1.53 um/px."""
    if not (SHARED / "glas_sample").is_dir():
        pytest.skip("needs ../shared/data, which is not part of the project")
    workspace = tmp_path_factory.mktemp("glas")
    made = run("extract", "--dataset", "glas", "--root", SHARED / "glas_sample", "--model", "mini", "--resize", 256,
               "--limit", 6, "--blocks", "4-6", "--layout", "native", "--workspace", workspace)  # fmt: skip
    assert made.exit_code == 0, made.output
    trained = run("train-head", "--blocks", "4-6", "--head", "linear", "--epochs", 3, "--lr", "1e-2", "--name", "head",
                  "--workspace", workspace)  # fmt: skip
    assert trained.exit_code == 0, trained.output
    return workspace


@pytest.mark.soak
def test_a_scanners_slide_goes_from_end_to_end(glas, tmp_path):
    slide = SHARED / "slides" / "CMU-1-Small-Region.svs"
    result = predict(glas, tmp_path, slide, "--simplify", 2, "--objects", "raw")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "_done" / f"{slide.stem}.json").read_text())
    assert record["mpp"] == pytest.approx(0.62 * (775 * 522) ** 0.5 / 256, rel=1e-3)
    with openslide.OpenSlide(tmp_path / "mask" / f"{slide.stem}.tif") as opened:
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(record["mpp"], rel=1e-3)
    mask = tifffile.imread(tmp_path / "mask" / f"{slide.stem}.tif", key=0)
    features = json.loads((tmp_path / "geojson" / f"{slide.stem}.geojson").read_text())["features"]
    polygons = [shapely.from_geojson(json.dumps(feature["geometry"])) for feature in features]
    assert polygons
    assert all(polygon.is_valid for polygon in polygons)
    scale = np.array(record["file_px"]) / mask.shape
    again = rasterize([shapely.transform(p, lambda xy: xy / scale[::-1]) for p in polygons], out_shape=mask.shape)
    labels, _ = ndimage.label(mask == 1)
    large = np.bincount(labels.ravel()) >= 100
    large[0] = False
    far = ndimage.distance_transform_edt(again == 0), ndimage.distance_transform_edt(again == 1)
    assert far[0][large[labels]].max() <= 2 + 1  # px: of the outline, and half a pixel's diagonal on both sides
    assert far[1][~large[labels]].max() <= 2 + 1


def test_a_glas_image_is_predicted_as_the_run_did(glas, tmp_path):
    (name, *_) = sorted(path.stem for path in (glas / "heads" / "head" / "predictions").iterdir())
    result = predict(glas, tmp_path, SHARED / "glas_sample" / f"{name}.png", "--format", "mask")
    assert result.exit_code == 0, result.output
    mask = np.asarray(Image.open(tmp_path / "mask" / f"{name}.png"))
    working = np.asarray(Image.open(glas / "heads" / "head" / "predictions" / f"{name}.png"))  # 256x256 px
    np.testing.assert_array_equal(mask, resize_mask(working, mask.shape))
