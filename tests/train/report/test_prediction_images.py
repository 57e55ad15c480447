"""Test images as pictures: which are shown, which pixels get which colour, what happens where one cannot be read."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from pathseg.store.contents import Contents, ImageEntry
from pathseg.store.features import FeatureStore
from pathseg.store.format.size import BlockShape
from pathseg.store.growth import grow
from pathseg.store.key import StoreKey
from pathseg.store.writer import StoreWriter
from pathseg.train.colours import NEUTRAL, PALETTE
from pathseg.train.metrics.pixel import confusion_matrix
from pathseg.train.report.prediction_images import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    WRONG,
    Legend,
    MissingImage,
    Stores,
    TestImage,
    compare_systems,
    error_shares,
    evenly_spaced,
    panels,
    read_test_images,
    worst_first,
)
from pathseg.train.report.systems import find_systems
from pathseg.train.runs.folder import RunFolder

IDS = ("test_1", "test_2", "test_10")
SIDE = 256


def write_store(path: Path) -> FeatureStore:
    key = StoreKey.from_json({
        "dataset": "folder", "preprocessing": {}, "size": (SIDE, SIDE), "mpp": None, "model": "mini",
        "model_digest": "0" * 64, "first_stage": "vq-f4", "condition": "none", "seed": 0, "layout": "native",
        "dtype": "float32",
    })  # fmt: skip
    writer = StoreWriter(path, Contents(
        key=key, images=tuple(ImageEntry(name, "test", SIDE, SIDE) for name in IDS), classes=("background", "gland"),
        background=0, ignore=None, test_split="test", blocks={0: BlockShape(1, 1)}, model_trained=False,
        has_instances=False, made_by={},
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
def run(tmp_path, store, make_run, make_split):
    """Three images: the upper half is gland; right in 1/4, all and 1/2 of the columns."""
    folder, matrices = RunFolder(tmp_path / "heads" / "one"), {}
    for index, (name, columns) in enumerate(zip(IDS, (64, 256, 128), strict=True)):
        predicted = store.mask(index).copy()
        predicted[:, columns:] = 1 - predicted[:, columns:]
        folder.write_prediction(name, predicted)
        matrices[name] = confusion_matrix(store.mask(index), predicted, classes=2)
    splits = {"testB": make_split(matrices, uncertainty={"test_1": 0.6931})}
    return make_run("one", folder=folder, splits=splits, data={"store": str(store.location)})


def test_an_image_whose_mask_has_changed_since_is_named_and_the_others_are_shown(run, store):
    image, pixels = ImageEntry("new", "test", SIDE, SIDE), store.image(1)
    grow(store, dataclasses.replace(store.contents, images=(*store.contents.images, image)), {1: ["masks"]})
    writer = StoreWriter(store.location, FeatureStore.open(store.location).contents)
    writer.write_pixels(1, [(pixels, np.ones((SIDE, SIDE), np.uint8), None)])
    first, second, third = read_test_images(run, IDS, FeatureStore.open(store.location))
    assert isinstance(first, TestImage) and isinstance(third, TestImage)
    assert isinstance(second, MissingImage) and "its mask" in second.reason and "since the run" in second.reason


def test_pictures_of_a_store_with_other_classes_are_named(run, store):
    grow(store, dataclasses.replace(store.contents, classes=("background", "fat", "gland")), {})
    found = list(read_test_images(run, IDS, FeatureStore.open(store.location)))
    assert all(isinstance(image, MissingImage) and "the classes of" in image.reason for image in found)


@pytest.fixture
def gland(make_run):
    return make_run(classes=("background", "gland")).data


@pytest.fixture
def tissues(make_run):
    """Three classes, of which the first is ignored."""
    return make_run(classes=("outside", "tumor", "stroma"), ignore=0, matrix=np.eye(3, dtype=int)).data


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def square(y: int, x: int, side: int = 20) -> np.ndarray:
    codes = np.zeros((64, 96), np.uint8)
    codes[y : y + side, x : x + side] = 1
    return codes


def pinkish() -> np.ndarray:
    return np.full((64, 96, 3), (220, 160, 200), np.uint8)


def test_the_first_panel_is_the_tissue_itself_and_all_have_one_size(gland):
    tissue = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    made = panels(tissue, square(5, 5), square(5, 5), gland)
    assert (made[0] == tissue).all()
    assert [(one.shape, one.dtype) for one in made] == [((64, 96, 3), np.uint8)] * 4


def test_classes_are_outlined_in_their_colour_and_background_is_left_as_it_is(gland):
    _, true, predicted, _ = panels(pinkish(), square(5, 5), square(40, 60), gland)
    assert (true[45, 65] == (220, 160, 200)).all()
    assert (true[5, 15] == rgb(PALETTE[0])).all() and (predicted[40, 70] == rgb(PALETTE[0])).all()


def test_a_false_and_a_missed_gland_have_their_own_colours_and_right_pixels_are_gray(gland):
    errors = panels(pinkish(), square(5, 5), square(40, 60), gland)[3].astype(int)
    for (y, x), colour in {(50, 70): FALSE_POSITIVE, (15, 15): FALSE_NEGATIVE}.items():
        assert np.abs(errors[y, x] - rgb(colour)).max() < 40
    right = panels(pinkish(), square(5, 5), square(5, 5), gland)[3]
    assert (right == right[..., :1]).all()


def test_with_several_classes_wrong_pixels_have_one_colour(tissues):
    assert Legend.of(tissues).errors == (("wrong class", WRONG),)
    errors = panels(pinkish(), square(5, 5) + 1, square(40, 60) + 1, tissues)[3].astype(int)
    assert np.abs(errors[[15, 50], [15, 70]] - rgb(WRONG)).max() < 40


def test_ignored_pixels_are_never_errors(tissues):
    errors = panels(pinkish(), np.zeros((64, 96), np.uint8), square(5, 5) + 1, tissues)[3]
    assert (errors == errors[0, 0]).all()


def test_the_background_is_a_code_and_not_a_name(gland):
    """Errors of one class beside the background are told apart whatever the two are called."""
    renamed = dataclasses.replace(gland, classes=("stroma", "gland"))
    assert Legend.of(renamed).errors == Legend.of(gland).errors
    named = dataclasses.replace(gland, classes=("background", "gland"), background=None)
    assert [name for name, _ in Legend.of(named).classes] == ["background", "gland"]
    assert Legend.of(named).errors == (("wrong class", WRONG),)


def test_the_legend_names_both_errors_and_what_is_not_counted(gland):
    assert Legend.of(gland).classes == (("gland", PALETTE[0]),)
    assert Legend.of(gland).errors == (("false gland", FALSE_POSITIVE), ("missed gland", FALSE_NEGATIVE))
    assert Legend.of(dataclasses.replace(gland, ignore=255)).classes[-1] == ("not counted", NEUTRAL)


def test_error_shares_are_of_the_counted_pixels(gland):
    data = dataclasses.replace(gland, ignore=255)
    true, predicted = np.array([[0, 0, 1, 1, 255, 255]]), np.array([[1, 0, 0, 0, 0, 1]])
    assert error_shares(true, predicted, data) == (1 / 4, 2 / 4)
    assert error_shares(np.full((2, 2), 255), np.zeros((2, 2)), data) == (0, 0)


def test_a_large_image_is_shrunk_and_keeps_its_shape(gland):
    image, codes = np.zeros((800, 1600, 3), np.uint8), np.zeros((800, 1600), np.uint8)
    assert panels(image, codes, codes, gland, longest_px=100)[0].shape == (50, 100, 3)


def test_the_worst_image_comes_first_and_one_without_a_value_last(run, make_split):
    assert worst_first(run.test_scores) == ["test_1", "test_10", "test_2"]
    split = make_split({"a": np.eye(2, dtype=int), "b": np.zeros((2, 2), int)})
    assert worst_first(split) == ["a", "b"]


def test_ids_are_spread_from_first_to_last():
    assert evenly_spaced(list("abcdefg"), 3) == ["a", "d", "g"]
    assert evenly_spaced(["a", "b"], 4) == ["a", "b"] and evenly_spaced([], 4) == []


def test_a_test_image_has_its_scores_and_its_errors_in_words(run, store):
    (image,) = read_test_images(run, ["test_10"], store)
    assert isinstance(image, TestImage) and image.errors == "25.0 % false gland, 25.0 % missed gland"
    assert image.scores == "Dice 0.500 · accuracy 0.500"


def test_an_image_that_the_store_lacks_is_missing_and_the_rest_goes_on(run, store):
    missing, image = read_test_images(run, ["elsewhere", "test_1"], store)
    assert isinstance(missing, MissingImage) and "is not in" in missing.reason and isinstance(image, TestImage)


def test_a_missing_prediction_and_one_of_another_size_have_a_reason(run, store):
    run.folder.prediction_path("test_1").unlink()
    run.folder.write_prediction("test_2", np.zeros((8, 8), np.uint8))
    gone, small = read_test_images(run, ["test_1", "test_2"], store)
    assert "test_1" in gone.reason and "one size" in small.reason


def test_an_image_that_is_damaged_in_the_store_has_a_reason(run, store):
    (chunk,) = (path for path in (store.location.root / "images" / "c" / "0").rglob("*") if path.is_file())
    chunk.write_bytes(b"\0" * 100)
    missing, image = read_test_images(run, ["test_1", "test_2"], FeatureStore.open(store.location.root))
    assert isinstance(missing, MissingImage) and "damaged" in missing.reason and isinstance(image, TestImage)


def test_a_store_is_opened_once_and_one_that_is_gone_has_a_reason(store):
    stores = Stores()
    assert stores.get(str(store.location)) is stores.get(str(store.location))
    shutil.rmtree(store.location.root)
    assert "there is no feature store at" in Stores().get(str(store.location))


def test_a_map_of_uncertainty_stands_beside_the_prediction(run, store):
    """Left half certain, right half as uncertain as possible: black and white."""
    share = np.zeros((SIDE, SIDE))
    share[:, SIDE // 2 :] = 1
    run.folder.write_uncertainty("test_1", share)
    first, second = read_test_images(run, ["test_1", "test_2"], store)
    assert first.uncertainty.shape == first.panels[0].shape and first.scores.endswith("uncertainty 0.693 nats")
    assert (first.uncertainty[:, : SIDE // 2] == 0).all() and (first.uncertainty[:, SIDE // 2 :] == 255).all()
    assert second.uncertainty is None and "uncertainty" not in second.scores


def test_systems_are_compared_on_the_same_images_and_a_missing_prediction_is_left_out(run, make_run):
    other = make_run("other", head_type="linear", splits=run.metrics.splits, data={"store": run.data.store},
                     folder=RunFolder(run.folder.path.with_name("other")))  # fmt: skip
    other.folder.write_prediction("test_1", np.zeros((SIDE, SIDE), np.uint8))
    rows = compare_systems(find_systems([run, other]), Stores())
    assert [name for name, _ in rows] == ["test_1", "test_10", "test_2"]
    assert [[panel is None for panel in row] for _, row in rows] == [
        [False, False, False, False], [False, False, False, True], [False, False, False, True],
    ]  # fmt: skip
