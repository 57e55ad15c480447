"""How much memory a pixel ensemble takes on whole images with all 7,296 channels of the full-size model.

    python benchmarks/pixel_memory.py [--out benchmarks/results/pixel_memory.json]

A native store of a few 768 px images with random features; training of one epoch, then the prediction of one image.
Prints the peak of the process (resident set) above what Python and its libraries take, beside the upsampled stack that
DDPMSeg holds of every image.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from free import FULL
from machine import keep, machine, peak_bytes
from random_store import random_store

from pathseg.train.config import HeadConfig
from pathseg.train.heads.fcn import HEADS
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.loop import train_heads

SIZE = (768, 768)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3, help="to train on, one of them for validation")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/pixel_memory.json")
    asked = parser.parse_args()
    about = machine(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder) / "random.zarr", ["train"] * asked.images + ["test"])
        HEADS["pixel-ensemble"]({0: 8}, 2)
        channels = sum(c for c, _ in FULL.values())
        before, started = peak_bytes(), time.perf_counter()
        config = HeadConfig(head="pixel-ensemble", epochs=1, pixels=asked.pixels)
        train_heads(store, [(config, RunFolder(Path(folder) / "run"))], memory_bytes=0)
        row = {
            "images": asked.images, "size_px": SIZE, "channels": channels, "pixels_per_image": asked.pixels,
            "peak_mb": round(peak_bytes() / 1e6), "peak_mb_before_training": round(before / 1e6),
            "dense_stack_of_one_image_mb_float32": round(channels * SIZE[0] * SIZE[1] * 4 / 1e6),
            "weights_and_adam_mb": round(10 * channels * 128 * 4 * 4 / 1e6),
            "seconds": round(time.perf_counter() - started, 1),
        }  # fmt: skip
        print(json.dumps(row, indent=2))
        keep(asked.out, "memory", [row], about=about)
