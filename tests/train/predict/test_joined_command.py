"""A head on joined stores from the command line: two models and two timesteps, predicted from the image again."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pathseg.cli import main
from pathseg.store.features import FeatureStore
from pathseg.store.runtime.extraction_speed import read_speed


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A workspace of three images in the stores of two models, one of them at two timesteps."""
    workspace = tmp_path_factory.mktemp("work")
    for model, more in (("mini", ["--t", "50,200", "--blocks", "0-1"]), ("mini-hipt", [])):
        made = run("extract", "--dataset", "synthetic", "--model", model, "--resize", 256, "--limit", 3, *more,
                   "--layout", "native", "--workspace", workspace)  # fmt: skip
        assert made.exit_code == 0, made.output
    return workspace


def stores_of(work):
    return work / "synthetic-mini.zarr", work / "synthetic-mini-hipt.zarr"


def test_predict_gives_what_store_and_head_give(work, tmp_path):
    mini, hipt = stores_of(work)
    trained = run(
        "train-head", "--store", f"early={mini}", "--store", f"late={mini}", "--store", hipt, "--head", "linear",
        "--t", "early:50,late:200,synthetic-mini-hipt:50", "--blocks", "early:0-1,late:1,synthetic-mini-hipt:last",
        "--epochs", 1, "--lr", "1e-2", "--name", "joined", "--workspace", work,
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    config = json.loads((work / "heads/joined/config.json").read_text())
    assert sorted(source["key"]["model"] for source in config["data"]["sources"]) == ["mini", "mini", "mini-hipt"]

    store = FeatureStore.open(mini)
    (path,) = (work / "heads/joined/predictions").iterdir()
    index = store.ids.index(path.stem)
    Image.fromarray(store.image(index)).save(tmp_path / path.name)
    result = run("predict", tmp_path / path.name, "--run", "joined", "--out", tmp_path / "out", "--workspace", work,
                 "--format", "mask")  # fmt: skip
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "out/mask" / path.name)), np.asarray(Image.open(path))
    )

    report = run("report", "--workspace", work)
    assert report.exit_code == 0, report.output
    tables = (work / "report/tables.md").read_text()
    speed = read_speed(work, store.contents.key)
    assert speed is not None and speed.passes == 3 * 1 * 2 and speed.seconds > 0  # images, patches of each, timesteps
    assert "patches/s" in tables and "Patches/s: 256 px patches a second" in tables
    assert "mini t 50 0-1" in tables and "mini t 200 1" in tables and "mini-hipt t 50" in tables


def test_predict_shows_a_head_the_image_as_training_did(work, tmp_path):
    mini, hipt = stores_of(work)
    trained = run("train-head", "--store", mini, "--store", hipt, "--head", "scalar-mix", "--image-in-head", "--blocks",
                  "last", "--lr", "1e-3", "--epochs", 1, "--name", "seeing", "--workspace", work)  # fmt: skip
    assert trained.exit_code == 0, trained.output
    weights = json.loads((work / "heads/seeing/metrics.json").read_text())["layer_weights"]
    assert [layer["source"] for layer in weights] == [0, 1]
    assert sum(layer["weight"] for layer in weights) == pytest.approx(1)
    store = FeatureStore.open(mini)
    (path,) = (work / "heads/seeing/predictions").iterdir()
    Image.fromarray(store.image(store.ids.index(path.stem))).save(tmp_path / path.name)
    result = run("predict", tmp_path / path.name, "--run", "seeing", "--out", tmp_path / "out", "--workspace", work,
                 "--format", "mask")  # fmt: skip
    assert result.exit_code == 0, result.output
    predicted = np.asarray(Image.open(tmp_path / "out/mask" / path.name))
    np.testing.assert_array_equal(predicted, np.asarray(Image.open(path)))
    report = run("report", "--workspace", work)
    assert report.exit_code == 0, report.output
    assert "Learned weights of the layers" in (work / "report/tables.md").read_text()
    assert list((work / "report").glob("mixing-*.png"))


def test_a_model_of_no_name_of_the_head_is_a_usage_error(work, tmp_path):
    mini, hipt = stores_of(work)
    trained = run("train-head", "--store", mini, "--store", hipt, "--head", "linear", "--blocks", "last", "--epochs", 1,
                  "--name", "two", "--workspace", work)  # fmt: skip
    assert trained.exit_code == 0, trained.output
    store = FeatureStore.open(mini)
    Image.fromarray(store.image(0)).save(tmp_path / "a.png")
    result = run("predict", tmp_path / "a.png", "--run", "two", "--out", tmp_path / "out", "--workspace", work,
                 "--model", "mini")  # fmt: skip
    assert result.exit_code == 2
    assert "--model 'mini' names none of the head's models mini" in result.output


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--blocks", "mini:0"], "--blocks names the store mini, but the stores are"),
        (["--t", "synthetic-mini:50"], "--t has no value for the store synthetic-mini-hipt, only for synthetic-mini"),
        (["--blocks", "each"], "--blocks each is for one store"),
    ],
)
def test_selections_that_do_not_fit_the_stores_are_usage_errors(work, flags, words):
    mini, hipt = stores_of(work)
    result = run("train-head", "--store", mini, "--store", hipt, *flags, "--workspace", work)
    assert result.exit_code == 2
    assert words in result.output
