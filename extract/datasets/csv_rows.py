"""Reading the small csv files beside the images of a data set: splits.csv, Grade.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from pathlib import Path

from pathseg.store.runtime.regular_files import read_file

MAX_SHOWN = 200  # letters of a value in a message: a missing quote makes one value of a whole file
Row = tuple[int, dict[str, str]]  # line number, text by column


def read_rows(path: Path, *, required: Collection[str], optional: Collection[str]) -> list[Row]:
    """Return the rows of a csv file with a header; blank rows are skipped, names of columns compared in lower case.

    optional: columns that may be there; one that ends in `*` stands for all that start alike. Raises ValueError naming
    file and line: a required column is missing, one is unknown or there twice, a row is longer than the header.
    """
    wanted = ",".join(required)
    with io.StringIO(read_file(path).decode("utf-8-sig", errors="replace"), newline="") as file:
        lines = csv.reader(file, skipinitialspace=True)
        try:
            header = [name.strip().lower() for name in next(lines, ())]
            if not set(required) <= set(header):
                found = shown(",".join(header)) if any(header) else "nothing"
                raise ValueError(f"{path}: the first line must name the columns {wanted}, found {found}; add it")
            for name in header:
                if header.count(name) > 1 or not _known(name, (*required, *optional)):
                    why = "twice" if header.count(name) > 1 else "unknown"
                    raise ValueError(
                        f"{path}: the column {shown(name)} is {why}; the columns are {wanted} and optionally "
                        f"{', '.join(optional)}; remove it"
                    )
            rows = []
            for values in lines:
                if len(values) > len(header):
                    raise ValueError(f"{path}: line {lines.line_num}: more values than columns; quote or remove them")
                texts = [value.strip() for value in values] + [""] * (len(header) - len(values))
                if any(texts):
                    rows.append((lines.line_num, dict(zip(header, texts, strict=True))))
            return rows
        except csv.Error as e:
            raise ValueError(f"{path}: line {lines.line_num}: no rows of {wanted}: {e}; close its quotes") from e


def shown(value: str) -> str:
    """Return a value for a message, quoted, on one line and cut to `MAX_SHOWN` letters."""
    return repr(value) if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]!r}... ({len(value):,} letters)"


def _known(name: str, columns: Collection[str]) -> bool:
    return any(name.startswith(column[:-1]) if column.endswith("*") else name == column for column in columns)
