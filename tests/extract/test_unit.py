import dataclasses

import numpy as np
import pytest
import torch

from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.models.load import load_model
from pathseg.extract.models.noise import patch_noise
from pathseg.extract.pipeline import extract, open_extraction
from pathseg.store.features import FeatureStore
from pathseg.store.verify import verify


@pytest.fixture(scope="module")
def model():
    return load_model("mini")


@pytest.fixture(scope="module")
def dataset():
    return open_dataset("synthetic", DatasetOptions(resize=512, limit=1))


def stored(path, model, dataset, **settings):
    """Block 4 and 9 of the first image after a run of stage one, all of its four patches in one forward pass."""
    config = ExtractConfig(**{"blocks": (4, 9), "layout": "native", "batch_size": 4, **settings})
    result = extract(dataset, model, path, config)
    assert result.failures == ()
    return result.store.read(0, t=config.t[0], blocks=(4, 9))


@pytest.fixture(scope="module")
def one_patch():
    return open_dataset("synthetic", DatasetOptions(resize=256, limit=1))


@pytest.fixture(scope="module")
def reference(tmp_path_factory, model, dataset):
    return stored(tmp_path_factory.mktemp("a") / "a.zarr", model, dataset)


def test_what_is_stored_is_what_the_model_gives_with_the_noise_of_the_rule(reference, model, dataset):
    sample = dataset.samples[0]
    patches = dataset.load(sample).image.reshape(2, 256, 2, 256, 3).swapaxes(1, 2).reshape(4, 256, 256, 3)
    noise = torch.stack([patch_noise((3, 64, 64), seed=0, image_id=sample.id, patch=p, t=50) for p in range(4)])
    for block, maps in model.features(patches, t=50, blocks=(4, 9), noise=noise).items():
        assert np.array_equal(reference[block], maps.numpy().astype(np.float16))


@pytest.mark.parametrize("batch_size", [1, 3])  # of four patches
def test_another_batch_size_changes_at_most_one_rounding_step(reference, tmp_path, model, dataset, batch_size):
    for block, maps in stored(tmp_path / "b.zarr", model, dataset, batch_size=batch_size).items():
        exact = reference[block].astype(np.float64)
        scale = np.maximum(np.abs(exact), np.sqrt((exact**2).mean()))  # small values carry the noise of large ones
        assert (np.abs(maps - exact) <= np.spacing(scale.astype(np.float16))).all()


def test_several_timesteps_come_out_as_each_alone(reference, tmp_path, model, dataset):
    stored(tmp_path / "c.zarr", model, dataset, t=(10, 50))
    for block, maps in FeatureStore.open(tmp_path / "c.zarr").read(0, t=50).items():
        assert np.array_equal(maps, reference[block])


def test_the_grid_layout_is_the_native_one_upsampled(tmp_path, model, one_patch):
    native = stored(tmp_path / "n.zarr", model, one_patch, dtype="float32")
    grid = stored(tmp_path / "g.zarr", model, one_patch, dtype="float32", layout="grid")
    for block, maps in native.items():
        fine = torch.nn.functional.interpolate(torch.from_numpy(maps), (64, 64), mode="bilinear")
        assert np.allclose(grid[block], fine.numpy(), atol=1e-6)


def test_half_precision_is_near_and_told_apart_in_the_key(tmp_path, model, one_patch):
    exact = stored(tmp_path / "e.zarr", model, one_patch)
    half = stored(tmp_path / "h.zarr", model, one_patch, precision="bfloat16")
    for block, maps in half.items():
        difference = np.linalg.norm(maps.astype(np.float32) - exact[block]) / np.linalg.norm(
            exact[block].astype(np.float32)
        )
        assert 0 < difference < 0.05
    keys = [FeatureStore.open(tmp_path / name).contents.key for name in ("e.zarr", "h.zarr")]
    assert [key.precision for key in keys] == ["float32", "bfloat16"]


def test_what_another_run_has_written_meanwhile_is_not_written_again(tmp_path, model, one_patch):
    """Runs on unlike processors differ in the last bits: a chunk of one under the record of the other is damage."""
    path, config = tmp_path / "two.zarr", ExtractConfig(blocks=(4,), layout="native", t=(10, 50))
    ours = open_extraction(one_patch, model, path, config)
    computed = ours.compute(ours.load(0))
    other = extract(one_patch, model, path, dataclasses.replace(config, t=(50,)))
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    ours.write(computed)
    after = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    assert before.items() <= after.items()
    assert {file.relative_to(path).parts[0] for file in after.keys() - before.keys()} == {"t10", "_done"}
    assert other.store.read(0, t=50).keys() == FeatureStore.open(path).read(0, t=10).keys()
    assert verify(path) == ()
