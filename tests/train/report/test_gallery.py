"""Which test images are shown, and what happens where a picture cannot be made."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pathseg.store.contents import Contents, ImageEntry
from pathseg.store.features import FeatureStore
from pathseg.store.format.size import BlockShape
from pathseg.store.key import StoreKey
from pathseg.store.writer import StoreWriter
from pathseg.train.metrics.pixel import Scores, confusion_matrix
from pathseg.train.report.gallery import Lost, Picture, Stores, pictures, spread, worst_first
from pathseg.train.runs.finished import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.split_scores import PartScores

IDS = ("test_1", "test_2", "test_10")
SIDE = 256


def write_store(path: Path) -> FeatureStore:
    key = StoreKey(
        dataset="folder", preprocessing="none", size=(SIDE, SIDE), mpp=None, model="mini", model_digest="0" * 64,
        first_stage="vq-f4", condition="none", seed=0, layout="native", dtype="float32",
    )  # fmt: skip
    writer = StoreWriter(path, Contents(
        key=key, images=tuple(ImageEntry(name, "test", SIDE, SIDE) for name in IDS), classes=("background", "gland"),
        ignore=None, test_split="test", blocks={0: BlockShape(1, 1)}, model_trained=False, has_instances=False,
        made_by={},
    ))  # fmt: skip
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:128] = 1
    for index in range(len(IDS)):
        writer.write_pixels(index, [(np.full((SIDE, SIDE, 3), 200, np.uint8), mask, None)])
    return writer.store


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return write_store(tmp_path / "s.zarr")


@pytest.fixture
def run(tmp_path: Path, store: FeatureStore) -> FinishedRun:
    """Three images: the upper half is gland; right in 1/4, all and 1/2 of the columns."""
    folder, scores = RunFolder(tmp_path / "heads" / "one"), {}
    for index, (name, columns) in enumerate(zip(IDS, (64, 256, 128), strict=True)):
        predicted = store.mask(index).copy()
        predicted[:, columns:] = 1 - predicted[:, columns:]
        folder.write_prediction(name, predicted)
        scores[name] = Scores.of(confusion_matrix(store.mask(index), predicted, classes=2))
    part = PartScores(3, scores["test_2"], "background", scores["test_1"], scores)
    data = {"classes": ["background", "gland"], "ignore": None}
    return FinishedRun(folder, {"data": data}, (), 1, 1, 1.0, "test", {"test": part})


def test_the_worst_image_comes_first(run):
    assert worst_first(run, "test") == ["test_1", "test_10", "test_2"]


def test_an_image_without_a_value_comes_last(run):
    run.parts["test"].per_image["test_0"] = Scores.of(np.zeros((2, 2)))
    assert worst_first(run, "test")[-1] == "test_0"


def test_ids_are_spread_from_first_to_last():
    assert spread(list("abcdefg"), 3) == ["a", "d", "g"]


def test_fewer_ids_than_asked_for_are_all_taken():
    assert spread(["a", "b"], 4) == ["a", "b"] and spread([], 4) == []


def test_a_picture_says_how_much_is_wrong(run, store):
    (picture,) = pictures(run, "test", ["test_10"], store)
    assert isinstance(picture, Picture) and picture.errors == "25.0 % false gland, 25.0 % missed gland"


def test_a_picture_quotes_the_scores_of_its_image(run, store):
    (picture,) = pictures(run, "test", ["test_10"], store)
    assert picture.caption == "Dice 0.500 · accuracy 0.500"


def test_an_image_that_the_store_lacks_is_lost_and_the_rest_goes_on(run, store):
    lost, made = pictures(run, "test", ["elsewhere", "test_1"], store)
    assert isinstance(lost, Lost) and "is not in" in lost.reason and isinstance(made, Picture)


def test_a_missing_prediction_is_lost_with_its_reason(run, store):
    run.folder.prediction_path("test_1").unlink()
    (lost,) = pictures(run, "test", ["test_1"], store)
    assert isinstance(lost, Lost) and "has no prediction for test_1" in lost.reason


def test_an_image_that_is_damaged_in_the_store_is_lost_with_its_reason(run, store):
    (chunk,) = (path for path in (store.location.root / "images" / "c" / "0").rglob("*") if path.is_file())
    chunk.write_bytes(b"\0" * 100)
    lost, made = pictures(run, "test", ["test_1", "test_2"], FeatureStore.open(store.location.root))
    assert isinstance(lost, Lost) and "damaged" in lost.reason and isinstance(made, Picture)


def test_a_prediction_of_another_size_is_lost_with_its_reason(run, store):
    run.folder.write_prediction("test_1", np.zeros((8, 8), np.uint8))
    (lost,) = pictures(run, "test", ["test_1"], store)
    assert isinstance(lost, Lost) and "must have one size" in lost.reason


def test_a_store_is_opened_once(store):
    stores = Stores()
    assert stores.get(str(store.location)) is stores.get(str(store.location))


def test_a_store_that_is_gone_leaves_its_reason(store):
    shutil.rmtree(store.location.root)
    assert "there is no feature store at" in Stores().get(str(store.location))


def test_a_map_of_uncertainty_stands_beside_the_prediction(run, store):
    """Left half sure, right half as unsure as can be: black and white."""
    share = np.zeros((SIDE, SIDE))
    share[:, SIDE // 2 :] = 1
    run.folder.write_uncertainty("test_1", share)
    run.parts["test"].uncertainty["test_1"] = 0.6931
    first, second = pictures(run, "test", ["test_1", "test_2"], store)
    assert first.unsure.shape == first.panels[0].shape and first.caption.endswith("uncertainty 0.693 nats")
    assert (first.unsure[:, : SIDE // 2] == 0).all() and (first.unsure[:, SIDE // 2 :] == 255).all()
    assert second.unsure is None and "uncertainty" not in second.caption
