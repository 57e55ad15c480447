"""Numbers of feature blocks and their text form: 0 = middle, 1..12 = upsampling blocks in the order they run."""

from __future__ import annotations

from collections.abc import Iterable

BLOCKS = tuple(range(13))


def parse_blocks(text: str) -> tuple[int, ...]:
    """Parse a selection of blocks, `4-6`, `0,4-6` or `all`; return ascending numbers, each once.

    Raises ValueError when an item is no block number or lies outside 0..12.
    """
    if text.strip() == "all":
        return BLOCKS
    chosen: set[int] = set()
    for item in text.split(","):
        first, dash, last = item.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"cannot read {item.strip()!r} as blocks; write 4-6, 0,4-6 or all")
        low, high = int(first), int(last) if dash else int(first)
        if low > high or high > BLOCKS[-1]:
            raise ValueError(f"blocks {item.strip()!r} are not within 0-{BLOCKS[-1]} (0 = middle, 1-12 = upsampling)")
        chosen.update(range(low, high + 1))
    return tuple(sorted(chosen))


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
