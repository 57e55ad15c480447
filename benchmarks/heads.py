"""What stage two costs: a step of a head, many heads from one read, an epoch from the store.

    python benchmarks/heads.py [--only step,sweep,epoch,precision] [--device cpu] [--out benchmarks/results/heads.json]

step       One 768 px image, block shapes of the paper's model: forward, backward and Adam of the FCN head on native
           features, against the same head as plain layers on the upsampled float32 stack, which lies ready in memory.
           The first layer alone too, and with `torch.mm` in place of its 1x1 convolutions; the native head with the
           tail in PyTorch's own layers and usual memory format, and with its tail compiled by `torch.compile`.
           Floating-point operations are counted by torch; the matrix rate is that of a large float32 product in the
           same run. Bytes held, for it (VQ-f4) and for a KL-f8 model's shapes.
sweep      Thirteen heads, each on one block, trained together and one after the other: bytes read, seconds, and what
           the heads themselves took. From a local disk with room to keep images, and where reading dominates: from an
           S3 server on this machine without a cache and without room (`linear` heads).
epoch      An epoch over a store that is read anew each time, against one over tensors in memory, for each kind of
           head: the quickest epoch of a few but the first; two training images (on a GPU 40, of which none is left
           outside its memory) and one of validation. With --release,
           a release folder of the paper's size (benchmarks/full_size_release.py makes one with random weights), also
           against an epoch in which the frozen model runs online, float32: timed on three patches and scaled.
precision  Test Dice of the same heads over seeds, on generated tissue with `mini`: features and head in float32, the
           head in bfloat16, the features made in bfloat16.

Ways take turns in one run; ratios are medians over the turns, of epochs those of the quickest.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
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
from free import FULL
from machine import in_turn, keep, machine, matrix_rate, ratio, seconds
from random_store import random_store
from s3_server import s3_server
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.models.load import load_model
from pathseg.extract.pipeline import extract, prepare_store
from pathseg.store.features import FeatureStore
from pathseg.store.format.layout import resample
from pathseg.store.grid import PatchGrid
from pathseg.train.config import HeadConfig
from pathseg.train.heads.fcn import HEADS, FCNHead
from pathseg.train.heads.native_conv import native_convolution
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.evaluation import evaluate
from pathseg.train.training.loop import train_heads

GRID, CLASSES, TURNS = PatchGrid(3, 3), 2, 2
KL = {block: (channels, side // 2) for block, (channels, side) in FULL.items()}  # half the latent's side
Rows = list[dict[str, object]]


def plain_head(head: FCNHead) -> nn.Module:
    """The same layers and weights as they are usually written, in the usual memory format."""
    layers = copy.deepcopy([head.first, *head.tail])
    for number, layer in enumerate(layers):
        if isinstance(layer, nn.ConvTranspose2d):
            layers[number] = nn.ConvTranspose2d(layer.in_channels, layer.out_channels, 4, stride=2, padding=1)
            layers[number].to(layer.weight.device)
            layers[number].load_state_dict(layer.state_dict())
    return nn.Sequential(*layers).to(memory_format=torch.contiguous_format)


def stack(maps: dict[int, torch.Tensor]) -> torch.Tensor:
    """{block: (1, P, C, h, w)} -> (1, sum C, 192, 192) float32: eq. 4 on the head's grid."""
    fine = (GRID.stitch(resample(maps[b][0].float(), 64)[None]) for b in sorted(maps))
    return torch.cat(list(fine), 1)


