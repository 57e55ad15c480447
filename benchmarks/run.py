"""Every benchmark of the repository in one call: tables on the screen, one file of figures, the pictures of the README.

    python benchmarks/run.py [--size small|full] [--only store,heads,…] [--name MACHINE]

small  What a laptop does in about twenty minutes: the bundled model, few images; the network of the paper's size, with
       random weights (made in a temporary folder, 2 GB), only where it is compared with the cache.
full   More images, all of that network, and a million simulated patches; an hour or more on two cores. A GPU is used
       where there is one; `--only gpu` stands for what it is about.

Nothing is downloaded. Writes benchmarks/results/<machine>.json (figures of both sizes, versions, hardware), and from it
benchmarks/pictures/<machine>.png. A benchmark that fails is named, what it had measured is kept, the others go on, and
the exit code is 1. Not in here, because they need images from elsewhere: mini.py, mini_value.py, comparison.py.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import machine

HERE = Path(__file__).parent
RELEASE = "RELEASE"  # stands for the folder of the model of the paper's size
# name -> script, arguments of the small run, arguments of the full run; None: not in that size
BENCHMARKS: dict[str, tuple[str, list[str] | None, list[str] | None]] = {
    "store": ("store.py", ["--only", "io,extract,memory"], []),
    "stage-one-mini": ("stage_one.py", [], []),
    "stage-one-full": ("stage_one.py", None, ["--model", RELEASE]),
    "heads": ("heads.py", ["--only", "step,epoch,precision"], ["--release", RELEASE]),
    "peers": ("peers.py", ["--images", "3", "--release", RELEASE], ["--release", RELEASE]),
    "predict": ("predict.py", ["--sides", "5000"], []),
    "regions": ("regions.py", [], []),
    "pixel-memory": ("pixel_memory.py", None, []),
    "plan": ("plan.py", None, []),
}
GPU = ["stage-one-full", "heads", "peers"]  # what a GPU changes


def run(name: str, size: str, release: Path, folder: Path) -> tuple[dict, bool]:
    """The figures of one benchmark, run in a process of its own, and whether it came to its end."""
    script, *arguments = BENCHMARKS[name]
    chosen = arguments[size == "full"] or []
    out = folder / f"{name}.json"
    words = [str(release) if word == RELEASE else word for word in chosen]
    print(f"== {name}", flush=True)
    done = subprocess.run([sys.executable, str(HERE / script), *words, "--out", str(out)])
    return json.loads(out.read_text()) if out.exists() else {}, done.returncode == 0


def draw(results: dict, path: Path) -> bool:
    """What each way of feeding an epoch takes, and the steps of a head; False when those were not measured."""
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
    for panel, (title, value) in zip(axes, panels.items(), strict=False):
        for offset, (blocks, part) in zip((-0.2, 0.2), peers.items(), strict=True):
            places = [place + offset for place in range(len(part["rows"]))]
            values = [value(row) for row in part["rows"]]
            bars = panel.barh(places, values, height=0.38, label=f"blocks {blocks}")
            panel.bar_label(bars, [f"{v:.0f}" if v >= 10 else f"{v:.2g}" for v in values], padding=2, fontsize=8)
        panel.set_yticks(range(len(part["rows"])), [row["way"] for row in part["rows"]])
        panel.set(title=title, xscale="log" if "second" in title else "linear")
        panel.margins(x=0.25)
        panel.invert_yaxis()
    axes[0].legend(fontsize=8)
    rows = [row for row in heads["rows"] if "float32_times" in row]
    for offset, row in zip((-0.2, 0.2), rows, strict=True):
        names = {"first": "first layer", "float32": "step", "bfloat16": "step in bfloat16"}
        bars = axes[3].barh([place + offset for place in range(3)], [row[f"{n}_times"] for n in names], height=0.38)
        axes[3].bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        axes[3].set_yticks(range(3), names.values())
    axes[3].axvline(1, color="grey", lw=0.8)
    axes[3].set(title="FCN head, times as fast as plain")
    axes[3].margins(x=0.15)
    axes[3].invert_yaxis()
    figure.savefig(path, dpi=100)
    return True


def default_name() -> str:
    """A short name of this machine: its GPU, or its processor and cores."""
    about = machine(HERE)
    cpu = re.sub(r"\([^)]*\)|\b(CPU|Processor|[0-9]+-Core)\b|@.*", " ", str(about["cpu"]))
    return "-".join(str(about["gpu"] or f"{cpu} {about['cores']} cores").lower().split())


def wanted(only: str) -> list[str]:
    """The names of the benchmarks that a comma list stands for. Raises SystemExit for a name that is none."""
    names = [name for part in only.split(",") for name in (GPU if part.strip() == "gpu" else [part.strip()])]
    if unknown := [name for name in names if name not in BENCHMARKS]:
        sys.exit(f"no benchmark {unknown[0]!r}; there are gpu, {', '.join(BENCHMARKS)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="comma list of benchmarks")
    parser.add_argument("--name", default=default_name(), help="of the results file")
    arguments = parser.parse_args()
    out = HERE / f"results/{arguments.name}.json"
    results = json.loads(out.read_text()) if out.exists() else {}
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        release = Path(scratch) / "release"
        subprocess.run([sys.executable, str(HERE / "full_size_release.py"), str(release)], check=True)
        for name in wanted(arguments.only):
            if BENCHMARKS[name][1 + (arguments.size == "full")] is None:
                continue
            figures, whole = run(name, arguments.size, release, Path(scratch))
            if not whole:
                failed.append(name)
            results.setdefault(arguments.size, {}).setdefault(name, {}).update(figures)
            out.parent.mkdir(exist_ok=True)
            out.write_text(json.dumps(results, indent=1) + "\n")
    drawn = draw(results.get(arguments.size, {}), HERE / f"pictures/{arguments.name}.png")
    print(f"figures in {out}" + (", picture beside them" if drawn else ""))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
