"""Learning curves and comparisons are SVG files, the same bytes each time, whose marks lie where the scores say."""

from xml.etree import ElementTree

import pytest

from pathseg.train.report.figures import shortened
from pathseg.train.report.svg_figures import DiceOfRun, comparison, learning_curves
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


CLASSES = [("background", "#8A8A8A"), ("_gland", "#009E73")]


def compared(runs, classes=CLASSES, constant=None, paper=None) -> bytes:
    return comparison(runs, classes, constant=constant, paper=paper, title="Dice")


def test_the_comparison_has_a_row_for_each_run_in_their_order():
    svg = compared([DiceOfRun("best", 0.7, (0.6, 0.8)), DiceOfRun("other", 0.65, (0.5, None))], constant=0.3)
    rows = {one.text: float(one.get("y", "nan")) for one in elements(svg, "text")}
    assert rows["best"] == rows["0.700"] < rows["other"] == rows["0.650"]
    assert "_gland" in rows and "constant prediction, 0.300" in rows
    assert len(elements(svg, "circle")) == 3 + 2  # a dot for each value and each class in the legend


def test_dice_lie_where_the_ticks_say():
    svg = compared([DiceOfRun("a", None, (0.2, 0.6))], paper=("paper", 0.4))
    ticks = {one.text: float(one.get("x", "nan")) for one in elements(svg, "text")}
    (background, *_), (gland, *_) = (
        [float(one.get("cx", "nan")) for one in elements(svg, "circle") if one.get("fill") == colour]
        for _, colour in CLASSES
    )
    assert (background, gland) == (ticks["0.2"], ticks["0.6"])
    (paper,) = [
        one for one in elements(svg, "line") if one.get("stroke") == VALIDATION and one.get("y1") != one.get("y2")
    ]
    assert float(paper.get("x1", "nan")) == ticks["0.4"]


def test_the_comparison_grows_with_the_runs():
    lines = [DiceOfRun(f"run {i:02}", 0.5, (0.4, None)) for i in range(12)]
    few, many = (ElementTree.fromstring(compared(some)) for some in (lines[:2], lines))
    assert float(many.get("height")) > float(few.get("height")) and many.get("width") == few.get("width")


def test_the_comparison_of_a_run_without_scores_can_be_drawn():
    assert "a" in texts(compared([DiceOfRun("a", None, (None,))], [("x", "#D55E00")]))


@pytest.mark.parametrize("name", [r"$\frac{$", "a\x1b[2J\u202eb", "x" * 2000, "two\nlines", "腺", '<b> & "c"'])
def test_any_name_can_be_drawn(name):
    shown = [shortened(name, 300), shortened(name, 80).replace("\n", " "), shortened(name, 60).replace("\n", " ")]
    assert texts(learning_curves(HISTORY, 2, name))[0] == shown[0]
    assert set(shown) <= {
        *texts(comparison([DiceOfRun(name, 0.5, (0.4,))], [(name, DICE)], constant=None, paper=None, title=name))
    }


@pytest.mark.parametrize("loss", [7e-4, 2e9, 1e300])
def test_labels_of_an_axis_have_room_beside_its_name(loss):
    svg = learning_curves([Epoch(1, train_loss=loss), Epoch(2, train_loss=loss * 1.3)], 1, "run")
    labels = [one.text or "" for one in elements(svg, "text") if one.get("text-anchor") == "end"]
    assert len(labels) > 4 and max(map(len, labels)) <= 9 and len(set(labels)) == len(labels)


def test_an_infinite_loss_leaves_a_gap():
    svg = learning_curves([Epoch(e, train_loss=loss) for e, loss in enumerate((0.5, float("inf"), 0.4, 0.3), 1)], 1, "")
    assert [len(line) for line in curves(svg, TRAINING)] == [2]


def test_names_in_wide_letters_have_room():
    name = "病理組織分割実験その一二三四五六七八九十"  # each letter as wide as the font is high
    (start,) = [one for one in elements(compared([DiceOfRun(name, 0.5, (0.5, 0.5))]), "text") if one.text == name]
    assert float(start.get("x", "nan")) > 13 * len(name)
