"""Images with --keep-aspect, from files to predictions: padding counts nowhere, predict pads as extract does."""

import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image

from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.inputs.images import ground_truth_reader, open_input_image
from pathseg.extract.models.load import load_model
from pathseg.extract.online_features import online_features
from pathseg.extract.pipeline import extract
from pathseg.store.sampling import Sampling
from pathseg.train.config import HeadConfig
from pathseg.train.metrics.object import ObjectRule
from pathseg.train.metrics.object_predictions import image_sums
from pathseg.train.predict.config import PredictConfig
from pathseg.train.predict.feature_sources import computed_features
from pathseg.train.predict.ground_truth import GroundTruth
from pathseg.train.predict.mosaic import resize_nearest
from pathseg.train.predict.predictor import predict
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.loop import train_heads

WIDE = 174, 258  # px, the shape of GlaS's images
FILLED = 173, 256  # of 256x256 px


@pytest.fixture(scope="module")
def glas(tmp_path_factory):
    """Three GlaS images of 258x174 px with two objects each."""
    root, rng = tmp_path_factory.mktemp("glas"), np.random.default_rng(0)
    for name in ("train_1", "train_2", "testB_1"):
        ids = np.zeros(WIDE, np.uint8)
        ids[20:90, 10:120], ids[70:174, 150:258] = 1, 2
        image = rng.integers(100, 156, (*WIDE, 3)) + np.where(ids[..., None] > 0, -80, 80)
        Image.fromarray(image.astype(np.uint8)).save(root / f"{name}.bmp")
        Image.fromarray(ids).save(root / f"{name}_anno.bmp")
    return root


@pytest.fixture(scope="module")
def trained(glas, tmp_path_factory):
    """Store, run and model of a head on padded images."""
    work, model = tmp_path_factory.mktemp("work"), load_model("mini")
    dataset = open_dataset("glas", DatasetOptions(root=glas, resize=256, keep_aspect=True))
    store = extract(dataset, model, work / "glas.zarr", ExtractConfig(blocks=(4,), layout="native")).store
    config = HeadConfig(blocks=(4,), head_type="linear", lr=1e-2, epochs=3, min_object_px=1)
    train_heads(store, [(config, RunFolder(work / "run"))])
    return store, RunFolder(work / "run"), model


def test_a_padded_folder_is_predicted_as_its_run_did(glas, tmp_path):
    for name in ("train_1", "train_2", "testB_1"):
        for kind, ending in (("images", ""), ("masks", "_anno")):
            (tmp_path / kind).mkdir(exist_ok=True)
            shutil.copy(glas / f"{name}{ending}.bmp", tmp_path / kind / f"{name}.bmp")
    (tmp_path / "splits.csv").write_text("id,split\ntrain_1,train\ntrain_2,val\ntestB_1,test\n")
    options = DatasetOptions(root=tmp_path, resize=256, keep_aspect=True, classes=("background", "one", "two"))
    model, run = load_model("mini"), RunFolder(tmp_path / "run")
    store = extract(
        open_dataset("folder", options), model, tmp_path / "f.zarr", ExtractConfig(blocks=(4,), layout="native")
    ).store
    train_heads(store, [(HeadConfig(blocks=(4,), head_type="linear", lr=1e-2, epochs=1), run)])
    split = run.read_metrics().splits["test"]
    assert split.matrix.sum() == FILLED[0] * FILLED[1] and split.matrix[3].sum() == split.matrix[:, 3].sum() == 0
    result = predict(
        [glas / "testB_1.bmp"], run.path, tmp_path / "out", PredictConfig(formats=("mask",)),
        features=computed_features(partial(online_features, model)), open_image=open_input_image,
        ground_truth=GroundTruth("masks", ground_truth_reader(tmp_path / "masks")),
    )  # fmt: skip
    height, width = FILLED
    expected = resize_nearest(run.read_prediction("testB_1")[:height, :width], WIDE)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/mask/testB_1.png")), expected)
    assert result.metrics.scores.dice == pytest.approx(split.scores.dice, abs=0.01)


def test_um_per_px_is_that_of_the_resize_on_both_axes(trained):
    sampling = Sampling.of(trained[0].contents)
    assert sampling.stretch == 1 and sampling.mpp_axes[0] == sampling.mpp_axes[1]
    assert sampling.mpp == pytest.approx(0.62 * 258 / 256, rel=2e-3) and sampling.file_mpp == pytest.approx(0.62)


def test_padding_is_in_no_score(trained):
    _, run, _ = trained
    split = run.read_metrics().splits["testB"]
    assert split.matrix.sum() == FILLED[0] * FILLED[1] and split.matrix[2].sum() == split.matrix[:, 2].sum() == 0
    assert split.scores.dice == pytest.approx(np.mean([split.scores.classes[code].dice for code in (0, 1)]))


def test_objects_are_those_of_the_part_that_the_image_fills(trained):
    store, _, _ = trained
    index = store.splits.index("testB")
    found = image_sums(store, index, store.mask(index), HeadConfig(blocks=(4,)), ObjectRule()).scores()
    assert (found.tp, found.fp, found.fn) == (2, 0, 0) and found.dice > 0.98 and found.hausdorff <= 2


def test_predict_on_such_an_image_gives_what_the_run_predicted(trained, glas, tmp_path):
    _, run, model = trained
    result = predict(
        [glas / "testB_1.bmp"], run.path, tmp_path, PredictConfig(formats=("mask",)),
        features=computed_features(partial(online_features, model)), open_image=open_input_image,
        ground_truth=GroundTruth("masks", ground_truth_reader(glas)),
    )  # fmt: skip
    height, width = FILLED
    expected = resize_nearest(run.read_prediction("testB_1")[:height, :width], WIDE)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask/testB_1.png")), expected)
    assert result.images[0].size_px == FILLED
    assert result.metrics.scores.dice == pytest.approx(run.read_metrics().splits["testB"].scores.dice, abs=0.01)
