"""What the report says in words: the result in a sentence, the facts of a run, how to make it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pathseg.store.blocks import format_blocks
from pathseg.train.report.paper_scores import cited_scores
from pathseg.train.report.tables import number
from pathseg.train.runs.expected import WHOLES
from pathseg.train.runs.finished import FinishedRun

SIDES = {"glas": 768, "synthetic": 512}  # px that stage one brings a data set to without --resize
NOT_RECORDED = (  # of what extract was given
    "--root, --limit, --classes, --mpp, --target-mpp, --image-folder, --stride, --views, --val-institutes, --hipt"
)
MAKE = ("dtype", "packing", "precision", "seed")  # of the features, where a run says it: flags of extract


def summary(ranked: Sequence[FinishedRun], dataset: str) -> str:
    """The best run, its score on the quoted test split and what that is worth; `ranked` has the highest Dice first."""
    best = ranked[0]
    part = best.quoted
    images = _count(part.images, "image")
    where = f"the test images of {dataset}" if best.test_split == "test" else f"{best.test_split} of {dataset}"
    chosen = (
        f"Of {len(ranked)} runs, {best.name} has the highest Dice" if len(ranked) > 1 else f"{best.name} has a Dice"
    )
    sentences = [
        f"{chosen} on {where} ({images}): {number(part.scores.dice)}, with mIoU "
        f"{number(part.scores.miou)} and accuracy {number(part.scores.accuracy)}; {_against_constant(best)}.",
        _learned_from(best),
    ]
    cited = [
        row for row in cited_scores(best.data["dataset"], best.test_split, best.test_split) if row.dice is not None
    ]
    if cited and cited[-1].method == "PathSegDiff":
        sentences.append(f"The paper prints a Dice of {number(cited[-1].dice)} for PathSegDiff (cited, not run here).")
    if len(ranked) > 1:
        sentences.append(_choice_note(ranked))
    return " ".join(sentences)


def untrained_warning(runs: Sequence[FinishedRun]) -> str:
    """A plain warning that names the models without trained weights, empty when all are trained."""
    names = sorted({str(run.data["model"]["name"]) for run in runs if not run.data["model"]["trained"]})
    if not names:
        return ""
    whole = "" if all(not run.data["model"]["trained"] for run in runs) else " (the rows marked untrained)"
    return (
        f"Model {', '.join(names)} is untrained{whole}; random weights: numbers show that the pipeline works, "
        "nothing about pathology"
    )


def data_facts(run: FinishedRun) -> tuple[tuple[str, str], ...]:
    """The data set in short: classes, size of the images, how many in each part."""
    data = run.data
    height, width = data["size"]
    scale = "unknown scale" if data["mpp"] is None else f"{data['mpp']:.3g} µm/px"
    ignored, done = data["ignore"], data["preprocessing"]
    counted = [name for code, name in enumerate(data["classes"]) if code != ignored]
    return (
        ("Classes", ", ".join(counted) + ("" if ignored is None else f" (code {ignored} is not counted)")),
        ("Images", f"{width} × {height} px, {scale}, {'no preprocessing' if done == 'none' else done}"),
        ("Parts", ", ".join(f"{name} {len(ids)}" for name, ids in data["images"].items())),
    )


def run_facts(run: FinishedRun) -> str:
    """How the run went, in one line."""
    best = next((line.get("val_dice") for line in run.history if line["epoch"] == run.best_epoch), None)
    minutes, seconds = divmod(round(run.seconds), 60)
    took = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    device = f" on {run.config['device']}" if "device" in run.config else ""
    return (
        f"Images of {run.size}, {run.config['parameters']:,} parameters, "
        f"{_count(run.epochs, 'epoch')}, {took} of training steps{device}; "
        f"kept: epoch {run.best_epoch}, validation Dice {number(best)}"
    )


def commands(run: FinishedRun, workspace: Path) -> tuple[str, ...]:
    """The command lines of such a run, from extraction to report, with all that the run recorded.

    What it did not record (`NOT_RECORDED`) is for the reader to add to the first.
    """
    data, head = run.data, run.head
    model = data.get("store_model", data["model"])
    at, store = ["--workspace", str(workspace)], ["--store", data["store"]]
    features = () if run.is_baseline else ("--t", head.get("t"), "--blocks", "all")
    extract = [
        "extract", *at, "--dataset", data["dataset"], "--model", model["name"], "--condition", model["condition"],
        *_resize(data), *features, "--layout", data["layout"], *store,
    ]  # fmt: skip
    for name in MAKE:
        extract += [f"--{name}", data["features"][name]] if name in data.get("features", {}) else []
    train = ["train-baseline" if run.is_baseline else "train-head", *at, *store]
    for name, value in head.items():
        flag = "model" if name == "head" and run.is_baseline else name.replace("_", "-")
        train += [f"--{flag}", format_blocks(value) if name == "blocks" else value]
    lines = (extract, [*train, "--name", run.name], ["report", *at])
    return tuple("pathseg " + shlex.join(str(word) for word in line if word is not None) for line in lines)


def _resize(data: dict[str, Any]) -> tuple[object, ...]:
    """The flag that gives the images their size, nothing where it is the data set's own."""
    height, width = data["size"]
    own = SIDES.get(data["dataset"], None if data["preprocessing"].startswith("resized") else height)
    return () if height != width or height == own else ("--resize", height)


