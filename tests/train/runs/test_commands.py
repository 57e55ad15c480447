"""The commands that repeat a run: the command line reads them as the settings that the run recorded."""

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pathseg.cli import main
from pathseg.extract.datasets import glas
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.datasets.synthetic import dataset as synthetic
from pathseg.train.config import HEAD_DEFAULTS, BaselineConfig, HeadConfig, InitialWeights
from pathseg.train.runs.commands import NOT_RECORDED, PREPROCESSING_FLAGS, SIDES_PX, commands

ODD = {
    "t": 10, "blocks": (0, 4, 5, 6, 12), "head_type": "linear", "lr": 3e-4, "epochs": 7, "patience": 2,
    "batch_size": 3, "augment": "flips", "class_weights": "balanced", "precision": "bfloat16", "val_fraction": 0.25,
    "seed": 5, "split_seed": 9, "connectivity": "4", "min_object_px": 20, "train_images": 5,
    "initial_weights": InitialWeights("ab" * 32, "/my runs/first"),
}  # fmt: skip
BASELINE = {"network": "vgg16-fcn8", "weights": "none", "lr": 3e-4, "augment": "none", "seed": 2}


def parsed(run, number: int) -> dict:
    """The parameters that the command line makes of a command of the page."""
    _, command, *words = shlex.split(commands(run, Path("my work"))[number])
    return main.commands[command].make_context(command, words).params


def test_the_odd_settings_have_no_default_value():
    odd = HeadConfig(**ODD)
    usual = {field.name for field in dataclasses.fields(HeadConfig) if getattr(odd, field.name) == field.default}
    assert usual == set(HEAD_DEFAULTS[odd.network].unused)


@pytest.mark.parametrize(
    "settings",
    [ODD, {}, {"blocks": (7,), "image_in_head": True, "head_type": "scalar-mix", "epochs": 1}, BASELINE],
)
def test_the_training_command_is_read_as_the_same_settings(make_run, settings):
    run = make_run(**settings)
    kind = BaselineConfig if run.is_baseline else HeadConfig
    values = parsed(run, 1)
    read = {field.name: values[field.name] for field in dataclasses.fields(kind)}
    if (start := read.get("initial_weights")) is not None:  # a run, which the command takes the digest of
        assert start == run.settings.initial_weights.run
        read["initial_weights"] = run.settings.initial_weights
    swept = {field.name for field in dataclasses.fields(kind) if field.metadata.get("sweep")} - {"blocks"}
    assert all(len(read[name]) == 1 for name in swept)
    assert kind(**{name: value[0] if name in swept else value for name, value in read.items()}) == run.settings


def test_the_training_command_names_store_run_and_workspace(make_run):
    values = parsed(make_run("my run"), 1)
    assert (values["store"], values["name"], values["workspace"]) == (
        ("/data/my stores/glas.zarr",), "my run", Path("my work"),
    )  # fmt: skip


def test_the_extraction_command_makes_features_of_the_same_key(make_run):
    key = {
        "dtype": "float32",
        "packing": "lossless",
        "precision": "bfloat16",
        "seed": 7,
        "layout": "grid",
        "batch_size": 3,
    }
    values = parsed(make_run(key=key, t=10), 0)
    assert (values["dataset"], values["model"], values["condition"]) == ("glas", "mini", "ssl")
    assert (values["t"], values["blocks"]) == ((10,), "all")
    assert {name: values[name] for name in key} == key


@pytest.mark.parametrize("key", [{"first_stage": "none", "condition": "none"}, {"diffusers": {"context": "zero"}}])
def test_the_extraction_command_of_a_model_without_condition_names_none(make_run, key):
    assert parsed(make_run(key=key), 0)["condition"] is None


def test_the_extraction_command_of_zoomldm_names_its_magnification(make_run):
    vit = {"architecture": "vit_large_patch16_224", "mean": (0.5,) * 3, "std": (0.5,) * 3, "input_px": 224,
           "norm": "final"}  # fmt: skip
    assert parsed(make_run(key={"zoom": {"magnification": "10x", "vit": vit}}), 0)["magnification"] == "10x"


def test_the_extraction_command_of_a_diffusers_pipeline_names_its_class(make_run):
    assert parsed(make_run(key={"diffusers": {"context": "none", "class_label": 3}}), 0)["class_label"] == 3


def test_the_extraction_command_of_a_baseline_names_no_timestep(make_run):
    assert not {"--t", "--blocks"} & set(shlex.split(commands(make_run(**BASELINE), Path("work"))[0]))


def test_the_last_command_makes_the_report(make_run):
    assert commands(make_run(), Path("work"))[-1] == "pathseg report --workspace work"


