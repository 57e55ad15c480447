"""What the training of `mini` is worth: GlaS heads on its features and on random weights', and whether it conditions.

    python benchmarks/mini_value.py --data ../shared/data --workspace DIR

Features: `pathseg extract` and `pathseg train-head` on the GlaS images in DATA/glas_sample (16 to train on, 4 + 4 to
test on), 512 px, the same linear head and budget for the trained model and for a release folder of the same
architecture whose weights are drawn from a seed. Dice: the unweighted mean of both classes over all pixels of a test
part, then the mean of the two parts. Beside it a linear probe that is taken to its end (mini_probe.py). Conditioning:
the denoising loss on held-out patches of BreCaHAD with the patch's own embedding, another patch's, and zeros. Writes
benchmarks/results/mini.json and benchmarks/pictures/mini-value.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from machine import machine
from mini_fields import draw_fields
from mini_probe import probe
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from pathseg.extract.models.cpu_threads import CPU_THREADS
from pathseg.extract.models.dino_vit import build_vit, vit_tokens
from pathseg.extract.models.ldm.conditioning import build_conditioning
from pathseg.extract.models.ldm.config import conditioning_design, first_stage_design, unet_design
from pathseg.extract.models.ldm.first_stage import build_first_stage
from pathseg.extract.models.ldm.release import CONDITIONING, FIRST_STAGE, UNET
from pathseg.extract.models.ldm.shapes import conditioning_shapes, encoder_shapes, unet_shapes, vit_shapes
from pathseg.extract.models.ldm.unet import build_unet
from pathseg.extract.models.load import load_model
from pathseg.extract.models.mini import MINI_PARAMS, MINI_VIT, mini_release, mini_vit, random_weights
from pathseg.extract.models.noise import add_noise
from pathseg.extract.models.patches import network_input
from pathseg.store.features import FeatureStore

HERE = Path(__file__).parent
TIMESTEPS = (0, 10, 50, 100, 200, 400, 800)
SEEDS = (0, 1, 2)
BUDGET = ["--head", "linear", "--lr", "1e-3", "--epochs", "20", "--seed", ",".join(map(str, SEEDS))]
MODELS = {"trained": "mini", "random": "mini-random"}


def write_random_release(folder: Path, seed: int) -> None:
    """A release folder and a ViT of mini's architecture that have learned nothing."""
    rng, unet = np.random.default_rng(seed), unet_design(MINI_PARAMS)
    parts = {
        UNET: unet_shapes(unet),
        FIRST_STAGE: encoder_shapes(first_stage_design(MINI_PARAMS)),
        CONDITIONING: conditioning_shapes(conditioning_design(MINI_PARAMS), unet.context_dim),
    }
    for part in ("configs", "checkpoints"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "configs/mini-project.yaml").write_text(yaml.safe_dump({"model": {"params": MINI_PARAMS}}))
    state = {p + name: tensor for p, shapes in parts.items() for name, tensor in random_weights(shapes, rng).items()}
    save_file(state, folder / "checkpoints/last.safetensors")
    save_file(random_weights(vit_shapes(*MINI_VIT), rng), folder / "vit.safetensors")


