"""`--views flips`: the other symmetries of each training image as samples; expected values by numpy and Pillow."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import DatasetOptions, Sample, open_dataset
from pathseg.extract.datasets.symmetries import turned, with_symmetries
from pathseg.extract.models.load import load_model
from pathseg.extract.models.noise import patch_noise
from pathseg.extract.pipeline import extract
from pathseg.store.errors import KeyMismatch
from pathseg.train.data.splits import draw_views, split_images
from pathseg.train.runs.commands import extract_flags

Turn = Image.Transpose
BY_PILLOW = {
    1: (Turn.ROTATE_90,), 2: (Turn.ROTATE_180,), 3: (Turn.ROTATE_270,), 4: (Turn.FLIP_LEFT_RIGHT,),
    5: (Turn.ROTATE_90, Turn.FLIP_LEFT_RIGHT), 6: (Turn.FLIP_TOP_BOTTOM,), 7: (Turn.ROTATE_270, Turn.FLIP_LEFT_RIGHT),
}  # fmt: skip


def listed(root: Path | None = None, name: str = "synthetic", **options):
    return open_dataset(name, DatasetOptions(root=root, views="flips", **options))


@pytest.mark.parametrize("view", BY_PILLOW)
def test_a_view_is_turned_as_pillow_turns_it(view):
    image = np.random.default_rng(view).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    expected = Image.fromarray(image)
    for turn in BY_PILLOW[view]:
        expected = expected.transpose(turn)
    assert np.array_equal(turned(image, view), np.asarray(expected))


def test_square_training_images_have_eight_views_and_test_images_one():
    samples = listed(limit=3, resize=256).samples
    views = [(sample.id, sample.split, sample.group, sample.view) for sample in samples]
    assert views[:3] == [
        ("tissue_0", "train", "tissue_0", 0), ("tissue_0_v1", "train", "tissue_0", 1),
        ("tissue_0_v2", "train", "tissue_0", 2),
    ]  # fmt: skip
    assert views[8] == ("tissue_1", "test", None, 0)
    assert [sample.view for sample in samples] == [*range(8), 0, *range(8)]


@pytest.fixture
def oblong(tmp_path):
    """Four 300x200 px images with numbered objects in a folder; the first two train, of one patient."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for name in "abcd":
        Image.fromarray(rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)).save(tmp_path / f"images/{name}.png")
        ids = np.zeros((200, 300), np.uint8)
        ids[20:60, 30:50], ids[100:110, 200:280] = 1, 2
        Image.fromarray(ids).save(tmp_path / f"masks/{name}.png")
    (tmp_path / "splits.csv").write_text("id,split,source\na,train,p\nb,train,p\nc,val,q\nd,test,r\n")
    return tmp_path


def test_oblong_files_have_the_four_views_that_keep_their_axes(oblong):
    samples = listed(oblong, "folder", resize=256, instances=True).samples
    assert [sample.id for sample in samples] == ["a", "a_v2", "a_v4", "a_v6", "b", "b_v2", "b_v4", "b_v6", "c", "d"]
    assert {sample.source for sample in samples[:8]} == {"p"}
    assert {(sample.height, sample.width) for sample in samples} == {(200, 300)}


def test_image_mask_and_objects_are_turned_alike(oblong):
    dataset = listed(oblong, "folder", resize=256, instances=True)
    plain = dataset.load(dataset.samples[0])
    half, flipped = (dataset.load(dataset.samples[number]) for number in (1, 2))
    for name in ("image", "mask", "instances"):
        assert np.array_equal(getattr(half, name), getattr(plain, name)[::-1, ::-1])
        assert np.array_equal(getattr(flipped, name), getattr(plain, name)[:, ::-1])
    assert set(np.unique(half.instances)) == {0, 1, 2} and half.instances.shape == (200, 300)
    assert dataset.files(dataset.samples[1]) == dataset.files(dataset.samples[0])


def test_a_padded_image_is_turned_and_its_padding_stays_right_and_below(oblong):
    dataset = listed(oblong, "folder", resize=256, instances=True, keep_aspect=True)
    plain = dataset.load(dataset.samples[0])
    filled = 171  # rows: 200 * 256 / 300
    assert (plain.image[filled:] == 255).all() and (plain.mask[filled:] == dataset.ignore).all()
    half, flipped, below = (dataset.load(dataset.samples[number]) for number in (1, 2, 3))
    for name in ("image", "mask"):
        whole = getattr(plain, name)
        for turn, inside in (
            (half, whole[:filled][::-1, ::-1]), (flipped, whole[:filled, ::-1]), (below, whole[:filled][::-1]),
        ):  # fmt: skip
            assert np.array_equal(getattr(turn, name), np.concatenate([inside, whole[filled:]]))
    assert np.array_equal(half.instances, plain.instances[::-1, ::-1])


