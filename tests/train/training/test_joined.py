"""Heads on joined stores: trained, named, resumed and read back as heads on one store."""

import dataclasses

import pytest
import torch

from pathseg.store.features import FeatureStore
from pathseg.store.writer import StoreWriter
from pathseg.train.config import HeadConfig, Layer
from pathseg.train.data.joined import join_stores
from pathseg.train.heads.fcn import FCNHead
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.loop import train_heads
from pathseg.train.training.sweep import expand_heads, run_folders, train

SETTINGS = {"head_type": "linear", "lr": (1e-2,), "epochs": 3}


@pytest.fixture
def stores(toy_store, other_model_store):
    return {"A": toy_store, "B": other_model_store}


def configs_of(joined, **changes):
    return expand_heads(joined, **({"blocks": {"A": (4, 9), "B": "last"}} | SETTINGS | changes))


@pytest.mark.parametrize("head", ["linear", pytest.param("fcn", marks=pytest.mark.slow)])
def test_the_order_of_stores_changes_neither_name_nor_bytes(stores, tmp_path, head):
    found = []
    for number, names in enumerate((["A", "B"], ["B", "A"])):
        joined = join_stores({name: stores[name] for name in names})
        (run,) = train(joined, configs_of(joined, head_type=head, epochs=1), tmp_path / str(number), device="cpu").runs
        found.append((run.name, run.folder.weights.read_bytes(), run.config, run.metrics.splits))
    assert found[0] == found[1]


def test_a_run_names_its_stores_and_reads_back(stores, tmp_path):
    joined = join_stores(stores)
    (run,) = train(joined, configs_of(joined), tmp_path, device="cpu").runs
    first = joined.names.index("A")
    names, blocks = ("toy+other", "4,9+7") if first == 0 else ("other+toy", "7+4,9")
    assert run.name == f"{names}-t50-b{blocks}-linear-lr0.01-epochs3-s0"
    assert [source.key.model for source in run.data.sources] == [s.contents.key.model for s in joined.stores]
    assert run.data.sources[first].channels == {4: 6, 9: 3}
    assert train(joined, configs_of(joined), tmp_path, device="cpu").runs[0].metrics == run.metrics  # not trained again


def test_a_finished_run_on_one_of_the_stores_is_not_taken_for_the_joined_one(stores, tmp_path):
    joined = join_stores(stores)
    train(joined, configs_of(joined), tmp_path, name="run", device="cpu")
    single = expand_heads(stores["A"], blocks=(4, 9), **SETTINGS)
    with pytest.raises(ValueError, match=r"holds a finished run of other settings: .*blocks is"):
        train(stores["A"], single, tmp_path, name="run", device="cpu")


def test_a_cut_off_run_ends_as_if_it_had_not_been(stores, tmp_path):
    def cut(run, epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    joined = join_stores(stores)
    (config,) = configs_of(joined, augment="flips")
    whole, again = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "again")
    train_heads(joined, [(config, whole)])
    with pytest.raises(KeyboardInterrupt):
        train_heads(joined, [(config, again)], on_epoch=cut)
    train_heads(joined, [(config, again)])
    assert whole.weights.read_bytes() == again.weights.read_bytes()
    assert whole.read_metrics().splits == again.read_metrics().splits


@pytest.mark.usefixtures("two_networks")
def test_a_pixel_ensemble_reads_joined_stores(stores, tmp_path):
    joined = join_stores(stores)
    configs = configs_of(
        joined, head_type="pixel-ensemble", lr=(None,), epochs=1, pixels=200, blocks={"A": (4,), "B": (2,)}
    )
    (run,) = train(joined, configs, tmp_path, device="cpu").runs
    assert run.metrics.splits["test"].per_image[0].uncertainty is not None


def test_images_that_one_store_lacks_are_left_out_of_all(stores, tmp_path):
    next((stores["B"].location.root / "_done/t50").rglob("000001.json")).unlink()
    joined = join_stores({"A": stores["A"], "B": FeatureStore.open(stores["B"].location.root)})
    with pytest.raises(Exception, match=r"other\.zarr lacks features of 1 of 5 images \(train_1\)"):
        train(joined, configs_of(joined), tmp_path, device="cpu")
    (run,) = train(joined, configs_of(joined), tmp_path, device="cpu", complete_only=True).runs
    assert "train_1" not in [*run.data.images["train"], *run.data.images["val"]]


@pytest.fixture
def two_timesteps(tmp_path, toy_contents, fill_store):
    writer = StoreWriter(tmp_path / "two.zarr", toy_contents())
    fill_store(writer, blocks=(4,))
    return fill_store(writer, t=200, blocks=(4,))


