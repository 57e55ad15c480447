"""ZoomLDM with its condition: the embeddings of a timm ViT for the 20x patches that a picture covers."""

import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision.transforms.functional as TF
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision.models.vision_transformer import Encoder

from pathseg.cli import main
from pathseg.extract.models.ldm.zoom_embeddings import magnification_of
from pathseg.extract.models.load import load_model
from pathseg.extract.models.noise import patch_noise
from pathseg.store.features import FeatureStore

FILES = runpy.run_path(Path(__file__).parents[3] / "golden/files.py")
MEAN, STD = (0.7, 0.58, 0.7), (0.21, 0.23, 0.18)
VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3, "init_values": 1e-5}  # 48: the width that the small ZoomLDM takes
SIDES = {"20x": 1, "10x": 2, "5x": 4, "2.5x": 8, "1.25x": 16}
RNG = np.random.default_rng(0)
PATCHES = np.kron(RNG.integers(0, 256, (2, 32, 32, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)


def vit(**more):
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch16_224", num_classes=0, **VIT | more).eval().requires_grad_(False)
    for tensor in network.parameters():
        tensor += 0.05 * torch.randn(tensor.shape)
    return network


def hub_folder(folder, network, **config):
    """A folder as of UNI on the Hugging Face hub; as in UNI's, the norm of the input is given by pretrained_cfg."""
    folder.mkdir(parents=True)
    values = {"architecture": "vit_small_patch16_224", "num_classes": 0, "global_pool": "token", "model_args": VIT}
    pretrained = {"mean": MEAN, "std": STD, "input_size": [3, 224, 224]}
    (folder / "config.json").write_text(json.dumps({**values, "pretrained_cfg": pretrained, **config}))
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def published():
    """State dict and config of a small ZoomLDM model, to be read only."""
    return FILES["zoom_release"]()


def zoom_folder(folder, state, config):
    """The folder of a ZoomLDM with its weights in safetensors, which are read faster than the .ckpt."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    save_file(state, folder / "weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def files(published, tmp_path_factory):
    """The folders of a small ZoomLDM and, named `uni` beside it, of a small ViT; to be read only."""
    folder = tmp_path_factory.mktemp("models")
    hub_folder(folder / "uni", vit())
    return zoom_folder(folder / "zoom", *published)


@pytest.fixture(scope="module")
def vit_of_32_px(files):
    """The folder of the ViT for images of 32 px, for cells that are many."""
    pretrained = {"mean": MEAN, "std": STD, "input_size": [3, 32, 32]}
    arguments = {**VIT, "img_size": 32}
    return hub_folder(files.parent / "of-32-px", vit(img_size=32), model_args=arguments, pretrained_cfg=pretrained)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The folder of named models, which is empty."""
    monkeypatch.setattr("platformdirs.user_data_path", lambda *args, **options: tmp_path / "data")
    return tmp_path / "data/models"


def embeddings_step_by_step(patch, side, px=224):
    """The class token of each cell of a patch enlarged to 20x, on timm's network for px: (1, 48, side, side)."""
    network, rows = vit(img_size=px), []
    pixels = torch.tensor(patch).permute(2, 0, 1).float()
    large = F.interpolate(pixels[None], size=(256 * side, 256 * side), mode="bicubic")[0].round().clamp(0, 255)
    for row in range(side):
        for column in range(side):
            cell = large[:, 256 * row : 256 * (row + 1), 256 * column : 256 * (column + 1)] / 255
            cell = TF.resize(cell, [px, px], TF.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
            rows.append(network.forward_features(TF.normalize(cell, MEAN, STD)[None])[0, 0])
    return torch.stack(rows).T.reshape(1, 48, side, side)


def context_step_by_step(embeddings, level, stage):
    """EmbeddingViT2_5 on torch's and torchvision's modules: (1, 48, h, w) -> (1, 65, 512)."""
    if embeddings.shape[-1] > 8:
        embeddings = F.adaptive_avg_pool2d(embeddings, 8)
    cells = [(cell - cell.mean()) / (cell.std() + 1e-8) for cell in embeddings[0].flatten(1).T]
    tokens = [stage["pad_token"][0, 0]] * 64
    start = 32 - len(cells) // 2
    for position, cell in enumerate(cells, start):
        tokens[position] = F.linear(cell, stage["dim_reduce.weight"], stage["dim_reduce.bias"])
    tokens.insert(0, stage["mag_embedding.weight"][level])
    encoder = Encoder(65, 2, 8, 32, 128, dropout=0.0, attention_dropout=0.0).eval()
    encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in stage.items() if k.startswith("encoder.")})
    out = F.linear(encoder(torch.stack(tokens)[None]), stage["final_proj.weight"], stage["final_proj.bias"])
    return F.layer_norm(out, (512,), stage["layer_norm.weight"], stage["layer_norm.bias"])


@torch.no_grad()
def features_step_by_step(state, patch, eps, magnification):
    stage = {k.removeprefix("cond_stage_model."): v for k, v in state.items() if k.startswith("cond_stage_model.")}
    level = list(SIDES).index(magnification)
    context = context_step_by_step(embeddings_step_by_step(patch[0], 2**level), level, stage)
    unet, vq = FILES["diffusers_zoom"](state)
    pixels = torch.from_numpy(patch.copy()).permute(0, 3, 1, 2) / 127.5 - 1
    with FILES["reference_threads"]():
        z0 = vq.encode(pixels.contiguous(memory_format=torch.channels_last)).latents
    alpha_bar = (1 - np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2).cumprod()[50]
    zt = math.sqrt(alpha_bar) * z0 + math.sqrt(1 - alpha_bar) * torch.from_numpy(eps).float()
    return context, FILES["hooked"](unet, zt, 50, context)


@pytest.mark.parametrize("magnification", ["20x", "10x", "5x"])
def test_features_are_those_of_the_steps_on_plain_modules(published, files, magnification):
    patch, eps = FILES["patch"]("vq_f4_ssl"), np.random.default_rng(2).standard_normal((1, 3, 64, 64))
    model = load_model(files, magnification=magnification)
    context, expected = features_step_by_step(published[0], patch, eps, magnification)
    assert FILES["relative_error"](model.prepare(patch)[1], context) < 1e-5
    features = model.features(patch, 50, range(13), eps)
    errors = {block: FILES["relative_error"](maps, expected[block]) for block, maps in features.items()}
    assert len(errors) == len(expected) == 13
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("magnification", ["2.5x", pytest.param("1.25x", marks=pytest.mark.soak)])
def test_the_context_is_that_of_the_steps_where_cells_are_many(published, files, vit_of_32_px, magnification):
    state, patch = published[0], FILES["patch"]("vq_f4_ssl")
    stage = {k.removeprefix("cond_stage_model."): v for k, v in state.items() if k.startswith("cond_stage_model.")}
    with torch.no_grad():
        embeddings = embeddings_step_by_step(patch[0], SIDES[magnification], 32)
        context = context_step_by_step(embeddings, list(SIDES).index(magnification), stage)
    model = load_model(files, vit_of_32_px, magnification=magnification)
    assert FILES["relative_error"](model.embed(patch), embeddings) < 1e-5
    assert FILES["relative_error"](model.prepare(patch)[1], context) < 1e-5


def test_patches_of_a_batch_do_not_change_each_other(files):
    model = load_model(files, magnification="10x")
    together = model.embed(PATCHES)
    assert together.shape == (2, 48, 2, 2)
    for index, embeddings in enumerate(together):
        assert FILES["relative_error"](model.embed(PATCHES[index][None])[0], embeddings) < 1e-6
    assert torch.equal(model.embed(PATCHES), together)


def test_the_model_says_how_it_was_conditioned(files):
    model = load_model(files, mpp=1.0)
    assert (model.condition, model.zoom.magnification, model.zoom.cells) == ("ssl", "10x", "enlarged")
    assert (model.zoom.vit.mean, model.zoom.vit.std, model.zoom.vit.input_px) == (MEAN, STD, 224)
    (note,) = model.notes
    for part in ("10x", "uni", "vit_small_patch16_224", "2 x 2 cells of the 256 px that the model is shown", "blurred"):
        assert part in note


@pytest.mark.soak
def test_all_that_changes_the_condition_is_in_the_digest(published, files, tmp_path):
    digest = load_model(files, magnification="20x").digest
    assert load_model(files, files.parent / "uni", mpp=0.5).digest == digest
    other_vit = hub_folder(tmp_path / "other", vit(reg_tokens=1), model_args={**VIT, "reg_tokens": 1})
    other_mean = hub_folder(tmp_path / "mean", vit(), pretrained_cfg={"mean": STD, "std": STD})
    stage = {**published[0], "cond_stage_model.pad_token": published[0]["cond_stage_model.pad_token"] + 1}
    other_stage = zoom_folder(tmp_path / "zoom", stage, published[1])
    others = [
        load_model(files, magnification="10x").digest,
        load_model(files, condition="none").digest,
        load_model(files, other_vit, magnification="20x").digest,
        load_model(files, other_mean, magnification="20x").digest,
        load_model(other_stage, files.parent / "uni", magnification="20x").digest,
    ]
    assert len({digest, *others}) == 6


@pytest.mark.parametrize(
    ("mpp", "magnification"),
    [(0.5, "20x"), (0.4, "20x"), (0.62, "20x"), (1.0, "10x"), (1.24, "10x"), (2, "5x"), (4, "2.5x"), (8, "1.25x")],
)
def test_the_magnification_is_the_nearest_to_um_per_px(mpp, magnification):
    assert magnification_of(mpp) == magnification


WRONG = {
    "um/px unknown": ({}, r"um/px is not known; pass --magnification \(20x, 10x"),
    "40x": ({"mpp": 0.25}, "0.25 um/px are at 40x, but"),
    "below 1.25x": ({"mpp": 16}, "16 um/px are at 0.625x, but"),
    "a magnification between": ({"magnification": "15x"}, "must be one of 20x, 10x, .* got '15x'"),
    "a magnification without condition": (
        {"magnification": "20x", "condition": "none"},
        "--magnification 20x does not",
    ),
    "a file": ({"hipt": "uni/model.safetensors", "mpp": 0.5}, r"is no folder: .*timm ViT such as UNI"),
    "no such folder": ({"hipt": "nowhere", "mpp": 0.5}, "nowhere is no folder"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_said_in_one_line(files, options, message):
    if "hipt" in options:
        options = {**options, "hipt": files.parent / options["hipt"]}
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_model(files, **options)
    assert "\n" not in str(error.value)


def test_a_vit_of_another_width_is_refused_with_both_widths(files, tmp_path):
    other = hub_folder(tmp_path / "wide", vit(embed_dim=96), model_args={**VIT, "embed_dim": 96})
    with pytest.raises(ValueError, match=r"gives embeddings of 96, but the conditioning stage of .* takes 48; pass"):
        load_model(files, other, mpp=0.5)


def test_a_vit_that_pools_nothing_is_refused(files, tmp_path):
    other = hub_folder(tmp_path / "tokens", vit(), global_pool="")
    with pytest.raises(ValueError, match=r"embedding of each token .* write token for global_pool"):
        load_model(files, other, mpp=0.5).embed(PATCHES)


def test_a_magnification_is_refused_for_models_that_ask_for_none(tmp_path):
    with pytest.raises(ValueError, match="--magnification 20x does not apply: mini asks for none"):
        load_model("mini", magnification="20x")
    with pytest.raises(ValueError, match="--magnification does not apply: mini-hipt is a ViT of HIPT's kind"):
        load_model("mini-hipt", magnification="20x")
    release = FILES["write_case"]("vq_f4_ssl", tmp_path)
    with pytest.raises(ValueError, match="--magnification 20x does not apply: ldm with --condition ssl"):
        load_model(release, magnification="20x")


def test_a_cut_release_takes_no_folder_of_a_timm_vit(files, tmp_path):
    release = FILES["write_case"]("vq_f4_ssl", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint file .*uni"):
        load_model(release, files.parent / "uni")


def run(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def extract(work, model, *more):
    return run("extract", "--dataset", "synthetic", "--resize", 256, "--limit", 3, "--blocks", "4-5", "--layout",
               "native", "--model", model, "--workspace", work, *more)  # fmt: skip


def test_without_its_vit_one_line_says_which_file_goes_where(published, data, tmp_path):
    folder = FILES["write_zoom"](tmp_path / "zoom", {}, published[1])
    torch.save(published[0], folder / "weights.ckpt")
    arguments = ["extract", "--dataset", "synthetic", "--model", folder, "--workspace", tmp_path / "work"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
    for part in (str(data / "uni"), "config.json", "MahmoodLab/UNI", "gated", "--hipt DIR", "--condition none"):
        assert part in line


@pytest.mark.soak
def test_two_magnifications_of_it_are_joined_and_predicted_from_the_image(files, tmp_path):
    """Of tissue at 0.5 um/px, alone (20x) and in surroundings that are twice as wide (10x)."""
    work = tmp_path / "work"
    assert "condition at 20x: embeddings of uni" in extract(work, files)
    extract(work, files, "--surroundings", 2, "--store", work / "coarse.zarr")
    keys = [FeatureStore.open(work / name).contents.key for name in ("synthetic-zoom.zarr", "coarse.zarr")]
    assert [key.zoom.magnification for key in keys] == ["20x", "10x"]
    assert "condition ssl at 10x" in run("info", work / "coarse.zarr")

    run("train-head", "--store", f"fine={work / 'synthetic-zoom.zarr'}", "--store", f"coarse={work / 'coarse.zarr'}",
        "--head", "linear", "--epochs", 1, "--name", "head", "--workspace", work)  # fmt: skip
    store = FeatureStore.open(work / "synthetic-zoom.zarr")
    (expected,) = (work / "heads/head/predictions").iterdir()
    Image.fromarray(store.image(store.ids.index(expected.stem))).save(tmp_path / expected.name)
    run("predict", tmp_path / expected.name, "--run", "head", "--out", tmp_path / "out", "--model", files,
        "--hipt", files.parent / "uni", "--workspace", work)  # fmt: skip
    found = np.asarray(Image.open(tmp_path / "out/mask" / expected.name))
    np.testing.assert_array_equal(found, np.asarray(Image.open(expected)))


@pytest.mark.soak
def test_in_surroundings_the_condition_is_that_of_the_shrunk_field(files, tmp_path):
    """Not of the field's own pixels: what stores hold that were made so, and what predict computes again."""
    extract(tmp_path, files, "--limit", 1, "--blocks", 0, "--surroundings", 2, "--dtype", "float32")
    store, model = FeatureStore.open(tmp_path / "synthetic-zoom.zarr"), load_model(files, magnification="10x")
    mirrored = np.pad(store.image(0), ((128, 128), (128, 128), (0, 0)), "reflect")  # 512 px at 0.5 um/px
    shrunk = np.rint(mirrored.reshape(256, 2, 256, 2, 3).mean((1, 3))).astype(np.uint8)
    noise = patch_noise(model.latent_shape, seed=0, image_id=store.ids[0], patch=0, t=50)[None]
    expected = model.features(shrunk[None], 50, [0], noise)[0][..., 2:6, 2:6]
    assert FILES["relative_error"](torch.from_numpy(store.read(0, t=50, blocks=(0,))[0]), expected) < 1e-6


@pytest.mark.soak
def test_a_turned_view_has_the_condition_of_its_own_pixels(files, tmp_path):
    extract(tmp_path, files, "--limit", 2, "--blocks", 0, "--views", "flips", "--magnification", "10x", "--dtype",
            "float32")  # fmt: skip
    store, model = FeatureStore.open(tmp_path / "synthetic-zoom.zarr"), load_model(files, magnification="10x")
    turned = next(index for index, id_ in enumerate(store.ids) if id_.endswith("_v1"))
    noise = patch_noise(model.latent_shape, seed=0, image_id=store.ids[turned], patch=0, t=50)[None]
    expected = model.features(store.image(turned)[None], 50, [0], noise)[0]
    assert FILES["relative_error"](torch.from_numpy(store.read(turned, t=50, blocks=(0,))[0]), expected) < 1e-6


@pytest.mark.soak
def test_a_store_that_grows_has_the_bytes_of_one_made_at_once(files, tmp_path):
    for limit, name in ((1, "grown.zarr"), (2, "grown.zarr"), (2, "at-once.zarr")):
        extract(tmp_path, files, "--magnification", "10x", "--limit", limit, "--store", tmp_path / name)
    grown, at_once = (FeatureStore.open(tmp_path / name) for name in ("grown.zarr", "at-once.zarr"))
    assert grown.contents.key == at_once.contents.key
    for index in range(2):
        maps, others = (store.read(index, t=50, blocks=(4, 5)) for store in (grown, at_once))
        for block in maps:
            np.testing.assert_array_equal(maps[block], others[block])
