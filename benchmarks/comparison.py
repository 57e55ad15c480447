"""The paper's comparison, each row a run of one's own: PathSegDiff, without condition, HIPT, pixel ensemble, baselines.

    python benchmarks/comparison.py --root GLAS                  # the paper's models, from where the README says
    python benchmarks/comparison.py --root GLAS --model mini     # the bundled models instead
    python benchmarks/comparison.py --dataset bcss --root BCSS --blocks 4-6 --class-weights balanced \\
        --val-institutes BH,C8,A8,A1,E9
    python benchmarks/comparison.py --dataset synthetic --model mini --resize 256 --limit 6 --epochs 1 --pixels 64

Prints each command line before it runs it. All runs lie in one workspace and take the same images, validation split,
epochs and seeds; the pixel ensemble may end earlier by its own rule. Run again, it goes on where it stopped.
"""

import argparse
import shlex
import subprocess

HIPT_OF = {"mini": "mini-hipt"}  # the model whose patch tokens are the HIPT row; `hipt` of all others


def command_lines(arguments: argparse.Namespace) -> list[list[object]]:
    """All commands, in order."""
    where = ["--workspace", arguments.workspace]
    store = f"{arguments.workspace}/{arguments.dataset}"
    chosen = given(arguments, "root", "resize", "limit", "val-institutes")
    data = ["extract", "--dataset", arguments.dataset, *chosen, *where]
    ours = [*data, "--model", arguments.model, *given(arguments, "blocks"), "--layout", arguments.layout]
    hipt = HIPT_OF.get(arguments.model, "hipt")
    ldm, without, tokens = (f"{store}-{name}.zarr" for name in ("ldm", "ldm-uncond", "tokens"))
    epochs = [
        "--epochs",
        arguments.epochs,
        "--seed",
        arguments.seeds,
        "--device",
        arguments.device,
        *given(arguments, "class-weights"),
        *where,
    ]
    return [
        [*ours, "--store", ldm],
        [*ours, "--condition", "none", "--store", without],
        [*data, "--model", hipt, "--layout", arguments.layout, "--store", tokens],
        ["train-head", "--store", ldm, *epochs],
        ["train-head", "--store", without, *epochs],
        ["train-head", "--store", tokens, *epochs],
        ["train-head", "--store", ldm, "--head", "linear", *epochs],
        ["train-head", "--store", ldm, "--head", "pixel-ensemble", *given(arguments, "pixels"), *epochs],
        ["train-baseline", "--store", ldm, "--model", "res-unet", *epochs],
        ["train-baseline", "--store", ldm, "--model", "vgg16-fcn8", *epochs],
        ["report", *where],
    ]


def given(arguments: argparse.Namespace, *names: str) -> list[object]:
    """The flags that were given, to be handed on."""
    values = {name: getattr(arguments, name.replace("-", "_")) for name in names}
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", value)]


if __name__ == "__main__":
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
    parser.add_argument("--dry-run", action="store_true", help="print the command lines only")
    asked = parser.parse_args()
    for line in command_lines(asked):
        command = ["pathseg", *map(str, line)]
        print(f"$ {shlex.join(command)}", flush=True)
        if not asked.dry_run:
            subprocess.run(command, check=True)
