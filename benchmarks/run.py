"""Run every benchmark; print tables, write one results file and one figure per machine.

    python -m benchmarks.run [--size small|full] [--only store,heads,…] [--name MACHINE]

small  About twenty minutes on a laptop: the bundled model, few images; the network of the paper's size, with random
       weights (in a temporary folder, 2 GB), only where it is compared with the cache.
full   More images, all of that network, and a million simulated patches; an hour or more on two cores. Uses a GPU where
       there is one; what only a GPU can show is `benchmarks.gpu`.

Downloads nothing. Writes benchmarks/results/<machine>.json (figures of both sizes, versions, hardware), and from it
benchmarks/pictures/<machine>.png. When a benchmark fails, its finished sections are kept, the others still run, and the
exit code is 1. Not included, because they need images: mini/train.py, mini/value.py and train/comparison.py; nor
train/mixing.py, which measures no speed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import PICTURES, RESULTS, describe_machine, module_command

RELEASE = "RELEASE"  # stands for the folder of the model of the paper's size
# name -> module, arguments of the small run, arguments of the full run; None: not in that size
BENCHMARKS: dict[str, tuple[str, list[str] | None, list[str] | None]] = {
    "store": ("store.store", ["--only", "io,extract,memory"], []),
    "stage-one-mini": ("extract.stage_one", [], []),
    "stage-one-full": ("extract.stage_one", None, ["--model", RELEASE]),
    "heads": ("train.heads", ["--only", "step,epoch,precision"], ["--release", RELEASE]),
    "peers": ("train.peers", ["--images", "3", "--release", RELEASE], ["--release", RELEASE]),
    "predict": ("train.predict", ["--sides", "5000"], []),
    "regions": ("extract.regions", [], []),
    "pixel-memory": ("train.pixel_memory", None, []),
    "plan": ("store.plan", None, []),
}


def run_benchmark(name: str, words: list[str], release: Path, folder: Path) -> tuple[dict, bool]:
    """Run one benchmark in a process of its own; return its figures and whether it succeeded."""
    words = [str(release) if word == RELEASE else word for word in words]
    out = folder / f"{name}.json"
    print(f"== {name}", flush=True)
    process = subprocess.run(module_command(f"benchmarks.{BENCHMARKS[name][0]}", *words, "--out", out))
    return json.loads(out.read_text()) if out.exists() else {}, process.returncode == 0


def draw_figure(results: dict, path: Path) -> bool:
    """Draw the epochs of each source of features and the steps of the head; return False where these are missing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    peers, heads = results.get("peers"), results.get("heads", {}).get("step")
    if not peers or len(peers) < 2 or not heads:
        return False
    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3.4), layout="constrained")
    panels = {
        "seconds of an epoch, an image": lambda row: row["epoch_s_per_image"],
        "images a second into the head": lambda row: 1 / row["load_s_per_image"],
        "peak memory, GB": lambda row: row["peak_bytes"] / 1e9,
    }
    for axis, (title, value) in zip(axes, panels.items(), strict=False):
        for offset, (blocks, section) in zip((-0.2, 0.2), peers.items(), strict=True):
            positions = [position + offset for position in range(len(section["rows"]))]
            values = [value(row) for row in section["rows"]]
            bars = axis.barh(positions, values, height=0.38, label=f"blocks {blocks}")
            axis.bar_label(bars, [f"{v:.0f}" if v >= 10 else f"{v:.2g}" for v in values], padding=2, fontsize=8)
        axis.set_yticks(range(len(section["rows"])), [row["way"] for row in section["rows"]])
        axis.set(title=title, xscale="log" if "second" in title else "linear")
        axis.margins(x=0.25)
        axis.invert_yaxis()
    axes[0].legend(fontsize=8)
    rows = [row for row in heads["rows"] if "float32_times" in row]
    for offset, row in zip((-0.2, 0.2), rows, strict=True):
        names = {"first": "first layer", "float32": "step", "bfloat16": "step in bfloat16"}
        names = {name: label for name, label in names.items() if f"{name}_times" in row}
        positions = [position + offset for position in range(len(names))]
        bars = axes[3].barh(positions, [row[f"{name}_times"] for name in names], height=0.38)
        axes[3].bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        axes[3].set_yticks(range(len(names)), names.values())
    axes[3].axvline(1, color="grey", lw=0.8)
    axes[3].set(title="FCN head, times as fast as plain")
    axes[3].margins(x=0.15)
    axes[3].invert_yaxis()
    figure.savefig(path, dpi=100)
    return True


def default_name() -> str:
    """Return a short name of this machine: its GPU, or its processor and cores."""
    machine = describe_machine(RESULTS)
    cpu = re.sub(r"\([^)]*\)|\b(CPU|Processor|[0-9]+-Core)\b|@.*", " ", str(machine["cpu"]))
    return "-".join(str(machine["gpu"] or f"{cpu} {machine['cores']} cores").lower().split())


def chosen_benchmarks(only: str, size: str) -> dict[str, list[str]]:
    """Return the arguments of each benchmark in a comma list that this size has.

    Raises SystemExit for an unknown name.
    """
    names = [word.strip() for word in only.split(",")]
    if unknown := [name for name in names if name not in BENCHMARKS]:
        sys.exit(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    arguments = {name: BENCHMARKS[name][2 if size == "full" else 1] for name in names}
    return {name: words for name, words in arguments.items() if words is not None}


def main() -> None:
    """Run the chosen benchmarks and write figures and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="comma list of benchmarks")
    parser.add_argument("--name", default=default_name(), help="of the results file")
    arguments = parser.parse_args()
    out = RESULTS / f"{arguments.name}.json"
    results = json.loads(out.read_text()) if out.exists() else {}
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        release = Path(scratch) / "release"
        chosen = chosen_benchmarks(arguments.only, arguments.size)
        if any(RELEASE in words for words in chosen.values()):
            subprocess.run(module_command("benchmarks.extract.full_size_release", release), check=True)
        for name, words in chosen.items():
            figures, succeeded = run_benchmark(name, words, release, Path(scratch))
            if not succeeded:
                failed.append(name)
            results.setdefault(arguments.size, {}).setdefault(name, {}).update(figures)
            out.parent.mkdir(exist_ok=True)
            out.write_text(json.dumps(results, indent=1) + "\n")
    drawn = draw_figure(results.get(arguments.size, {}), PICTURES / f"{arguments.name}.png")
    print(f"figures in {out}" + (f", picture in {PICTURES}" if drawn else ""))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
