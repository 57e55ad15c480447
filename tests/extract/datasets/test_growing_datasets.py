"""Stores of GlaS, BCSS and a folder that follow their files, through the real `extract`; features are computed once."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.pipeline import extract
from pathseg.extract.plan import plan_extraction
from pathseg.store.contents import UNLABELLED, UNLISTED
from pathseg.store.features import FeatureStore
from pathseg.store.verify import verify
from tests.extract.conftest import CountingModel, ToyModel

CONFIG = ExtractConfig(layout="native", blocks=(0, 4))


class Growing:
    """A data set in a folder, and a store that follows it."""

    def __init__(self, name, root, store, **options):
        self.name, self.root, self.store, self.options = name, root, store, options
        self.model = CountingModel()

    def dataset(self, **options):
        return open_dataset(self.name, DatasetOptions(root=self.root, **(self.options | options)))

    def follow(self, **options):
        """Extract; return the number of images that were worked on and of patches that were computed."""
        before = self.model.computed.total()
        result = extract(self.dataset(**options), self.model, self.store, CONFIG)
        assert not result.failures and verify(self.store) == ()
        return result.computed, self.model.computed.total() - before

    def assert_as_made_at_once(self):
        dataset = self.dataset()
        whole = extract(dataset, ToyModel(), self.store.with_name("once.zarr"), CONFIG).store
        grown = extract(dataset, self.model, self.store, CONFIG).store
        assert {grown.ids[index] for index in grown.listed} == set(whole.ids)
        for index, id_ in enumerate(whole.ids):
            there = grown.ids.index(id_)
            assert grown.contents.images[there] == whole.contents.images[index]
            np.testing.assert_array_equal(grown.image(there), whole.image(index))
            np.testing.assert_array_equal(grown.mask(there), whole.mask(index))
            if whole.contents.has_instances:
                np.testing.assert_array_equal(grown.instances(there), whole.instances(index))
            for block, maps in whole.read(index).items():
                np.testing.assert_array_equal(grown.read(there)[block], maps)
        for name in ("key", "classes", "background", "ignore", "test_split"):
            assert getattr(grown.contents, name) == getattr(whole.contents, name)


def draw(folder, name, *, seed, size=(50, 70), mask_name=None, codes=(0, 1), masks=None):
    """A random image, and a mask with one stripe of each code."""
    for path in (folder, masks or folder):
        path.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    mask = np.array(codes, np.uint8)[np.arange(size[1]) * len(codes) // size[1]]
    Image.fromarray(np.tile(mask, (size[0], 1))).save((masks or folder) / f"{mask_name or name}.png")


def test_a_store_of_glas_follows_a_raised_limit_new_files_and_corrected_objects(tmp_path):
    glas = Growing("glas", tmp_path / "glas", tmp_path / "s.zarr", resize=256)
    for seed, name in enumerate(("train_1", "train_2", "testA_1", "testB_1")):
        draw(glas.root, name, seed=seed, mask_name=f"{name}_anno", codes=(0, 1, 2))
    assert glas.follow(limit=2) == (2, 2)
    assert glas.follow() == (2, 2)
    draw(glas.root, "train_3", seed=9, mask_name="train_3_anno", size=(80, 90))  # larger: object ids are padded anew
    draw(glas.root, "train_1", seed=0, mask_name="train_1_anno", codes=(0, 1, 2, 3))
    for name in ("testA_1", "testA_1_anno"):
        (glas.root / f"{name}.png").unlink()
    computed, patches = glas.follow()
    assert (computed, patches) == (4, 1)  # the new one; object ids of the three that stay are written again
    glas.assert_as_made_at_once()
    assert set(glas.model.computed.values()) == {1}


def test_a_store_of_bcss_follows_a_raised_limit_new_regions_and_corrected_masks(bcss_root, tmp_path):
    bcss = Growing("bcss", bcss_root, tmp_path / "s.zarr", views=1)
    few, all_ = bcss.dataset(limit=2), bcss.dataset()
    assert bcss.follow(limit=2) == (2, 2 * 9)
    assert bcss.follow() == (len(all_.samples) - len(few.samples), 9 * (len(all_.samples) - len(few.samples)))
    region = next(path for path in sorted((bcss_root / "masks").iterdir()) if "-A2-" in path.name)
    codes = np.array(Image.open(region))
    codes[100:300, 100:300] = 4  # necrosis
    Image.fromarray(codes).save(region, compress_level=1)
    for folder in ("images", "masks"):
        (path,) = (bcss_root / folder).glob("*-BH-*")
        turned = np.array(Image.open(path))[::-1]
        Image.fromarray(np.ascontiguousarray(turned)).save(path.with_name(path.name.replace("-BH-", "-C8-")))
    corrected = [sample for sample in all_.samples if sample.source == region.stem]
    assert bcss.follow() == (1 + len(corrected), 9)
    assert bcss.follow() == (0, 0)
    bcss.assert_as_made_at_once()
    assert set(bcss.model.computed.values()) == {1}


@pytest.mark.parametrize("views", [None, "flips"])
def test_a_store_of_a_folder_follows_its_files_and_classes(tmp_path, views):
    folder = Growing("folder", tmp_path / "data", tmp_path / "s.zarr", views=views)
    images, masks = folder.root / "images", folder.root / "masks"

    def add(name, seed, codes=(0, 1)):
        draw(images, name, seed=seed, masks=masks, size=(256, 256), codes=codes)

    def write_splits(**splits):
        rows = [f"{name},{split}" for name, split in splits.items()]
        (folder.root / "splits.csv").write_text("\n".join(["id,split", *rows]) + "\n")

    for seed, name in enumerate("abc"):
        add(name, seed)
    write_splits(a="train", b="train", c="test")
    of_training = 8 if views else 1
    assert folder.follow() == (2 * of_training + 1,) * 2
    add("d", 3, codes=(0, 1, 5))  # a third class: all masks are read again, and equal ones not written
    write_splits(a="train", b="train", c="test", d="train")
    assert folder.follow() == (of_training, of_training)
    add("a", 0, codes=(1, 0))
    write_splits(a="train", b="test", c="test", d="train")
    assert folder.follow()[1] == 0
    assert folder.follow() == (0, 0)
    for path in (images / "b.png", masks / "b.png"):
        path.unlink()
    write_splits(a="train", c="test", d="train")
    assert folder.follow() == (0, 0)
    folder.assert_as_made_at_once()
    assert set(folder.model.computed.values()) == {1}
    store = extract(folder.dataset(), folder.model, folder.store, CONFIG).store
    assert store.splits.count(UNLISTED) == of_training


def splits_of(store, *, by="id"):
    images = FeatureStore.open(store).contents.images
    return {getattr(image, by): image.split for image in images if image.split not in (UNLISTED, UNLABELLED)}


@pytest.mark.parametrize("views", [None, "flips"])
def test_images_keep_the_split_that_a_hash_gave_them_when_others_join(tmp_path, views):
    folder = Growing("folder", tmp_path / "data", tmp_path / "s.zarr", views=views)

    def follow_with(name, seed):
        draw(folder.root / "images", name, seed=seed, masks=folder.root / "masks", size=(256, 256))
        folder.follow()
        return {id_: split for id_, split in splits_of(folder.store).items() if len(id_) == 1}

    draw(folder.root / "images", "b", seed=1, masks=folder.root / "masks", size=(256, 256))
    assert follow_with("e", 2) == {"b": "test", "e": "train"}  # hashes .63 and .67: none below .2, the lowest is tested
    assert follow_with("a", 3) == {"b": "test", "e": "train", "a": "test"}  # .01
    assert {sample.id: sample.split for sample in folder.dataset().samples}["b"] == "train"  # listed at once
    assert folder.follow() == (0, 0) and "changes" not in str(
        plan_extraction(folder.dataset(), folder.model, folder.store, CONFIG)
    )
    assert set(folder.model.computed.values()) == {1}


def test_splits_that_a_file_names_are_followed(tmp_path):
    folder = Growing("folder", tmp_path / "data", tmp_path / "s.zarr")
    for seed, name in enumerate("be"):
        draw(folder.root / "images", name, seed=seed, masks=folder.root / "masks", size=(256, 256))
    folder.follow()
    (folder.root / "splits.csv").write_text("id,split\nb,train\ne,test\n")
    folder.follow()
    assert splits_of(folder.store) == {"b": "train", "e": "test"}


def test_a_test_split_that_has_lost_its_last_image_gets_another(tmp_path):
    folder = Growing("folder", tmp_path / "data", tmp_path / "s.zarr")
    for seed, name in enumerate("bef"):
        draw(folder.root / "images", name, seed=seed, masks=folder.root / "masks", size=(256, 256))
    folder.follow()
    for kind in ("images", "masks"):
        (folder.root / kind / "b.png").unlink()
    folder.follow()
    assert splits_of(folder.store) == {"e": "test", "f": "train"}


def outlined(root, name, *, seed):
    """A slide of 256x256 px with two outlines of 40 px a side."""
    pixels = np.random.default_rng(seed).integers(60, 200, (256, 256, 3), np.uint8)
    tifffile.imwrite(root / f"{name}.tif", pixels, tile=(256, 256), resolution=(2e4, 2e4), resolutionunit=3)
    boxes = [(10, "gland"), (100, "stroma")]
    features = [
        {"type": "Feature", "properties": {"classification": {"name": class_name}}, "geometry": {
            "type": "Polygon",
            "coordinates": [[[x, 10], [x + 40, 10], [x + 40, 50], [x, 50], [x, 10]]]}}
        for x, class_name in boxes
    ]  # fmt: skip
    (root / f"{name}.geojson").write_text(json.dumps(features))


def test_slides_keep_the_split_that_a_hash_gave_them_when_others_are_outlined(tmp_path):
    root = tmp_path / "slides"
    root.mkdir()
    slides = Growing("slides", root, tmp_path / "s.zarr", window_px=256, windows="tissue")
    outlined(root, "a", seed=0)
    outlined(root, "b", seed=1)
    outlines = (root / "b.geojson").read_bytes()
    (root / "b.geojson").unlink()
    slides.follow()
    assert splits_of(slides.store, by="slide") == {"a": "train"}  # a single slide is for training
    (root / "b.geojson").write_bytes(outlines)
    assert slides.follow()[1] == 0
    assert {sample.slide: sample.split for sample in slides.dataset().samples} == {"a": "test", "b": "train"}
    assert splits_of(slides.store, by="slide") == {"a": "train", "b": "test"}
    outlined(root, "c", seed=2)
    slides.follow()
    assert splits_of(slides.store, by="slide") == {"a": "train", "b": "test", "c": "train"}
    assert set(slides.model.computed.values()) == {1}
