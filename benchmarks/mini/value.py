"""Compare heads on GlaS features of `mini` with heads on those of random weights; test whether it uses its condition.

    python -m benchmarks.mini.value --data ../shared/data --workspace DIR

Features: `pathseg extract` and `pathseg train-head` on the GlaS images in DATA/glas_sample (16 to train on, 4 + 4 to
test on), 512 px, the same linear head and budget for the trained model and for a release folder of the same
architecture with seeded random weights. Dice: the unweighted mean of both classes over all pixels of a test split, then
the mean of the two splits. Also a linear probe trained to convergence (`benchmarks.mini.probe`). Conditioning: the
denoising loss on held-out patches of BreCaHAD with the patch's own embedding, another patch's, and zeros. Writes
benchmarks/results/mini.json and benchmarks/pictures/mini-value.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import PICTURES, RESULTS, describe_machine, module_command
from benchmarks.mini.fields import draw_fields
from benchmarks.mini.probe import probe
from pathseg.extract.models.arithmetic import CPU_THREADS
from pathseg.extract.models.dino_vit import build_vit, vit_shapes, vit_tokens
from pathseg.extract.models.ldm.conditioning import build_conditioning, conditioning_shapes
from pathseg.extract.models.ldm.config import conditioning_design, first_stage_design, unet_design
from pathseg.extract.models.ldm.first_stage import build_first_stage, encoder_shapes
from pathseg.extract.models.ldm.release import CONDITIONING, FIRST_STAGE, UNET
from pathseg.extract.models.ldm.unet import build_unet, unet_shapes
from pathseg.extract.models.load import load_model
from pathseg.extract.models.mini import MINI_PARAMS, MINI_VIT, mini_release, mini_vit, random_weights
from pathseg.extract.models.noise import add_noise
from pathseg.extract.models.patches import network_input
from pathseg.store.features import FeatureStore
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder

TIMESTEPS = (0, 10, 50, 100, 200, 400, 800)
SEEDS = (0, 1, 2)
BUDGET = ["--head", "linear", "--lr", "1e-3", "--epochs", "20", "--seed", ",".join(map(str, SEEDS))]
MODELS = {"trained": "mini", "random": "mini-random"}


def write_random_release(folder: Path, seed: int) -> None:
    """Write a release folder and a ViT of mini's architecture with random weights."""
    rng, unet = np.random.default_rng(seed), unet_design(MINI_PARAMS)
    shapes_of = {
        UNET: unet_shapes(unet),
        FIRST_STAGE: encoder_shapes(first_stage_design(MINI_PARAMS)),
        CONDITIONING: conditioning_shapes(conditioning_design(MINI_PARAMS), unet.context_dim),
    }
    for name in ("configs", "checkpoints"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "configs/mini-project.yaml").write_text(yaml.safe_dump({"model": {"params": MINI_PARAMS}}))
    state = {}
    for prefix, shapes in shapes_of.items():
        state |= {prefix + name: tensor for name, tensor in random_weights(shapes, rng).items()}
    save_file(state, folder / "checkpoints/last.safetensors")
    save_file(random_weights(vit_shapes(*MINI_VIT), rng), folder / "vit.safetensors")


def time_pathseg(*arguments: object) -> float:
    """Run a command of pathseg and return its seconds."""
    start = time.perf_counter()
    subprocess.run(module_command("pathseg.cli", *arguments), check=True)
    return time.perf_counter() - start


