"""Train and report the paper's comparison: PathSegDiff, unconditional, HIPT, linear, pixel ensemble, both baselines.

    python -m benchmarks.train.comparison --root GLAS                  # the paper's models, where the README puts them
    python -m benchmarks.train.comparison --root GLAS --model mini     # the bundled models
    python -m benchmarks.train.comparison --dataset bcss --root BCSS --blocks 4-6 --class-weights balanced \\
        --val-institutes BH,C8,A8,A1,E9
    python -m benchmarks.train.comparison --dataset synthetic --model mini --resize 256 --limit 6 --epochs 1 --pixels 64

Prints each command before it runs it. All runs are in one workspace and share images, validation split, epochs and
seeds; the pixel ensemble may stop earlier by its own rule. Run it again to resume after an interruption.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess

HIPT_MODEL = {"mini": "mini-hipt"}  # the model whose patch tokens are the HIPT row; `hipt` for all others


def command_lines(arguments: argparse.Namespace) -> list[list[object]]:
    """Return the arguments of every pathseg command, in order."""
    workspace = ["--workspace", arguments.workspace]
    extract = [
        "extract",
        "--dataset",
        arguments.dataset,
        *given(arguments, "root", "resize", "limit", "val-institutes"),
    ]
    extract += [*workspace, "--layout", arguments.layout]
    diffusion = [*extract, "--model", arguments.model, *given(arguments, "blocks")]
    stores = [f"{arguments.workspace}/{arguments.dataset}-{name}.zarr" for name in ("ldm", "ldm-uncond", "tokens")]
    ldm, unconditional, tokens = stores
    training = ["--epochs", arguments.epochs, "--seed", arguments.seeds, "--device", arguments.device]
    training += [*given(arguments, "class-weights"), *workspace]
    return [
        [*diffusion, "--store", ldm],
        [*diffusion, "--condition", "none", "--store", unconditional],
        [*extract, "--model", HIPT_MODEL.get(arguments.model, "hipt"), "--store", tokens],
        ["train-head", "--store", ldm, *training],
        ["train-head", "--store", unconditional, *training],
        ["train-head", "--store", tokens, *training],
        ["train-head", "--store", ldm, "--head", "linear", *training],
        ["train-head", "--store", ldm, "--head", "pixel-ensemble", *given(arguments, "pixels"), *training],
        ["train-baseline", "--store", ldm, "--model", "res-unet", *training],
        ["train-baseline", "--store", ldm, "--model", "vgg16-fcn8", *training],
        ["report", *workspace],
    ]


def given(arguments: argparse.Namespace, *names: str) -> list[object]:
    """Return those of the named flags that were given, with their values."""
    values = {name: getattr(arguments, name.replace("-", "_")) for name in names}
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", value)]


def main() -> None:
    """Print and run all commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="glas")
    parser.add_argument("--root")
    parser.add_argument("--model", default="brca-hipt-20x")
    parser.add_argument("--layout", default="native")
    parser.add_argument("--workspace", default="pathseg-comparison")
    parser.add_argument("--epochs", default=20, type=int)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--device", default="auto")
    for name in ("blocks", "class-weights", "val-institutes"):
        parser.add_argument(f"--{name}")
    for name in ("resize", "limit", "pixels"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    arguments = parser.parse_args()
    for line in command_lines(arguments):
        command = ["pathseg", *map(str, line)]
        print(f"$ {shlex.join(command)}", flush=True)
        if not arguments.dry_run:
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
