"""One table in every format: what people and programs read, and names that no format may break on."""

import csv
import io

import pytest

from pathseg.train.report.table_formats import DASH, Column, Interval, Row, Spread, Table, count, signed, words

NASTY = [
    "a|b", "a & b", "50 %", "$x$", "<script>", "C:\\new", "two\nlines", "=1+1", "+1", "-1", "@sum", "[x]", "*", '"q"',
    "a_b", "~", "{}", "#1", "`code`",
]  # fmt: skip


COLUMNS = (words("run"), Column("Dice"))


def table(*rows: Row, columns=COLUMNS, **about) -> Table:
    return Table("name", "Title", columns, rows, **about)


def read_csv(one: Table) -> list[list[str]]:
    return list(csv.reader(io.StringIO(one.csv())))


def test_the_deviation_is_that_of_the_sample():
    spread = Spread.of([0.1, 0.2, 0.6])
    assert (spread.mean, spread.count, spread.total) == (pytest.approx(0.3), 3, 3)
    assert spread.deviation == pytest.approx((0.14 / 2) ** 0.5)  # squares 0.04 + 0.01 + 0.09, divisor n - 1


def test_one_value_has_no_deviation_and_none_no_spread():
    assert Spread.of([0.5, None]) == Spread(0.5, None, 1, 2)
    assert Spread.of([None, None]) is None


def test_values_are_written_for_people():
    column = Column("Dice")
    assert [column.text(value) for value in (None, 0.12345, Spread.of([0.5, 0.7]), Spread.of([0.5, None]))] == [
        DASH, "0.123", "0.600 ± 0.141", "0.500 (n = 1)",
    ]  # fmt: skip
    assert column.text(Interval(0.1, 0.3, value=0.2)) == "0.200 [0.100, 0.300]"
    assert Column("difference", signed).text(Interval(-0.3, 0.1)) == "[−0.300, +0.100]"
    assert Column("pixels", count).text(1234567) == "1,234,567"


def test_csv_has_numbers_in_full_precision_and_nothing_where_there_is_none():
    columns = (words("run"), Column("pixels", count), Column("Dice"), Column("difference", signed))
    one = table(Row("run", ("a", 1234567, 1 / 3, -0.125)), Row("constant", ("b", None, None, None)), columns=columns)
    rows = read_csv(one)
    assert rows == [list(one.header), ["a", "1234567", str(1 / 3), "-0.125"], ["b", "", "", ""]]
    assert float(rows[1][2]) == 1 / 3


def test_csv_has_a_column_for_each_number_of_a_spread_or_an_interval():
    columns = (words("run"), Column("Dice"), Column("mIoU"), Column("95% interval"))
    one = table(
        Row("run", ("a", Spread.of([0.25, 0.75]), Interval(0.1, 0.3, 0.2), Interval(-0.5, 0.5))),
        Row("paper", ("b", 0.5, None, None)), columns=columns,
    )  # fmt: skip
    header, ours, paper = read_csv(one)
    assert header == ["run", "Dice", "Dice sd", "Dice n", "mIoU", "mIoU low", "mIoU high", "95% interval low",
                      "95% interval high"]  # fmt: skip
    assert ours == ["a", "0.5", str(0.125**0.5), "2", "0.2", "0.1", "0.3", "-0.5", "0.5"]
    assert paper == ["b", "0.5", *[""] * 7]


def test_the_data_frame_has_typed_columns():
    frame = table(
        Row("run", ("a", 1)), Row("run", ("b", None)), columns=(words("run"), Column("images", count))
    ).frame()
    assert frame["images"].dtype == "Int64" and frame["images"].sum() == 1


@pytest.mark.parametrize("name", NASTY)
def test_csv_reads_back_every_name_and_no_spreadsheet_takes_it_for_a_formula(name):
    ((first, second), row) = read_csv(table(Row("run", (name, 0.5)), columns=(words("run"), Column(name))))
    shown = name.replace("\n", " ")
    safe = f"'{shown}" if shown[0] in "=+-@" else shown
    assert (first, second, row) == ("run", safe, [safe, "0.5"])


@pytest.mark.parametrize("name", NASTY)
def test_every_name_is_one_cell_of_a_markdown_table(name):
    """A separator is a bar without a backslash before it."""
    _, _, *lines = table(Row("run", (name, 0.5)), columns=(words(name), Column("Dice"))).markdown().splitlines()
    assert [len(line.replace(r"\\", "").replace(r"\|", "").split("|")) for line in lines] == [4, 4, 4]
    assert "<" not in lines[2]


@pytest.mark.parametrize("name", NASTY)
def test_every_name_is_one_cell_of_a_latex_table(name):
    lines = table(Row("run", (name, 0.5)), columns=(words(name), Column("Dice"))).latex().splitlines()
    body = lines[lines.index(r"\hline") :]
    assert [line.replace(r"\&", "").count("&") for line in (body[1], body[3])] == [1, 1]
    assert not body[3].startswith(("[", "*")) and all(line.endswith(r"\\") for line in (body[1], body[3]))
    unescaped = body[3][:-3].replace(r"\textbackslash{}", "").replace(r"\textasciitilde{}", "")
    for letter in "&%$#_{}":
        unescaped = unescaped.replace(f"\\{letter}", "")
    assert not set(unescaped.replace(" & ", "").replace("{[}", "").replace("{*}", "")) & set("%#_~{}\\")


def test_names_keep_control_characters_from_the_terminal():
    assert "\x1b" not in table(Row("run", ("\x1b[31mred", 0.5))).plain()


def test_latex_has_rules_between_kinds_of_rows_and_marks_the_best():
    one = table(Row("run", ("a_b", Spread.of([0.4, 0.6])), best=True), Row("paper", ("c & d", 0.5)))
    lines = one.latex().splitlines()
    assert lines[4:10] == [
        r"\hline", r"run & Dice \\", r"\hline", r"\textbf{a\_b} & \textbf{0.500 $\pm$ 0.141} \\", r"\hline",
        r"c \& d & 0.500 \\",
    ]  # fmt: skip


def test_markdown_aligns_numbers_to_the_right():
    text = table(Row("run", ("a", 0.5)), notes=("A note.",)).markdown()
    assert text == "**Title**\n\n| run | Dice |\n| --- | ---: |\n| a | 0.500 |\n\nA note.\n"


def test_plain_text_is_aligned():
    lines = table(Row("run", ("a", 0.5)), Row("paper", ("long", 0.25))).plain().splitlines()
    assert lines == ["Title", "", "run    Dice", "-----------", "a     0.500", "long  0.250"]


def test_plain_text_lifts_what_all_runs_share_and_leaves_columns_out():
    rows = (Row("run", ("a", "50", 1, 2)), Row("run", ("b", "50", 2, 2)), Row("paper", ("c", None, None, None)))
    columns = (words("run"), words("t"), Column("seed", str), Column("images", count))
    lines = table(*rows, columns=columns).plain(("images",), lift=("t", "seed")).splitlines()
    assert lines[1] == "all runs: t 50" and lines[3] == "run  seed"
