"""Sheets of test images as JPEG files: rows of panels under the names of their columns, with a legend (Pillow)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from textwrap import fill

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pathseg.train.report.figures import INK, shortened

# px: width of a panel, gap between panels, size of the letters of title, columns and legend, rows
PANEL, GAP, TITLE, LETTERS, SMALL = 280, 12, 21, 20, 17
SWATCH = (40, 14)  # px of a colour in the legend
QUALITY = 90  # of the JPEG file: an eighth of the time and a third of the size of a PNG file


def sheet(
    rows: Sequence[tuple[str, Sequence[np.ndarray | None]]], columns: Sequence[str], *,
    legend: Sequence[tuple[str, str]], title: str,
) -> bytes:  # fmt: skip
    """Draw rows of (label, panels) under the names of their columns, with a legend of (name, colour).

    A panel that is None stays empty; each row has at least one. All are brought to the size of the first.
    """
    h, w = next(panel for panel in rows[0][1] if panel is not None).shape[:2]
    width, height = PANEL, max(1, round(PANEL * h / w))
    labels = [_turned(_wrapped(shortened(label, 200), _font(SMALL), height)) for label, _ in rows]
    left = max(label.width for label in labels) + GAP
    lefts = [left + number * (width + GAP) for number in range(len(columns))]
    right = lefts[-1] + width + GAP
    heading = _wrapped(shortened(title, 300), _font(TITLE, bold=True), right - 2 * GAP)
    names = [shortened(name, 100) for name in columns]
    lines = 2 + heading.count("\n") + max(name.count("\n") + 1 for name in names)  # with an empty one
    top = GAP + round(1.25 * LETTERS * lines)
    tops = [top + number * (height + GAP) for number in range(len(rows))]
    entries = _legend(legend, right)

    picture = Image.new("RGB", (right, tops[-1] + height + 2 * GAP + 30 * len(entries)), "white")
    draw = ImageDraw.Draw(picture)
    draw.multiline_text((GAP, GAP), heading, fill=INK, font=_font(TITLE, bold=True))
    for x, name in zip(lefts, names, strict=True):
        draw.multiline_text((x + width / 2, top - 6), name, fill=INK, font=_font(LETTERS), anchor="md", align="center")
    for y, label, (_, panels) in zip(tops, labels, rows, strict=True):
        picture.paste(INK, (left - label.width - 6, y + (height - label.height) // 2), label)
        for x, panel in zip(lefts, panels, strict=True):
            if panel is not None:
                picture.paste(Image.fromarray(panel).resize((width, height), Image.Resampling.LANCZOS), (x, y))
    for number, line in enumerate(entries):
        y = tops[-1] + height + GAP + 30 * number
        for x, name, colour in line:
            draw.rectangle((x, y + 6, x + SWATCH[0], y + 6 + SWATCH[1]), fill=colour)
            draw.text((x + SWATCH[0] + 12, y + 13), name, fill=INK, font=_font(LETTERS), anchor="lm")
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, subsampling=0)  # whole resolution of colours, for thin outlines
    return file.getvalue()


def _wrapped(text: str, font: ImageFont.FreeTypeFont, px: int) -> str:
    """Break a text into lines of so many px, and a tenth of them for letters that are wider than its others."""
    return "\n".join(
        fill(line, max(8, int(0.9 * px * len(line) / (font.getlength(line) + 1)))) for line in text.splitlines()
    )


def _turned(text: str) -> Image.Image:
    """A text that is read from below, as the mask (L) of its letters."""
    font = _font(SMALL)
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    mask = Image.new("L", (round(right - left), round(bottom - top)))
    ImageDraw.Draw(mask).multiline_text((-left, -top), text, fill=255, font=font, align="center")
    return mask.rotate(90, expand=True)


def _legend(legend: Sequence[tuple[str, str]], width: int) -> list[list[tuple[int, str, str]]]:
    """Lines of (x, name, colour), each in the middle of the width and as long as it allows."""
    entries = [(shortened(name, 40).replace("\n", " "), colour) for name, colour in legend]
    sizes = [SWATCH[0] + round(_font(LETTERS).getlength(name)) + 52 for name, _ in entries]
    lines: list[list[int]] = []  # the numbers of their entries
    for number, size in enumerate(sizes):
        if lines and sum(sizes[other] for other in lines[-1]) + size <= width:
            lines[-1].append(number)
        else:
            lines.append([number])
    placed = []
    for line in lines:
        ends = list(accumulate((sizes[number] for number in line), initial=0))
        start = max(GAP, (width - ends[-1] + 40) // 2)
        placed.append([(start + x, *entries[number]) for x, number in zip(ends, line, strict=False)])
    return placed


@cache
def _font(px: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), px)