def measure_heads(glas: Path, workspace: Path) -> tuple[list[dict], dict[str, dict[str, float]]]:
    """Extract and train with both models; return a row per head, and the seconds of each command."""
    write_random_release(workspace / "mini-random", seed=0)
    rows, times = [], {}
    for kind, name in MODELS.items():
        flags = ["--workspace", workspace / kind]
        model = ["--model", name] if kind == "trained" else ["--model", workspace / name]
        hipt = [] if kind == "trained" else ["--hipt", workspace / name / "vit.safetensors"]
        t = ",".join(map(str, TIMESTEPS))
        size = ["--resize", 512, "--layout", "native", "--t", t]
        path = workspace / kind / "seconds.json"  # in a second run all heads are trained already
        if not path.exists():
            measured = {
                "extract": time_pathseg("extract", "--dataset", "glas", "--root", glas, *model, *hipt, *size, *flags),
                "over_t": time_pathseg("train-head", "--blocks", "all", "--t", t, *BUDGET, *flags),
                "per_block": time_pathseg("train-head", "--blocks", "each", "--t", 50, *BUDGET, *flags),
            }
            path.write_text(json.dumps(measured))
        times[kind] = json.loads(path.read_text())
        rows += [head_row(kind, folder) for folder in sorted((workspace / kind / "heads").iterdir())]
    return rows, times


def head_row(kind: str, folder: Path) -> dict:
    """Return the settings and test Dice of a finished run."""
    run = FinishedRun.read(RunFolder(folder))
    dice = {name: split.scores.dice for name, split in run.metrics.splits.items()}
    settings = {"t": run.settings.t, "blocks": list(run.settings.blocks), "seed": run.settings.seed}
    return {"model": kind, **settings, "dice": dice, "mean_dice": float(np.mean(list(dice.values())))}


def dice_over_seeds(rows: list[dict], model: str, t: int, blocks: list[int]) -> tuple[float, float]:
    """Return mean and standard deviation of the mean test Dice. Raises ValueError unless every seed has a run."""
    setting = (model, t, blocks)
    dice = [row["mean_dice"] for row in rows if (row["model"], row["t"], row["blocks"]) == setting]
    if len(dice) != len(SEEDS):
        raise ValueError(f"{len(dice)} runs of {model} at t {t} on blocks {blocks}, but {len(SEEDS)} seeds")
    return float(np.mean(dice)), float(np.std(dice, ddof=1))


@torch.inference_mode()
def measure_conditioning(fields: np.ndarray) -> list[dict]:
    """Measure the denoising loss by timestep with the patch's embedding, another patch's and none, for the same noise.

    more: mean over patches of the loss minus that with the own embedding; error: its standard error over patches;
    worse_for: share of patches with a higher loss.
    """
    release = mini_release()
    unet = build_unet(release.unet_design, release.unet)
    stage = build_conditioning(release.conditioning_design, release.unet_design.context_dim, release.conditioning)
    encoder = build_first_stage(release.first_stage_design, release.first_stage)
    images = network_input(fields, torch.device("cpu"))
    vit = build_vit(mini_vit())
    z0 = torch.cat([encoder(batch) for batch in images.split(8)]) * release.scale_factor
    embeddings = torch.cat([vit_tokens(vit, batch)[1] for batch in images.split(8)])
    choices = {"own": embeddings, "another": embeddings.roll(1, 0), "none": torch.zeros_like(embeddings)}
    eps = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0))
    bars, rows = release.schedule.alpha_bars(), []
    for t in TIMESTEPS:
        zt, losses = add_noise(z0, eps, float(bars[t])), {}
        for name, choice in choices.items():
            predicted = [unet(z, t, stage(y)).sample for z, y in zip(zt.split(8), choice.split(8), strict=True)]
            losses[name] = (torch.cat(predicted) - eps).square().mean((1, 2, 3))  # (N,)
        row = {"t": t, "loss": float(losses["own"].mean())}
        for name in ("another", "none"):
            more = (losses[name] - losses["own"]).double()
            row[name] = {
                "more": float(more.mean()),
                "error": float(more.std() / len(more) ** 0.5),
                "worse_for": float((more > 0).double().mean()),
            }
        rows.append(row)
    return rows


