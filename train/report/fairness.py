"""What keeps systems from being compared as they stand with the paper's: notes below the table of systems."""

from __future__ import annotations

from collections.abc import Sequence

from pathseg.store.blocks import BLOCKS, format_blocks
from pathseg.train.config import BATCH_PX, HeadConfig
from pathseg.train.report.systems import UNCONDITIONAL, System, is_unconditional, system_name


def fairness_notes(systems: Sequence[System], *, beside_paper: bool) -> tuple[str, ...]:
    """Return a sentence for each way in which systems differ from those that they are named after.

    beside_paper: whether the paper's scores, which are of all blocks, stand in the same table.
    """
    notes = [*_unconditional(systems), *_early_stop(systems)]
    return (*notes, *(_fewer_blocks(systems) if beside_paper else ()))


def _unconditional(systems: Sequence[System]) -> list[str]:
    """What stands behind the rows of releases without condition: the paper's model or one of an unknown kind."""
    unconditional = [one for one in systems if is_unconditional(one.run)]
    systems_of = {one.name: UNCONDITIONAL.get(one.run.data.key.model) for one in unconditional}
    papers = [name for name, system in systems_of.items() if system == "PathSegDiff-uncond"]
    unknown = [name for name, system in systems_of.items() if system is None]
    notes = []
    if papers:
        notes.append(
            f"{', '.join(papers)}: --condition none gives the conditional model a zero embedding. That is not the "
            "paper's unconditional model, which was trained separately; only a release without conditioning stage is "
            "one."
        )
    if unknown:
        notes.append(
            f"{', '.join(unknown)}: of features without condition a store does not say whether the release is of the "
            "paper's kind, so they are not called PathSegDiff-uncond, whichever release it is; only those whose model "
            "the store names brca-hipt-20x or mini are."
        )
    return notes


def _early_stop(systems: Sequence[System]) -> list[str]:
    """How much the pixel ensembles saw, beside the DDPMSeg that they are named after."""
    notes = []
    for one in systems:
        settings = one.run.settings
        if not isinstance(settings, HeadConfig) or settings.network != "pixel-ensemble":
            continue
        height, width = one.run.data.key.size
        steps = [run.steps for run in one.repeats.runs if run.steps is not None]
        trained = (
            f"a network saw at most {_range([BATCH_PX * count for count in steps])} pixels in {_range(steps)} steps"
            if len(steps) == len(one.repeats.runs)
            else "steps were not recorded"
        )
        notes.append(
            f"{one.name}: {trained}, {_range([run.metrics.epochs for run in one.repeats.runs])} epochs of "
            f"{settings.pixels:,} pixels an image. An epoch of DDPMSeg is all {height * width:,} pixels of an image, "
            "and its rule stops a network some steps after a fixed number of epochs, so ours stops after far fewer "
            "pixels than DDPMSeg's own."
        )
    return notes


def _fewer_blocks(systems: Sequence[System]) -> list[str]:
    notes = []
    for one in systems:
        settings = one.run.settings
        ours = isinstance(settings, HeadConfig) and system_name(one.run) in ("PathSegDiff", "PathSegDiff-uncond")
        if ours and (blocks := tuple(sorted(settings.selections[0].blocks))) != BLOCKS:
            notes.append(
                f"{one.name}: ours reads blocks {format_blocks(blocks)}, the reported row all {len(BLOCKS)}; "
                "extract and train with --blocks all for the paper's."
            )
    return notes


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
