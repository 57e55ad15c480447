"""Heads that start from the weights of a finished run."""

import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pathseg.store.writer import StoreWriter
from pathseg.train.config import BaselineConfig, HeadConfig, InitialWeights
from pathseg.train.data.joined import JoinedStores, join_stores
from pathseg.train.data.splits import Splits
from pathseg.train.heads.registry import HEADS
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.checkpoint import build_head
from pathseg.train.training.initial_weights import initial_weights, load_initial_weights, require_initial_run
from pathseg.train.training.sweep import expand_heads, train

LINEAR = HeadConfig(blocks=(4,), head_type="linear", lr=1e-2, epochs=2)


@pytest.fixture(scope="module")
def first_run(written_stores, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    shutil.copytree(written_stores / "toy.zarr", folder / "toy.zarr")
    from pathseg.store.features import FeatureStore

    store = FeatureStore.open(folder / "toy.zarr")
    return train(store, [LINEAR], folder, name="first", device="cpu").runs[0]


def started_from(run, config=LINEAR, **changes):
    return dataclasses.replace(config, initial_weights=initial_weights(run.folder.path), **changes)


def test_a_head_goes_on_from_the_weights_of_another_run(toy_store, first_run, tmp_path):
    settings = started_from(first_run, lr=1e-30, epochs=1)  # a rate that changes no weight
    run = train(toy_store, [settings], tmp_path, device="cpu").runs[0]
    before, after = (load_file(one.folder.weights) for one in (first_run, run))
    assert before.keys() == after.keys()
    for name, weights in before.items():
        torch.testing.assert_close(after[name], weights, rtol=0, atol=0)
    assert run.test_scores.scores == first_run.test_scores.scores
    assert FinishedRun.read(run.folder).settings.initial_weights.run == str(first_run.folder.path)


def test_a_run_is_named_after_the_weights_it_started_from(first_run):
    settings = started_from(first_run)
    assert settings.initial_weights.sha256[:8] in settings.run_name("toy")


def test_the_same_weights_in_another_folder_are_the_same_setting(toy_store, first_run, tmp_path):
    shutil.copytree(first_run.folder.path, tmp_path / "moved")
    here, there = (initial_weights(path) for path in (first_run.folder.path, tmp_path / "moved"))
    assert here == there
    settings = dataclasses.replace(LINEAR, epochs=1)
    train(toy_store, [dataclasses.replace(settings, initial_weights=here)], tmp_path, name="run", device="cpu")
    again = train(toy_store, [dataclasses.replace(settings, initial_weights=there)], tmp_path, name="run", device="cpu")
    assert len(again.runs) == 1  # finished: nothing was refused and nothing trained again


@pytest.mark.parametrize("head_type", ["linear", "fcn", "scalar-mix"])
def test_classes_are_matched_by_name_and_new_ones_keep_fresh_weights(
    head_type, one_patch_store, toy_contents, fill_store, tmp_path
):
    settings = HeadConfig(blocks=(4,), head_type=head_type, lr=1e-3, epochs=1)
    run = train(one_patch_store, [settings], tmp_path, device="cpu").runs[0]
    classes = ("gland", "necrosis", "background")  # (background, gland) before
    other = fill_store(StoreWriter(tmp_path / "other.zarr", toy_contents(classes=classes)))
    stores, wanted = JoinedStores.of(other), started_from(run, settings)
    torch.manual_seed(0)
    head = build_head(stores, wanted)
    fresh = {name: values.clone() for name, values in head.state_dict().items()}
    load_initial_weights(head, stores, wanted)
    before, of_classes = load_file(run.folder.weights), 0
    for name, values in head.state_dict().items():
        if values.shape == before[name].shape:
            torch.testing.assert_close(values, before[name], rtol=0, atol=0)
            continue
        of_classes += 1
        axis = next(axis for axis, side in enumerate(values.shape) if side != before[name].shape[axis])
        pick = lambda tensor, index, axis=axis: tensor.select(axis, index)  # noqa: E731
        torch.testing.assert_close(pick(values, 0), pick(before[name], 1), rtol=0, atol=0)
        torch.testing.assert_close(pick(values, 1), pick(fresh[name], 1), rtol=0, atol=0)
        torch.testing.assert_close(pick(values, 2), pick(before[name], 0), rtol=0, atol=0)
    assert of_classes == 2  # weight and bias of the last layer


def test_renamed_order_of_the_same_classes_is_followed(toy_store, toy_contents, fill_store, first_run, tmp_path):
    other = fill_store(StoreWriter(tmp_path / "other.zarr", toy_contents(classes=("gland", "background"))))
    stores, wanted = JoinedStores.of(other), started_from(first_run)
    head = build_head(stores, wanted)
    load_initial_weights(head, stores, wanted)
    before = load_file(first_run.folder.weights)
    torch.testing.assert_close(head.state_dict()["scores.bias"], before["scores.bias"].flip(0), rtol=0, atol=0)


def refusal(store, settings, workspace):
    with pytest.raises(ValueError, match="pass ") as e:
        train(store, [settings], workspace, name="new", device="cpu")
    assert not (workspace / "heads" / "new").exists()  # nothing was begun
    return str(e.value)


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"head_type": "fcn"}, ("linear", "fcn")),
        ({"blocks": (5,)}, ("block 4", "block 5")),
    ],
)
def test_a_run_of_another_kind_is_refused_with_both_values(toy_store, first_run, tmp_path, changes, values):
    message = refusal(toy_store, started_from(first_run, **changes), tmp_path)
    assert all(value in message for value in (*values, first_run.name))


