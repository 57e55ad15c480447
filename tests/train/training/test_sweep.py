import dataclasses
import shutil
import weakref
from pathlib import Path

import msgspec
import pytest
import torch

from pathseg.store.contents import UNLISTED, ImageEntry
from pathseg.store.errors import Incomplete
from pathseg.store.features import FeatureStore
from pathseg.store.growth import grow
from pathseg.store.writer import StoreWriter
from pathseg.train.config import BaselineConfig, HeadConfig, Layer
from pathseg.train.data import memory
from pathseg.train.data.reader import FeatureReader
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder, list_runs
from pathseg.train.training import sweep
from pathseg.train.training.sweep import (
    describe_kept,
    describe_plan,
    expand_baselines,
    expand_heads,
    head_bytes,
    passes,
    plan_sweep,
    run_folders,
    summary,
    train,
    train_plan,
)

CPU = torch.device("cpu")
QUICK = HeadConfig(blocks=(4,), head_type="linear", lr=1e-2, epochs=1)


def plan_of(store, configs, folders, **more):
    return plan_sweep(store, list(zip(configs, map(RunFolder, folders), strict=True)), **more)


def train_into(store, configs, folders, *, on_epoch=lambda run, epoch: None, **more):
    """Train on the CPU; what was given up."""
    return train_plan(plan_of(store, configs, folders, **more), device="cpu", on_epoch=on_epoch).failures


def line_of(store, configs, folders, **more):
    return describe_plan(plan_of(store, configs, folders), device="cpu", **more)


def test_lists_give_every_combination(toy_store):
    configs = expand_heads(toy_store, lr=(1e-3, 1e-4), seed=(0, 1, 2), blocks=(4, 9))
    assert {(c.lr, c.seed, c.blocks) for c in configs} == {(lr, s, (4, 9)) for lr in (1e-3, 1e-4) for s in range(3)}


def test_each_means_every_stored_block_alone(toy_store):
    assert [c.blocks for c in expand_heads(toy_store, blocks="each")] == [(0,), (4,), (5,), (9,)]


def test_all_means_all_that_is_stored(toy_store):
    assert [c.blocks for c in expand_heads(toy_store)] == [(0, 4, 5, 9)]


@pytest.mark.parametrize("blocks", ["each", HeadConfig().blocks])
def test_a_timestep_that_the_store_lacks_is_named(toy_store, blocks):
    with pytest.raises(Incomplete, match="no features at t 60, only at t 50; run pathseg extract --t 60"):
        expand_heads(toy_store, t=(50, 60), blocks=blocks)


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def of_an_undisturbed_run(metrics):
    """The metrics without the fields that an interruption may change."""
    return msgspec.structs.replace(metrics, seconds=0, bytes_read=None, heads_from_one_read=None)


@pytest.mark.usefixtures("two_networks")
@pytest.mark.parametrize(
    "settings",
    [{"head_type": "linear", "epochs": 2}, {"head_type": "pixel-ensemble", "pixels": 200, "epochs": 1}],
    ids=lambda settings: settings["head_type"],
)
@pytest.mark.soak
def test_after_a_kill_in_the_last_moments_a_rerun_leaves_what_an_undisturbed_run_leaves(
    one_patch_store, tmp_path, monkeypatch, settings
):
    config, write = HeadConfig(blocks=(4,), **settings), RunFolder.write_metrics

    def before_metrics(run, metrics):
        (run.path / "metrics.json.partial").write_bytes(b"half")
        raise KeyboardInterrupt

    def after_metrics(run, metrics):
        write(run, metrics)
        before_metrics(run, metrics)

    train_into(one_patch_store, [config], [tmp_path / "whole"])
    whole = files_of(tmp_path / "whole")
    for killed in (before_metrics, after_metrics):
        folder = tmp_path / killed.__name__
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(RunFolder, "write_metrics", killed)
            train_into(one_patch_store, [config], [folder])
        train_into(one_patch_store, [config], [folder])
        rerun = files_of(folder)
        assert whole.keys() == rerun.keys()
        for name in whole.keys() - {Path("metrics.json"), Path("history.jsonl"), Path("checksums.json")}:
            assert whole[name] == rerun[name], (killed, name)
        found, expected = (RunFolder(path).read_metrics() for path in (folder, tmp_path / "whole"))
        assert of_an_undisturbed_run(found) == of_an_undisturbed_run(expected)