def training_step(head: nn.Module, scores: Callable[[], torch.Tensor], mask: torch.Tensor) -> Callable[[], None]:
    """Forward, cross-entropy, backward and Adam, as a call."""
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-4)

    def step() -> None:
        loss = nn.functional.cross_entropy(scores().float(), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of one call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def step_row(device: str, name: str, shapes: dict[int, tuple[int, int]], blocks: range) -> dict[str, object]:
    torch.manual_seed(0)
    maps = {b: torch.randn(1, 9, shapes[b][0], *2 * shapes[b][1:], device=device).half() for b in blocks}
    head = FCNHead({b: shapes[b][0] for b in blocks}, CLASSES).to(device)
    plain, whole = plain_head(head), stack(maps)
    mask = torch.randint(CLASSES, (1, 768, 768), device=device)

    usual, compiled = copy.deepcopy(head), copy.deepcopy(head)
    usual.tail = plain_head(head)[1:]
    compiled.tail = torch.compile(compiled.tail)

    def half_scores() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            return head(maps, (3, 3))

    def native_first() -> None:
        native_convolution(maps, head.first.weight, head.first.bias, GRID).sum().backward()

    def products_first() -> None:
        with patch("pathseg.train.heads.native_conv._product", lambda a, b, rows: a @ b.T):
            native_first()

    first = {
        "plain_first": lambda: plain[0](whole).sum().backward(),
        "native_first": native_first,
        "products_first": products_first,
    }
    steps = {
        "plain": training_step(plain, lambda: plain(whole), mask),
        "float32": training_step(head, lambda: head(maps, (3, 3)), mask),
        "usual_tail": training_step(usual, lambda: usual(maps, (3, 3)), mask),
        "compiled": training_step(compiled, lambda: compiled(maps, (3, 3)), mask),
        "bfloat16": training_step(head, half_scores, mask),
    }
    taken, rate = in_turn(first | steps, TURNS), matrix_rate(device, torch.float32)
    row = {"model": name, "blocks": f"{blocks[0]}-{blocks[-1]}", "matrix_gflops": rate / 1e9}
    row |= {f"{way}_s": statistics.median(values) for way, values in taken.items()}
    row["first_times"] = ratio(taken["plain_first"], taken["native_first"])
    row["products_first_times"] = ratio(taken["plain_first"], taken["products_first"])
    row |= {f"{way}_times": ratio(taken["plain"], taken[way]) for way in steps if way != "plain"}
    counted = {way: operations((first | steps)[way]) for way in (*first, "plain", "float32")}
    row |= {f"{way}_tflop": count / 1e12 for way, count in counted.items()}
    row |= {f"{way}_of_rate": count / row[f"{way}_s"] / rate for way, count in counted.items()}
    tail = counted["float32"] - counted["native_first"]
    row["tail_of_rate"] = tail / (row["float32_s"] - row["native_first_s"]) / rate
    print(
        f"  {name} {row['blocks']:>4}: first layer {row['first_times']:.2f} times "
        f"(with torch.mm {row['products_first_times']:.2f}), whole step "
        f"{row['float32_times']:.2f} (usual tail {row['usual_tail_times']:.2f}, compiled {row['compiled_times']:.2f}), "
        f"bfloat16 {row['bfloat16_times']:.2f}; "
        f"at {row['native_first_of_rate']:.2f} (first layer) and {row['tail_of_rate']:.2f} (rest) of the "
        f"{rate / 1e9:.0f} GFLOP/s of a matrix product"
    )
    return row


def bytes_row(name: str, shapes: dict[int, tuple[int, int]], blocks: range) -> dict[str, object]:
    """Bytes of an image's features in float16, native and as the stack on the head's grid."""
    held = sum(GRID.patches * shapes[b][0] * shapes[b][1] ** 2 for b in blocks) * 2
    whole = sum(shapes[b][0] for b in blocks) * 192**2 * 2
    print(f"  {name} {blocks[0]}-{blocks[-1]}: {held / 1e6:.1f} MB an image, a {whole / held:.1f}th of the stack")
    return {"model": name, "blocks": f"{blocks[0]}-{blocks[-1]}", "bytes": held, "stack_bytes": whole}


def measure_step(folder: Path, arguments: argparse.Namespace) -> Rows:
    chosen = (range(4, 7), range(13))
    rows = [step_row(arguments.device, "VQ-f4", FULL, blocks) | bytes_row("VQ-f4", FULL, blocks) for blocks in chosen]
    return rows + [bytes_row("KL-f8", KL, blocks) for blocks in chosen]


@contextmanager
def judging() -> Iterator[list[float]]:
    """Seconds of each call of `evaluate` within this context."""
    taken: list[float] = []

    def timed(*arguments: object, **named: object) -> object:
        start = time.perf_counter()  # not `seconds`: it collects garbage, which would count as more than the heads' own
        found = evaluate(*arguments, **named)  # its scores are on the host, so a GPU is done
        taken.append(time.perf_counter() - start)
        return found

    with patch("pathseg.train.training.loop.evaluate", timed), patch("pathseg.train.training.results.evaluate", timed):
        yield taken


def train(store: FeatureStore, folder: Path, configs: list[HeadConfig], device: str, room: int | None) -> dict:
    """Train heads together in fresh run folders: wall time, the heads' own seconds, test Dice, bytes read.

    Their own are the training steps and the answers to validation and test images, what is read for these included.
    """
    runs = [(config, RunFolder(folder / f"{number}")) for number, config in enumerate(configs)]
    done: list = []
    with judging() as judged:
        wall = seconds(lambda: done.extend(train_heads(store, runs, device=device, memory_bytes=room)))
    dice = [run.read_metrics()["splits"]["test"]["scores"]["dice"] for _, run in runs]
    read = runs[0][1].read_metrics()["bytes_read"]  # by all of them together
    return {"wall": wall, "heads": sum(trainee.seconds for trainee in done) + sum(judged), "dice": dice, "bytes": read}


def sweep_row(name: str, store: FeatureStore, folder: Path, head: str, device: str, room: int | None) -> dict:
    configs = [HeadConfig(blocks=(block,), head=head, epochs=2) for block in store.contents.blocks]
    together = train(store, folder / "together", configs, device, room)
    apart = [train(store, folder / f"apart{c.blocks[0]}", [c], device, room) for c in configs]
    if together["dice"] != [run["dice"][0] for run in apart]:
        raise AssertionError("a head of the sweep is not the head that is trained alone")
    row = {"store": name, "head": head, "heads": len(configs), "images": len(store), "epochs": 2}
    row |= {"sweep_s": together["wall"], "heads_own_s": together["heads"], "apart_s": sum(r["wall"] for r in apart)}
    row |= {"sweep_bytes": together["bytes"], "apart_bytes": sum(run["bytes"] for run in apart)}
    row |= {"gain": row["apart_s"] / row["sweep_s"], "over_own": row["sweep_s"] / row["heads_own_s"]}
    print(f"  {name}, {head}: together {row['sweep_s']:.1f} s ({row['over_own']:.2f} of the heads' own), "
          f"apart {row['apart_s']:.1f} s: {row['gain']:.2f} times")  # fmt: skip
    return row


def measure_sweep(folder: Path, arguments: argparse.Namespace) -> Rows:
    splits = ["train"] * 5 + ["test"]
    local = random_store(folder / "sweep.zarr", splits, side=256)
    rows = [sweep_row("local, kept in memory", local, folder / "local", "fcn", arguments.device, None)]
    if importlib.util.find_spec("moto") is None:
        print("  no row from S3: it needs moto, which pathseg[test] installs")
        return rows
    with s3_server() as bucket:
        far = random_store(f"{bucket}/sweep.zarr", splits, side=512)
        rows.append(sweep_row("S3, nothing kept", far, folder / "s3", "linear", arguments.device, 0))
    return rows


def later_epochs(store: FeatureStore, folder: Path, config: HeadConfig, device: str, room: int) -> list[float]:
    """Seconds of each epoch but the first, in which what is kept in memory is read."""
    ends: list[float] = []
    runs = [(config, RunFolder(Path(tempfile.mkdtemp(dir=folder))))]
    train_heads(
        store, runs, device=device, memory_bytes=room, on_epoch=lambda run, line: ends.append(time.perf_counter())
    )
    return [end - start for start, end in pairwise(ends)]


def model_seconds(release: str | Path, blocks: tuple[int, ...], device: str) -> float:
    """Seconds of the frozen model for one image of nine patches, scaled from a few; a first call warms up."""
    model, patches = load_model(release, device=device), 3
    images = np.random.default_rng(0).integers(0, 256, (patches, 256, 256, 3), np.uint8)
    model.features(images, t=50, blocks=blocks)
    return seconds(lambda: model.features(images, t=50, blocks=blocks)) / patches * GRID.patches


def measure_epoch(folder: Path, arguments: argparse.Namespace) -> Rows:
    rows = []
    images = 3 if arguments.device == "cpu" else 41  # one of them becomes validation
    store = random_store(folder / "epoch.zarr", ["train"] * images + ["test"])
    for blocks in ((4, 5, 6), tuple(FULL)):
        forward = images * model_seconds(arguments.release, blocks, arguments.device) if arguments.release else None
        for head in HEADS:
            config = HeadConfig(blocks=blocks, epochs=3, head=head, val_fraction=1 / images)
            taken: dict[str, list[float]] = {"read": [], "memory": []}
            for _ in range(TURNS if head == "fcn" else 3):
                for name, room in (("read", 0), ("memory", 2**36)):
                    taken[name] += later_epochs(store, folder, config, arguments.device, room)
            row = {"head": head, "blocks": f"{blocks[0]}-{blocks[-1]}", "images": images}
            row |= {f"{name}_s": min(values) for name, values in taken.items()}
            row["over_memory"] = row["read_s"] / row["memory_s"]
            said = f"  {head}, blocks {row['blocks']}: {row['over_memory']:.3f} of the time with tensors in memory"
            if forward:
                row |= {"model_s": forward, "online_times": (forward + row["memory_s"]) / row["read_s"]}
                said += f"; {row['online_times']:.1f} times as fast as with the model online"
            rows.append(row)
            print(said)
    return rows


def measure_precision(folder: Path, arguments: argparse.Namespace, seeds: int = 5) -> Rows:
    dataset = open_dataset("synthetic", DatasetOptions(limit=12, resize=256))
    model = load_model("mini", device=arguments.device)
    rows, stores = [], {}
    for features, precision in (("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "float32")):
        if features not in stores:
            config = ExtractConfig(layout="native", blocks=(4, 5, 6), precision=features)
            writer = prepare_store(folder / f"tissue-{features}.zarr", dataset, model, config)
            extract(writer, dataset, model, config)
            stores[features] = writer.store
        heads = [HeadConfig(blocks=(4, 5, 6), epochs=3, seed=s, lr=1e-3, precision=precision) for s in range(seeds)]
        dice = train(stores[features], folder / f"{features}-{precision}", heads, arguments.device, None)["dice"]
        row = {"features": features, "precision": precision, "dice": dice}
        row |= {"mean": statistics.mean(dice), "sd": statistics.stdev(dice)}
        rows.append(row)
        said = f"{row['mean']:.4f} ± {row['sd']:.4f}"
        print(f"  features in {features}, head in {precision}: test Dice {said} over {seeds} seeds")
    return rows


PARTS = {"step": measure_step, "sweep": measure_sweep, "epoch": measure_epoch, "precision": measure_precision}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="comma list of what to measure")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--release", type=Path, help="a release folder of the paper's size, for the model online")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="with 2 GB free")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/heads.json")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for part in arguments.only.split(","):
            print(part)
            about = machine(Path(folder))
            keep(arguments.out, part, PARTS[part](Path(folder), arguments), about=about)


if __name__ == "__main__":
    main()