@pytest.mark.parametrize(
    ("dataset", "size", "resized", "resize"),
    [
        ("glas", (768, 768), True, None),
        ("glas", (512, 512), True, 512),
        ("synthetic", (512, 512), False, None),
        ("synthetic", (256, 256), False, 256),
        ("folder", (256, 256), False, None),
        ("folder", (256, 256), True, 256),
        ("folder", (256, 512), False, None),
    ],
)
def test_the_extraction_command_has_the_size_where_it_is_not_the_data_sets_own(
    make_run, dataset, size, resized, resize
):
    key = {"dataset": dataset, "size": size, "preprocessing": {"resized": resized}}
    assert parsed(make_run(key=key), 0)["resize"] == resize


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({"views": "flips", "masks": "instance ids"}, {"views": "flips", "instances": True}),
        (
            {"views": 3, "stride_px": 400, "target_mpp": 0.25, "image_folder": "images", "view_seed": 0},
            {"views": 3, "stride": 400, "target_mpp": 0.25, "image_folder": "images"},
        ),
        ({"mask_codes": (0, 5), "ignored_code": 9}, {"ignore": 9, "instances": False}),
        ({"padded": "right and below"}, {"keep_aspect": True, "views": None}),
        ({}, {"keep_aspect": False, "views": None, "instances": False, "stride": None}),
    ],
)
def test_the_extraction_command_has_the_recorded_settings_of_the_data_set(make_run, settings, flags):
    found = parsed(make_run(key={"dataset": "folder", "preprocessing": {"settings": settings}}), 0)
    assert found == found | flags


def test_the_extraction_command_of_slides_has_their_windows_and_what_draws_the_masks(make_run):
    settings = {"target_mpp": 0.5, "brush_um": 5.0, "region_class": "Region*", "file_mpp": 0.25}
    key = {"dataset": "slides", "size": (768, 768), "mpp": 0.5, "preprocessing": {"settings": settings}}
    found = parsed(make_run(key=key), 0)
    expected = {
        "window_px": 768, "resize": None, "target_mpp": 0.5, "brush_um": 5.0, "region_class": "Region*", "mpp": 0.25,
    }  # fmt: skip
    assert found == found | expected


def test_the_scales_in_the_names_of_bcss_are_no_flag(make_run):
    settings = {"file_mpp": (0.25, 0.5), "target_mpp": 0.5}
    key = {"dataset": "bcss", "size": (768, 768), "preprocessing": {"settings": settings}}
    assert parsed(make_run(key=key), 0)["mpp"] is None


def test_the_extraction_command_with_surroundings_names_the_blocks_of_the_head(make_run):
    run = make_run(key={"surroundings": {"times": 4, "beyond": "region"}}, blocks=(4, 5))
    found = parsed(run, 0)
    assert (found["surroundings"], found["blocks"]) == (4, (4, 5))


def test_the_sizes_without_a_flag_are_those_of_the_data_sets():
    assert SIDES_PX == {"glas": glas.SIDE_PX, "synthetic": synthetic.SIDE_PX}


def test_flags_that_are_not_recorded_are_flags_of_extract():
    flags = {flag for option in main.commands["extract"].params for flag in option.opts}
    assert set(NOT_RECORDED.split(", ")) <= flags


def test_the_commands_of_a_joined_run_make_each_store_and_join_them(make_joined_run):
    run = make_joined_run({"blocks": (4, 5, 6)}, {"t": 200, "blocks": (0,), "key": {"model": "mini-hipt"}})
    lines = commands(run, Path("work"))
    assert [line.split()[1] for line in lines] == ["extract", "extract", "train-head", "report"]
    assert [parsed(run, number)["model"] for number in (0, 1)] == ["mini", "mini-hipt"]
    values = parsed(run, 2)
    assert values["store"] == ("S1=/data/mini.zarr", "S2=/data/mini-hipt.zarr")
    assert values["blocks"] == {"S1": (4, 5, 6), "S2": (0,)} and values["t"] == {"S1": (50,), "S2": (200,)}


def test_every_setting_of_slides_is_a_flag_of_the_extraction_command(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((300, 300, 3), 120, np.uint8), tile=(256, 256), photometric="rgb",
                     resolution=(2e4, 2e4), resolutionunit=3)  # fmt: skip
    ring = [[10, 10], [200, 10], [200, 200], [10, 200], [10, 10]]
    outline = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
               "properties": {"classification": {"name": "Region*"}}}  # fmt: skip
    small = {**outline, "geometry": {"type": "Polygon", "coordinates": [[[20, 20], [60, 20], [60, 60], [20, 20]]]},
             "properties": {"classification": {"name": "gland"}}}  # fmt: skip
    (tmp_path / "a.geojson").write_text(json.dumps([outline, small]))
    options = DatasetOptions(root=tmp_path, mpp=0.5, target_mpp=0.5, outline_origin="file", views="flips")
    settings = open_dataset("slides", options).preprocessing.settings
    assert set(settings) <= set(PREPROCESSING_FLAGS)
    assert "outline_origin" in settings
