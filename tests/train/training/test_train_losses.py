"""The loss of each training image in the kept epoch, as metrics.json records it."""

import dataclasses

import numpy as np
import pytest

from pathseg.train.config import HeadConfig
from pathseg.train.training.sweep import train

CONFIG = HeadConfig(blocks=(4,), head_type="linear", lr=1e-2, epochs=3, val_fraction=0.3)


def losses_of(run):
    return {one.id: one.loss for one in run.metrics.train_losses}


@pytest.mark.parametrize(("batch_size", "changes"), [(1, {}), (3, {}), (3, {"class_weights": "balanced"})])
def test_each_training_image_has_its_loss_in_the_kept_epoch(toy_store, tmp_path, batch_size, changes):
    (run,) = train(toy_store, [dataclasses.replace(CONFIG, batch_size=batch_size, **changes)], tmp_path).runs
    assert set(losses_of(run)) == set(run.data.images["train"])
    kept = run.history[run.metrics.best_epoch - 1]
    if batch_size == 1:  # the mean of the steps is that of the images
        assert np.mean(list(losses_of(run).values())) == pytest.approx(kept.train_loss, rel=1e-6)


def test_in_a_batch_each_image_has_the_loss_that_it_has_alone(toy_store, tmp_path):
    still = dataclasses.replace(CONFIG, lr=1e-30, epochs=1)  # a rate that changes no weight
    (alone,) = train(toy_store, [still], tmp_path / "alone").runs
    (together,) = train(toy_store, [dataclasses.replace(still, batch_size=3)], tmp_path / "together").runs
    assert len(losses_of(alone)) == 3 and losses_of(together) == pytest.approx(losses_of(alone), rel=1e-5)


def test_an_interrupted_run_has_the_same_losses(toy_store, tmp_path):
    (whole,) = train(toy_store, [CONFIG], tmp_path / "whole").runs

    def stop(run, epoch):
        if epoch.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(toy_store, [CONFIG], tmp_path / "cut", on_epoch=stop)  # after the last epoch: none is trained again
    (resumed,) = train(toy_store, [CONFIG], tmp_path / "cut").runs
    assert resumed.metrics.train_losses == whole.metrics.train_losses != ()


def test_a_pixel_ensemble_records_none(toy_store, tmp_path):
    config = HeadConfig(blocks=(4,), head_type="pixel-ensemble", epochs=1)
    assert train(toy_store, [config], tmp_path).runs[0].metrics.train_losses == ()
