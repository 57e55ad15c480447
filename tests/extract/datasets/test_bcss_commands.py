"""All commands on regions in BCSS's layout, with the bundled model."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pathseg.cli import main
from pathseg.store.features import FeatureStore
from pathseg.store.runtime.workspace import store_path

pytestmark = pytest.mark.slow  # 54 forward passes


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def extract(root, workspace, *more):
    return run("extract", "--dataset", "bcss", "--root", root, "--val-institutes", "BH", "--model", "mini",
               "--blocks", 4, "--layout", "native", "--workspace", workspace, *more)  # fmt: skip


@pytest.fixture(scope="module")
def workspace(drawn_regions, tmp_path_factory):
    """Extracted, a head trained, the report made: two training tiles of two views, a validation and a test tile."""
    folder = tmp_path_factory.mktemp("work")
    head = ("--blocks", 4, "--head", "linear", "--epochs", 2, "--class-weights", "balanced", "--name", "one")
    for result in (
        extract(drawn_regions, folder),
        run("train-head", *head, "--workspace", folder),
        run("report", "--workspace", folder),
    ):
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def store(workspace):
    return FeatureStore.open(store_path(workspace, "bcss", "mini"))


def test_the_store_holds_views_with_their_splits_and_scale(store):
    assert list(store.splits) == ["train"] * 4 + ["val", "test"]
    assert [image.view for image in store.contents.images] == [0, 1, 0, 1, 0, 0]
    assert (store.contents.key.mpp, store.contents.key.size, store.ignore) == (0.5, (768, 768), 255)
    assert store.classes == ("tumor", "stroma", "inflammatory", "necrosis", "other")


def test_info_and_verify_know_it(store):
    told = run("info", store.location)
    assert told.exit_code == 0
    assert "6 of bcss (train 4, val 1, test 1), 768x768 px, 3x3 patches, 0.5 um/px" in told.output
    assert run("verify", store.location).exit_code == 0


def unannotate(path):
    with Image.open(path) as mask:
        empty = Image.new("L", mask.size)
    empty.save(path)


def test_masks_without_annotation_are_refused_before_anything_is_written(bcss_root, tmp_path):
    for path in (bcss_root / "masks").glob("*.png"):
        unannotate(path)
    refused = extract(bcss_root, tmp_path / "work")
    assert refused.exit_code == 1 and "every tile of the test regions (1) is above 90% ignored" in refused.output
    assert not (tmp_path / "work").exists()


def test_the_plan_says_what_is_left_out(drawn_regions, bcss_root, tmp_path):
    whole = extract(drawn_regions, tmp_path / "work", "--dry-run", "--val-institutes", "")
    unannotate(next((bcss_root / "masks").glob("TCGA-BH-*.png")))
    part = extract(bcss_root, tmp_path / "work", "--dry-run", "--val-institutes", "")
    assert part.exit_code == 0, part.output
    assert "left out  1 of 4 tiles, which are above 90% ignored" in part.output and "left out" not in whole.output


def test_extracting_again_has_nothing_to_do(workspace, drawn_regions):
    again = extract(drawn_regions, workspace)
    assert again.exit_code == 0 and "6 of 6 images" in again.output


@pytest.mark.parametrize(
    ("flags", "words"),
    [(("--stride", 400), "stride_px"), (("--target-mpp", 0.45), "mpp is 0.5 there"), (("--seed", 1), "seed is 0")],
)
def test_what_changes_pixels_is_refused_by_the_same_store(workspace, drawn_regions, flags, words):
    other = extract(drawn_regions, workspace, *flags)
    assert other.exit_code == 1 and words in other.output


def test_metrics_count_the_annotated_pixels_of_the_centre_and_no_other(workspace, store):
    metrics = json.loads((workspace / "heads" / "one" / "metrics.json").read_text())
    part = metrics["splits"]["test"]
    mask = store.mask(5)
    assert (mask == 255).any()
    assert part["scores"]["pixels"] == np.count_nonzero(mask != 255)
    assert [image["id"] for image in part["per_image"]] == [store.ids[5]]


def test_metrics_name_the_region_that_an_image_was_cut_from(workspace, drawn_regions):
    metrics = json.loads((workspace / "heads" / "one" / "metrics.json").read_text())
    (region,) = (drawn_regions / "images").glob("TCGA-OL-*.png")  # the one of a test institute
    assert [image["source"] for image in metrics["splits"]["test"]["per_image"]] == [region.stem]


def test_the_report_shows_it_beside_the_papers_table(workspace):
    tables = (workspace / "report" / "tables.md").read_text()
    assert "VGG16-FCN8" in tables and "necrosis" in tables
