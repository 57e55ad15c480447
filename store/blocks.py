"""Numbers of feature blocks and their text form.

Of a diffusion model 0 = middle, 1..12 = upsampling blocks in the order they run; of a ViT k = output of layer k,
counted from 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

BLOCKS = tuple(range(13))  # of a diffusion model
MAX_BLOCK = 99  # array names have two digits
SCALES = "_scales"  # follows the name of a block's array in that of its scales (`format.packing`)

Selection = tuple[int, ...] | Literal["all", "last"]


def parse_blocks(text: str) -> tuple[int, ...]:
    """Parse numbers of blocks, `4-6` or `0,4-6`; return them ascending, each once.

    Raises ValueError when an item is no block number or lies outside 0..MAX_BLOCK.
    """
    chosen: set[int] = set()
    for item in text.split(","):
        first, dash, last = item.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"cannot read {item.strip()!r} as blocks; write 4-6, 0,4-6, last or all")
        low, high = int(first), int(last) if dash else int(first)
        if low > high or high > MAX_BLOCK:
            raise ValueError(f"blocks {item.strip()!r} are not ascending within 0-{MAX_BLOCK}")
        chosen.update(range(low, high + 1))
    return tuple(sorted(chosen))


def parse_selection(text: str) -> Selection:
    """Parse numbers as `parse_blocks`, or `all` or `last`, which depend on the model. Raises ValueError as it does."""
    words: dict[str, Selection] = {"all": "all", "last": "last"}
    return words.get(text.strip()) or parse_blocks(text)


def select_blocks(selection: Selection, available: Iterable[int]) -> tuple[int, ...]:
    """Return the numbers of a selection: of `all` and `last` those of the available blocks, ascending."""
    if isinstance(selection, tuple):
        return selection
    ascending = tuple(sorted(available))
    return ascending if selection == "all" else ascending[-1:]


def format_blocks(blocks: Iterable[int]) -> str:
    """Format a selection in its shortest form, `0,4-6`: the inverse of `parse_blocks`."""
    runs: list[list[int]] = []
    for block in sorted(blocks):
        if runs and block == runs[-1][1] + 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def array_name(t: int, block: int) -> str:
    """Return the path of a block's array in the store: `t50/block04`."""
    return f"t{t}/block{block:02d}"
