"""Figures are real PNG files, the same bytes each time, and change with what they show."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pathseg.train.report.figures import (
    mixing_figure,
    sweep_figure,
    training_images_figure,
)
from pathseg.train.report.sweeps import find_sweeps
from pathseg.train.report.table_formats import Spread

MATH = "$x^{2$ \\alpha_"  # no name may be read as a formula


def size_of(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        picture.load()
        return picture.size


def colours_of(png: bytes) -> list[tuple[int, tuple[int, int, int]]]:
    """Pairs of a number of pixels and an RGB colour, of a figure in few colours."""
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.mode == "P"
        return picture.convert("RGB").getcolors(picture.width * picture.height)


def drawn(runs) -> bytes | None:
    (sweep,) = find_sweeps(runs)
    return sweep_figure(sweep, "GlaS")


@pytest.fixture
def over_time(make_run):
    def make(times=(10, 50, 200), val=0.5, **about):
        return [make_run(t=t, seed=seed, val=val + seed / 10, **about) for t in times for seed in (0, 1)]

    return make


def test_the_ground_is_white_and_flat_areas_keep_their_colours(over_time):
    figure = colours_of(drawn(over_time()))
    assert max(figure)[1] == (255, 255, 255)
    # blue and vermilion of Okabe and Ito
    assert {(0, 114, 178), (213, 94, 0)} <= {colour for _, colour in figure}


def test_names_with_dollar_signs_are_drawn_as_they_are(over_time):
    (sweep,) = find_sweeps(over_time())
    assert size_of(sweep_figure(sweep, MATH)) and size_of(mixing_figure([(MATH, Spread.of([0.5]))], MATH))


def test_a_sweep_is_the_same_bytes_in_any_order_of_its_runs(over_time):
    png = drawn(over_time())
    width, height = size_of(png)
    assert width > 2 * height and png == drawn(over_time()[::-1])


@pytest.mark.parametrize("other", [{"val": 0.6}, {"trained": False}, {"times": (10, 50, 300)}])
def test_a_sweep_changes_with_what_it_shows(over_time, other):
    assert drawn(over_time()) != drawn(over_time(**other))


def test_crowded_timesteps_can_be_drawn(over_time):
    assert size_of(drawn(over_time((1, 2, 999))))


@pytest.mark.parametrize(
    "chosen", [[(4,), (5,)], [(4, 5, 6), (0, 1)], [*((b,) for b in range(13)), (4, 5, 6), tuple(range(13))]]
)
def test_blocks_are_drawn_with_groups_and_without(make_run, chosen):
    assert size_of(drawn([make_run(blocks=blocks) for blocks in chosen]))


def test_missing_validation_scores_can_be_drawn(make_run):
    assert size_of(drawn([make_run(t=10, val=None), make_run(t=50)]))
    assert size_of(drawn([make_run(t=10, val=None), make_run(t=50, val=None)]))


def test_learning_rates_have_no_figure(make_run):
    assert drawn([make_run(lr=1e-3), make_run(lr=1e-4)]) is None


def test_drawing_loads_no_pyplot_and_importing_loads_no_matplotlib():
    code = (
        "import sys, pathseg.train.report.figures as f; from pathseg.train.report.table_formats import Spread;"
        "before = 'matplotlib' in sys.modules;"
        "f.mixing_figure([('a', Spread.of([0.5]))], 't');"
        "print(before, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("name", [r"$\frac{$", "a\x1b[2J\u202eb", "x" * 2000, "two\nlines", "腺"])
def test_any_name_can_be_drawn(name):
    assert size_of(mixing_figure([(name, Spread.of([0.5, 0.4]))], name))


def test_a_learning_curve_changes_with_its_scores(make_run):
    good = np.array([[50, 10], [20, 20]])

    def curve(matrix):
        def run(count, seed, ids):
            images = {"train": ids, "val": ("v",), "testB": ("d", "e")}
            data = {"images": images, "train_images": len(ids)}
            return make_run(train_images=count, seed=seed, data=data, matrix=matrix if count == 1 else good)

        runs = [run(1, 0, ("a",)), run(1, 1, ("b",)), run("all", 0, ("a", "b")), run("all", 1, ("a", "b"))]
        return training_images_figure(find_sweeps(runs), ["model $x$"], "GlaS")

    assert curve(good) == curve(good) != curve(np.array([[40, 20], [20, 20]]))
    assert curve(good).startswith(b"\x89PNG")
