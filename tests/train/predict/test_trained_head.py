import json

import numpy as np
import pytest
import torch

from pathseg.store.grid import PatchGrid
from pathseg.train.config import HeadConfig
from pathseg.train.heads.pixel_ensemble import PixelEnsemble
from pathseg.train.predict.trained_head import TrainedHead
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.loop import train_heads


@pytest.fixture
def run(toy_store, tmp_path):
    (trainee,) = train_heads(toy_store, [(HeadConfig(blocks=(4, 9), lr=1e-3, epochs=2), RunFolder(tmp_path / "run"))])
    return trainee.run


def test_it_answers_as_the_run_did_on_its_test_images(run, toy_store):
    head, index = TrainedHead.load(run.path), toy_store.splits.index("test")
    features = {b: torch.from_numpy(m)[None] for b, m in toy_store.read(index, blocks=(4, 9)).items()}
    codes = head.judge(features, toy_store.contents.grid)[0].argmax(0).numpy()
    np.testing.assert_array_equal(codes, run.read_prediction(toy_store.ids[index]))


def test_it_knows_the_key_and_the_sampling_of_its_store(run, toy_store):
    head = TrainedHead.load(run.path)
    assert head.key == toy_store.contents.key
    assert (head.sampling.size, head.sampling.mpp) == ((256, 512), 0.5)


def test_a_resolution_that_is_passed_replaces_the_runs(run):
    assert TrainedHead.load(run.path, mpp=0.7).sampling.mpp == 0.7


def test_a_run_that_does_not_say_how_its_features_were_made_is_named(run):
    config = run.read_config()
    del config["data"]["features"]
    run.write_config(config)
    with pytest.raises(ValueError, match=r"config\.json does not say how its features were made.*train the run again"):
        TrainedHead.load(run.path)


def test_a_head_that_takes_no_features_is_refused(run):
    config = run.read_config()
    config["head"]["head"] = "res-unet"
    run.write_config(config)
    with pytest.raises(ValueError, match="'res-unet' is no head on features; predict takes fcn, linear"):
        TrainedHead.load(run.path)


def test_weights_of_another_run_are_named(run):
    config = run.read_config()
    config["data"]["classes"].append("third")
    (run.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="damaged"):
        TrainedHead.load(run.path)


def test_damaged_weights_are_named(run):
    run.weights.write_bytes(run.weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"head\.safetensors is damaged"):
        TrainedHead.load(run.path)


def test_probabilities_add_up_to_one_and_the_ignored_class_has_none(colour_head):
    head = colour_head(classes=("outside", "tumor", "stroma"), ignore=0)
    found = head.judge({0: torch.rand(2, 1, 3, 64, 64)}, PatchGrid(1, 1))
    assert found.shape == (2, 3, 256, 256)
    assert (found[:, 0] == 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(2, 256, 256))


def test_an_ensemble_adds_its_uncertainty(colour_head):
    torch.manual_seed(0)
    head = colour_head(head=PixelEnsemble({0: 3}, 2))
    assert head.gives_uncertainty
    features = {0: torch.rand(2, 1, 3, 64, 64)}
    found = head.judge(features, PatchGrid(1, 1))
    assert found.shape == (2, 3, 256, 256)
    torch.testing.assert_close(found[:, :2].sum(1), torch.ones(2, 256, 256))
    answer = head.head.predict(features, (1, 1))
    torch.testing.assert_close(found[:, 2], answer.uncertainty)
    assert (found[:, :2].argmax(1) == answer.labels).all()  # the vote, not the mean of the probabilities
    assert ((found[:, 0] * 10).round() - found[:, 0] * 10).abs().max() < 1e-5  # tenths: ten networks
