"""A report draws only the figures that show something else than those of the last report."""

import numpy as np
import pytest

from pathseg.train.report.drawn_figures import INDEX, DrawnFigures
from pathseg.train.report.figures import learning_curves, sheet, sweep_figure
from pathseg.train.report.staged_folder import file_name
from pathseg.train.report.sweeps import find_sweeps
from pathseg.train.runs.record import Epoch

HISTORY = [Epoch(e, 1 / e, 1.1 / e, None, 0.2 * e, 0.1 * e) for e in (1, 2, 3)]
CURVES = "curves-a <b>.png"


@pytest.fixture
def report(tmp_path):
    """The folder of a report with one figure, and the bytes of that."""
    drawn = DrawnFigures(tmp_path)
    (tmp_path / file_name(CURVES)).write_bytes(drawn.png(CURVES, learning_curves, HISTORY, 2, "run"))
    (tmp_path / INDEX).write_bytes(drawn.index())
    return tmp_path


def curves(report, history=HISTORY, best_epoch=2, title="run") -> tuple[bytes, bool]:
    """The figure in the next report, and whether it had to be drawn."""
    calls = []

    def learning_curves(*args):
        calls.append(args)
        return b"drawn"

    return DrawnFigures(report).png(CURVES, learning_curves, history, best_epoch, title), bool(calls)


def test_a_figure_that_shows_the_same_is_taken_from_the_last_report(report):
    assert curves(report) == (learning_curves(HISTORY, 2, "run"), False)


@pytest.mark.parametrize("other", [
    {"history": HISTORY[:2]}, {"history": [*HISTORY[:2], Epoch(3, 0.3, 0.4, None, 0.6, 0.3)]}, {"best_epoch": 3},
    {"title": "another"},
])  # fmt: skip
def test_a_figure_that_shows_something_else_is_drawn(report, other):
    assert curves(report, **other) == (b"drawn", True)


def test_a_figure_whose_file_was_changed_is_drawn(report):
    (report / file_name(CURVES)).write_bytes(b"\x89PNG of another hand")
    assert curves(report) == (b"drawn", True)


def test_a_figure_whose_file_is_gone_is_drawn(report):
    (report / file_name(CURVES)).unlink()
    assert curves(report) == (b"drawn", True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"curves-a <b>.png": 3}'])
def test_figures_are_drawn_where_their_index_cannot_be_read(report, content):
    (report / INDEX).write_bytes(content)
    assert curves(report) == (b"drawn", True)


def test_one_changed_pixel_of_a_panel_is_another_figure(tmp_path):
    def digest(value):
        panel = np.zeros((8, 16, 3), np.uint8)
        panel[3, 4] = value
        drawn = DrawnFigures()
        drawn.png("a.png", sheet, [("a", [panel, None])], "ab", legend=[("gland", "#009E73")], title="a")
        return drawn.index()

    assert digest(0) == digest(0) != digest(1)


def test_a_sweep_is_another_figure_when_the_score_of_one_run_is_another(make_run):
    def digest(val):
        (sweep,) = find_sweeps([make_run(t=t, val=val if t == 50 else 0.5) for t in (10, 50, 200)])
        drawn = DrawnFigures()
        drawn.png("a.png", sweep_figure, sweep, "GlaS")
        return drawn.index()

    assert digest(0.5) == digest(0.5) != digest(0.6)
