import dataclasses
import subprocess
import sys
from collections import Counter
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

from pathseg.extract.datasets.registry import (
    DATASETS,
    MAX_SHOWN_PROBLEMS,
    DatasetError,
    DatasetOptions,
    Sample,
    dataset_root,
    limit_samples,
    open_dataset,
)


def samples(**counts):
    return tuple(Sample(f"{split}_{i}", split, 8, 8) for split, count in counts.items() for i in range(count))


def shares(limit, **counts):
    return dict(Counter(sample.split for sample in limit_samples(samples(**counts), limit, test_split="testB")))


@pytest.mark.parametrize("name", DATASETS)
def test_every_row_names_a_function_that_opens_it(name):
    module, function = DATASETS[name].opener.split(":")
    assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("name", DATASETS)
def test_every_row_says_what_where_how_and_under_which_licence(name):
    entry = DATASETS[name]
    assert all((entry.summary, entry.source, entry.layout, entry.licence))


@pytest.mark.parametrize("name", DATASETS)
def test_every_row_names_known_options_only(name):
    assert set(DATASETS[name].options) <= {field.name for field in dataclasses.fields(DatasetOptions)}


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_refuses_the_options_that_do_not_apply_by_name(name):
    given = {"root": Path("x"), "resize": 256, "classes": ("a", "b"), "mpp": 0.5, "target_mpp": 0.5, "stride": 8}
    given |= {"image_folder": "images", "views": 3, "val_institutes": ("BH",), "instances": True, "keep_aspect": True}
    given |= {"window_px": 512, "min_labelled_px": 9, "brush_um": 5.0, "region_class": "roi", "windows": "tissue"}
    given |= {"outline_origin": "file", "ignore": 0}
    assert given.keys() | {"limit", "seed"} == {field.name for field in dataclasses.fields(DatasetOptions)}
    for option in given.keys() - set(DATASETS[name].options):
        flag = option.replace("_", "-")
        with pytest.raises(ValueError, match=f"--{flag} does not apply: the {name} data set takes "):
            open_dataset(name, DatasetOptions(**{option: given[option]}))


@pytest.mark.parametrize(("name", "views", "takes"), [
    ("glas", 2, "--views flips"), ("folder", 1, "--views flips"), ("synthetic", 8, "--views flips"),
    ("bcss", "flips", "a number of crops"),
])  # fmt: skip
def test_views_of_the_other_kind_are_refused_with_the_kind_that_applies(name, views, takes):
    with pytest.raises(ValueError, match=f"--views does not apply: the {name} data set .*{takes}, got --views {views}"):
        open_dataset(name, DatasetOptions(views=views))


def test_an_unknown_name_lists_the_names():
    with pytest.raises(
        ValueError, match="no data set is called 'gals'; pathseg has glas, bcss, folder, slides, synthetic"
    ):
        open_dataset("gals", DatasetOptions())


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("folder", "limit", 0),
        ("folder", "resize", 700),
        ("folder", "resize", 0),
        ("folder", "resize", -256),
        ("folder", "mpp", 0.0),
        ("bcss", "target_mpp", -0.5),
        ("bcss", "target_mpp", float("inf")),
        ("bcss", "target_mpp", 100.0),
        ("bcss", "mpp", float("nan")),
        ("bcss", "mpp", 0.001),
        ("folder", "mpp", float("inf")),
        ("bcss", "stride", 0),
        ("bcss", "stride", 769),
        ("bcss", "views", 0),
        ("bcss", "views", -1),
    ],
)
def test_an_option_out_of_range_is_named_with_its_value(name, option, value):
    with pytest.raises(ValueError, match=rf"--{option.replace('_', '-')} must be .*, got {value}"):
        open_dataset(name, DatasetOptions(**{option: value}))


@pytest.mark.parametrize("name", ["glas", "bcss", "folder"])
def test_a_missing_root_says_where_to_get_the_data_in_which_layout_and_licence(name, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        open_dataset(name, DatasetOptions(root=tmp_path / "none"))
    first, *rest = str(caught.value).splitlines()
    assert str(tmp_path / "none") in first and "--root DIR" in first
    entry = DATASETS[name]
    assert all(line in "\n".join(rest) for line in (entry.source, entry.licence, *entry.layout.splitlines()))


def test_the_default_root_is_in_the_user_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_data_path", lambda app, appauthor: tmp_path / app)
    (tmp_path / "pathseg" / "glas").mkdir(parents=True)
    assert dataset_root("glas", DatasetOptions()) == tmp_path / "pathseg" / "glas"


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_dataset("glas", DatasetOptions(root=tmp_path / "file"))


def test_the_table_is_read_without_loading_torch_pillow_or_numpy():
    code = "import sys, pathseg.extract.datasets.registry; print({'torch', 'PIL', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_without_a_limit_all_samples_stay():
    assert limit_samples(samples(train=3, testB=2), None, test_split="testB") == samples(train=3, testB=2)


def test_a_limit_above_the_number_takes_all():
    assert len(limit_samples(samples(train=3, testB=2), 9, test_split="testB")) == 5


@pytest.mark.parametrize("limit", range(1, 30))
def test_a_limit_takes_exactly_as_many(limit):
    assert sum(shares(limit, train=16, testA=8, testB=6).values()) == limit


def test_a_limit_is_shared_out_in_proportion():
    assert shares(33, train=85, testA=60, testB=20) == {"train": 17, "testA": 12, "testB": 4}


def test_each_split_has_one_if_the_limit_allows():
    assert shares(3, train=100, testA=1, testB=1) == {"train": 1, "testA": 1, "testB": 1}


def test_the_split_of_the_results_comes_second():
    assert shares(2, train=10, testA=9, testB=1) == {"train": 1, "testB": 1}


def test_a_larger_limit_keeps_the_samples_of_a_smaller_one():
    chosen = [
        set(limit_samples(samples(train=16, testA=8, testB=6), limit, test_split="testB")) for limit in range(1, 30)
    ]
    assert all(small < large for small, large in pairwise(chosen))


def test_limited_samples_keep_their_order():
    whole = samples(train=16, testA=8, testB=6)
    kept = limit_samples(whole, 11, test_split="testB")
    assert [whole.index(sample) for sample in kept] == sorted(whole.index(sample) for sample in kept)


def test_the_first_line_of_a_dataset_error_stands_alone():
    error = DatasetError("glas", Path("data"), problems=["a.png: bad", "b.png: worse"])
    assert str(error).splitlines() == ["the glas data set at data has 2 problems: a.png: bad", "b.png: worse"]


def test_a_dataset_error_shows_the_first_problems_and_counts_the_rest():
    error = DatasetError("glas", Path("data"), problems=[f"{number}: bad" for number in range(MAX_SHOWN_PROBLEMS + 7)])
    assert str(error).splitlines()[-1] == "and 7 more" and len(error.problems) == MAX_SHOWN_PROBLEMS + 7
