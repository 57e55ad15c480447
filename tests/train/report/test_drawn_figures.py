"""A report draws only the figures that show something else than those of the last report."""

import numpy as np
import pytest

from pathseg.train.report.drawn_figures import INDEX, DrawnFigures
from pathseg.train.report.figures import mixing_figure, sweep_figure
from pathseg.train.report.sheets import sheet
from pathseg.train.report.staged_folder import file_name
from pathseg.train.report.sweeps import find_sweeps
from pathseg.train.report.table_formats import Spread

FIGURE = "mixing-a <b>.png"
WEIGHTS = [("block 4", Spread.of([0.5, 0.6])), ("block 5", Spread.of([0.5, 0.4]))]


@pytest.fixture
def report(tmp_path):
    """The folder of a report with one figure."""
    drawn = DrawnFigures(tmp_path)
    (tmp_path / file_name(FIGURE)).write_bytes(drawn.file(FIGURE, mixing_figure, WEIGHTS, "GlaS"))
    (tmp_path / INDEX).write_bytes(drawn.index())
    return tmp_path


def next_figure(report, weights=WEIGHTS, title="GlaS") -> tuple[bytes, bool]:
    """The figure in the next report, and whether it had to be drawn."""
    calls = []

    def mixing_figure(*args):
        calls.append(args)
        return b"drawn"

    return DrawnFigures(report).file(FIGURE, mixing_figure, weights, title), bool(calls)


def test_a_figure_that_shows_the_same_is_taken_from_the_last_report(report):
    assert next_figure(report) == ((report / file_name(FIGURE)).read_bytes(), False)


@pytest.mark.parametrize("other", [
    {"weights": WEIGHTS[:1]}, {"weights": [WEIGHTS[0], ("block 5", Spread.of([0.5, 0.41]))]}, {"title": "another"},
])  # fmt: skip
def test_a_figure_that_shows_something_else_is_drawn(report, other):
    assert next_figure(report, **other) == (b"drawn", True)


def test_a_figure_whose_file_was_changed_is_drawn(report):
    (report / file_name(FIGURE)).write_bytes(b"\x89PNG of another hand")
    assert next_figure(report) == (b"drawn", True)


def test_a_figure_whose_file_is_gone_is_drawn(report):
    (report / file_name(FIGURE)).unlink()
    assert next_figure(report) == (b"drawn", True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"mixing-a <b>.png": 3}'])
def test_figures_are_drawn_where_their_index_cannot_be_read(report, content):
    (report / INDEX).write_bytes(content)
    assert next_figure(report) == (b"drawn", True)


def test_one_changed_pixel_of_a_panel_is_another_figure(tmp_path):
    def digest(value):
        panel = np.zeros((8, 16, 3), np.uint8)
        panel[3, 4] = value
        drawn = DrawnFigures()
        drawn.file("a.png", sheet, [("a", [panel, None])], "ab", legend=[("gland", "#009E73")], title="a")
        return drawn.index()

    assert digest(0) == digest(0) != digest(1)


def test_a_sweep_is_another_figure_when_the_score_of_one_run_is_another(make_run):
    def digest(val):
        (sweep,) = find_sweeps([make_run(t=t, val=val if t == 50 else 0.5) for t in (10, 50, 200)])
        drawn = DrawnFigures()
        drawn.file("a.png", sweep_figure, sweep, "GlaS")
        return drawn.index()

    assert digest(0.5) == digest(0.5) != digest(0.6)
