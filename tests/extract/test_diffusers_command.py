"""The commands with a diffusers pipeline from its files: extract, train-head, predict."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file

from pathseg.cli import main
from pathseg.store.features import FeatureStore
from pathseg.store.key import DiffusersSettings
from pathseg.store.runtime.workspace import store_path
from tests.extract.conftest import write_outlines, write_slide

SYNTHETIC = ("--dataset", "synthetic", "--resize", 256, "--limit", 3, "--layout", "native")


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def extract(work, model, *more):
    return run("extract", *SYNTHETIC, "--model", model, "--workspace", work, *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text-conditioned pipeline with three up blocks, and context tokens beside it."""
    folder = tmp_path_factory.mktemp("pipelines") / "tissue-sd"
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        **{"block_out_channels": (4, 8, 8), "layers_per_block": 1, "attention_head_dim": 2},
        **{"cross_attention_dim": 6, "norm_num_groups": 4},
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=4,
    )
    parts = {"unet": unet, "vae": vae, "scheduler": DDIMScheduler(beta_schedule="scaled_linear")}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **index}))
    save_file({"context": torch.randn(5, 6)}, folder / "empty.safetensors")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory, folder):
    """A workspace with a store of that model and context, and a head on it."""
    workspace = tmp_path_factory.mktemp("work")
    made = extract(workspace, folder, "--context", folder / "empty.safetensors", "--t", 100)
    assert made.exit_code == 0, made.output
    trained = run("train-head", "--t", 100, "--epochs", 1, "--lr", "1e-3", "--name", "head", "--workspace", workspace)
    assert trained.exit_code == 0, trained.output
    store = FeatureStore.open(store_path(workspace, "synthetic", "tissue-sd"))
    (workspace / "images").mkdir()
    for index, name in enumerate(store.ids):
        Image.fromarray(store.image(index)).save(workspace / "images" / f"{name}.png")
    return workspace


def predict(work, out, *more):
    return run("predict", work / "images", "--run", "head", "--out", out, "--workspace", work, *more)


def test_the_store_has_all_blocks_and_says_how_the_model_was_conditioned(work):
    store = FeatureStore.open(store_path(work, "synthetic", "tissue-sd"))
    assert store.stored_blocks(100) == tuple(range(7))  # the middle and two of each up block
    assert store.read(0, t=100, blocks=(6,))[6].shape == (1, 4, 32, 32)
    assert store.contents.key.diffusers == DiffusersSettings("file")
    assert store.contents.key.first_stage == "kl-f8"
    assert "condition stored context" in run("info", store_path(work, "synthetic", "tissue-sd")).output


def test_prediction_opens_the_model_as_the_store_had_it(work, folder, tmp_path):
    made = predict(work, tmp_path, "--model", folder, "--context", folder / "empty.safetensors")
    assert made.exit_code == 0, made.output
    (path,) = (work / "heads/head/predictions").iterdir()  # the test split is one image
    mask = np.asarray(Image.open(tmp_path / "mask" / path.name))
    np.testing.assert_array_equal(mask, np.asarray(Image.open(path)))


def test_prediction_without_the_context_of_the_store_is_refused(work, folder, tmp_path):
    made = predict(work, tmp_path, "--model", folder)
    assert made.exit_code == 1
    assert "stored context" in made.output and "--context FILE" in made.output


def test_the_plan_says_that_the_context_is_zero(work, folder):
    made = extract(work, folder, "--store", work / "zero.zarr", "--dry-run")
    assert made.exit_code == 0, made.output
    assert "note  the context is zero; pass --context FILE" in made.output


WRONG = {
    "a store made with another context": (["--t", 100], "diffusers.context is 'file' there, 'zero' asked for"),
    "a block that the model does not have": (["--blocks", "12", "--store", "other.zarr"], "has blocks 0-6, not 12"),
    "a class of a model without": (["--class-label", 3], "takes no class"),
    "a timestep that the scheduler does not have": (["--t", 1000, "--store", "other.zarr"], "not within 0-999"),
}


@pytest.mark.parametrize(("flags", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(work, folder, flags, message):
    result = extract(work, folder, *flags)
    assert (result.exit_code, message in result.output) == (1, True), result.output


def test_refine_computes_the_features_of_new_windows_with_the_stored_context(folder, tmp_path):
    root, context = tmp_path / "slides", ("--context", folder / "empty.safetensors")
    root.mkdir()
    write_slide(root / "a.tif", 0)
    write_outlines(root / "a.geojson")
    made = run("extract", "--dataset", "slides", "--root", root, "--window-px", 256, "--windows", "tissue", "--layout",
               "native", "--blocks", "1", "--model", folder, *context, "--workspace", tmp_path)  # fmt: skip
    assert made.exit_code == 0, made.output
    write_slide(root / "b.tif", 1)
    command = ["refine", root, "--model", folder, "--blocks", "1", "--epochs", 1, "--format", "overlay",
               "--workspace", tmp_path]  # fmt: skip
    refused = run(*command)
    assert refused.exit_code == 1 and "--context FILE" in refused.output and "tissue-sd.zarr" in refused.output
    result = run(*command, *context)
    assert result.exit_code == 0, result.output
    store = FeatureStore.open(store_path(tmp_path, "slides", "tissue-sd"))
    assert len(store.ids) == 2 and store.complete(1, (50,), (1,))
