"""Slides of patches by the names of their files: coordinates, sizes and scale at the end of a name are left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

MIN_TILE_PX = 64  # numbers below are no side of a tile
MIN_SAME = 3  # names that end in the same number, for it to be a size

# Every pattern can be read in one way only: "." separates and is in no number, so that matching takes quadratic time.
_SEP = r"[ _.,;-]"
_NUMBER = r"\d+(?:px|um|µm|(?:x|mpp)(?![ _.=:-]{0,2}\d))?"
_VALUE = rf"[ _.=:-]{{0,2}}{_NUMBER}"
_KEY = (
    r"(?:[xy](?:min|max|ini|start|end)?|row|col|column|[whdztcrij]|width|height|size|level|lvl|lv|mpp|mag|scale|ds|"
    r"downsample)"
)
_PART = rf"(?:{_SEP}+(?:{_NUMBER}|{_KEY}{_VALUE})|{_KEY}{_VALUE})"  # _512, _x12, x12 after a digit
_BRACKET = (  # [d=2,x=0,y=512,w=512,h=512], (10,20); not (1), (1.5), (2024-05-06)
    rf"{_SEP}*[\[({{](?=[^\])}}]*(?:[=:]|[xy]\d|\d(?: *[,;] *|[ _x])-?\d)) *(?:-?{_NUMBER}|{_KEY}{_VALUE}){_PART}*"
    r" *[\])}]"
)
_REST = rf"(?:{_BRACKET}|{_PART})*(?:\.ome)?"
_TCGA = r"TCGA-[A-Z\d]{2}-[A-Z\d]{4}(?![A-Z\d])"  # its last field may be a number, but is no coordinate
_HEAD = rf"({_TCGA}.*?|(?!{_TCGA}).+?)"

_COORDINATES = re.compile(
    rf"{_HEAD}(?:{_SEP}+(?:(?:[xy](?:min|max|ini|start|end)?|row|col|column|tile|patch|crop){_VALUE}|"
    rf"(?:tile|patch|crop)(?={_SEP}+r\d+{_SEP}*c\d)|{_KEY} *[=:] *-?\d+|"
    rf"(?:level|lvl|lv){_VALUE}(?=(?:{_SEP}+\d+){{2}}))|{_BRACKET}){_REST}",
    re.IGNORECASE,
)
_SIZES = (
    r"(?:[ _.,-]+(?:\d+x\d+(?:px)?|\d+(?:\.\d+)?(?:x|px|um|µm|mpp)|"
    r"(?:[whd]|width|height|size|level|lvl|lv|mpp|mag|scale|ds|downsample)[ _.=:-]{0,2}\d+(?:\.\d+)?))"
)
_NUMBERS = re.compile(
    rf"{_HEAD}(?P<numbers>[ _.,-]+\d+(?:[ _,-]+\d+)+)(?!\d|\.\d){_SIZES}*(?:\.ome)?", re.IGNORECASE
)  # SLIDE_123_456, SLIDE_0_0_512_512
_OTHERS = re.compile(  # without other coordinates: SLIDE_r1_c2, SLIDE_123x456, SLIDE_mpp0.5
    rf"{_HEAD}{_SEP}+(?:r\d+{_SEP}*c\d+|c\d+{_SEP}*r\d+|i\d+{_SEP}*j\d+|[wh]\d+{_SEP}*[wh]\d+|\d+x\d+(?:px)?|mpp{_VALUE})"
    rf"{_REST}",
    re.IGNORECASE,
)


def slides_by_name(names: Iterable[str]) -> dict[str, str]:
    """Return the slide of each name that ends in coordinates: what is left without them, sizes and scale.

    Coordinates are in brackets (`SLIDE [x=0,y=512,w=512,h=512]`, `SLIDE_(10,20)`), have keys (`_x1_y2`, `_row1_col2`,
    `_xmin1_ymin2_MPP-0.25`, `_tile12`) or are the last two numbers. Numbers behind them are sizes, or the opposite
    corner, where most names of the data set end in such: `SLIDE_0_0_512_512` beside `SLIDE_512_0_512_512`. A number
    before them (`case_1_10_20`), and one alone (`case_12`), is part of the slide's name. Other names are left out.
    """
    found: dict[str, str] = {}
    runs: dict[str, re.Match[str]] = {}  # names of plain numbers
    for name in names:
        if match := _COORDINATES.fullmatch(name):
            found[name] = match[1]
        elif match := _NUMBERS.fullmatch(name):
            runs[name] = match
        elif match := _OTHERS.fullmatch(name):
            found[name] = match[1]
    sizes = _sizes([[int(number) for number in re.findall(r"\d+", match["numbers"])] for match in runs.values()])
    for name, match in runs.items():
        numbers = list(re.finditer(r"[ _.,-]+\d+", match["numbers"]))
        coordinates = min(len(numbers), 2 + sizes)
        found[name] = match[1] + match["numbers"][: numbers[-coordinates].start()]
    return found


def _sizes(runs: list[list[int]]) -> int:
    """Return how many numbers behind the coordinates are sizes or of the opposite corner: 2, 1 or 0."""
    boxes = [run[-4:] for run in runs if len(run) >= 4]
    if _alike([(w, h) for _, _, w, h in boxes]) or _alike([(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes]):
        return 2
    last = [run[-1] for run in runs if len(run) >= 3]
    return int(len(last) >= MIN_SAME and len(set(last)) == 1 and last[0] >= MIN_TILE_PX)


def _alike(pairs: list[tuple[int, int]]) -> bool:
    """Return whether most pairs are sides of tiles: squares, or all the same."""
    tiles = [pair for pair in pairs if min(pair) >= MIN_TILE_PX]
    squares = sum(w == h for w, h in tiles)
    return 2 * max([squares, *Counter(tiles).values()]) > len(pairs)
