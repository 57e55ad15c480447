import runpy
import shutil
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pathseg.extract.config import ViTConfig
from pathseg.extract.models.load import TAKES, load_model
from pathseg.extract.models.noise import add_noise
from pathseg.extract.models.registry import MODELS

FILES = runpy.run_path(Path(__file__).parents[2] / "golden/files.py")
SHARED = Path(__file__).parents[4] / "shared/golden"


@pytest.fixture(scope="module", params=FILES["CASES"])
def golden(request, tmp_path_factory):
    """A golden case through the front door: model, patch, what the reference computed, the case's description."""
    folder = tmp_path_factory.mktemp(request.param)
    model = load_model(FILES["write_case"](request.param, folder))
    return model, FILES["patch"](request.param), FILES["expected"](request.param), FILES["case"](request.param)


@pytest.fixture
def two_threads():
    with FILES["reference_threads"]():
        yield


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_data_path", lambda *args, **options: tmp_path / "data")
    return tmp_path / "data/models"


def test_embeddings_agree_with_the_reference(golden):
    model, patch, expected, _ = golden
    assert FILES["relative_error"](model.embed(patch), expected["hipt"]) < 1e-5


def test_latents_agree_with_the_reference(golden, two_threads):
    model, patch, expected, _ = golden
    assert FILES["relative_error"](model.encode(patch), expected["z0"]) < 1e-5


def test_context_agrees_with_the_reference(golden):
    model, patch, expected, _ = golden
    assert FILES["relative_error"](model.prepare(patch)[1], expected["context"]) < 1e-5


def test_noisy_latents_agree_with_the_reference(golden, two_threads):
    model, patch, expected, _ = golden
    alpha_bar = (1 - np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2).cumprod()[expected["t"]]
    zt = add_noise(model.encode(patch), torch.from_numpy(expected["eps"]), alpha_bar)
    assert FILES["relative_error"](zt, expected["zt"]) < 1e-5


def test_every_block_agrees_with_the_reference(golden, two_threads):
    model, patch, expected, _ = golden
    errors = FILES["block_errors"](model.features(patch, int(expected["t"]), range(13), expected["eps"]), expected)
    assert len(errors) == 13
    assert max(errors.values()) < 1e-5, errors


def test_the_first_stage_and_the_blocks_are_read_from_the_release(golden):
    model, patch, expected, case = golden
    assert model.first_stage == {"vq": "vq-f4", "kl": "kl-f8"}[case["first_stage"]]
    assert model.latent_shape == expected["z0"].shape[1:]
    sizes = {block: (maps.shape[1], maps.shape[2]) for block, maps in model.features(patch).items()}
    assert model.blocks == sizes


@pytest.mark.parametrize("name", FILES["CASES"])
def test_the_published_golden_files_agree_in_full(tmp_path, two_threads, name):
    if not SHARED.is_dir():
        pytest.skip("the golden cases (../shared/golden) are absent")
    runpy.run_path(SHARED / "materialize.py")["write"](SHARED / name, tmp_path)
    expected = np.load(SHARED / name / "expected.npz")
    model = load_model(tmp_path / "ldm", tmp_path / "vit256.pth")
    patch = np.asarray(Image.open(tmp_path / "patch.png"))[None]
    z0, context = model.prepare(patch)
    found = {"hipt": model.embed(patch), "z0": z0, "context": context}
    features = model.features(patch, int(expected["t"]), range(13), torch.from_numpy(expected["eps"]))
    found |= {f"block{block:02d}": maps for block, maps in features.items()}
    errors = {array: FILES["relative_error"](values, expected[array]) for array, values in found.items()}
    assert len(errors) == 16
    assert max(errors.values()) < 1e-5, errors