def test_features_of_another_model_are_refused(first_run, written_stores, tmp_path):
    from pathseg.store.features import FeatureStore

    other = FeatureStore.open(written_stores / "other.zarr")
    config = HeadConfig(blocks=(2,), head_type="linear", epochs=1)
    run = train(other, [config], tmp_path, device="cpu").runs[0]
    same_blocks = dataclasses.replace(started_from(run, config), blocks=(2,))
    key = dataclasses.replace(other.contents.key, model_digest="ef" * 32)
    contents = dataclasses.replace(other.contents, key=key)
    shutil.copytree(written_stores / "other.zarr", tmp_path / "changed.zarr")
    StoreWriter(tmp_path / "third.zarr", contents).add_arrays([50], [2])
    third = FeatureStore.open(tmp_path / "third.zarr")
    with pytest.raises(ValueError, match=r"model_digest cd.*ef"):
        require_initial_run(JoinedStores.of(third), same_blocks, Splits((), (), {}))


def test_a_run_that_was_trained_on_what_is_to_test_now_is_refused(first_run, toy_contents, fill_store, tmp_path):
    made = toy_contents()
    images = tuple(
        dataclasses.replace(image, split="test" if image.id == "train_0" else image.split) for image in made.images
    )
    other = fill_store(StoreWriter(tmp_path / "other.zarr", dataclasses.replace(made, images=images)))
    message = refusal(other, started_from(first_run), tmp_path)
    assert "train_0" in message and "splits.csv" in message


def test_a_run_on_two_joined_stores_is_no_start_for_a_head_on_one(toy_store, other_model_store, tmp_path):
    joined = JoinedStores.of(toy_store)
    both = expand_heads(join_stores({"A": toy_store, "B": other_model_store}), blocks={"A": (4,), "B": (2,)},
                        head_type="linear", epochs=1)  # fmt: skip
    run = train(join_stores({"A": toy_store, "B": other_model_store}), both, tmp_path, device="cpu").runs[0]
    single = HeadConfig(blocks=(4, 5), head_type="linear", initial_weights=initial_weights(run.folder.path))
    with pytest.raises(ValueError, match="number of stores 2, but 1"):
        require_initial_run(joined, single, Splits((), (), {}))


def test_weights_that_changed_since_are_refused(toy_store, first_run, tmp_path):
    named = InitialWeights("00" * 32, str(first_run.folder.path))
    assert "head.safetensors" in refusal(toy_store, dataclasses.replace(LINEAR, initial_weights=named), tmp_path)


def test_a_run_without_any_of_the_classes_is_refused(first_run, toy_contents, fill_store, tmp_path):
    other = fill_store(StoreWriter(tmp_path / "other.zarr", toy_contents(classes=("stroma", "tumour"))))
    assert "stroma, tumour" in refusal(other, started_from(first_run), tmp_path)


def test_a_pixel_ensemble_and_a_baseline_do_not_start_from_a_run(first_run):
    with pytest.raises(ValueError, match="initial_weights does not apply to head pixel-ensemble"):
        started_from(first_run, HeadConfig(head_type="pixel-ensemble"))
    assert "initial_weights" not in BaselineConfig.__dataclass_fields__


def test_every_head_that_can_start_from_a_run_has_an_axis_of_classes(toy_store):
    from pathseg.train.training.initial_weights import _class_axes

    stores = JoinedStores.of(toy_store)
    for head_type in HEADS.keys() - {"pixel-ensemble"}:
        axes = _class_axes(stores, HeadConfig(blocks=(4,), head_type=head_type))
        assert len(axes) == 2, head_type


def test_an_unfinished_run_is_no_start(tmp_path):
    RunFolder(tmp_path / "none").path.mkdir()
    with pytest.raises(FileNotFoundError, match="none"):
        initial_weights(tmp_path / "none")
