import dataclasses
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from pathseg.store.features import FeatureStore
from pathseg.store.grid import PatchGrid
from pathseg.store.sampling import Sampling
from pathseg.store.writer import StoreWriter
from pathseg.train.config import HeadConfig, Layer
from pathseg.train.heads.pixel_ensemble import PixelEnsemble
from pathseg.train.metrics.object import ObjectRule
from pathseg.train.predict.trained_head import TrainedHead
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.loop import train_heads

HEADS_V1 = Path(__file__).parents[2] / "fixtures" / "workspace-v1" / "heads"  # written by release 0.1.0


@pytest.fixture(scope="module")
def trained(written_stores, tmp_path_factory):
    """A store of four images of one patch and a run of the paper's head on it, to be read only."""
    store = FeatureStore.open(written_stores / "one-patch.zarr")
    config = HeadConfig(blocks=(4, 9), lr=1e-3, epochs=1)
    (state,) = train_heads(store, [(config, RunFolder(tmp_path_factory.mktemp("trained") / "run"))])
    return store, state.run


def test_it_predicts_the_test_images_as_its_run_did(trained):
    store, run = trained
    head, index = TrainedHead.load(run.path), store.splits.index("test")
    maps = store.read(index, blocks=(4, 9))
    features = {Layer(0, 50, block): torch.from_numpy(values)[None] for block, values in maps.items()}
    codes = head.predict(features, store.contents.grid)[0].argmax(0).numpy()
    np.testing.assert_array_equal(codes, run.read_prediction(store.ids[index]))


def test_a_run_records_the_mean_cross_entropy_of_each_test_image(trained):
    store, run = trained
    head, index = TrainedHead.load(run.path), store.splits.index("test")
    maps = store.read(index, blocks=(4, 9))
    features = {Layer(0, 50, block): torch.from_numpy(values)[None] for block, values in maps.items()}
    probabilities = head.predict(features, store.contents.grid)[0].double().numpy()
    of_truth = np.take_along_axis(probabilities, store.mask(index)[None].astype(int), axis=0)
    (recorded,) = FinishedRun.read(run).test_scores.per_image
    assert recorded.loss == pytest.approx(-np.log(of_truth).mean(), rel=1e-4)


def test_it_knows_the_key_and_the_sampling_of_its_store(old_run):
    head, contents = TrainedHead.load(old_run), FeatureStore.open(HEADS_V1.parent / "glas-ramp.zarr").contents
    assert [source.key for source in head.sources] == [contents.key]
    assert head.sampling == Sampling.of(contents)


def test_it_has_the_colours_of_the_classes_of_its_store(toy_contents, toy_key, fill_store, tmp_path):
    made = toy_contents(key=toy_key(size=(256, 256)), splits=("train", "train", "test"), colours=(None, "#0080FF"))
    store = fill_store(StoreWriter(tmp_path / "s.zarr", made), blocks=(4,))
    (state,) = train_heads(store, [(HeadConfig(blocks=(4,), head_type="linear", epochs=1), RunFolder(tmp_path / "r"))])
    assert TrainedHead.load(state.run.path).colours == (None, "#0080FF")


def test_runs_of_earlier_releases_have_no_colours(old_run):
    assert TrainedHead.load(old_run).colours == ()


def test_a_resolution_that_is_passed_replaces_the_runs(old_run):
    assert TrainedHead.load(old_run, mpp=0.7).sampling.mpp == 0.7


def test_a_baseline_is_refused_with_the_heads_there_are():
    with pytest.raises(ValueError, match=r"res-unet takes images.*fcn, scalar-mix, linear"):
        TrainedHead.load(HEADS_V1 / "glas-ramp-res-unet-none-lr0.0001-epochs1-s0")


def test_an_unfinished_run_is_refused():
    with pytest.raises(FileNotFoundError, match=r"unfinished.metrics\.json"):
        TrainedHead.load(HEADS_V1 / "unfinished")


@pytest.fixture
def old_run(tmp_path):
    """A copy of a run of release 0.1.0: a linear head on blocks 4 and 5 with 5 and 3 channels."""
    return Path(shutil.copytree(HEADS_V1 / "glas-ramp-t50-b4-5-linear-lr0.01-epochs2-s1", tmp_path / "old"))


def test_a_run_that_does_not_say_how_its_features_were_made_is_named(old_run):
    config = msgspec.json.decode((old_run / "config.json").read_bytes())
    del config["data"]["features"]
    (old_run / "config.json").write_bytes(msgspec.json.encode(config))
    with pytest.raises(ValueError, match=r"config\.json.*features"):
        TrainedHead.load(old_run)