def measure_cost(fields: np.ndarray) -> dict[str, float]:
    """Measure operations and CPU seconds per patch of stage one.

    On a busy machine run with OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0: a spinning thread counts as working.
    """
    model = load_model("mini")
    model.features(fields[:4])
    start = time.process_time()
    model.features(fields[:16])
    seconds = (time.process_time() - start) / 16
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused attention is not counted
        model.features(fields[:1])
    return {"gflop": counter.get_total_flops() / 1e9, "cpu_s": seconds, "threads": CPU_THREADS}


def draw(result: dict, folder: Path) -> None:
    """Draw Dice over timesteps, Dice per block, and the denoising loss without the own embedding."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    over_t, per_block, conditioning = figure.subplots(1, 3)
    for kind, marker in (("trained", "o-"), ("random", "s--")):
        for axis, rows, key in ((over_t, result["over_t"], "t"), (per_block, result["per_block"], "block")):
            chosen = [row for row in rows if row["model"] == kind]
            x = [TIMESTEPS.index(row["t"]) if key == "t" else row["block"] for row in chosen]
            dice, deviation = ([row[name] for row in chosen] for name in ("dice", "std"))
            axis.errorbar(x, dice, deviation, fmt=marker, label=kind, capsize=2)
    over_t.set(title="GlaS sample, all blocks", xlabel="timestep", ylabel="mean test Dice")
    over_t.set_xticks(range(len(TIMESTEPS)), TIMESTEPS)
    per_block.set(title="each block alone, t = 50", xlabel="block", xticks=range(13))
    for name in ("another", "none"):
        rows = result["conditioning"]
        more, error = ([100 * row[name][key] / row["loss"] for row in rows] for key in ("more", "error"))
        label = f"{name} patch's embedding".replace("none patch's", "no")
        conditioning.errorbar(range(len(rows)), more, error, fmt="o-", label=label, capsize=2)
    conditioning.axhline(0, color="grey", lw=0.8)
    conditioning.set_xticks(range(len(TIMESTEPS)), TIMESTEPS)
    conditioning.margins(y=0.35)
    conditioning.set(title="denoising loss, held-out patches", xlabel="timestep", ylabel="% above the own embedding's")
    for axis in (over_t, per_block, conditioning):
        axis.grid(alpha=0.3)
        axis.legend(loc="upper left" if axis is conditioning else "best")
    figure.savefig(folder / "mini-value.png", dpi=90)


def main() -> None:
    """Measure, and write the results file and the chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True, help="stores and heads; a second run resumes there")
    parser.add_argument("--fields", type=int, default=256, help="held-out patches for the conditioning")
    arguments = parser.parse_args()
    arguments.workspace.mkdir(parents=True, exist_ok=True)
    heads, times = measure_heads(arguments.data / "glas_sample", arguments.workspace)
    all_blocks = list(range(13))
    tables: dict[str, list[dict]] = {"over_t": [], "per_block": []}
    for kind in MODELS:
        for t in TIMESTEPS:
            dice, std = dice_over_seeds(heads, kind, t, all_blocks)
            tables["over_t"].append({"model": kind, "t": t, "dice": dice, "std": std})
        for block in all_blocks:
            dice, std = dice_over_seeds(heads, kind, 50, [block])
            tables["per_block"].append({"model": kind, "block": block, "dice": dice, "std": std})
    fields = draw_fields(arguments.data, arguments.workspace, seed=0, split="held", count=arguments.fields)
    cost, conditioning = measure_cost(np.array(fields)), measure_conditioning(np.array(fields))
    result = {
        "machine": describe_machine(arguments.workspace),
        "budget": BUDGET,
        "seconds": times,
        "cost_a_patch": cost,
        "probe": {
            kind: probe(FeatureStore.open(arguments.workspace / kind / f"glas-{name}.zarr"))
            for kind, name in MODELS.items()
        },
        **tables,
    }
    result |= {"conditioning": conditioning, "runs": heads}
    (RESULTS / "mini.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, PICTURES)


if __name__ == "__main__":
    main()
