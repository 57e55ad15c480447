"""Peak memory of a pixel ensemble on whole images with all 7,296 channels of the full-size model.

    python -m benchmarks.train.pixel_memory [--out FILE]

Trains one epoch on a native store of a few 768 px images with random features, then predicts one image. Reports the
peak resident memory of the process, that before training, and the size of the upsampled stack that DDPMSeg keeps of
every image.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks.constant_model import FULL_SIZE
from benchmarks.machine import RESULTS, describe_machine, peak_bytes, save_rows
from benchmarks.store.random_store import random_store
from pathseg.train.config import HeadConfig
from pathseg.train.heads.registry import HEADS
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.loop import train_heads

SIZE = (768, 768)


def main() -> None:
    """Train, predict and save the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3, help="to train on, one of them for validation")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--out", type=Path, default=RESULTS / "pixel_memory.json")
    arguments = parser.parse_args()
    machine = describe_machine(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder) / "random.zarr", ["train"] * arguments.images + ["test"])
        HEADS["pixel-ensemble"]({0: 8}, 2)  # imports what it needs before memory is measured
        channels = sum(c for c, _ in FULL_SIZE.values())
        before, started = peak_bytes(), time.perf_counter()
        config = HeadConfig(head_type="pixel-ensemble", epochs=1, pixels=arguments.pixels)
        train_heads(store, [(config, RunFolder(Path(folder) / "run"))], memory_bytes=0)
        row = {
            "images": arguments.images, "size_px": SIZE, "channels": channels, "pixels_per_image": arguments.pixels,
            "peak_mb": round(peak_bytes() / 1e6), "peak_mb_before_training": round(before / 1e6),
            "dense_stack_of_one_image_mb_float32": round(channels * SIZE[0] * SIZE[1] * 4 / 1e6),
            "weights_and_adam_mb": round(10 * channels * 128 * 4 * 4 / 1e6),
            "seconds": round(time.perf_counter() - started, 1),
        }  # fmt: skip
        print(json.dumps(row, indent=2))
        save_rows(arguments.out, "memory", [row], machine=machine)


if __name__ == "__main__":
    main()
