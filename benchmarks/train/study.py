"""What adds up on a few annotated images: magnifications, models, the image itself, more images, learned mixing.

    python -m benchmarks.train.study --root GLAS [--workspace DIR] [--size 256] [--seeds 0,1,2] [--out FILE]

Extracts a data set with `mini`, with `mini` in its surroundings (half the magnification) and with `mini-hipt`; trains
linear heads on each and on their combinations, on each block of `mini` alone, and on nested subsets of the images; FCN
heads on blocks 4-6 with and without the image; a scalar mix of all blocks of `mini`. Prints each command before it runs
it, then a table of mean and deviation over the seeds on every test split, which it also writes to FILE with Spearman's
rank correlation between the learned weights of the blocks and their Dice alone. The report of the workspace has the
figures. Run it again to resume after an interruption.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import tempfile
from pathlib import Path

from scipy.stats import spearmanr

from benchmarks.machine import RESULTS, describe_machine, save_rows
from pathseg.train.report.sweeps import Repeats, features_label, find_repeats
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import list_runs

FEW = "1,2,4,8"  # training images of the learning curves, besides all
PROBE = "--head linear --lr 1e-2"
FCN = "--lr 1e-3 --blocks 4-6"


def command_lines(arguments: argparse.Namespace) -> list[list[str]]:
    """Return the arguments of every pathseg command, in order."""
    workspace = ["--workspace", str(arguments.workspace)]
    mini, wide, hipt = (str(arguments.workspace / f"{name}.zarr") for name in ("mini", "wide", "hipt"))
    extract = ["extract", "--dataset", arguments.dataset, "--layout", "native", "--resize", str(arguments.size)]
    extract += [*(["--root", arguments.root] if arguments.root else []), *workspace]

    def train(stores: list[str], flags: str, epochs: int, seeds: str = arguments.seeds) -> list[str]:
        named = [word for store in stores for word in ("--store", store)]
        shared = ["--epochs", str(epochs), "--seed", seeds, "--val-fraction", "0.25", "--device", arguments.device]
        return ["train-head", *named, *shlex.split(flags), *shared, *workspace]

    probe, fcn = arguments.epochs, arguments.fcn_epochs
    two_seeds = ",".join(arguments.seeds.split(",")[:2])
    return [
        [*extract, "--model", "mini", "--store", mini],
        [*extract, "--model", "mini", "--surroundings", "2", "--store", wide],
        [*extract, "--model", "mini-hipt", "--store", hipt],
        *(train(stores, PROBE, probe) for stores in ([mini], [wide], [hipt], [mini, wide], [mini, hipt])),
        train([mini, wide, hipt], PROBE, probe),
        train([mini], f"{PROBE} --blocks each", probe),
        train([mini], f"{PROBE} --train-images {FEW}", probe),
        train([mini, hipt], f"{PROBE} --train-images {FEW}", probe),
        train([mini], FCN, fcn, two_seeds),
        train([mini], f"{FCN} --image-in-head", fcn, two_seeds),
        train([mini], "--head scalar-mix --lr 1e-3", fcn, two_seeds),
        ["report", *workspace],
    ]


def rows_of(runs: list[FinishedRun]) -> list[dict[str, object]]:
    """Return one row for runs that differ in their seed only: features, settings, scores on every test split."""
    rows = []
    for settings, repeats in find_repeats(runs, at_least=1):
        first = repeats.runs[0]
        row: dict[str, object] = {"features": features_label(first), "settings": ", ".join(settings)}
        row |= {"seeds": len(repeats.runs), "train_images": first.data.train_images}
        row["val_dice"] = round(repeats.mean_validation_dice, 4)
        for split in first.metrics.splits:
            row |= scores_on(repeats, split)
        rows.append(row)
    return rows


def scores_on(repeats: Repeats, split: str) -> dict[str, float]:
    """Return mean and deviation over seeds of pixel Dice and pooled object F1 and Dice on a test split."""
    found = [run.metrics.splits[split] for run in repeats.runs]
    values = {"dice": [one.scores.dice or 0.0 for one in found]}
    if all(one.pooled_objects for one in found):
        values["object_f1"] = [one.pooled_objects.f1 or 0.0 for one in found]
        values["object_dice"] = [one.pooled_objects.dice or 0.0 for one in found]
    row = {f"{split}_{name}": round(statistics.fmean(own), 4) for name, own in values.items()}
    if len(found) > 1:
        row |= {f"{split}_{name}_sd": round(statistics.stdev(own), 4) for name, own in values.items()}
    return row


def rank_correlation(runs: list[FinishedRun]) -> dict[str, object]:
    """Return Spearman's correlation of the mean learned weight of each block with its mean Dice alone."""
    mixed = [run.metrics.layer_weights for run in runs if run.metrics.layer_weights]
    alone: dict[int, list[FinishedRun]] = {}
    for run in runs:
        key, layers = run.data.key, run.settings.layers
        of_mini = key.model == "mini" and key.surroundings is None
        if of_mini and len(layers) == 1 and run.settings.network == "linear":
            alone.setdefault(layers[0].block, []).append(run)
    if not mixed or len(alone) < 3:
        return {}
    blocks = sorted(alone)
    weights = [statistics.fmean(own[number].weight for own in mixed) for number in range(len(blocks))]
    row: dict[str, object] = {"weights": dict(zip(map(str, blocks), (round(one, 4) for one in weights), strict=True))}
    for name, dice in (
        ("validation", [statistics.fmean(run.best_val_dice or 0 for run in alone[block]) for block in blocks]),
        ("test", [statistics.fmean(run.test_scores.scores.dice or 0 for run in alone[block]) for block in blocks]),
    ):
        found = spearmanr(weights, dice)
        row[f"spearman_{name}"], row[f"p_{name}"] = round(float(found.statistic), 3), round(float(found.pvalue), 4)
    return row


def main() -> None:
    """Run all commands, then tabulate the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="glas")
    parser.add_argument("--root")
    parser.add_argument("--workspace", type=Path, default=Path("pathseg-study"))
    parser.add_argument("--size", type=int, default=256, help="px a side")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=30, help="of linear heads")
    parser.add_argument("--fcn-epochs", type=int, default=10, help="of FCN heads and the scalar mix, two seeds")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS / "study.json")
    arguments = parser.parse_args()
    machine = describe_machine(Path(tempfile.gettempdir()))
    for line in command_lines(arguments):
        print(f"$ pathseg {shlex.join(line)}", flush=True)
        subprocess.run(["pathseg", *line], check=True)
    runs = [FinishedRun.read(folder) for folder in list_runs(arguments.workspace) if folder.finished]
    rows = rows_of(runs)
    for row in rows:
        print(row)
    correlation = rank_correlation(runs)
    print(correlation)
    settings = {"dataset": arguments.dataset, "size_px": arguments.size, "epochs": arguments.epochs}
    settings |= {"fcn_epochs": arguments.fcn_epochs, "seeds": arguments.seeds, **correlation}
    save_rows(arguments.out, "study", [settings, *rows], machine=machine)


if __name__ == "__main__":
    main()
