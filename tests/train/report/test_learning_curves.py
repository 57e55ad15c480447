"""Learning curves are SVG files that any browser reads, the same bytes each time, and lie where the scores say."""

from xml.etree import ElementTree

import pytest

from pathseg.store.runtime.printable import printable
from pathseg.train.report.learning_curves import learning_curves
from pathseg.train.runs.record import Epoch

HISTORY = [Epoch(e, 1 / e, 1.1 / e, None, 0.2 * e, 0.1 * e) for e in (1, 2, 3)]
DICE, MIOU, TRAINING, VALIDATION = "#009E73", "#CC79A7", "#0072B2", "#D55E00"


def elements(svg: bytes, kind: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return root.findall(f"{{http://www.w3.org/2000/svg}}{kind}")


def texts(svg: bytes) -> list[str | None]:
    return [one.text for one in elements(svg, "text")]


def curves(svg: bytes, colour: str) -> list[list[tuple[float, float]]]:
    """The points of each line of a colour, in px from the upper left corner."""
    lines = [one.get("points", "") for one in elements(svg, "polyline") if one.get("stroke") == colour]
    return [[(float(x), float(y)) for x, y in (point.split(",") for point in line.split())] for line in lines]


def test_they_are_the_same_bytes_again_and_move_with_the_best_epoch():
    svg = learning_curves(HISTORY, 2, "run")
    assert svg == learning_curves(HISTORY, 2, "run") != learning_curves(HISTORY, 3, "run")
    assert "best: epoch 2, 0.400" in texts(svg)


def test_scores_lie_where_the_ticks_say():
    svg = learning_curves([Epoch(1, val_dice=0.0), Epoch(2, val_dice=0.5), Epoch(3, val_dice=1.0)], 3, "run")
    ticks = {one.text: float(one.get("y", "nan")) for one in elements(svg, "text") if one.get("text-anchor") == "end"}
    (line,) = curves(svg, DICE)
    below = ticks["0.0"] - line[0][1]  # the letters stand on a line a little below the tick
    assert line[2][1] == pytest.approx(ticks["1.0"] - below) and 0 < below < 8
    assert line[1][1] == pytest.approx((line[0][1] + line[2][1]) / 2, abs=0.1)
    assert line[1][0] == pytest.approx((line[0][0] + line[2][0]) / 2, abs=0.1) and line[0][0] < line[2][0]


def test_ticks_are_round_numbers_and_epochs_whole_ones():
    history = [Epoch(e, train_loss=0.61 + e / 100) for e in range(1, 31)]
    shown = texts(learning_curves(history, 30, "run"))
    assert shown.count("30") == 2 and {"0", "5", "10", "0.65", "0.70", "0.75"} <= set(shown)
    assert "1.5" not in texts(learning_curves(HISTORY[:2], 1, "run"))


def test_missing_values_leave_a_gap_and_a_value_alone_is_a_dot():
    losses = [0.9, 0.8, None, 0.6, None, 0.4, 0.3]
    svg = learning_curves([Epoch(e, val_loss=loss) for e, loss in enumerate(losses, 1)], 1, "run")
    assert [len(line) for line in curves(svg, VALIDATION)] == [2, 2] and curves(svg, TRAINING) == []
    assert [one.get("fill") for one in elements(svg, "circle")] == [VALIDATION]


@pytest.mark.parametrize("loss", [0.5, 0.0, None, 1e300])
def test_one_epoch_can_be_drawn(loss):
    svg = learning_curves([Epoch(1, train_loss=loss)], 1, "run")
    assert [one.get("fill") for one in elements(svg, "circle")] == ([] if loss is None else [TRAINING])


def test_every_curve_has_its_colour():
    svg = learning_curves(HISTORY, 2, "run")
    assert all(len(curves(svg, colour)) == 1 for colour in (DICE, MIOU, TRAINING, VALIDATION))


@pytest.mark.parametrize("name", [r"$\frac{$", "a\x1b[2J\u202eb", "x" * 2000, "two\nlines", "腺", '<b> & "c"'])
def test_any_name_can_be_drawn(name):
    assert texts(learning_curves(HISTORY, 2, name))[0] == printable(name)