def test_a_finished_run_whose_weights_are_damaged_is_trained_again(toy_store, tmp_path):
    run = RunFolder(tmp_path / "run")
    train_into(toy_store, [QUICK], [run.path])
    content = run.weights.read_bytes()
    for damaged in (b"", content[:-1] + bytes([content[-1] ^ 1])):
        run.weights.write_bytes(damaged)
        train_into(toy_store, [QUICK], [run.path])
        assert run.weights.read_bytes() == content


def test_finished_runs_of_0_1_0_without_checksums_stay_finished():
    for run in list_runs(Path(__file__).parents[2] / "fixtures" / "workspace-v1"):
        if run.finished:
            assert run.has_intact_weights(run.read_metrics())


def test_a_run_name_too_long_for_its_files_is_refused_before_training(toy_store, tmp_path):
    with pytest.raises(ValueError, match=r"takes 240 bytes, but at most 200.*shorter --name"):
        run_folders(toy_store, [QUICK], tmp_path, name="y" * 240)


def test_more_heads_than_open_files_are_trained_in_passes(toy_store, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "max_open_files", lambda: 6)
    runs = run_folders(toy_store, expand_heads(toy_store, blocks=(4,), head_type="linear", seed=range(8)), tmp_path)
    assert [len(group) for group in passes(toy_store, runs, device=CPU)] == [3, 3, 2]


def test_two_runs_never_get_one_folder(toy_store, tmp_path):
    configs = expand_heads(toy_store, lr=(1e-4, 1.00000001e-4), blocks=(4,))
    with pytest.raises(ValueError, match="two of the runs would be named"):
        run_folders(toy_store, configs, tmp_path)


