"""Every benchmark of the repository in one call: tables on the screen, one file of figures, the pictures of the README.

    python benchmarks/run.py [--size small|full] [--only store,heads,…] [--name MACHINE]

small  What a laptop does in about twenty minutes: the bundled model, few images.
full   Also the networks of the paper's size with random weights (made in a temporary folder, 2 GB), and a million
       simulated patches; hours on two cores, minutes on a GPU, which is used where there is one.

Nothing is downloaded. Writes benchmarks/results/<machine>.json (figures, versions, hardware), and from it
benchmarks/pictures/<machine>.png. A benchmark that fails is named, the others go on, and the exit code is 1.
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
    "peers": ("peers.py", ["--images", "3"], ["--images", "4", "--release", RELEASE]),
    "plan": ("plan.py", None, []),
}


def run(name: str, size: str, release: Path, folder: Path) -> dict | None:
    """The figures of one benchmark, run in a process of its own; None when it failed."""
    script, *arguments = BENCHMARKS[name]
    chosen = arguments[size == "full"] or []
    out = folder / f"{name}.json"
    words = [str(release) if word == RELEASE else word for word in chosen]
    print(f"== {name}", flush=True)
    done = subprocess.run([sys.executable, str(HERE / script), *words, "--out", str(out)])
    return json.loads(out.read_text()) if done.returncode == 0 else None


def draw(results: dict, path: Path) -> bool:
    """The epoch fed in four ways, and the parts of a head's step; False when those were not measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    peers, heads = results.get("peers"), results.get("heads", {}).get("step")
    if not peers or not heads:
        return False
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    for panel, blocks in zip(axes, ("4-6", "all"), strict=False):
        rows = peers[blocks]["rows"]
        bars = panel.barh([row["way"] for row in rows], [row["epoch_s_per_image"] for row in rows], color="#4c72b0")
        panel.bar_label(bars, [f"{row['epoch_s_per_image']:.1f} s" for row in rows], padding=3)
        panel.set(title=f"an epoch, blocks {blocks}", xlabel="seconds an image of 768 px")
        panel.margins(x=0.2)
        panel.invert_yaxis()
    rows = [row for row in heads["rows"] if "float32_times" in row]
    names = [f"{row['model']} {row['blocks']}" for row in rows]
    bars = axes[2].barh(names, [row["float32_times"] for row in rows], color="#55a868")
    axes[2].bar_label(bars, fmt="%.1f", padding=3)
    axes[2].set(title="a step of the FCN head", xlabel="times faster than plain layers on the stack")
    axes[2].margins(x=0.15)
    axes[2].invert_yaxis()
    figure.savefig(path, dpi=110)
    return True


def default_name() -> str:
    """A short name of this machine: its GPU, or its processor and cores."""
    about = machine(HERE)
    cpu = re.sub(r"\([^)]*\)|\b(CPU|Processor|[0-9]+-Core)\b|@.*", " ", str(about["cpu"]))
    return "-".join(str(about["gpu"] or f"{cpu} {about['cores']} cores").lower().split())


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
        if arguments.size == "full":
            subprocess.run([sys.executable, str(HERE / "full_size_release.py"), str(release)], check=True)
        for name in (part.strip() for part in arguments.only.split(",")):
            if BENCHMARKS[name][1 + (arguments.size == "full")] is None:
                continue
            figures = run(name, arguments.size, release, Path(scratch))
            if figures is None:
                failed.append(name)
                continue
            results[name] = figures
            out.parent.mkdir(exist_ok=True)
            out.write_text(json.dumps(results, indent=1) + "\n")
    drawn = draw(results, HERE / f"pictures/{arguments.name}.png")
    print(f"figures in {out}" + (", picture beside them" if drawn else ""))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