def test_padded_views_have_another_key_than_those_whose_padding_was_turned(oblong, toy_key):
    key = toy_key(preprocessing=listed(oblong, "folder", resize=256, keep_aspect=True).preprocessing)
    settings = dict(key.preprocessing.settings)
    assert settings.pop("padding_in_views") == "kept" and settings["views"] == "flips"
    before = toy_key(preprocessing=replace(key.preprocessing, settings=settings))
    assert before.differences(key) == ["preprocessing.padding_in_views is not set there, 'kept' asked for"]
    flags = extract_flags(key)
    assert flags[flags.index("--views") + 1] == "flips" and "--keep-aspect" in flags
    assert "padding_in_views" not in listed(oblong, "folder", resize=256).preprocessing.settings


def test_the_data_set_can_be_sent_to_workers():
    dataset = listed(limit=2, resize=256)
    again = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(again.load(again.samples[5]).mask, dataset.load(dataset.samples[5]).mask)


def test_an_image_that_has_the_name_of_a_view_is_named(toy_dataset):
    with pytest.raises(ValueError, match=r"a_v2.*rename it"):
        with_symmetries(toy_dataset("test", "a", "a_v2"))


def test_a_sample_that_is_no_view_is_loaded_as_listed(toy_dataset):
    dataset = with_symmetries(toy_dataset("test", "a"))
    assert dataset.samples[0] == Sample("test", "test", 256, 512)
    assert np.array_equal(dataset.load(dataset.samples[0]).image, toy_dataset("test").load(dataset.samples[0]).image)


@pytest.fixture(scope="module")
def model():
    return load_model("mini")


CONFIG = ExtractConfig(blocks=(4,), layout="native", dtype="float32")


def test_stored_features_are_those_of_the_turned_image_with_the_noise_of_its_id(tmp_path, model):
    dataset = listed(limit=1, resize=256)
    dataset = replace(dataset, samples=tuple(dataset.samples[view] for view in (0, 1, 4)))
    store = extract(dataset, model, tmp_path / "views.zarr", CONFIG).store
    plain = extract(open_dataset("synthetic", DatasetOptions(limit=1, resize=256)), model, tmp_path / "p.zarr", CONFIG)
    original = plain.store.image(0)
    views = (("tissue_0", original), ("tissue_0_v1", np.rot90(original)), ("tissue_0_v4", np.fliplr(original)))
    for index, (id_, image) in enumerate(views):
        noise = patch_noise((3, 64, 64), seed=0, image_id=id_, patch=0, t=50)
        expected = model.features(np.ascontiguousarray(image)[None], t=50, blocks=(4,), noise=torch.stack([noise]))
        assert np.array_equal(store.read(index, t=50, blocks=(4,))[4], expected[4].numpy())
        assert store.ids[index] == id_
    assert np.array_equal(store.mask(1), np.rot90(plain.store.mask(0)))
    assert np.array_equal(store.instances(2), np.fliplr(plain.store.instances(0)))
    assert np.array_equal(store.read(0, t=50, blocks=(4,))[4], plain.store.read(0, t=50, blocks=(4,))[4])
    with pytest.raises(KeyMismatch, match="views is not set there, 'flips' asked for"):
        extract(dataset, model, tmp_path / "p.zarr", CONFIG)


def test_validation_and_test_see_images_as_they_are_and_an_epoch_one_view_of_each(tmp_path, toy_model):
    dataset = listed(limit=6, resize=256)  # four to train on
    store = extract(dataset, toy_model, tmp_path / "a.zarr", CONFIG).store
    splits = split_images(store, val_fraction=0.25, seed=0)
    images = store.contents.images
    assert {images[index].view for index in (*splits.val, *splits.tests["test"])} == {0}
    assert (len(splits.val), len(splits.train)) == (1, 3 * 8)
    drawn = [draw_views(store, splits.train, seed=0, epoch=epoch) for epoch in range(1, 5)]
    groups = [[images[index].group for index in indices] for indices in drawn]
    assert all(len(set(names)) == 3 and images[splits.val[0]].group not in names for names in groups)
    assert len({images[index].view for indices in drawn for index in indices}) > 3
