"""Time of stage two: a training step of a head, many heads from one read, an epoch from the store.

    python -m benchmarks.train.heads [--only step,sweep,epoch,precision] [--device cpu] [--release DIR] [--out FILE]

step       One 768 px image, block shapes of the paper's model: forward, backward and Adam of the FCN head on native
           features, against the same head as plain layers on the upsampled float32 stack, already in memory; in
           bfloat16 where the processor has arithmetic for it. Also: the
           first layer alone; the first layer with `torch.mm` in place of 1x1 convolutions; the native head with a tail
           of PyTorch's own layers in contiguous memory format; and with its tail compiled by `torch.compile`.
           Floating-point operations are counted by torch; the matrix rate is that of a large float32 product in the
           same run. Bytes of the features for this model (VQ-f4) and for the shapes of a KL-f8 model.
sweep      Thirteen heads, each on one block, trained together and one after the other: bytes read, seconds, and the
           heads' own seconds. From a local disk with all images kept in memory, and where reading dominates: from an
           S3 server on this machine with nothing kept (`linear` heads).
epoch      An epoch that reads the store anew, against an epoch over tensors in memory, for each type of head: the
           fastest epoch, the first one left out. Two training images (on a GPU 40, none of which stays outside its
           memory) and one validation image. With --release, a release folder of the paper's size
           (`benchmarks.extract.full_size_release` writes one with random weights), also against an epoch with the
           frozen model run online in float32: timed on three patches and scaled.
precision  Test Dice of the same heads over seeds, on generated tissue with `mini`: features and head in float32, the
           head in bfloat16, the features in bfloat16.

Alternatives take alternating turns in one run; ratios are medians over the turns, those of epochs of the fastest.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.constant_model import FULL_SIZE
from benchmarks.machine import (
    RESULTS,
    describe_machine,
    matmul_flops,
    median_ratio,
    save_rows,
    seconds,
    time_in_turn,
)
from benchmarks.store.random_store import random_store
from benchmarks.store.s3_server import s3_server
from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.models.load import load_model
from pathseg.extract.pipeline import extract
from pathseg.store.features import FeatureStore
from pathseg.store.grid import PatchGrid
from pathseg.store.runtime.device import precision_warnings
from pathseg.train.config import HeadConfig
from pathseg.train.heads.fcn import FCNHead
from pathseg.train.heads.native_conv import native_convolution
from pathseg.train.heads.registry import HEADS
from pathseg.train.heads.stack import stack_blocks
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training import loop

GRID, CLASSES, TURNS = PatchGrid(3, 3), 2, 2
KL_F8 = {block: (channels, side // 2) for block, (channels, side) in FULL_SIZE.items()}  # half the latent's side
Rows = list[dict[str, object]]


def plain_head(head: FCNHead) -> nn.Module:
    """Return the same layers and weights as PyTorch modules in contiguous memory format, for the upsampled stack."""
    return nn.Sequential(*copy.deepcopy([head.first, *head.tail])).to(memory_format=torch.contiguous_format)


def stack(maps: dict[int, torch.Tensor]) -> torch.Tensor:
    """Upsample and concatenate {block: (1, P, C, h, w)} -> (1, sum C, 192, 192) float32: eq. 4 on the head's grid."""
    return stack_blocks({block: values.float() for block, values in maps.items()}, GRID)


