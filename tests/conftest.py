"""Small real stores, of which each test has its own copy."""

from __future__ import annotations

import os
import shutil

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # before torch is imported; child processes inherit both
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))
    # features are computed by two threads whatever the variable says: threads that spin would take the cores of others
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch
from PIL import Image

from pathseg.extract.datasets.synthetic.painting import draw_tissue
from pathseg.store.classes import background_code
from pathseg.store.contents import Contents, ImageEntry
from pathseg.store.features import FeatureStore
from pathseg.store.format.size import BlockShape
from pathseg.store.key import Preprocessing, StoreKey
from pathseg.store.writer import StoreWriter

SHAPES = {0: BlockShape(8, 8), 4: BlockShape(6, 16), 5: BlockShape(4, 32), 9: BlockShape(3, 64)}


def key(**changes) -> StoreKey:
    values = {
        "dataset": "toy",
        "preprocessing": Preprocessing(),
        "size": (256, 512),
        "mpp": 0.5,
        "model": "toy-model",
        "model_digest": "ab" * 32,
        "first_stage": "vq-f4",
        "condition": "ssl",
        "seed": 0,
        "layout": "native",
        "dtype": "float16",
    }
    return StoreKey(**(values | changes))


def contents(*, splits=("train", "train", "train", "train", "test"), **changes) -> Contents:
    images = tuple(ImageEntry(f"{split}_{i}", split, 200 + i, 300) for i, split in enumerate(splits))
    values = {
        "key": key(),
        "images": images,
        "classes": ("background", "gland"),
        "ignore": None,
        "test_split": "test",
        "blocks": SHAPES,
        "model_trained": False,
        "has_instances": True,
        "made_by": {"pathseg": "0.1.0"},
    } | changes
    values.setdefault("background", background_code(values["classes"]))
    return Contents(**values)


def fill(writer: StoreWriter, *, t: int = 50, blocks=tuple(SHAPES), seed: int = 0) -> FeatureStore:
    """Write every image: masks of half planes, features that say the class where it is."""
    store = writer.store
    writer.add_arrays([t], blocks)
    for unit in range(store.contents.units):
        pixels = [pixels_of(store, index, seed) for index in writer.images(unit)]
        writer.write_pixels(unit, pixels)
        writer.write_features(unit, t=t, features=features_of(store, [mask for _, mask, _ in pixels], blocks, seed))
    return store


