"""How much memory a pixel ensemble takes on whole images with all 7,296 channels of the full-size model.

    python benchmarks/pixel_memory.py

A native store of a few 768 px images with random features; training of one epoch, then the prediction of one image.
Prints the peak of the process (resident set) above what Python and its libraries take, beside the upsampled stack that
DDPMSeg holds of every image.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pathseg.store.contents import Contents, ImageEntry
from pathseg.store.key import StoreKey
from pathseg.store.size import BlockShape
from pathseg.store.writer import StoreWriter
from pathseg.train.config import HeadConfig
from pathseg.train.heads import HEADS
from pathseg.train.loop import train_heads
from pathseg.train.runs import RunFolder

CHANNELS = (960, 960, 960, 960, 576, 576, 576, 384, 384, 384, 192, 192, 192)
SIDES = (8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64, 64)
SIZE = (768, 768)


def peak_bytes() -> int:
    """The most that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def random_store(folder: Path, images: int):
    """Images `train_i` and one `test`, all alike but for the noise."""
    key = StoreKey(
        dataset="random", preprocessing="none", size=SIZE, mpp=0.5, model="random", model_digest="00" * 32,
        first_stage="vq-f4", condition="ssl", seed=0, layout="native", dtype="float16",
    )  # fmt: skip
    splits = ["train"] * images + ["test"]
    contents = Contents(
        key=key, images=tuple(ImageEntry(f"{split}_{i}", split, *SIZE) for i, split in enumerate(splits)),
        classes=("background", "gland"), ignore=None, test_split="test", model_trained=False, has_instances=False,
        blocks={b: BlockShape(c, s) for b, (c, s) in enumerate(zip(CHANNELS, SIDES, strict=True))}, made_by={},
    )  # fmt: skip
    writer, rng = StoreWriter(folder, contents), np.random.default_rng(0)
    writer.add_arrays([50], contents.blocks)
    mask = np.zeros(SIZE, np.uint8)
    mask[:, 384:] = 1
    for unit in range(len(splits)):
        writer.write_pixels(unit, [(np.zeros((*SIZE, 3), np.uint8), mask, None)])
        maps = ((b, [rng.standard_normal((9, *s), dtype=np.float32).astype(np.float16)])
                for b, s in ((b, (c, s, s)) for b, (c, s) in enumerate(zip(CHANNELS, SIDES, strict=True))))  # fmt: skip
        writer.write_features(unit, t=50, features=maps)
    return writer.store


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3, help="to train on, one of them for validation")
    parser.add_argument("--pixels", type=int, default=256)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder) / "random.zarr", asked.images)
        HEADS["pixel-ensemble"]({0: 8}, 2)
        before, started = peak_bytes(), time.perf_counter()
        config = HeadConfig(head="pixel-ensemble", epochs=1, pixels=asked.pixels)
        train_heads(store, [(config, RunFolder(Path(folder) / "run"))], memory_bytes=0)
        print(json.dumps({
            "images": asked.images, "size_px": SIZE, "channels": sum(CHANNELS), "pixels_per_image": asked.pixels,
            "peak_mb": round(peak_bytes() / 1e6), "peak_mb_before_training": round(before / 1e6),
            "dense_stack_of_one_image_mb_float32": round(sum(CHANNELS) * SIZE[0] * SIZE[1] * 4 / 1e6),
            "weights_and_adam_mb": round(10 * sum(CHANNELS) * 128 * 4 * 4 / 1e6),
            "seconds": round(time.perf_counter() - started, 1), "torch": torch.__version__,
        }, indent=2))  # fmt: skip
