"""Stores that an earlier release wrote (0.1.0, format 1) and every later one reads. They are never written again."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from pathseg.store.describe import describe
from pathseg.store.errors import KeyMismatch
from pathseg.store.features import FeatureStore
from pathseg.store.format.names import MANIFEST
from pathseg.store.growth import grow
from pathseg.store.key import Preprocessing, StoreKey
from pathseg.store.lazy import open_lazy
from pathseg.store.verify import verify
from pathseg.store.writer import StoreWriter

FIXTURES = Path(__file__).parents[1] / "fixtures"
WORKSPACE = FIXTURES / "workspace-v1"
NAMES = ("store-v1", "store-v1-shards")  # the second: two images a unit, rounded and compressed
SIDES = {4: (5, 16), 9: (3, 64)}  # channels and side


@pytest.fixture(params=NAMES)
def path(request):
    return FIXTURES / request.param


def ramp(index, block):
    """What was stored: whole numbers below 64, which no packing changes."""
    channels, side = SIDES[block]
    c, y, x = np.ogrid[:channels, :side, :side]
    return ((31 * c + 7 * y + 3 * x + 11 * index) % 64)[None]  # (1, C, h, w)


@pytest.mark.parametrize("index", [0, 1])
def test_features_read_as_they_were_written(path, index):
    features = FeatureStore.open(path).read(index, t=50)
    assert list(features) == [4, 9]
    for block, maps in features.items():
        assert maps.dtype == np.float16
        assert np.array_equal(maps, ramp(index, block))


@pytest.mark.parametrize("index", [0, 1])
def test_a_timestep_that_joined_later_reads_as_it_was_written(path, index):
    store = FeatureStore.open(path)
    assert store.timesteps() == (50, 200)
    assert np.array_equal(store.read(index, t=200, blocks=(4,))[4], -ramp(index, 4))


@pytest.mark.parametrize("index", [0, 1])
def test_pixels_read_as_they_were_written(path, index):
    store, (y, x) = FeatureStore.open(path), np.ogrid[:256, :256]
    squares = x // 16 + 2 * (y // 16)
    assert np.array_equal(store.image(index), (squares[..., None] + 85 * np.arange(3) + index) % 256)
    assert np.array_equal(store.mask(index), x > y + index)
    expected = np.repeat(np.arange(5), 50) + index
    assert np.array_equal(store.instances(index), np.tile(expected, (200 + index, 1)))


def test_the_description_is_read(path):
    store = FeatureStore.open(path)
    contents, rounded = store.contents, path.name.endswith("shards")
    assert contents.key == StoreKey(
        dataset="fixture",
        preprocessing=Preprocessing(resized=True),
        size=(256, 256),
        mpp=0.5,
        model="ramp",
        model_digest="ab" * 32,
        first_stage="vq-f4",
        condition="ssl",
        seed=7,
        layout="native",
        dtype="float16",
        packing="rounded" if rounded else "none",
    )
    assert (store.ids, store.splits) == (("train_1", "testB_1"), ("train", "testB"))
    assert (contents.classes, contents.ignore, contents.test_split) == (("background", "gland"), None, "testB")
    assert contents.images_per_unit == (2 if rounded else 1)


def test_nothing_is_left_to_do(path):
    store = FeatureStore.open(path)
    assert store.unfinished(t=50, blocks=(4, 9)) == ()
    assert store.unfinished(t=200, blocks=(4,)) == ()


def test_plain_zarr_reads_it(path):
    group = zarr.open_group(str(path), mode="r")
    assert np.array_equal(group["t50/block09"][1], ramp(1, 9))


@pytest.fixture(params=["store-v1", "store-v1-shards", "workspace-v1/glas-ramp.zarr", "workspace-v1/bcss-ramp.zarr"])
def any_path(request):
    return FIXTURES / request.param


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_verify_finds_nothing(any_path):
    assert verify(any_path) == ()


def test_files_named_as_others_that_pathseg_writes_are_told_apart(tmp_path):
    folder = shutil.copytree(FIXTURES / "store-v1", tmp_path / "a.zarr")
    before = files_of(folder)
    scales = zarr.open_group(str(folder / "t50")).create_array("block04_scales", shape=(2, 5), dtype="float32")
    scales[...] = 1
    foreign = {name for name in files_of(folder) if name not in before}
    assert foreign == {"t50/block04_scales/zarr.json", "t50/block04_scales/c/0/0"}
    record = folder / "_done/t50/77/000000.json"  # of a block that the model does not have
    record.parent.mkdir()
    record.write_bytes((folder / "_done/t50/4,9/000000.json").read_bytes())
    found = {(finding.kind, finding.name) for finding in verify(folder, repair=True)}
    assert found == {("foreign", name) for name in foreign} | {("stray", "_done/t50/77/000000.json")}
    assert {finding.name for finding in verify(folder)} == foreign and not record.exists()
    assert np.array_equal(zarr.open_array(str(folder / "t50/block04_scales"))[...], np.ones((2, 5)))
    assert {name: data for name, data in files_of(folder).items() if name not in foreign} == before
    assert np.array_equal(FeatureStore.open(folder).read(1)[4], ramp(1, 4))


def test_each_store_is_described(any_path):
    store = FeatureStore.open(any_path)
    text = describe(store)
    for t in store.timesteps():
        assert f"t {t}" in text
    assert ", ".join(store.classes) in text and "complete" in text


def test_lazy_arrays_are_those_of_the_store(any_path):
    arrays, store = open_lazy(any_path), FeatureStore.open(any_path)
    t = store.timesteps()[0]
    for block, maps in store.read(1, t=t).items():
        assert np.array_equal(arrays[f"t{t}/block{block:02d}"][1].compute(), maps)
    assert np.array_equal(arrays["masks"][0].compute(), store.mask(0))


@pytest.mark.parametrize("run", sorted(path.parent.name for path in WORKSPACE.glob("heads/*/config.json")))
def test_the_digest_is_the_one_that_the_runs_of_0_1_0_recorded(run):
    data = json.loads((WORKSPACE / "heads" / run / "config.json").read_text())["data"]
    assert FeatureStore.open(WORKSPACE / Path(data["store"]).name).digest() == data["digest"]


def test_another_timestep_joins_a_store_of_format_1_and_changes_no_file(any_path, tmp_path):
    folder = shutil.copytree(any_path, tmp_path / "a.zarr")
    before, store = files_of(folder), FeatureStore.open(folder)
    digest, t = store.digest(), store.timesteps()[0]
    writer = StoreWriter(folder, store.contents)
    writer.add_arrays([999], (4,))
    for unit in range(store.contents.units):
        maps = [store.read(index, t=t, blocks=(4,))[4] for index in writer.images(unit)]
        writer.write_features(unit, t=999, features=[(4, maps)])
    again = FeatureStore.open(folder)
    assert again.unfinished(t=999, blocks=(4,)) == ()
    assert np.array_equal(again.read(1, t=999)[4], store.read(1, t=t, blocks=(4,))[4])
    assert again.digest() == digest
    assert verify(folder) == ()
    changed = {name for name, data in before.items() if files_of(folder)[name] != data}
    assert changed == {MANIFEST}


def test_a_store_of_format_1_grows_and_keeps_its_pixels_and_features(any_path, tmp_path):
    folder = shutil.copytree(any_path, tmp_path / "a.zarr")
    before, old, chunks = FeatureStore.open(folder), FeatureStore.open(any_path), files_of(folder)
    t, images = before.timesteps()[0], before.contents.images
    added = dataclasses.replace(images[0], id="new")
    grow(before, dataclasses.replace(before.contents, images=(*images, added)), {0: ["masks"]})
    writer = StoreWriter(folder, FeatureStore.open(folder).contents)
    for index, mask in ((0, 1 - old.mask(0)), (len(images), old.mask(0))):
        unit, position = divmod(index, writer.store.contents.images_per_unit)
        units = [None] * len(writer.images(unit))
        units[position] = (old.image(0), mask, old.instances(0) if old.contents.has_instances else None)
        writer.write_pixels(unit, units)
    store = FeatureStore.open(folder)
    assert store.ids == (*old.ids, "new") and np.array_equal(store.mask(0), 1 - old.mask(0))
    for index in range(len(images)):
        assert np.array_equal(store.image(index), old.image(index))
        for block, maps in old.read(index, t=t).items():
            assert np.array_equal(store.read(index, t=t)[block], maps)
    assert {finding.kind for finding in verify(folder)} == {"missing"}  # the features of the new image
    features = {name for name in chunks if name.startswith("t") and "/c/" in name}
    assert all(files_of(folder)[name] == chunks[name] for name in features)


def test_another_key_is_refused_by_a_store_of_format_1(path, tmp_path, toy_contents):
    folder = shutil.copytree(path, tmp_path / "a.zarr")
    with pytest.raises(KeyMismatch, match="dataset"):
        StoreWriter(folder, toy_contents())


@pytest.mark.parametrize("name", ["zarr.json", MANIFEST, "t50/block04/zarr.json"])
def test_repair_restores_the_description_of_format_1(tmp_path, name):
    folder = shutil.copytree(FIXTURES / "store-v1", tmp_path / "a.zarr")
    before, digest = files_of(folder), FeatureStore.open(folder).digest()
    (folder / name).write_bytes(b"{")
    assert [finding.name for finding in verify(folder, repair=True)] == [name]
    assert files_of(folder) == before
    assert FeatureStore.open(folder).digest() == digest


def test_repair_of_a_lost_manifest_keeps_root_digest_and_features(any_path, tmp_path):
    folder = shutil.copytree(any_path, tmp_path / "a.zarr")
    root, digest = (folder / "zarr.json").read_bytes(), FeatureStore.open(folder).digest()
    (folder / MANIFEST).unlink()
    assert (MANIFEST, "missing") in {(finding.name, finding.kind) for finding in verify(folder, repair=True)}
    assert verify(folder) == ()
    assert (folder / "zarr.json").read_bytes() == root
    store, t = FeatureStore.open(folder), FeatureStore.open(any_path).timesteps()[0]
    assert store.digest() == digest
    for block, maps in FeatureStore.open(any_path).read(1, t=t).items():
        assert np.array_equal(store.read(1, t=t)[block], maps)
