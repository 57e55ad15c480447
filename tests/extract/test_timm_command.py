"""The commands with a timm model from its files: extract, train-head, predict."""

import json
import re
import shlex

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from pathseg.cli import main
from pathseg.store.features import FeatureStore
from pathseg.store.runtime.workspace import store_path
from tests.extract.conftest import write_outlines, write_slide

ARGUMENTS = {"img_size": 224, "patch_size": 14, "embed_dim": 64, "depth": 6, "num_heads": 2, "reg_tokens": 4}
SYNTHETIC = ("--dataset", "synthetic", "--resize", 256, "--limit", 3, "--layout", "native")


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def extract(work, model, *more):
    return run("extract", *SYNTHETIC, "--model", model, "--workspace", work, *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of the Hugging Face hub with a small ViT of 14 px patches and registers."""
    folder = tmp_path_factory.mktemp("hub") / "tissue-vit"
    folder.mkdir()
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch16_224", num_classes=0, **ARGUMENTS)
    config = {"architecture": "vit_small_patch16_224", "num_classes": 0, "model_args": ARGUMENTS}
    config["pretrained_cfg"] = {"mean": [0.7, 0.5, 0.7], "std": [0.2, 0.2, 0.2]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory, folder):
    """A workspace with a store of that model without its last norm, and a head on it."""
    workspace = tmp_path_factory.mktemp("work")
    made = extract(workspace, folder, "--norm", "none", "--std", "0.25,0.25,0.25")
    assert made.exit_code == 0, made.output
    trained = run("train-head", "--epochs", 1, "--lr", "1e-3", "--name", "head", "--workspace", workspace)
    assert trained.exit_code == 0, trained.output
    store = FeatureStore.open(store_path(workspace, "synthetic", "tissue-vit"))
    (workspace / "images").mkdir()
    for index, name in enumerate(store.ids):
        Image.fromarray(store.image(index)).save(workspace / "images" / f"{name}.png")
    return workspace


def test_the_store_has_four_layers_and_says_how_the_model_was_fed(work):
    store = FeatureStore.open(store_path(work, "synthetic", "tissue-vit"))
    assert store.stored_blocks(50) == (1, 2, 4, 5)
    assert store.read(0, t=50, blocks=(5,))[5].shape == (1, 64, 18, 18)
    vit = store.contents.key.vit
    assert (vit.architecture, vit.input_px, vit.norm) == ("vit_small_patch16_224", 252, "none")
    assert (vit.mean, vit.std) == ((0.7, 0.5, 0.7), (0.25, 0.25, 0.25))


@pytest.mark.parametrize("named", ["folder", "weights"])
def test_prediction_opens_the_model_as_the_store_had_it(work, folder, tmp_path, named):
    model = ["--model", folder]
    if named == "weights":
        model = ["--model", "timm:vit_small_patch16_224", "--weights", folder / "model.safetensors"]
    (path,) = (work / "heads/head/predictions").iterdir()  # the test split is one image
    image = work / "images" / path.name
    made = run("predict", image, "--run", "head", "--out", tmp_path, "--workspace", work, *model)
    assert made.exit_code == 0, made.output
    mask = np.asarray(Image.open(tmp_path / "mask" / path.name))
    np.testing.assert_array_equal(mask, np.asarray(Image.open(path)))


def test_the_last_layer_and_all_are_named_without_numbers(work, folder):
    more = ("--norm", "none", "--std", "0.25,0.25,0.25", "--dry-run")
    last, every = (extract(work, folder, *more, "--blocks", blocks) for blocks in ("last", "all"))
    assert "block 5 " in last.output and "block 4 " not in last.output
    assert all(f"block {number} " in every.output for number in range(6))


WRONG = {
    "a store made with other settings": ([], 1, "vit.norm is 'none' there, 'final' asked for"),
    "two numbers for the mean": (["--mean", "0.5,0.5"], 2, "three numbers"),
    "a std of 0": (["--std", "0,1,1"], 2, "std must be three numbers above 0"),
    "a block that the model does not have": (["--blocks", "4-6", "--store", "other.zarr"], 1, "has blocks 0-5, not 6"),
    "no block": (["--blocks", "first"], 2, "'first'"),
    "several timesteps": (["--t", "50,100", "--store", "other.zarr"], 1, "has no noise, .* pass one --t"),
    "a list as an argument": (["--model-args", "sizes=[1,2],depth=6"], 1, r"cannot build .*depth=6, .*sizes=\[1, 2\]"),
    "an argument without a value": (["--model-args", "depth"], 2, "write name=value"),
    "weights beside a folder": (["--weights", "w.safetensors"], 1, "belong together"),
}


@pytest.mark.parametrize(("flags", "code", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(work, folder, flags, code, message):
    result = extract(work, folder, *flags)
    assert (result.exit_code, bool(re.search(message, result.output))) == (code, True), result.output


def test_a_gated_model_that_is_missing_says_where_it_goes(work, monkeypatch, tmp_path):
    monkeypatch.setattr("platformdirs.user_data_path", lambda *args, **options: tmp_path)
    result = extract(work, "uni2-h")
    assert result.exit_code == 1
    for part in (str(tmp_path / "models/uni2-h"), "MahmoodLab/UNI2-h", "gated"):
        assert part in result.output


def test_prediction_without_the_model_of_the_store_is_refused(work, tmp_path):
    made = run("predict", work / "images", "--run", "head", "--out", tmp_path, "--workspace", work)
    assert made.exit_code == 1
    assert "no model" in made.output and "tissue-vit" in made.output


def test_refine_computes_the_features_of_new_windows_from_a_file_of_weights(folder, tmp_path):
    root, weights, name = tmp_path / "slides", folder / "model.safetensors", "vit_small_patch16_224"
    root.mkdir()
    write_slide(root / "a.tif", 0)
    write_outlines(root / "a.geojson")
    arguments = ",".join(f"{key}={value}" for key, value in ARGUMENTS.items() if key != "img_size")
    made = run(
        "extract", "--dataset", "slides", "--root", root, "--window-px", 256, "--windows", "tissue", "--layout",
        "native", "--blocks", "last", "--model", f"timm:{name}", "--weights", weights, "--model-args", arguments,
        "--workspace", tmp_path,
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    command = ["refine", root, "--model", f"timm:{name}", "--blocks", "last", "--epochs", 1, "--format", "overlay",
               "--workspace", tmp_path]  # fmt: skip
    unchanged = run(*command)  # without weights: nothing is computed
    assert unchanged.exit_code == 0, unchanged.output
    write_slide(root / "b.tif", 1)
    result = run(*command, "--weights", weights)
    assert result.exit_code == 0, result.output
    store = FeatureStore.open(store_path(tmp_path, "slides", name))  # where extract wrote it
    assert len(store.ids) == 2 and store.complete(1, (50,), (5,))
    printed = next(line for line in result.output.splitlines() if line.startswith("$ pathseg extract"))
    assert f"--weights {weights}" in printed
    again = run(*shlex.split(printed)[2:])
    assert again.exit_code == 0, again.output


def test_refine_names_the_flag_for_weights_that_it_lacks_or_that_do_not_belong(folder, tmp_path):
    wrong = run("refine", __file__, "--model", folder, "--weights", folder / "model.safetensors")
    assert wrong.exit_code == 2 and "--model timm:NAME" in wrong.output