def test_the_same_weights_elsewhere_have_the_same_digest(tmp_path):
    release = FILES["write_case"]("vq_f4_ssl", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert load_model(release).digest == load_model(tmp_path / "b/ldm").digest


def test_without_condition_no_vit_is_needed(tmp_path, data):
    release = FILES["write_case"]("vq_f4_ssl", tmp_path)
    (tmp_path / "vit256.pth").unlink()
    assert load_model(release, condition="none").condition == "none"
    with pytest.raises(FileNotFoundError, match=r"no vit256\*\.pth"):
        load_model(release)


def test_a_folder_gives_the_model_its_name(golden):
    model, *_ = golden
    assert model.name == "ldm"
    assert model.trained


@pytest.mark.parametrize("name", [name for name, record in MODELS.items() if record.kind != "timm"])
def test_every_named_model_loads_and_has_its_records_name(tmp_path, data, name):
    release = FILES["write_case"]("vq_f4_ssl", tmp_path)
    data.mkdir(parents=True)
    release.rename(data / "brca-hipt-20x")
    (tmp_path / "vit256.pth").rename(data / "brca-hipt-20x/vit256_small_dino.pth")
    FILES["write_zoom"](data / "zoomldm-brca", *FILES["zoom_release"]())
    model = load_model(name, condition="none" if name == "zoomldm-brca" else None)
    assert (model.name, model.trained) == (name, MODELS[name].trained)
    assert model.features(FILES["patch"]("vq_f4_ssl"), blocks=[0])[0].isfinite().all()


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("brca-hipt-20x", "get .*mahmoodlab/HIPT"),
        ("hipt", "get .*mahmoodlab/HIPT"),
        ("zoomldm-brca", r"get .*ZoomLDM's authors publish .*config\.yaml and weights\.ckpt lie in there"),
    ],
)
def test_a_named_model_that_is_missing_says_where_to_get_it(data, name, source):
    with pytest.raises(FileNotFoundError, match=source):
        load_model(name)


def test_a_name_that_is_none_lists_the_names(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"give brca-hipt-20x, .*mini-hipt, .*uni, .*a release folder"):
        load_model(tmp_path / "nini")


GIVEN = {
    "condition": "none", "hipt": "vit.pth", "context": "context.safetensors", "class_label": 0, "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5), "input_px": 224, "norm": "final", "model_args": ("depth=2",),
    "magnification": "20x",
}  # fmt: skip
MODELS_OF = {
    "mini": {"condition", "hipt", "magnification"},
    "mini-hipt": {"hipt"},
    "uni": set(ViTConfig.__dataclass_fields__),
    "pipeline": {"context", "class_label"},
}


@pytest.mark.parametrize(
    ("name", "option"), [(name, one) for name, taken in MODELS_OF.items() for one in GIVEN if one not in taken]
)
def test_an_option_that_does_nothing_for_a_model_is_refused_by_name(tmp_path, name, option):
    (tmp_path / "model_index.json").write_text("{}")
    of_vit, given = option in ViTConfig.__dataclass_fields__, {option: GIVEN[option]}
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} does not apply: .*, which takes --") as error:
        load_model(tmp_path if name == "pipeline" else name, **{"vit": ViTConfig(**given)} if of_vit else given)
    assert "\n" not in str(error.value)


def test_the_options_of_every_kind_of_model_are_tried():
    assert {*GIVEN, "path", "device", "weights", "vit", "mpp"} == {
        *signature(load_model).parameters,
        *ViTConfig.__dataclass_fields__,
    }
    assert {name: set(taken) for name, taken in TAKES.items()} == {
        "latent-diffusion": MODELS_OF["mini"], "vit": MODELS_OF["mini-hipt"], "timm": MODELS_OF["uni"],
        "diffusers": MODELS_OF["pipeline"],
    }  # fmt: skip


def test_hipt_is_refused_where_nothing_is_conditioned_on_it():
    with pytest.raises(ValueError, match="--hipt does not apply with --condition none"):
        load_model("mini", "vit256.pth", "none")


def test_another_condition_is_refused():
    with pytest.raises(ValueError, match="condition must be ssl or none, got 'text'"):
        load_model("mini", condition="text")
