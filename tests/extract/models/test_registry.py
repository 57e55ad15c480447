import subprocess
import sys

import pytest

from pathseg.extract.models import registry as catalogue
from pathseg.extract.models.registry import DEFAULT_MODEL, MODELS, bundled_file, find_hipt, find_release


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty user data folder."""
    monkeypatch.setattr("platformdirs.user_data_path", lambda *args, **options: tmp_path / "data")
    return tmp_path / "data/models"


def test_listing_the_models_loads_no_torch():
    code = "import sys, pathseg.extract.models.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", MODELS)
def test_a_record_bears_its_name_and_says_everything(name):
    record = MODELS[name]
    assert record.name == name
    assert record.description and record.licence and record.source


def test_the_default_is_a_model():
    assert DEFAULT_MODEL in MODELS


def test_mini_names_whose_images_it_learned_from():
    assert "Aksac et al. 2019, figshare 7379186, CC BY 4.0" in MODELS["mini"].licence


def test_a_bundled_file_that_holds_something_else_is_refused_with_both_digests(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "BUNDLED", tmp_path)
    (tmp_path / "mini.safetensors").write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256's published test vector
    with pytest.raises(ValueError, match=rf"{abc}, but model mini has [0-9a-f]{{64}}; install pathseg again"):
        bundled_file("mini", "mini.safetensors")


def test_a_bundled_file_that_is_missing_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "BUNDLED", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"mini\.safetensors is missing; install pathseg again"):
        bundled_file("mini", "mini.safetensors")


def test_a_missing_model_says_where_to_get_it_and_names_mini(data):
    with pytest.raises(FileNotFoundError) as error:
        find_release("brca-hipt-20x")
    for part in (str(data), "cvlab-stonybrook/Large-Image-Diffusion", "vit256_small_dino.pth", "--model mini"):
        assert part in str(error.value)


def test_a_model_is_found_in_the_user_data_folder(data):
    (data / "brca-hipt-20x").mkdir(parents=True)
    assert find_release("brca-hipt-20x") == data / "brca-hipt-20x"


@pytest.mark.parametrize(
    "place", ["work/release", "work", "data/models", "data/models/brca-hipt-20x", "data/models/hipt"]
)
def test_hipt_is_found_beside_the_release_or_in_the_user_data_folder(tmp_path, data, place):
    (tmp_path / "work/release").mkdir(parents=True)
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    file = tmp_path / place / "vit256_small_dino.pth"
    file.touch()
    assert find_hipt(tmp_path / "work/release") == file


def test_missing_hipt_says_where_to_get_it(data):
    with pytest.raises(FileNotFoundError, match=r"no vit256\*\.pth in .*mahmoodlab/HIPT, or pass --hipt FILE"):
        find_hipt()
