"""What `test_crashes.py` kills: runs of stage one, each in a process of its own.

    python crash_writer.py

Says `ready`, then reads one JSON object a line and starts a run for each in a forked child (so that the libraries are
imported once); writes the child's process id and, when the child has ended, its exit code (negative: the signal) and
its peak memory in bytes. A run is the real pipeline on a small data set and with a model of a few operations. Its log
has a line per image that was computed at a timestep. `limit` bounds the bytes that a file can have, as a quota does;
`free_bytes` is how many bytes stay free once the run has begun: the rest goes to a file `ballast` beside the
store. A run with more `images` or `classes` than the store has lets it grow.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import Dataset, Pixels, Sample
from pathseg.extract.pipeline import open_extraction, run_extraction
from pathseg.extract.plan import contents_of
from pathseg.store.key import Preprocessing
from pathseg.store.writer import StoreWriter


class ToyModel:
    """A `FeatureModel` whose blocks are the patch and the noise, brought to their sides and scaled by channel."""

    name, trained, digest, first_stage, condition = "toy", False, "ab" * 32, "vq-f4", "none"
    blocks = {0: (24, 8), 5: (12, 16), 9: (6, 64)}  # noqa: RUF012
    device = torch.device("cpu")
    latent_shape, timesteps = (3, 64, 64), 1000
    default_blocks, vit, diffusers, zoom, notes = (0, 5, 9), None, None, None, ()

    def __init__(self, log: Path) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def prepare(self, images):
        first = int(images[0, 0, 0, 0]) + 256 * int(images[0, 0, 0, 1])  # the image's number, see `load`
        pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
        return F.avg_pool2d(pixels, 4) / 255, torch.full((len(images), 1, 1), first)

    def denoise(self, z0, context, t, blocks, noise):
        os.write(self._log, f"{int(context[0, 0, 0])} {t}\n".encode())
        x = (z0 + noise * (t / 1000)).mean(1, keepdim=True)  # (N, 1, 64, 64)
        return {block: F.avg_pool2d(x, 64 // self.blocks[block][1]) * scales(*self.blocks[block]) for block in blocks}


def scales(channels: int, side: int) -> torch.Tensor:
    return (torch.arange(1, channels + 1) / side).view(1, -1, 1, 1)


def load(classes: int, sample: Sample) -> Pixels:
    index = int(sample.id.removeprefix("image_"))
    rng = np.random.default_rng(index)
    image = rng.integers(0, 256, (256, 512, 3), dtype=np.uint8)
    image[:, :, :2] = index % 256, index // 256
    return Pixels(image, (image[..., 2] // (256 / classes)).astype(np.uint8))


def dataset(images: int, classes: int) -> Dataset:
    return Dataset(
        name="toy",
        samples=tuple(Sample(f"image_{i}", "train", 256, 512) for i in range(images)),
        load=partial(load, classes),
        classes=("dark", "light", "white")[:classes],
        size=(256, 512),
        test_split="test",
        mpp=0.5,
        preprocessing=Preprocessing(),
    )


def run(order: dict) -> None:
    """One run, as the command does it."""
    torch.set_num_threads(1)
    if limit := order.get("limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    images, model = dataset(order["images"], order.get("classes", 2)), ToyModel(Path(order["log"]))
    config = ExtractConfig(t=tuple(order["t"]), layout=order["layout"], batch_size=4)
    if order["per_unit"] > 1 and not Path(order["store"]).exists():
        StoreWriter(order["store"], replace(contents_of(images, model, config), images_per_unit=order["per_unit"]))
    extraction = open_extraction(images, model, order["store"], config)
    if free_bytes := order.get("free_bytes"):
        beside = Path(order["store"]).parent
        (beside / "ballast").write_bytes(bytes(shutil.disk_usage(beside).free - free_bytes))
    if failures := run_extraction(extraction).failures:
        raise SystemExit(f"set aside: {failures}")


def child(order: dict) -> int:
    with Path(order["log"]).with_suffix(".err").open("w") as errors:
        sys.stderr = errors
        try:
            run(order)
        except BaseException:
            traceback.print_exc()
            return 1
    return 0


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            os._exit(child(order))
        print(pid, flush=True)
        _, status, usage = os.wait4(pid, 0)
        print(os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, flush=True)


if __name__ == "__main__":
    main()