def pathseg(*arguments: object) -> float:
    """A command as a user gives it: how many seconds it took."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pathseg.cli", *map(str, arguments)], check=True)
    return time.perf_counter() - start


def measure_heads(glas: Path, workspace: Path) -> tuple[list[dict], dict[str, dict[str, float]]]:
    """Stage one and two for both models: a line for every head, and the seconds of each command."""
    write_random_release(workspace / "mini-random", seed=0)
    lines, took = [], {}
    for kind, name in MODELS.items():
        place = ["--workspace", workspace / kind]
        model = ["--model", name] if kind == "trained" else ["--model", workspace / name]
        hipt = [] if kind == "trained" else ["--hipt", workspace / name / "vit.safetensors"]
        t = ",".join(map(str, TIMESTEPS))
        size = ["--resize", 512, "--layout", "native", "--t", t]
        kept = workspace / kind / "seconds.json"  # a second run finds everything trained
        if not kept.exists():
            first = {
                "extract": pathseg("extract", "--dataset", "glas", "--root", glas, *model, *hipt, *size, *place),
                "over_t": pathseg("train-head", "--blocks", "all", "--t", t, *BUDGET, *place),
                "per_block": pathseg("train-head", "--blocks", "each", "--t", 50, *BUDGET, *place),
            }
            kept.write_text(json.dumps(first))
        took[kind] = json.loads(kept.read_text())
        lines += [line_of(kind, run) for run in sorted((workspace / kind / "heads").iterdir())]
    return lines, took


def line_of(kind: str, run: Path) -> dict:
    """Settings and scores of a finished run."""
    config, metrics = (json.loads((run / f"{name}.json").read_text()) for name in ("config", "metrics"))
    config = config.get("head", config) if "blocks" not in config else config
    dice = {part: values["scores"]["dice"] for part, values in metrics["splits"].items()}
    settings = {"t": config["t"], "blocks": list(config["blocks"]), "seed": config["seed"]}
    return {"model": kind, **settings, "dice": dice, "mean_dice": float(np.mean(list(dice.values())))}


def over_seeds(lines: list[dict], model: str, t: int, blocks: list[int]) -> tuple[float, float]:
    """Mean and standard deviation of the mean test Dice."""
    wanted = (model, t, blocks)
    found = [line["mean_dice"] for line in lines if (line["model"], line["t"], line["blocks"]) == wanted]
    if len(found) != len(SEEDS):
        raise ValueError(f"{len(found)} runs of {model} at t {t} on blocks {blocks}, but {len(SEEDS)} seeds")
    return float(np.mean(found)), float(np.std(found, ddof=1))


@torch.inference_mode()
def measure_conditioning(fields: np.ndarray) -> list[dict]:
    """Denoising loss by timestep with the patch's embedding, another patch's and none, under the same noise.

    more: by how much the loss of another choice is above the own embedding's, mean over patches; error: its standard
    error over patches; worse_for: share of patches for which it is.
    """
    release = mini_release()
    unet, stage, encoder = build_unet(release), build_conditioning(release), build_first_stage(release)
    images = network_input(fields, torch.device("cpu"))
    vit = build_vit(mini_vit())
    z0 = torch.cat([encoder(batch) for batch in images.split(8)]) * release.scale_factor
    embeddings = torch.cat([vit_tokens(vit, batch)[1] for batch in images.split(8)])
    choices = {"own": embeddings, "another": embeddings.roll(1, 0), "none": torch.zeros_like(embeddings)}
    eps = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0))
    bars, lines = release.schedule.alpha_bars(), []
    for t in TIMESTEPS:
        zt, losses = add_noise(z0, eps, float(bars[t])), {}
        for name, choice in choices.items():
            found = [unet(z, t, stage(y)).sample for z, y in zip(zt.split(8), choice.split(8), strict=True)]
            losses[name] = (torch.cat(found) - eps).square().mean((1, 2, 3))  # (N,)
        line = {"t": t, "loss": float(losses["own"].mean())}
        for name in ("another", "none"):
            more = (losses[name] - losses["own"]).double()
            line[name] = {
                "more": float(more.mean()),
                "error": float(more.std() / len(more) ** 0.5),
                "worse_for": float((more > 0).double().mean()),
            }
        lines.append(line)
    return lines


def measure_cost(fields: np.ndarray) -> dict[str, float]:
    """What all of stage one takes a patch: operations and processor seconds.

    On a busy machine run with OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0: a thread that spins counts as working.
    """
    model = load_model("mini")
    model.features(fields[:4])
    start = time.process_time()
    model.features(fields[:16])
    seconds = (time.process_time() - start) / 16
    with FlopCounterMode(display=False) as counter:
        model.features(fields[:1])
    return {"gflop": counter.get_total_flops() / 1e9, "cpu_s": seconds, "threads": CPU_THREADS}


def draw(result: dict, folder: Path) -> None:
    """The charts: Dice over t, Dice per block, what the right embedding saves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    over_t, per_block, saved = figure.subplots(1, 3)
    for kind, marker in (("trained", "o-"), ("random", "s--")):
        for axis, rows, key in ((over_t, result["over_t"], "t"), (per_block, result["per_block"], "block")):
            mine = [row for row in rows if row["model"] == kind]
            places = [TIMESTEPS.index(row["t"]) if key == "t" else row["block"] for row in mine]
            axis.errorbar(
                places, [row["dice"] for row in mine], [row["std"] for row in mine], fmt=marker, label=kind, capsize=2
            )
    over_t.set(title="GlaS sample, all blocks", xlabel="timestep", ylabel="mean test Dice")
    over_t.set_xticks(range(len(TIMESTEPS)), TIMESTEPS)
    per_block.set(title="each block alone, t = 50", xlabel="block", xticks=range(13))
    for name in ("another", "none"):
        lines = result["conditioning"]
        more, error = ([100 * line[name][key] / line["loss"] for line in lines] for key in ("more", "error"))
        label = f"{name} patch's embedding".replace("none patch's", "no")
        saved.errorbar(range(len(lines)), more, error, fmt="o-", label=label, capsize=2)
    saved.axhline(0, color="grey", lw=0.8)
    saved.set_xticks(range(len(TIMESTEPS)), TIMESTEPS)
    saved.margins(y=0.35)
    saved.set(title="denoising loss, held-out patches", xlabel="timestep", ylabel="% above the own embedding's")
    for axis in (over_t, per_block, saved):
        axis.grid(alpha=0.3)
        axis.legend(loc="upper left" if axis is saved else "best")
    figure.savefig(folder / "mini-value.png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True, help="stores and heads; a second run goes on there")
    parser.add_argument("--fields", type=int, default=256, help="held-out patches for the conditioning")
    arguments = parser.parse_args()
    arguments.workspace.mkdir(parents=True, exist_ok=True)
    (lines, took), everything = measure_heads(arguments.data / "glas_sample", arguments.workspace), list(range(13))
    tables: dict[str, list[dict]] = {"over_t": [], "per_block": []}
    for kind in MODELS:
        for t in TIMESTEPS:
            dice, std = over_seeds(lines, kind, t, everything)
            tables["over_t"].append({"model": kind, "t": t, "dice": dice, "std": std})
        for block in everything:
            dice, std = over_seeds(lines, kind, 50, [block])
            tables["per_block"].append({"model": kind, "block": block, "dice": dice, "std": std})
    fields = draw_fields(arguments.data, arguments.workspace, seed=0, part="held", count=arguments.fields)
    cost, conditioning = measure_cost(np.array(fields)), measure_conditioning(np.array(fields))
    result = {
        "machine": machine(arguments.workspace),
        "budget": BUDGET,
        "seconds": took,
        "cost_a_patch": cost,
        "probe": {
            kind: probe(FeatureStore.open(arguments.workspace / kind / f"glas-{name}.zarr"))
            for kind, name in MODELS.items()
        },
        **tables,
    }
    result |= {"conditioning": conditioning, "runs": lines}
    (HERE / "results/mini.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, HERE / "pictures")


if __name__ == "__main__":
    main()