def pixels_of(store, index, seed):
    rng, entry = np.random.default_rng([seed, index]), store.contents.images[index]
    height, width = store.contents.key.size
    mask = np.zeros((height, width), np.uint8)
    mask[:, : int(rng.integers(100 * width // 512, 400 * width // 512))] = 1
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    # four objects, which are squares: the distances between them, which each run measures, cost little
    rows, columns = -(-entry.height // 100), -(-entry.width // 100)
    squares = rng.permutation(rows * columns).reshape(rows, columns)
    ids = np.where(squares <= 4, squares, 0).repeat(100, axis=0).repeat(100, axis=1)
    return image, mask, ids[: entry.height, : entry.width].astype(np.uint16)


def features_of(store, masks, blocks, seed):
    for block in blocks:
        c, h, w = store.contents.blocks[block].stored(store.contents.key.layout)
        maps = []
        for mask in masks:
            patches = store.contents.grid.cut(mask[..., None])[..., 0]  # (P, 256, 256)
            coarse = patches.reshape(len(patches), h, 256 // h, w, 256 // w).mean((2, 4))
            rng = np.random.default_rng([seed, block, int(mask.sum())])
            noisy = rng.normal(0, 0.3, (len(patches), c, h, w)) + coarse[:, None]
            maps.append(noisy.astype(store.contents.key.dtype))
        yield block, maps


@pytest.fixture(scope="session")
def toy_key():
    return key


@pytest.fixture(scope="session")
def toy_contents():
    return contents


@pytest.fixture(scope="session")
def written_stores(tmp_path_factory):
    """The folders of `toy_store` and stores like it, which are written once and copied for each test."""
    folder = tmp_path_factory.mktemp("stores")
    one_patch = contents(key=key(size=(256, 256)), splits=("train", "train", "train", "test"))
    other = contents(
        key=key(model="other-model", model_digest="cd" * 32, dtype="float32"),
        blocks={2: BlockShape(5, 16), 7: BlockShape(2, 64)},
        model_trained=True,
    )
    for name, made in (("toy.zarr", contents()), ("one-patch.zarr", one_patch), ("other.zarr", other)):
        fill(StoreWriter(folder / name, made), blocks=tuple(made.blocks))
    return folder


@pytest.fixture
def toy_store(written_stores, tmp_path):
    """A complete store of five 512x256 px images: four to train, one to test; blocks 0, 4, 5, 9 at t 50."""
    return FeatureStore.open(shutil.copytree(written_stores / "toy.zarr", tmp_path / "toy.zarr"))


@pytest.fixture
def other_model_store(written_stores, tmp_path):
    """The images of `toy_store` with features of another model, in another dtype: blocks 2 and 7 at t 50."""
    return FeatureStore.open(shutil.copytree(written_stores / "other.zarr", tmp_path / "other.zarr"))


@pytest.fixture
def one_patch_store(written_stores, tmp_path):
    """As `toy_store`, of four images of one patch, for networks that take seconds for each patch: three to train."""
    return FeatureStore.open(shutil.copytree(written_stores / "one-patch.zarr", tmp_path / "one-patch.zarr"))


@pytest.fixture(scope="session")
def fill_store():
    return fill


BCSS_REGIONS = {  # in the names and at the scale of the official release: height and width in px at 0.25 um/px
    "TCGA-A2-A0T0-DX1_xmin72865_ymin59458_MPP-0.2500": (1600, 1700),  # two patches
    "TCGA-BH-A0BG-DX1_xmin20101_ymin33_MPP-0.2500": (1500, 1601),  # one, larger than the region
    "TCGA-OL-A5D6-DX1_xmin115108_ymin40554_MPP-0.2500": (1600, 1600),  # one, of a test institute
}


def draw_regions(root):
    """Generated tissue in BCSS's layout: each px of 0.5 um is 2x2 px of the files; all 22 codes at the lower edge."""
    tissue = draw_tissue(np.random.default_rng(0), 850)
    codes = np.where(tissue.lumen, 5, np.where(tissue.glands > 0, 1, 2)).astype(np.uint8)
    codes[-40:, : 22 * 35] = np.repeat(np.arange(22), 35)
    codes[-140:-40] = 0
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for turn, (name, (height, width)) in enumerate(BCSS_REGIONS.items()):
        for folder, pixels in (("images", np.roll(tissue.image, 37 * turn, axis=1)), ("masks", codes)):
            large = pixels.repeat(2, axis=0).repeat(2, axis=1)[-height:, :width]
            Image.fromarray(large).save(root / folder / f"{name}.png", compress_level=1)


@pytest.fixture(scope="session")
def drawn_regions(tmp_path_factory):
    """Three regions in the layout of BCSS, to be read only."""
    root = tmp_path_factory.mktemp("bcss")
    draw_regions(root)
    return root


@pytest.fixture
def bcss_root(drawn_regions, tmp_path):
    """A copy of the three regions that a test may change."""
    return shutil.copytree(drawn_regions, tmp_path / "bcss")


@pytest.fixture
def two_networks(monkeypatch):
    """For speed: a pixel ensemble of two networks."""
    monkeypatch.setattr("pathseg.train.heads.pixel_ensemble.MODELS", 2)


@pytest.fixture
def colour_head():
    """A linear head whose predictions are known by hand: class 1 where the mean red of a cell of 4 px is below 128."""
    from pathseg.store.classes import background_code
    from pathseg.store.sampling import Sampling
    from pathseg.train.config import HeadConfig, Layer
    from pathseg.train.heads.linear import LinearHead
    from pathseg.train.predict.trained_head import TrainedHead
    from pathseg.train.runs.record import Source

    def make(*, size=(256, 256), classes=("background", "gland"), module=None, **changes):
        if module is None:
            module = LinearHead({Layer(0, 50, 0): 3}, len(classes))
            with torch.no_grad():
                module.scores.weight.zero_()
                module.scores.bias.zero_()
                module.scores.weight[1, 0], module.scores.bias[1] = -20.0, 10.0  # 20 (0.5 - red)
        values = {
            "name": "by-colour",
            "settings": HeadConfig(blocks=(0,), head_type="linear"),
            "module": module.eval(),
            "sources": (Source("toy.zarr", "", key(size=size, dtype="float32"), True, {0: 3}),),
            "sampling": Sampling(size=size, mpp=0.5, resized=False, original_px=size),
            "classes": classes,
            "background": background_code(classes),
            "ignore": None,
            "constant_class": classes[0],
            "weights_digest": "cd" * 32,
            "device": torch.device("cpu"),
        }
        return TrainedHead(**(values | changes))

    return make


@pytest.fixture
def colour_features():
    """Features of patches: the mean colour of cells of 4 px, 0..1, as block 0; counts the patches."""

    def features(patches, numbers, image_id):
        features.patches += len(patches)
        features.numbers += list(numbers)
        cells = patches.reshape(len(patches), 64, 4, 64, 4, 3).mean((2, 4)) / 255
        return {0: torch.from_numpy(cells).float().permute(0, 3, 1, 2)}

    features.patches, features.numbers = 0, []
    return features