def test_weights_that_do_not_fit_the_run_are_named(old_run):
    shutil.copy(HEADS_V1 / "glas-ramp-t100-b4-linear-lr0.01-epochs2-s0" / "head.safetensors", old_run)
    with pytest.raises(ValueError, match=r"head\.safetensors.*train it again"):
        TrainedHead.load(old_run)


@pytest.mark.parametrize(
    "name",
    ["glas-ramp-t50-b4-5-linear-lr0.01-epochs2-s1", "glas-ramp-t50-b4,9-pixel-ensemble-lr0.001-epochs1-pixels256-s0"],
)
def test_runs_of_0_1_0_predict_their_test_images_as_they_did(name):
    head, folder = TrainedHead.load(HEADS_V1 / name), RunFolder(HEADS_V1 / name)
    store = FeatureStore.open(HEADS_V1.parent / "glas-ramp.zarr")
    assert (head.classes, head.background, head.ignore) == (("background", "gland"), 0, None)
    assert head.sampling.resized
    for index in (i for i, split in enumerate(store.splits) if split == "testB"):
        maps = store.read(index, t=head.settings.t, blocks=head.settings.blocks)
        features = {Layer(0, head.settings.t, b): torch.from_numpy(values)[None] for b, values in maps.items()}
        codes = head.predict(features, store.contents.grid)[0, :2].argmax(0).numpy()
        np.testing.assert_array_equal(codes, folder.read_prediction(store.ids[index]))


def test_damaged_weights_are_named(old_run):
    weights = old_run / "head.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"head\.safetensors is damaged"):
        TrainedHead.load(old_run)


@pytest.mark.parametrize("damage", ["empty", "missing", "flipped"])
def test_weights_that_changed_since_the_run_finished_are_refused_with_a_way_out(toy_store, tmp_path, damage):
    config = HeadConfig(blocks=(4,), head_type="linear", epochs=1)
    (state,) = train_heads(toy_store, [(config, RunFolder(tmp_path / "run"))])
    run = state.run
    content = bytearray(run.weights.read_bytes())
    content[-3] ^= 0x40
    run.weights.unlink()
    if damage != "missing":
        run.weights.write_bytes(content if damage == "flipped" else b"")
    with pytest.raises(ValueError, match=r"head\.safetensors is .*delete the run folder and train it again"):
        TrainedHead.load(run.path)


def test_it_has_the_rule_that_the_run_chose_for_its_objects_else_that_of_its_settings(toy_store, tmp_path):
    config = HeadConfig(blocks=(4,), head_type="linear", epochs=1)
    (state,) = train_heads(toy_store, [(config, RunFolder(tmp_path / "run"))])
    tuning = state.run.read_metrics().object_tuning
    assert TrainedHead.load(state.run.path).object_rule == tuning.rule
    least = dataclasses.replace(config, min_object_px=70)
    (state,) = train_heads(toy_store, [(least, RunFolder(tmp_path / "least"))])
    assert TrainedHead.load(state.run.path).object_rule == ObjectRule(70)


def test_probabilities_add_up_to_one_and_the_ignored_class_has_none(colour_head):
    head = colour_head(classes=("outside", "tumor", "stroma"), ignore=0)
    found = head.predict({Layer(0, 50, 0): torch.rand(2, 1, 3, 64, 64)}, PatchGrid(1, 1))
    assert found.shape == (2, 3, 256, 256)
    assert (found[:, 0] == 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(2, 256, 256))


@pytest.mark.usefixtures("two_networks")
def test_an_ensemble_adds_its_uncertainty(colour_head):
    torch.manual_seed(0)
    head = colour_head(module=PixelEnsemble({Layer(0, 50, 0): 3}, 2))
    assert head.gives_uncertainty
    features = {Layer(0, 50, 0): torch.rand(2, 1, 3, 64, 64)}
    found = head.predict(features, PatchGrid(1, 1))
    assert found.shape == (2, 3, 256, 256)
    torch.testing.assert_close(found[:, :2].sum(1), torch.ones(2, 256, 256))
    vote = head.module.predict(features, (1, 1))
    torch.testing.assert_close(found[:, 2], vote.uncertainty)
    assert (found[:, :2].argmax(1) == vote.labels).all()  # the vote, not the mean of the probabilities
    assert ((found[:, 0] * 2).round() - found[:, 0] * 2).abs().max() < 1e-5  # halves: two networks