def training_step(head: nn.Module, scores: Callable[[], torch.Tensor], mask: torch.Tensor) -> Callable[[], None]:
    """Return a call that runs forward, cross-entropy, backward and Adam."""
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-4)

    def step() -> None:
        loss = nn.functional.cross_entropy(scores().float(), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def count_flops(call: Callable[[], object]) -> int:
    """Count the floating-point operations of one call, those of in-place matrix products too."""

    def product(total: torch.Size, a: torch.Size, b: torch.Size, **named: object) -> int:
        return 2 * math.prod(a) * b[-1]

    in_place = dict.fromkeys((torch.ops.aten.addmm_, torch.ops.aten.baddbmm_), product)
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        call()
    return counter.get_total_flops()


def step_row(device: str, model: str, shapes: dict[int, tuple[int, int]], blocks: range) -> dict[str, object]:
    """Measure a training step of the FCN head in all its variants."""
    torch.manual_seed(0)
    maps = {b: torch.randn(1, 9, shapes[b][0], *2 * shapes[b][1:], device=device).half() for b in blocks}
    head = FCNHead({b: shapes[b][0] for b in blocks}, CLASSES).to(device)
    plain, stacked = plain_head(head), stack(maps)
    mask = torch.randint(CLASSES, (1, 768, 768), device=device)

    plain_tail, compiled = copy.deepcopy(head), copy.deepcopy(head)
    plain_tail.tail = plain_head(head)[1:]
    compiled.tail = torch.compile(compiled.tail)

    def half_scores() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            return head(maps, (3, 3))

    def with_own_tail(head: FCNHead) -> torch.Tensor:
        return head.tail(native_convolution(maps, head.first.weight, head.first.bias, GRID))

    def native_first() -> None:
        native_convolution(maps, head.first.weight, head.first.bias, GRID).sum().backward()

    def matmul_first() -> None:
        with patch("pathseg.train.heads.native_conv._product", lambda a, b, rows: a @ b.T):
            native_first()

    first = {
        "plain_first": lambda: plain[0](stacked).sum().backward(),
        "native_first": native_first,
        "products_first": matmul_first,
    }
    steps = {
        "plain": training_step(plain, lambda: plain(stacked), mask),
        "float32": training_step(head, lambda: head(maps, (3, 3)), mask),
        "usual_tail": training_step(plain_tail, lambda: with_own_tail(plain_tail), mask),
        "compiled": training_step(compiled, lambda: with_own_tail(compiled), mask),
    }
    if not precision_warnings(torch.device(device).type, "bfloat16"):
        steps["bfloat16"] = training_step(head, half_scores, mask)
    times, rate = time_in_turn(first | steps, TURNS), matmul_flops(device, torch.float32)
    row = {"model": model, "blocks": f"{blocks[0]}-{blocks[-1]}", "matrix_gflops": rate / 1e9}
    row |= {f"{name}_s": statistics.median(values) for name, values in times.items()}
    row["first_times"] = median_ratio(times["plain_first"], times["native_first"])
    row["products_first_times"] = median_ratio(times["plain_first"], times["products_first"])
    row |= {f"{name}_times": median_ratio(times["plain"], times[name]) for name in steps if name != "plain"}
    flops = {name: count_flops((first | steps)[name]) for name in (*first, "plain", "float32")}
    row |= {f"{name}_tflop": count / 1e12 for name, count in flops.items()}
    row |= {f"{name}_of_rate": count / row[f"{name}_s"] / rate for name, count in flops.items()}
    tail = flops["float32"] - flops["native_first"]
    row["tail_of_rate"] = tail / (row["float32_s"] - row["native_first_s"]) / rate
    wholes = ", ".join(f"{name} {row[f'{name}_times']:.2f}" for name in steps if name != "plain")
    print(
        f"  {model} {row['blocks']:>4}: first layer {row['first_times']:.2f} times "
        f"(with torch.mm {row['products_first_times']:.2f}), whole step {wholes}; "
        f"at {row['native_first_of_rate']:.2f} (first layer) and {row['tail_of_rate']:.2f} (rest) of the "
        f"{rate / 1e9:.0f} GFLOP/s of a matrix product"
    )
    return row


def bytes_row(model: str, shapes: dict[int, tuple[int, int]], blocks: range) -> dict[str, object]:
    """Return the bytes of an image's features in float16, native and as the stack on the head's grid."""
    native = sum(GRID.patches * shapes[b][0] * shapes[b][1] ** 2 for b in blocks) * 2
    stacked = sum(shapes[b][0] for b in blocks) * 192**2 * 2
    print(f"  {model} {blocks[0]}-{blocks[-1]}: {native / 1e6:.1f} MB an image, 1/{stacked / native:.1f} of the stack")
    return {"model": model, "blocks": f"{blocks[0]}-{blocks[-1]}", "bytes": native, "stack_bytes": stacked}


def measure_step(folder: Path, arguments: argparse.Namespace) -> Rows:
    """Measure a training step with blocks 4-6 and with all."""
    block_sets = (range(4, 7), range(13))
    rows = [step_row(arguments.device, "VQ-f4", FULL_SIZE, b) | bytes_row("VQ-f4", FULL_SIZE, b) for b in block_sets]
    return rows + [bytes_row("KL-f8", KL_F8, blocks) for blocks in block_sets]


@contextmanager
def timed_evaluation() -> Iterator[list[float]]:
    """Yield a list that receives the seconds of each evaluation in this context: validation and test splits."""
    times: list[float] = []

    def timed(evaluate: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            start = time.perf_counter()  # not `seconds`: its garbage collection would count as the heads' own time
            scores = evaluate(*arguments, **named)  # on the host, so the GPU has finished
            times.append(time.perf_counter() - start)
            return scores

        return call

    with patch.multiple(loop, validate=timed(loop.validate), score_split=timed(loop.score_split)):
        yield times


def train(store: FeatureStore, folder: Path, configs: list[HeadConfig], device: str, memory_bytes: int | None) -> dict:
    """Train heads together in new run folders: return wall time, the heads' own seconds, test Dice, bytes read.

    The heads' own seconds are those of training steps and of evaluation, which includes reading its images.
    """
    runs = [(config, RunFolder(folder / f"{number}")) for number, config in enumerate(configs)]
    with timed_evaluation() as evaluation:
        wall = seconds(lambda: loop.train_heads(store, runs, device=device, memory_bytes=memory_bytes))
    metrics = [run.read_metrics() for _, run in runs]
    return {
        "wall": wall,
        "heads": sum(own.seconds for own in metrics) + sum(evaluation),
        "dice": [own.splits["test"].scores.dice for own in metrics],
        "bytes": metrics[0].bytes_read,  # by all of them together
    }


def sweep_row(name: str, store: FeatureStore, folder: Path, head: str, device: str, memory_bytes: int | None) -> dict:
    """Measure one head per block, trained together and apart; the scores must be equal."""
    configs = [HeadConfig(blocks=(block,), head_type=head, epochs=2) for block in store.contents.blocks]
    together = train(store, folder / "together", configs, device, memory_bytes)
    apart = [train(store, folder / f"apart{c.blocks[0]}", [c], device, memory_bytes) for c in configs]
    if together["dice"] != [run["dice"][0] for run in apart]:
        raise AssertionError("a head trained in the sweep has another score than the same head trained alone")
    row = {"store": name, "head": head, "heads": len(configs), "images": len(store), "epochs": 2}
    row |= {"sweep_s": together["wall"], "heads_own_s": together["heads"], "apart_s": sum(r["wall"] for r in apart)}
    row |= {"sweep_bytes": together["bytes"], "apart_bytes": sum(run["bytes"] for run in apart)}
    row |= {"gain": row["apart_s"] / row["sweep_s"], "over_own": row["sweep_s"] / row["heads_own_s"]}
    print(f"  {name}, {head}: together {row['sweep_s']:.1f} s ({row['over_own']:.2f} of the heads' own), "
          f"apart {row['apart_s']:.1f} s: {row['gain']:.2f} times")  # fmt: skip
    return row


def measure_sweep(folder: Path, arguments: argparse.Namespace) -> Rows:
    """Measure thirteen heads from one read, from a local disk and from S3."""
    splits = ["train"] * 5 + ["test"]
    local = random_store(folder / "sweep.zarr", splits, side=256)
    rows = [sweep_row("local, kept in memory", local, folder / "local", "fcn", arguments.device, None)]
    if importlib.util.find_spec("moto") is None:
        print("  no row from S3: it needs moto, which pathseg[test] installs")
        return rows
    with s3_server() as bucket:
        remote = random_store(f"{bucket}/sweep.zarr", splits, side=512)
        rows.append(sweep_row("S3, nothing kept", remote, folder / "s3", "linear", arguments.device, 0))
    return rows


def later_epochs(store: FeatureStore, folder: Path, config: HeadConfig, device: str, memory_bytes: int) -> list[float]:
    """Measure the seconds of each epoch but the first, which fills the memory."""
    ends: list[float] = []
    runs = [(config, RunFolder(Path(tempfile.mkdtemp(dir=folder))))]

    def record_end(run: RunFolder, line: object) -> None:
        ends.append(time.perf_counter())

    loop.train_heads(store, runs, device=device, memory_bytes=memory_bytes, on_epoch=record_end)
    return [end - start for start, end in pairwise(ends)]


def model_seconds(release: str | Path, blocks: tuple[int, ...], device: str) -> float:
    """Measure the frozen model on three patches, after a warm-up, scaled to one image of nine."""
    model, patches = load_model(release, device=device), 3
    images = np.random.default_rng(0).integers(0, 256, (patches, 256, 256, 3), np.uint8)
    model.features(images, t=50, blocks=blocks)
    return seconds(lambda: model.features(images, t=50, blocks=blocks)) / patches * GRID.patches


def measure_epoch(folder: Path, arguments: argparse.Namespace) -> Rows:
    """Measure an epoch from the store, from memory and with the model online."""
    rows = []
    images = 3 if arguments.device == "cpu" else 41  # one of them becomes validation
    store = random_store(folder / "epoch.zarr", ["train"] * images + ["test"])
    for blocks in ((4, 5, 6), tuple(FULL_SIZE)):
        forward = images * model_seconds(arguments.release, blocks, arguments.device) if arguments.release else None
        for head in HEADS:
            config = HeadConfig(blocks=blocks, epochs=3, head_type=head, val_fraction=1 / images)
            times: dict[str, list[float]] = {"read": [], "memory": []}
            for _ in range(TURNS if head == "fcn" else 3):
                for name, memory_bytes in (("read", 0), ("memory", 2**36)):
                    times[name] += later_epochs(store, folder, config, arguments.device, memory_bytes)
            row = {"head": head, "blocks": f"{blocks[0]}-{blocks[-1]}", "images": images}
            row |= {f"{name}_s": min(values) for name, values in times.items()}
            row["over_memory"] = row["read_s"] / row["memory_s"]
            text = f"  {head}, blocks {row['blocks']}: {row['over_memory']:.3f} of the time with tensors in memory"
            if forward:
                row |= {"model_s": forward, "online_times": (forward + row["memory_s"]) / row["read_s"]}
                text += f"; {row['online_times']:.1f} times as fast as with the model online"
            rows.append(row)
            print(text)
    return rows


def measure_precision(folder: Path, arguments: argparse.Namespace, seeds: int = 5) -> Rows:
    """Measure the test Dice of heads with half-precision arithmetic, over seeds."""
    dataset = open_dataset("synthetic", DatasetOptions(limit=12, resize=256))
    model = load_model("mini", device=arguments.device)
    rows, stores = [], {}
    for features, precision in (("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "float32")):
        if features not in stores:
            config = ExtractConfig(layout="native", blocks=(4, 5, 6), precision=features)
            stores[features] = extract(dataset, model, folder / f"tissue-{features}.zarr", config).store
        heads = [HeadConfig(blocks=(4, 5, 6), epochs=3, seed=s, lr=1e-3, precision=precision) for s in range(seeds)]
        dice = train(stores[features], folder / f"{features}-{precision}", heads, arguments.device, None)["dice"]
        row = {"features": features, "precision": precision, "dice": dice}
        row |= {"mean": statistics.mean(dice), "sd": statistics.stdev(dice)}
        rows.append(row)
        dice_text = f"{row['mean']:.4f} ± {row['sd']:.4f}"
        print(f"  features in {features}, head in {precision}: test Dice {dice_text} over {seeds} seeds")
    return rows


SECTIONS = {"step": measure_step, "sweep": measure_sweep, "epoch": measure_epoch, "precision": measure_precision}


def main() -> None:
    """Run the chosen sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="comma list of what to measure")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--release", type=Path, help="a release folder of the paper's size, for the model online")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="with 2 GB free")
    parser.add_argument("--out", type=Path, default=RESULTS / "heads.json")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for section in arguments.only.split(","):
            print(section)
            machine = describe_machine(Path(folder))
            save_rows(arguments.out, section, SECTIONS[section](Path(folder), arguments), machine=machine)


if __name__ == "__main__":
    main()
