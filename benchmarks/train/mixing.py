"""How well the weights of a scalar mix predict which block is best alone: rank correlation on generated tissue.

    python -m benchmarks.train.mixing [--images 12] [--size 256] [--epochs 6] [--seeds 2] [--out FILE]

Extracts all blocks of `mini`, trains a head on each block alone and a scalar mix of all blocks from the same reads, and
reports Spearman's rank correlation of the mean weight of each block with its mean test and validation Dice alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import fmean

from scipy.stats import spearmanr

from benchmarks.machine import RESULTS, describe_machine, save_rows
from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.models.load import load_model
from pathseg.extract.pipeline import extract
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.training.sweep import expand_heads, train


def main() -> None:
    """Extract, train, correlate and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--size", type=int, default=256, help="px a side")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--head", default="fcn", help="of the runs on single blocks")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=RESULTS / "mixing.json")
    arguments = parser.parse_args()
    machine, started = describe_machine(Path(tempfile.gettempdir())), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset("synthetic", DatasetOptions(resize=arguments.size, limit=arguments.images))
        store = extract(dataset, load_model("mini"), Path(folder) / "mini.zarr", ExtractConfig(layout="native")).store
        shared = {"seed": tuple(range(arguments.seeds)), "lr": (arguments.lr,), "epochs": arguments.epochs}
        configs = expand_heads(store, blocks="each", head_type=arguments.head, **shared)
        configs += expand_heads(store, head_type="scalar-mix", **shared)
        runs = train(store, configs, Path(folder), device="cpu").runs
    alone = {block: _of_block(runs, block) for block in sorted(store.contents.blocks)}
    mixed = [run for run in runs if run.metrics.layer_weights]
    weights = {
        block: fmean(run.metrics.layer_weights[number].weight for run in mixed) for number, block in enumerate(alone)
    }
    row = {
        "images": arguments.images,
        "size_px": arguments.size,
        "epochs": arguments.epochs,
        "seeds": arguments.seeds,
        "head": arguments.head,
        "weights": {str(block): round(weight, 4) for block, weight in weights.items()},
    }
    for split, dice in (
        ("test", {block: fmean(run.test_scores.scores.dice or 0 for run in own) for block, own in alone.items()}),
        ("val", {block: fmean(run.best_val_dice or 0 for run in own) for block, own in alone.items()}),
    ):
        found = spearmanr(list(weights.values()), list(dice.values()))
        row |= {
            f"{split}_dice_alone": {str(block): round(value, 4) for block, value in dice.items()},
            f"spearman_{split}": round(float(found.statistic), 3),
            f"p_{split}": round(float(found.pvalue), 4),
        }
    row["mixed_test_dice"] = round(fmean(run.test_scores.scores.dice or 0 for run in mixed), 4)
    row["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(row, indent=2))
    save_rows(arguments.out, "mixing", [row], machine=machine)


def _of_block(runs: tuple[FinishedRun, ...], block: int) -> list[FinishedRun]:
    """The runs on a block alone."""
    return [run for run in runs if [layer.block for layer in run.settings.layers] == [block]]


if __name__ == "__main__":
    main()
