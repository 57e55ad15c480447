import subprocess
import sys

import pytest

from pathseg.extract import catalogue
from pathseg.extract.catalogue import DEFAULT_MODEL, MODELS, find_hipt, find_release


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty user data folder."""
    monkeypatch.setattr(catalogue.platformdirs, "user_data_path", lambda *args, **options: tmp_path / "data")
    return tmp_path / "data/models"


def test_listing_the_models_loads_no_torch():
    code = "import sys, pathseg.extract.catalogue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", MODELS)
def test_a_record_bears_its_name_and_says_everything(name):
    record = MODELS[name]
    assert record.name == name
    assert record.description and record.licence and record.source


def test_the_default_is_a_model():
    assert DEFAULT_MODEL in MODELS


def test_only_what_is_bundled_is_untrained_and_its_description_says_so():
    untrained = [name for name, record in MODELS.items() if not record.trained]
    assert untrained == ["mini", "mini-hipt"]
    assert all("UNTRAINED" in MODELS[name].description for name in untrained)


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