def test_the_epochs_of_an_interrupted_run_are_counted_as_done(toy_store, tmp_path):
    def cut(run, epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    config = dataclasses.replace(QUICK, epochs=5)
    folders = [tmp_path / "run"]
    before = plan_of(toy_store, [config], folders)
    assert (before.epochs_done, before.epochs) == (0, 5)
    with pytest.raises(KeyboardInterrupt):
        train_into(toy_store, [config], folders, on_epoch=cut)
    after = plan_of(toy_store, [config], folders)
    assert (after.epochs_done, after.epochs) == (2, 5)


def test_a_pass_begins_when_the_heads_of_the_last_one_are_gone(toy_store, tmp_path, monkeypatch):
    heads, real = [], sweep.train_heads

    def spy(*arguments, **options):
        alive.append(sum(head() is not None for head in heads))
        trained = real(*arguments, **options)
        heads.extend(weakref.ref(state.head) for state in trained)
        return trained

    alive: list[int] = []
    monkeypatch.setattr(sweep, "train_heads", spy)
    monkeypatch.setattr(sweep, "passes", lambda store, runs, **more: [[run] for run in runs])
    configs = [dataclasses.replace(QUICK, seed=seed) for seed in range(3)]
    train_into(toy_store, configs, [tmp_path / str(seed) for seed in range(3)])
    assert alive == [0, 0, 0]


def test_a_name_is_for_one_run(toy_store, tmp_path):
    configs = expand_heads(toy_store, seed=(0, 1))
    with pytest.raises(ValueError, match="--name mine names one run, but the settings give 2"):
        run_folders(toy_store, configs, tmp_path, name="mine")
    ((_, run),) = run_folders(toy_store, configs[:1], tmp_path, name="mine")
    assert run.path == tmp_path / "mine"


def test_stores_of_the_same_data_and_model_have_runs_of_their_own(tmp_path, toy_contents):
    stores = [StoreWriter(tmp_path / name, toy_contents()).store for name in ("glas-mini.zarr", "glas-mini-grid.zarr")]
    names = [run.name for store in stores for _, run in run_folders(store, [QUICK], tmp_path)]
    assert names == ["glas-mini-t50-b4-linear-lr0.01-epochs1-s0", "glas-mini-grid-t50-b4-linear-lr0.01-epochs1-s0"]


def test_a_run_on_a_store_in_s3_is_named_after_the_end_of_its_prefix(toy_store, tmp_path, monkeypatch):
    monkeypatch.setattr(toy_store, "location", "s3://bucket/glas-mini.zarr")
    ((_, run),) = run_folders(toy_store, [QUICK], tmp_path)
    assert run.name.startswith("glas-mini-t50-")


def test_heads_too_large_for_memory_take_several_passes(toy_store, monkeypatch):
    configs = [HeadConfig(blocks=(4,), seed=seed) for seed in range(5)]
    one = head_bytes(toy_store, configs[0])
    # first layer 6*256*9+256, the tail's 660k and so on: parameters of a head of six channels and two classes by hand
    parameters = 6 * 256 * 9 + 256 + 512 + 256 * 128 * 16 + 128 + 256 + 128 * 64 * 16 + 64 + 128 + 64 * 2 * 9 + 2
    assert one == parameters * 4 * 4
    monkeypatch.setattr(sweep, "free_memory", lambda device: one * 2 * 4 + 4)  # a quarter of it holds two
    assert [len(group) for group in passes(toy_store, [(config, None) for config in configs], device=CPU)] == [2, 2, 1]


def test_the_pixels_that_an_ensemble_learns_from_count_as_its_memory(toy_store):
    config = HeadConfig(blocks=(4,), head_type="pixel-ensemble")
    # ten networks of 6 -> 128 -> 32 -> 2 with two batch normalisations; 512 batches of 64 pixels, one draw, float16
    parameters = 10 * (6 * 128 + 128 + 256 + 128 * 32 + 32 + 64 + 32 * 2 + 2)
    assert head_bytes(toy_store, config) == parameters * 4 * 4 + (512 * 64 + 1024) * 6 * 2


def test_a_finished_run_is_not_trained_again(toy_store, tmp_path):
    train_into(toy_store, [QUICK], [tmp_path / "run"])
    written = (tmp_path / "run" / "head.safetensors").stat().st_mtime_ns
    assert train_into(toy_store, [QUICK], [tmp_path / "run"]) == {}
    assert (tmp_path / "run" / "head.safetensors").stat().st_mtime_ns == written


def test_a_finished_run_of_other_settings_is_not_overwritten(toy_store, tmp_path):
    train_into(toy_store, [QUICK], [tmp_path / "run"])
    other = dataclasses.replace(QUICK, lr=1e-3)
    with pytest.raises(ValueError, match=r"lr is 0.01, not 0.001; pass --name or another --workspace"):
        train_into(toy_store, [other], [tmp_path / "run"])


@pytest.mark.parametrize(
    ("change", "words"), [("masks", "masks or sources are others"), ("images", "1 images were added, 2 are no longer")]
)
def test_a_finished_run_on_other_data_is_not_taken_for_this_one(tmp_path, toy_contents, fill_store, change, words):
    first = fill_store(StoreWriter(tmp_path / "a.zarr", toy_contents()))
    splits = toy_contents().images if change == "masks" else toy_contents().images[1:]
    other = fill_store(StoreWriter(tmp_path / "b.zarr", toy_contents(splits=[i.split for i in splits])), seed=1)
    assert first.contents.key == other.contents.key
    train_into(first, [QUICK], [tmp_path / "run"])
    with pytest.raises(ValueError, match=rf"run holds a finished run of other data .*b\.zarr.*{words}.*pass --name"):
        train_into(other, [QUICK], [tmp_path / "run"])


def test_a_run_of_a_store_that_has_grown_since_stays_and_says_what_has_changed(
    toy_store, tmp_path, toy_contents, fill_store
):
    train_into(toy_store, [QUICK], [tmp_path / "run"])
    weights = (tmp_path / "run" / "head.safetensors").read_bytes()
    old, later = toy_store.contents.images, toy_contents(splits=["train"] * 7).images[5:]
    added = (*old, *(dataclasses.replace(image, height=old[0].height) for image in later))
    unlisted = dataclasses.replace(added[0], split=UNLISTED)
    grow(toy_store, dataclasses.replace(toy_store.contents, images=(unlisted, *added[1:])), {})
    store = FeatureStore.open(toy_store.location)
    assert store.unfinished(t=50, blocks=(4,)) == (5, 6)
    store = fill_store(StoreWriter(toy_store.location, store.contents))
    with pytest.raises(ValueError, match=r"run holds a finished run of other data .*\(2 images were added, 1 are no l"):
        train_into(store, [QUICK], [tmp_path / "run"])
    assert (tmp_path / "run" / "head.safetensors").read_bytes() == weights
    assert train_into(store, [QUICK], [tmp_path / "other"]) == {}
    images = RunFolder(tmp_path / "other").read_config().data.images
    assert {id_ for ids in images.values() for id_ in ids} == {image.id for image in added[1:]}


def test_an_unfinished_run_on_other_data_is_not_taken_up(toy_store, tmp_path, toy_contents, fill_store):
    def cut(run, epoch):
        raise KeyboardInterrupt

    other = fill_store(StoreWriter(tmp_path / "b.zarr", toy_contents()), seed=1)
    with pytest.raises(KeyboardInterrupt):
        train_into(toy_store, [QUICK], [tmp_path / "run"], on_epoch=cut)
    with pytest.raises(ValueError, match="begun on other data"):
        train_into(other, [QUICK], [tmp_path / "run"])


@pytest.fixture
def old_workspace(tmp_path):
    """A copy of a workspace that release 0.1.0 wrote, with one unfinished run."""
    return shutil.copytree(Path(__file__).parents[2] / "fixtures/workspace-v1", tmp_path / "work")


def test_finished_runs_of_0_1_0_are_not_trained_again(old_workspace):
    runs = [run for run in list_runs(old_workspace) if run.finished]
    for run in runs:
        settings = run.read_config().settings
        store = FeatureStore.open(old_workspace / f"{run.name.split('-')[0]}-ramp.zarr")
        assert plan_of(store, [settings], [run.path]).unfinished == ()
        if "epochs" in run.name or settings.network == "fcn":
            assert [named.path for _, named in run_folders(store, [settings], old_workspace / "heads")] == [run.path]
    assert len(runs) == 10


def test_an_unfinished_run_of_0_1_0_resumes_after_its_last_epoch(old_workspace):
    run, store = RunFolder(old_workspace / "heads/unfinished"), FeatureStore.open(old_workspace / "glas-ramp.zarr")
    config, trained = run.read_config(), []
    before = run.read_history()
    train_into(store, [config.settings], [run.path], on_epoch=lambda run, epoch: trained.append(epoch.epoch))
    assert trained == [2, 3]
    assert run.finished and run.read_history()[:1] == before
    train_into(store, [config.settings], [old_workspace / "heads/whole"])
    whole = RunFolder(old_workspace / "heads/whole")
    losses = [[epoch.val_loss for epoch in one.read_history()] for one in (run, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_failed_head_is_named(toy_store, tmp_path):
    wild = dataclasses.replace(QUICK, lr=1e37, epochs=5)
    failures = train_into(toy_store, [wild, QUICK], [tmp_path / "wild", tmp_path / "tame"])
    assert list(failures) == ["wild"]
    assert "diverged" in failures["wild"]
    assert RunFolder(tmp_path / "tame").finished


def test_the_summary_gives_scores_beside_the_constant_prediction(toy_store, tmp_path):
    train_into(toy_store, [QUICK], [tmp_path / "run"])
    text = summary([FinishedRun.read(RunFolder(tmp_path / "run"))])
    scores = RunFolder(tmp_path / "run").read_metrics().splits["test"]
    assert f"dice {scores.scores.dice:.3f}" in text
    assert f"always {scores.constant.class_name}" in text


def test_the_summary_and_the_record_count_patients_that_were_trained_on(tmp_path, toy_contents, fill_store):
    sources = (("train", "1"), ("train", "2"), ("val", "3"), ("test", "1"))
    images = tuple(ImageEntry(str(n), split, 256, 256, source) for n, (split, source) in enumerate(sources))
    store = fill_store(StoreWriter(tmp_path / "a.zarr", toy_contents(images=images)))
    train_into(store, [dataclasses.replace(QUICK, epochs=1)], [tmp_path / "run"])
    run = FinishedRun.read(RunFolder(tmp_path / "run"))
    assert run.data.shared_sources == {"test": 1}
    assert "test: 1 patient or slide is in the training or validation images too" in summary([run])


def test_the_summary_warns_where_the_best_epoch_is_the_last(toy_store, tmp_path):
    train_into(toy_store, [dataclasses.replace(QUICK, epochs=1)], [tmp_path / "run"])
    assert "best epoch 1 of 1\n  the best epoch is the last one" in summary(
        [FinishedRun.read(RunFolder(tmp_path / "run"))]
    )


def test_a_run_that_others_have_finished_meanwhile_is_not_trained_again(toy_store, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "free_memory", lambda device: 0)  # a pass for each head
    configs, folders = [QUICK, dataclasses.replace(QUICK, seed=1)], [tmp_path / "first", tmp_path / "second"]
    trained = []

    def meanwhile(run, epoch):
        trained.append(run.name)
        train_into(toy_store, configs[1:], folders[1:])

    assert train_into(toy_store, configs, folders, on_epoch=meanwhile) == {}
    assert trained == ["first"]


def test_a_run_that_did_without_an_image_is_not_taken_for_one_on_all(toy_store, tmp_path):
    record = next((tmp_path / "toy.zarr/_done/t50").rglob("000001.json"))
    kept, folders = record.read_bytes(), [tmp_path / "run"]
    record.unlink()
    lacking = FeatureStore.open(tmp_path / "toy.zarr")
    train_into(lacking, [QUICK], folders, complete_only=True)
    assert train_into(lacking, [QUICK], folders, complete_only=True) == {}
    record.write_bytes(kept)
    with pytest.raises(ValueError, match="images is 4, not 5"):
        train_into(FeatureStore.open(tmp_path / "toy.zarr"), [QUICK], folders)


# of one image: blocks 4 and 9 of 2 patches in float16, 6 x 16 x 16 and 3 x 64 x 64, and its mask of 256 x 512 bytes
ONE = 2 * 2 * (6 * 16 * 16 + 3 * 64 * 64) + 256 * 512


@pytest.mark.parametrize(
    ("memory_bytes", "kept"),
    [
        (5 * ONE, "features of 5 of 5 images (932 kB) stay in memory"),
        (2 * ONE + 9, "features of 2 of 5 images (373 kB) stay in memory, "
         "of 3 of 5 images (559 kB) are read anew each epoch (--memory caps this)"),
        (0, "features of 5 of 5 images (932 kB) are read anew each epoch (--memory caps this)"),
    ],
)  # fmt: skip
def test_the_plan_says_how_much_is_kept_in_memory(toy_store, tmp_path, memory_bytes, kept):
    config = dataclasses.replace(QUICK, blocks=(4, 9))
    line = line_of(toy_store, [config], [tmp_path / "run"], memory_bytes=memory_bytes)
    assert line == f"1 linear in 1 pass over the store, 5 of 5 images complete; {kept}"
    reader = FeatureReader(toy_store, [Layer(0, 50, 4), Layer(0, 50, 9)], device=CPU, memory_bytes=memory_bytes)
    list(reader.batches(range(5), 1))
    assert reader.kept == memory_bytes // ONE


def test_gpu_memory_and_machine_memory_are_named_apart(toy_store, monkeypatch):
    free = {"cuda": 4 * ONE, "cpu": 2 * ONE}  # half of each may be filled
    monkeypatch.setattr(memory, "free_memory", lambda device: free[device.type])
    config = dataclasses.replace(QUICK, blocks=(4, 9))
    line = describe_kept(toy_store, [config], 5, device=torch.device("cuda"), memory_bytes=None)
    assert line == (
        "features of 2 of 5 images (373 kB) stay in GPU memory, of 1 of 5 images (186 kB) stay in memory, "
        "of 2 of 5 images (373 kB) are read anew each epoch (more does not fit into half of what is free)"
    )


def test_a_baseline_says_how_many_pixels_it_will_keep(toy_store, tmp_path):
    # five images of 256 x 512 px, three colours and a mask: 2.6 MB
    line = line_of(toy_store, [BaselineConfig()], [tmp_path / "run"], memory_bytes=2**30)
    assert line.endswith("; pixels of 5 of 5 images (2.6 MB) stay in memory")


def test_of_several_passes_the_largest_is_described(toy_store, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "free_memory", lambda device: 0)  # a pass for each head
    configs = [QUICK, dataclasses.replace(QUICK, blocks=(4, 9))]
    line = line_of(toy_store, configs, [tmp_path / "a", tmp_path / "b"], memory_bytes=4 * ONE)
    assert "in 2 passes over the store" in line
    assert "; in the largest pass features of 4 of 5 images (745 kB) stay in memory, of 1" in line


def test_what_the_workers_of_a_cluster_keep_is_not_known(toy_store, tmp_path):
    line = line_of(toy_store, [QUICK], [tmp_path / "run"], scheduler="tcp://10.0.0.1:8786")
    assert "tcp://10.0.0.1:8786" in line and line.endswith("5 of 5 images complete")


def test_one_call_trains_heads_and_baselines_into_a_workspace(toy_store, tmp_path):
    lines = []
    heads = train(toy_store, expand_heads(toy_store, blocks="each", head_type="linear", epochs=1, lr=(1e-2,)),
                  tmp_path, device="cpu", on_epoch=lambda run, epoch: lines.append(run.name))  # fmt: skip
    assert [run.settings.blocks for run in heads.runs] == [(0,), (4,), (5,), (9,)]
    assert heads.failures == {} and len(lines) == 4
    assert [run.folder.path.parent for run in heads.runs] == [tmp_path / "heads"] * 4
    (again,) = train(toy_store, [heads.runs[0].settings], tmp_path, on_epoch=lambda run, epoch: lines.append(run)).runs
    assert again.metrics == heads.runs[0].metrics and len(lines) == 4  # not trained again


def test_baselines_give_every_combination():
    configs = expand_baselines(lr=(1e-3, 1e-4), seed=(0, 1), network="vgg16-fcn8", weights="none")
    assert {(c.network, c.lr, c.seed) for c in configs} == {
        ("vgg16-fcn8", lr, s) for lr in (1e-3, 1e-4) for s in (0, 1)
    }