def flat(config: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """A run's configuration as pairs of a dotted name and its value in words."""
    pairs: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, dict):
            pairs += [(f"{name}.{below}", text) for below, text in flat(value)]
        elif name == "blocks" and WHOLES.holds(value):
            pairs.append((name, format_blocks(value)))
        elif isinstance(value, list):
            pairs.append((name, ", ".join(str(one) for one in value)))
        else:
            pairs.append((name, "none" if value is None else str(value)))
    return tuple(pairs)


def _against_constant(run: FinishedRun) -> str:
    part = run.quoted
    if part.scores.dice is None or part.constant.dice is None:
        return f"no value for always answering {part.constant_class}"
    gain = part.scores.dice - part.constant.dice
    base = f"always answering {part.constant_class} ({part.constant.dice:.3f})"
    if gain > 0:
        return f"{gain:.3f} above {base}"
    return f"no better than {base}: the head has learned nothing that helps on these images"


def _condition(condition: str) -> str:
    return {"ssl": "conditioned on the SSL embedding", "none": "unconditional"}.get(condition, f"condition {condition}")


def _learned_from(run: FinishedRun) -> str:
    model = run.data["model"]
    if run.is_baseline:
        return f"It learned from the images themselves (first weights: {run.head['weights']})."
    untrained = "" if model["trained"] else " with random weights"
    condition = _condition(model["condition"])
    return f"Its features are those of the model {model['name']}{untrained}, {condition}{_reads(run)}."


def _reads(run: FinishedRun) -> str:
    head = run.head
    if not head.get("blocks"):
        return ""
    return f", blocks {format_blocks(head['blocks'])} at t = {head.get('t')}"


def _choice_note(ranked: Sequence[FinishedRun]) -> str:
    """That the best was picked on test images, and which run validation would have picked."""
    note = "Picking the best of several runs by their test score flatters it"
    scored = [(line["val_dice"], run) for run in ranked for line in run.history
              if line["epoch"] == run.best_epoch and line.get("val_dice") is not None]  # fmt: skip
    if len(scored) < len(ranked):
        return f"{note}."
    _, picked = max(scored, key=lambda pair: pair[0])
    if picked is ranked[0]:
        return f"{note}; validation Dice picks the same run."
    dice = number(picked.quoted.scores.dice)
    return f"{note}; validation Dice would pick {picked.name}, with a test Dice of {dice}."


def _count(number_of: int, noun: str) -> str:
    return f"{number_of} {noun}" + ("" if number_of == 1 else "s")