def test_one_store_under_two_names_gives_two_timesteps_in_either_order(two_timesteps, tmp_path):
    found = []
    for number, t in enumerate(({"x": (50,), "y": (200,)}, {"x": (200,), "y": (50,)})):
        joined = join_stores({"x": two_timesteps, "y": FeatureStore.open(two_timesteps.location.root)})
        configs = expand_heads(joined, t=t, blocks=(4,), **SETTINGS)
        (run,) = train(joined, configs, tmp_path / str(number), device="cpu").runs
        found.append((run.name, run.settings.layers, run.folder.weights.read_bytes()))
    assert found[0] == found[1]
    assert found[0][0] == "two+two-t50+200-b4-linear-lr0.01-epochs3-s0"
    assert found[0][1] == ((0, 50, 4), (1, 200, 4))


def test_a_layer_that_would_be_read_twice_is_refused(two_timesteps):
    joined = join_stores({"x": two_timesteps, "y": two_timesteps})
    with pytest.raises(ValueError, match=r"stores x and y are the same, .*two\.zarr, and both give block 4 at t 50"):
        expand_heads(joined, blocks=(4,))


def test_values_of_each_store_give_every_combination(stores):
    joined = join_stores(stores)
    configs = expand_heads(joined, blocks={"A": "each", "B": "last"}, head_type="linear")
    expected = [{("A", block), ("B", 7)} for block in (0, 4, 5, 9)]
    assert [{(joined.names[source], block) for source, _, block in config.layers} for config in configs] == expected
    with pytest.raises(ValueError, match="--blocks each is for one store; name it, as in --blocks"):
        expand_heads(joined, blocks="each")


def test_stores_and_settings_must_be_as_many():
    with pytest.raises(ValueError, match=r"t and blocks must be of the same stores, got t 50 and blocks"):
        HeadConfig(t=50, blocks=((4,), (5,)))
    with pytest.raises(ValueError, match=r"t and blocks must be of the same stores, got t \(50, 200\) and blocks"):
        HeadConfig(t=(50, 200), blocks=((4,), (5,), (6,)))
    with pytest.raises(ValueError, match="name at least one block"):
        HeadConfig(t=(50, 200), blocks=((4,), ()))


A = {Layer(0, 50, 0): (5, 8), Layer(0, 50, 4): (6, 16), Layer(0, 50, 9): (3, 64)}
B = {Layer(1, 200, 5): (4, 18), Layer(1, 200, 11): (2, 32)}


def maps_of(shapes, grid):
    generator = torch.Generator().manual_seed(0)
    return {
        layer: torch.randn((1, grid[0] * grid[1], c, side, side), generator=generator, dtype=torch.float64)
        for layer, (c, side) in shapes.items()
    }


def test_without_the_weights_of_the_second_store_a_head_is_that_on_the_first():
    torch.manual_seed(0)
    both = FCNHead({layer: c for layer, (c, _) in (A | B).items()}, 2).double().eval()
    alone = FCNHead({layer: c for layer, (c, _) in A.items()}, 2).double().eval()
    channels_of_a = sum(c for c, _ in A.values())
    with torch.no_grad():
        both.first.weight[:, channels_of_a:] = 0
        alone.first.weight.copy_(both.first.weight[:, :channels_of_a])
        alone.first.bias.copy_(both.first.bias)
        alone.tail.load_state_dict(both.tail.state_dict())
        maps = maps_of(A | B, (1, 1))
        expected = alone({layer: maps[layer] for layer in A}, (1, 1))
        torch.testing.assert_close(both(maps, (1, 1)), expected, rtol=1e-12, atol=1e-12)


def test_layers_of_any_sides_give_the_scores_of_the_plain_head(monkeypatch):
    monkeypatch.setattr("pathseg.train.heads.native_conv.taps_are_cheaper", lambda side, channels, outputs: side < 64)
    torch.manual_seed(0)
    head = FCNHead({layer: c for layer, (c, _) in (A | B).items()}, 2).double()
    maps = maps_of(A | B, (2, 1))
    with torch.no_grad():
        torch.testing.assert_close(head(maps, (2, 1)), head.plain_forward(maps, (2, 1)), rtol=1e-10, atol=1e-10)


def test_the_configuration_of_joined_stores_is_read_back(stores, tmp_path):
    joined = join_stores(stores)
    (config,) = configs_of(joined)
    ((_, folder),) = run_folders(joined, [config], tmp_path)
    train_heads(joined, [(dataclasses.replace(config, epochs=1), folder)])
    run = FinishedRun.read(folder)
    assert run.settings == dataclasses.replace(config, epochs=1)
    assert run.data.digest == joined.digest
