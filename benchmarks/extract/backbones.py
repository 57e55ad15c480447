"""Cost of stage one by backbone: patches a second, and the share of the rate of a large matrix product.

    python -m benchmarks.extract.backbones [--models mini,mini-hipt,vit_small_patch16_224,…] [--device cpu] [--out FILE]

Every model computes its default blocks of the same patches of generated tissue in float32, all batch sizes in
alternating turns. A folder is that of a model (`benchmarks.extract.full_size_release` writes one of the paper's size).
Another name that pathseg does not know is an architecture of timm, built with random weights and read from a folder as
on the Hugging Face hub, as a foundation model would be. Operations are counted by torch. Weights do not change the
speed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.extract.stage_one import tissue_patches
from benchmarks.machine import RESULTS, describe_machine, matmul_flops, save_rows, time_in_turn
from benchmarks.train.heads import count_flops
from pathseg.extract.models import FeatureModel, load_model
from pathseg.extract.models.registry import MODELS

DEFAULT = ("mini", "mini-hipt", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224")
BATCHES = (1, 9)


def random_hub_folder(architecture: str, folder: Path) -> Path:
    """Write a timm architecture with random weights as a folder of the hub; return its path."""
    torch.manual_seed(0)
    network = timm.create_model(architecture, pretrained=False, num_classes=0)
    folder.mkdir()
    config = {"architecture": architecture, "num_classes": 0, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / "model.safetensors"
    )
    return folder


def to_host(model: FeatureModel, images: np.ndarray) -> list[torch.Tensor]:
    """Compute the default blocks of patches and copy them to the host as float16, as an extraction does."""
    return [maps.half().cpu() for maps in model.features(images, t=50, blocks=model.default_blocks).values()]


def measure(names: list[str], device: str, turns: int) -> list[dict[str, object]]:
    """Return one row for each model and batch size."""
    images, peak, rows = tissue_patches(max(BATCHES)), matmul_flops(device, torch.float32), []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            known = name in MODELS or Path(name).is_dir()
            model = load_model(name if known else random_hub_folder(name, Path(folder) / name), device=device)
            with sdpa_kernel(SDPBackend.MATH):  # torch does not count the fused attention of a CPU
                flops = count_flops(partial(to_host, model, images[:1]))
            calls = {str(batch): partial(to_host, model, images[:batch]) for batch in BATCHES}
            for batch, times in time_in_turn(calls, turns).items():
                rate = int(batch) / statistics.median(times)
                row = {"model": model.name, "batch": int(batch), "patches_per_s": rate, "gflop_per_patch": flops / 1e9}
                rows.append(row | {"matrix_gflops": peak / 1e9, "of_rate": rate * flops / peak})
                print(f"  {model.name:<24} batch {batch}: {rate:7.2f} patches/s of {flops / 1e9:6.1f} GFLOP, "
                      f"{rate * flops / peak:.2f} of {peak / 1e9:.0f} GFLOP/s", flush=True)  # fmt: skip
    return rows


def main() -> None:
    """Measure the chosen models and save the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(DEFAULT), help="comma list of models or architectures of timm")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "stage_one.json")
    options = parser.parse_args()
    rows = measure(options.models.split(","), options.device, options.turns)
    save_rows(options.out, "backbones", rows, machine=describe_machine(Path(tempfile.gettempdir())))


if __name__ == "__main__":
    main()
