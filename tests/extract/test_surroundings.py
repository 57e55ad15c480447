"""Patches seen in the tissue around them: the field is the right one, and its centre lies on the patch."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.bcss_regions import VIEW_PX
from pathseg.extract.datasets.image_files import mirrored_region
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.online_features import online_features
from pathseg.extract.pipeline import extract
from pathseg.extract.plan import plan_extraction, wanted_blocks
from pathseg.extract.surroundings import load_field
from pathseg.store.errors import KeyMismatch
from pathseg.store.features import FeatureStore
from pathseg.store.grid import PatchGrid, margin_px
from pathseg.store.sampling import read_field

GRID = PatchGrid(1, 2)


def config(times: int, **settings) -> ExtractConfig:
    return ExtractConfig(**({"t": (0,), "layout": "native", "dtype": "float32", "surroundings": times} | settings))


@pytest.fixture
def image(toy_dataset):
    dataset = toy_dataset("a", "b")
    return dataset.load(dataset.samples[1]).image


@pytest.mark.parametrize(("y", "x", "height", "width"), [(-3, -2, 12, 9), (2, 1, 3, 2), (-11, 0, 30, 4), (4, 5, 9, 9)])
def test_a_region_beyond_the_edges_is_mirrored_as_numpy_does(y, x, height, width):
    image = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    padded = np.pad(image, ((20, 40), (20, 40), (0, 0)), mode="reflect")
    expected = padded[20 + y : 20 + y + height, 20 + x : 20 + x + width]
    np.testing.assert_array_equal(mirrored_region(image, y, x, height, width), expected)


def test_an_image_of_one_px_has_that_px_all_around():
    assert (mirrored_region(np.full((1, 1, 3), 7, np.uint8), -2, -2, 5, 5) == 7).all()


@pytest.mark.parametrize("times", [2, 4])
def test_a_field_has_its_patch_in_the_centre_and_is_shrunk_by_averaging(times):
    margin = margin_px(times)
    height, width = (side + 2 * margin for side in GRID.size)
    field = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for patch, seen in enumerate(GRID.cut(field, times)):
        own = field[: 256 * times, 256 * patch : 256 * patch + 256 * times]
        by_pillow = np.asarray(Image.fromarray(own).reduce(times)).astype(int)
        assert abs(seen.astype(int) - by_pillow).max() <= 1  # they round halves differently


def test_a_margin_beyond_the_field_is_left_out():
    field = np.random.default_rng(1).integers(0, 256, (256 + 2 * 384, 512 + 2 * 384, 3), dtype=np.uint8)
    inner = field[384 - 128 : 128 - 384, 384 - 128 : 128 - 384]
    np.testing.assert_array_equal(GRID.cut(field, 2), GRID.cut(inner, 2))
    np.testing.assert_array_equal(GRID.cut(field), GRID.cut(field[384:-384, 384:-384]))


@pytest.mark.parametrize("times", [2, 4])
def test_the_stored_cells_are_those_on_the_patch(toy_dataset, toy_model, tmp_path, image, times):
    """The toy model averages squares, at t 0 without noise: cells on a patch are means of its own px."""
    store = extract(toy_dataset("a", "b"), toy_model, tmp_path / "wide.zarr", config(times)).store
    maps = store.read(1, t=0)
    for block, (_, side) in toy_model.blocks.items():
        cell = 256 * times // side
        for patch in range(2):
            px = image[:, 256 * patch : 256 * (patch + 1)].astype(float).mean(2) / 255
            means = px.reshape(256 // cell, cell, 256 // cell, cell).mean((1, 3))
            assert maps[block].shape[2:] == means.shape == (side // times,) * 2
            np.testing.assert_allclose(maps[block][patch][0], means, atol=0.6 / 255)  # the field is rounded to uint8


def test_the_size_that_is_shown_is_the_one_that_is_stored(toy_dataset, toy_model, tmp_path):
    plan = plan_extraction(toy_dataset("a", "b"), toy_model, tmp_path / "wide.zarr", config(2))
    assert plan.patch_bytes == {0: 8 * 4 * 4 * 4, 4: 4 * 8 * 8 * 4, 9: 2 * 32 * 32 * 4}
    assert "2 patches wide" in str(plan) and "mirrored" in str(plan)


def test_new_patches_get_the_features_of_the_store(toy_dataset, toy_model, tmp_path):
    dataset = toy_dataset("a", "b")
    store = extract(dataset, toy_model, tmp_path / "wide.zarr", config(2, t=(50,), layout="grid")).store
    features = online_features(toy_model, store.contents.key, 50, (4, 9), batch_size=9)
    sample = dataset.samples[0]
    seen = GRID.cut(load_field(dataset, sample, dataset.load(sample).image, 2), 2)
    for block, maps in features(seen, [0, 1], sample.id).items():
        np.testing.assert_array_equal(maps.numpy(), store.read(0, t=50)[block])


def test_a_store_of_patches_alone_refuses_surroundings_and_the_other_way_round(toy_dataset, toy_model, tmp_path):
    dataset = toy_dataset("a", "b")
    for own, other in ((1, 2), (2, 1), (2, 4)):
        path = tmp_path / f"{own}{other}.zarr"
        extract(dataset, toy_model, path, config(own))
        with pytest.raises(KeyMismatch, match=r"surroundings.times"):
            extract(dataset, toy_model, path, config(other))


def test_a_reopened_store_knows_its_surroundings(toy_dataset, toy_model, tmp_path):
    extract(toy_dataset("a", "b"), toy_model, tmp_path / "wide.zarr", config(2))
    key = FeatureStore.open(tmp_path / "wide.zarr").contents.key
    assert (key.field_patches, key.surroundings.beyond) == (2, "mirrored")
    extract(toy_dataset("a", "b"), toy_model, tmp_path / "alone.zarr", config(1))
    assert FeatureStore.open(tmp_path / "alone.zarr").contents.key.field_patches == 1


@pytest.fixture
def coarse_model(toy_model, monkeypatch):
    """A toy model with blocks of 2x2 and 1x1 cells too."""
    monkeypatch.setattr(toy_model, "blocks", {0: (8, 1), 2: (8, 2), 4: (4, 16), 9: (2, 64)}, raising=False)
    return toy_model


def test_a_block_without_whole_cells_on_the_patch_is_refused_by_name_and_sides(toy_dataset, coarse_model, tmp_path):
    with pytest.raises(ValueError, match=r"block 2 .*maps of 2x2 cells.*--surroundings 4"):
        extract(toy_dataset("a", "b"), coarse_model, tmp_path / "wide.zarr", config(4, blocks=(2, 4)))
    assert not (tmp_path / "wide.zarr").exists()


def test_18_cells_have_no_centre_of_9_and_16_have_one_of_8(toy_model, monkeypatch):
    monkeypatch.setattr(toy_model, "blocks", {4: (4, 18), 9: (4, 16)}, raising=False)
    assert wanted_blocks(toy_model, config(2, blocks=(9,))) == (9,)
    with pytest.raises(ValueError, match=r"maps of 18x18 cells.*--input-px"):
        wanted_blocks(toy_model, config(2, blocks=(4,)))


def test_blocks_too_coarse_for_a_centre_are_not_in_the_description(toy_dataset, coarse_model, tmp_path):
    made = extract(toy_dataset("a", "b"), coarse_model, tmp_path / "wide.zarr", config(4, blocks=(4, 9))).store
    assert sorted(FeatureStore.open(made.location.root).contents.blocks) == [4, 9]


@pytest.mark.parametrize("times", [0, 3, 8])
def test_other_widths_than_1_2_and_4_are_refused(times):
    with pytest.raises(ValueError, match=rf"surroundings must be 1 .* 2 or 4 .* got {times}"):
        config(times)


def test_bcss_shows_the_tissue_of_the_region_around_a_view(drawn_regions):
    dataset = open_dataset("bcss", DatasetOptions(root=drawn_regions, views=1))
    by_region: dict = {}
    for sample in dataset.samples:
        by_region.setdefault(sample.source, []).append(sample)
    sample = max(by_region.values(), key=len)[0]
    image, margin = dataset.load(sample).image, 300
    field = dataset.load_surroundings(sample, margin)
    assert field.shape == (VIEW_PX + 2 * margin, VIEW_PX + 2 * margin, 3)
    np.testing.assert_array_equal(field[margin:-margin, margin:-margin], image)
    mirrored = load_field(dataclasses.replace(dataset, load_surroundings=None), sample, image, 2)
    assert (load_field(dataset, sample, image, 2) != mirrored).any()  # the view is not at all four edges of its region


class SmallImage:
    """An image of 3x4 px as `predict` reads it."""

    pixels = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)

    def read(self, y, x, height, width, *, mirrored=False):
        if mirrored:
            return mirrored_region(self.pixels, y, x, height, width)
        inside = self.pixels[y : y + height, x : x + width]
        missing = ((0, height - inside.shape[0]), (0, width - inside.shape[1]), (0, 0))
        return np.pad(inside, missing, constant_values=255)


def test_a_window_beyond_an_image_is_white_whatever_its_margin():
    alone = read_field(SmallImage(), 0, 0, 6, 6, margin=0)
    field = read_field(SmallImage(), 0, 0, 6, 6, margin=2)
    np.testing.assert_array_equal(field[2:-2, 2:-2], alone)
    assert (alone[3:] == 255).all() and (field[0] != 255).all()
