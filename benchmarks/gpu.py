"""What only a GPU can show, in one command that ends within its time: whether it is right, and how fast it is.

    python -m benchmarks.gpu [--name NAME] [--device cuda] [--size full|small] [--seconds 480] [--folder DIR]
                             [--only golden,agreement,…]

golden     The golden cases of tests/golden on every GPU, in float32: relative error of embeddings, latents, context and
           blocks against the reference implementations. The message for memory that runs out.
agreement  The paper's model: features on the GPU against the CPU, of batches of one against the default, of half
           precision against float32, and of the same call twice. A store that an extraction has written against the
           same features copied one after the other, to the bit. Batches that a reader has copied against those of the
           CPU, to the bit, while the GPU is busy. Scores and gradients of the FCN head against the CPU.
speed      Patches a second of stage one, all 13 blocks, features left on the device, by precision and batch size:
           share of the rate of a large matrix product of that precision, peak memory, calls that wait for the GPU.
extract    Whole extractions from PNG files to a disk by layout and packing, the faster of two: share of the time in
           which no features are computed, with and without writing, and the same forward passes alone. The stores are
           kept for `epoch`.
step       A training step of the FCN head on 768 px with features on the device, native and as plain layers on the
           upsampled stack: seconds, peak memory, what TF32 and cuDNN's free choice would save, calls that wait.
epoch      Epochs of the FCN head (small: linear) from those stores: with all features on the device (of the first store
           and of two joined), and read anew each epoch, copied on a stream of its own. Share of the time of the latter
           in which the head waits for a batch.
profile    The ten kernels that take most time, in stage one (batches of 36 in bfloat16, on a CPU of one in float32) and
           in a training step.

Each part runs in a process of its own, which is ended when its share of the time, and what the parts before it have
left of theirs, is over; a part that no longer fits is left out. Every row is written as soon as it is measured, to
benchmarks/results/gpu-<name>.json. The exit code is 1 when a check or a part has failed. Weights are random but for the
golden cases; nothing is downloaded.

small: the bundled model and small images, to try the command on a CPU (--device cpu).
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.constant_model import FULL_SIZE
from benchmarks.extract.stage_one import (
    PRECISIONS,
    discard_features,
    forward,
    forward_flops,
    tissue_patches,
    top_kernels,
)
from benchmarks.machine import RESULTS, describe_machine, matmul_flops, module_command, seconds
from benchmarks.store.store import write_png_dataset
from benchmarks.train.heads import later_epochs, plain_head, training_step
from benchmarks.waiting import timed_batches, timed_computation
from pathseg.cli import error_line
from pathseg.extract.config import ExtractConfig, Precision
from pathseg.extract.datasets.registry import Dataset, DatasetOptions, open_dataset
from pathseg.extract.models import FeatureModel, load_model
from pathseg.extract.pipeline import open_extraction, run_extraction
from pathseg.extract.unit import compute_patches
from pathseg.store.features import FeatureStore
from pathseg.store.grid import PatchGrid
from pathseg.store.runtime.device import ieee_float32
from pathseg.store.writer import StoreWriter
from pathseg.train.config import Layer
from pathseg.train.data.joined import JoinedStores, join_stores
from pathseg.train.data.reader import FeatureReader
from pathseg.train.heads.fcn import FCNHead
from pathseg.train.heads.stack import stack_blocks
from pathseg.train.training.sweep import expand_heads

GOLDEN = Path(__file__).parents[1] / "tests/golden/files.py"
Row = dict[str, Any]
Rows = Iterator[Row]

# relative errors up to which a check counts as passed
ROUNDING = 1e-4  # float32 with sums in another order: the golden cases differ by 1e-5 on a CPU, TF32 by 1e-3
HALF = 5e-2  # bfloat16 on a CPU differs by 1.4e-2


@dataclass(frozen=True)
class Size:
    """How much is measured.

    batches: of stage one, by precision. drawn: images of so many px a side that are extracted, each `copies` times.
    stores: their layouts, packings and blocks, None for all. seconds_each: of a speed, after a warm-up. shapes, grid:
    of the blocks and the image that a head is trained on. product: side of the matrices whose product is the rate.
    head_type, epochs: of `epoch`.
    """

    batches: Mapping[str, tuple[int, ...]]
    drawn: int
    copies: int
    side_px: int
    stores: tuple[tuple[str, str, tuple[int, ...] | None], ...]
    seconds_each: float
    shapes: Mapping[int, tuple[int, int]]
    grid: PatchGrid
    product: int
    head_type: Literal["fcn", "linear"]
    epochs: int


SIZES = {
    "full": Size(
        batches={"float32": (1, 9, 36), "float16": (9, 36), "bfloat16": (1, 9, 36, 72)},
        drawn=12,
        copies=3,
        side_px=768,
        stores=(
            ("native", "none", None),
            ("native", "int8", None),
            ("native", "rounded", None),
            ("native", "lossless", None),
            ("grid", "none", (4, 5, 6)),
        ),
        seconds_each=1.5,
        shapes=FULL_SIZE,
        grid=PatchGrid(3, 3),
        product=8192,
        head_type="fcn",
        epochs=4,
    ),
    "small": Size(
        batches={"float32": (1,)},
        drawn=4,
        copies=1,
        side_px=256,
        stores=(("native", "none", None), ("native", "int8", None)),
        seconds_each=0.0,
        shapes={0: (32, 8), 6: (32, 32), 12: (16, 64)},
        grid=PatchGrid(1, 1),
        product=128,
        head_type="linear",
        epochs=2,
    ),
}


@dataclass(frozen=True)
class Setup:
    """What a part gets. folder: shared by all parts. model: a name or a release folder of the paper's size."""

    device: torch.device
    size: Size
    folder: Path
    model: str

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU of CUDA."""
        return self.device.type == "cuda"

    @property
    def precision(self) -> Precision:
        """The precision of extractions: bfloat16 pays on a GPU."""
        return "bfloat16" if self.on_gpu else "float32"

    def load(self, device: torch.device | None = None) -> FeatureModel:
        """Load the model, on the device unless another is given."""
        return load_model(self.model, device=device or self.device)

    def images(self) -> Dataset:
        """Open the PNG files that are extracted, which `prepare` has written."""
        return open_dataset("folder", DatasetOptions(root=self.folder / "tissue"))

    def busy(self) -> None:
        """Queue some matrix products, so that whatever does not wait for its turn gives wrong values."""
        if self.on_gpu:
            a = torch.randn(4096, 4096, device=self.device)
            for _ in range(20):
                a = a @ a / 64


def relative_error(values: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the norm of the difference by the norm of the reference, in float64 on the CPU."""
    values, reference = values.detach().cpu().double(), reference.detach().cpu().double()
    return ((values - reference).norm() / reference.norm()).item()


def largest_error(values: Mapping[int, torch.Tensor], reference: Mapping[int, torch.Tensor]) -> float:
    """Return the largest relative error of a block."""
    return max(relative_error(values[block], reference[block]) for block in reference)


def check(name: str, error: float, limit: float) -> Row:
    """Return the row of a check by its relative error, which NaN does not pass."""
    return {"check": name, "relative_error": error, "limit": limit, "passed": error <= limit}


def same(name: str, passed: bool) -> Row:
    """Return the row of a check of equal bits."""
    return {"check": name, "passed": bool(passed)}


def measure_golden(setup: Setup) -> Rows:
    """Compare the golden cases on every GPU; see what the command line says when memory runs out."""
    files = runpy.run_path(str(GOLDEN))
    names = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if setup.on_gpu else [str(setup.device)]
    for case in files["CASES"]:
        release = files["write_case"](case, setup.folder / case)
        patches, expected = files["patch"](case), files["expected"](case)
        for name in names:
            model = load_model(release, device=name)
            z0, context = model.prepare(patches)
            found = {"hipt": model.embed(patches), "z0": z0, "context": context}
            features = model.features(patches, int(expected["t"]), range(13), expected["eps"])
            errors = [files["relative_error"](values.cpu(), expected[array]) for array, values in found.items()]
            errors += files["block_errors"]({b: maps.cpu() for b, maps in features.items()}, expected).values()
            yield check(f"{case} on {name}", float(max(errors)), ROUNDING)
    try:
        torch.empty(2**60, dtype=torch.uint8, device=setup.device)
        message = "none"
    except RuntimeError as e:
        message = error_line(e)
    yield same("memory that runs out is said to have", message.startswith("out of memory")) | {"message": message}


def measure_agreement(setup: Setup) -> Rows:
    """Compare features, stored features, batches, scores and gradients with those of the CPU."""
    model, patches, cpu = setup.load(), tissue_patches(max(2, setup.size.grid.patches)), torch.device("cpu")
    found = forward(model, patches, "float32")
    setup.busy()
    again = forward(model, patches, "float32")
    yield same("the same call twice", all(torch.equal(found[block], again[block]) for block in found))
    one = forward(model, patches[:1], "float32")
    yield check("a batch of one", largest_error(one, {b: maps[:1] for b, maps in found.items()}), ROUNDING)
    for precision in setup.size.batches:
        if precision != "float32":
            half = forward(model, patches[:1], precision)
            yield check(precision, largest_error(half, one), HALF)

    reference = forward(setup.load(cpu), patches[:1], "float32")
    yield check("the CPU", largest_error({b: maps[:1] for b, maps in found.items()}, reference), ROUNDING)

    dataset, config = setup.images(), ExtractConfig(layout="native", precision=setup.precision)
    store = extracted(setup, model, dataset, config, setup.folder / "agreement.zarr")
    for index in (0, 1):
        sample = dataset.samples[index]
        cut = store.contents.grid.cut(dataset.load(sample).image)
        wanted = {50: tuple(store.contents.blocks)}
        batch_size = store.contents.key.batch_size
        maps = compute_patches(model, cut, range(len(cut)), sample.id, wanted, config, batch_size=batch_size)[50]
        stored = store.read(index, t=50)
        equal = [np.array_equal(torch.cat(values).half().cpu().numpy(), stored[b]) for b, values in maps.items()]
        yield same(f"image {index} of a store has the features of the model", all(equal))
    yield from check_batches(setup, store)
    yield from check_head(setup)


def check_batches(setup: Setup, store: FeatureStore) -> Rows:
    """Compare batches that are copied to the device while it is busy with those of the CPU."""
    layers = [Layer(0, 50, block) for block in store.contents.blocks]
    order = list(range(len(store))) * 3
    for kept, memory_bytes in (("read anew", 0), ("kept", None)):
        on_cpu, on_device = (
            FeatureReader(store, layers, device=device, memory_bytes=memory_bytes)
            for device in (torch.device("cpu"), setup.device)
        )
        equal = []
        for expected, batch in zip(on_cpu.batches(order, 1), on_device.batches(order, 1), strict=True):
            setup.busy()  # the values are used after this, as those of a step would be
            copied = {layer: maps * 1 for layer, maps in batch.features.items()}
            equal += [torch.equal(maps.cpu(), expected.features[layer]) for layer, maps in copied.items()]
        yield same(f"batches {kept}", all(equal))


def check_head(setup: Setup) -> Rows:
    """Compare scores and gradients of the FCN head on the device with those on the CPU."""
    torch.manual_seed(0)
    shapes, grid = setup.size.shapes, setup.size.grid
    maps = {b: torch.randn(1, grid.patches, c, s, s).half() for b, (c, s) in shapes.items()}
    head = FCNHead({b: c for b, (c, _) in shapes.items()}, 2)
    mask = torch.randint(2, (1, *grid.size))
    found: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
    for device in (torch.device("cpu"), setup.device):
        own = copy.deepcopy(head).to(device)
        with ieee_float32():
            scores = own({b: values.to(device) for b, values in maps.items()}, (grid.rows, grid.cols))
            F.cross_entropy(scores, mask.to(device)).backward()
        found[device] = scores, torch.cat([p.grad.flatten().cpu() for p in own.parameters() if p.grad is not None])
    (scores, gradient), (on_device, of_device) = found[torch.device("cpu")], found[setup.device]
    yield check("scores of the FCN head", relative_error(on_device, scores), ROUNDING)
    yield check("gradients of the FCN head", relative_error(of_device, gradient), 10 * ROUNDING)


def extracted(setup: Setup, model: FeatureModel, dataset: Dataset, config: ExtractConfig, path: Path) -> FeatureStore:
    """Extract a whole data set to a store, while the GPU is busy at the start."""
    setup.busy()
    return run_extraction(open_extraction(dataset, model, path, config)).store


def rate_of(call: Callable[[], object], at_least: float) -> float:
    """Return the median seconds of a call, which runs for so many seconds after a warm-up, at least once."""
    call()
    times: list[float] = []
    while not times or sum(times) < at_least:
        times.append(seconds(call))
    return statistics.median(times)


@contextmanager
def peak_memory(setup: Setup) -> Iterator[Row]:
    """Yield a row that receives the peak bytes that tensors take on a GPU in this context; None elsewhere."""
    row: Row = {"peak_bytes": None}
    if setup.on_gpu:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setup.device)
    yield row
    if setup.on_gpu:
        row["peak_bytes"] = torch.cuda.max_memory_allocated(setup.device)


def waiting_calls(setup: Setup, call: Callable[[], object]) -> list[str]:
    """Return where a call waits for the GPU, file and line, once for each place; by PyTorch's own debug mode."""
    call()
    if not setup.on_gpu:
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sorted({f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)})


def cast_weights(model: FeatureModel, dtype: torch.dtype) -> None:
    """Cast the weights of products and convolutions once, as autocast does in every forward pass."""
    for network in vars(model).values():
        for module in network.modules() if isinstance(network, torch.nn.Module) else ():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                module.to(dtype)


def measure_speed(setup: Setup) -> Rows:
    """Measure patches a second for every precision and batch size."""
    model, size = setup.load(), setup.size
    images = tissue_patches(max(map(max, size.batches.values())))
    flops = forward_flops(model, images[:1])
    for precision, batches in size.batches.items():  # that of extractions comes last: its weights stay cast
        with ieee_float32():
            peak = matmul_flops(setup.device.type, PRECISIONS[precision], size.product)
        ways = [(batch, False) for batch in batches] + [(batches[-1], True)] * (precision == setup.precision)
        for batch, weights_cast in ways:
            if weights_cast:
                before = forward(model, images[:1], precision)
                cast_weights(model, PRECISIONS[precision])
                after = forward(model, images[:1], precision)
                yield same("weights cast once", all(torch.equal(before[b], after[b]) for b in before))
            row: Row = {"precision": precision, "batch": batch, "weights_cast_once": weights_cast}
            call = partial(forward, model, images[:batch], precision)
            try:
                with peak_memory(setup) as memory:
                    taken = rate_of(call, size.seconds_each)
            except torch.OutOfMemoryError:
                yield row | {"failed": "out of memory"}
                continue
            row |= {"patches_per_s": batch / taken, "gflop_per_patch": flops / 1e9, "matrix_gflops": peak / 1e9}
            row |= {"of_rate": flops * batch / taken / peak, "waits_at": waiting_calls(setup, call)}
            yield row | memory


def measure_extract(setup: Setup) -> Rows:
    """Measure the share of whole extractions in which the GPU does not compute features."""
    model, dataset = setup.load(), setup.images()
    for layout, packing, blocks in setup.size.stores:
        config = ExtractConfig(layout=layout, packing=packing, precision=setup.precision, blocks=blocks)
        path = setup.folder / f"{layout}-{packing}.zarr"
        with peak_memory(setup) as memory:
            extraction = open_extraction(dataset, model, path, config)
            loaded = [extraction.load(unit) for unit in extraction.unfinished_units()]

            def passes(extraction=extraction, loaded=loaded) -> None:
                for unit in loaded:
                    extraction.compute(unit)

            passes()  # warms up
            alone = seconds(passes)
            with patch.object(StoreWriter, "write_features", discard_features), timed_computation() as computing:
                unwritten = seconds(lambda extraction=extraction: run_extraction(extraction))
                waiting_unwritten = 1 - computing() / unwritten
            runs: list[tuple[float, float]] = []
            for _ in range(2):
                shutil.rmtree(path)  # the first time, its pixels were written
                extraction = open_extraction(dataset, model, path, config)
                with timed_computation() as computing:
                    taken = seconds(lambda extraction=extraction: run_extraction(extraction))
                runs.append((taken, 1 - computing() / taken))
        size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        row: Row = {"layout": layout, "packing": packing, "blocks": blocks}
        row["patches"] = len(loaded) * extraction.writer.store.contents.grid.patches
        row |= {"forward_s": alone, "extraction_s": min(runs)[0], "without_writing_s": unwritten, "bytes": size_bytes}
        yield row | {"waiting_share": min(runs)[1], "waiting_unwritten": waiting_unwritten} | memory


def measure_step(setup: Setup) -> Rows:
    """Measure a training step of the FCN head."""
    torch.manual_seed(0)
    device, size = setup.device, setup.size
    half = partial(torch.autocast, device.type, torch.bfloat16)
    arithmetics: dict[str, Callable[[], AbstractContextManager[object]]]
    arithmetics = {"float32": ieee_float32, "as PyTorch sets it": nullcontext}
    if setup.on_gpu:
        arithmetics["bfloat16"] = half
    for blocks in ([b for b in size.shapes if 4 <= b <= 6], list(size.shapes)):
        shapes = {b: size.shapes[b] for b in blocks}
        maps = {b: torch.randn(1, size.grid.patches, c, s, s, device=device).half() for b, (c, s) in shapes.items()}
        head = FCNHead({b: c for b, (c, _) in shapes.items()}, 2).to(device)
        plain, stacked = plain_head(head), stack_blocks({b: values.float() for b, values in maps.items()}, size.grid)
        mask = torch.randint(2, (1, *size.grid.size), device=device)

        def native(head=head, maps=maps) -> torch.Tensor:
            return head(maps, (size.grid.rows, size.grid.cols))

        def on_stack(plain=plain, stacked=stacked) -> torch.Tensor:
            return plain(stacked)

        for way, network, scores in (("native", head, native), ("plain", plain, on_stack)):
            for arithmetic, context in arithmetics.items():

                def computed(scores=scores, context=context) -> torch.Tensor:
                    with context():
                        return scores()

                step = training_step(network, computed, mask)

                def in_context(step=step, context=nullcontext if context is half else context) -> None:
                    with context():
                        step()

                with peak_memory(setup) as memory:
                    taken = rate_of(in_context, size.seconds_each)
                row = {"blocks": blocks, "way": way, "arithmetic": arithmetic, "seconds": taken}
                yield row | {"waits_at": waiting_calls(setup, in_context)} | memory


def measure_epoch(setup: Setup) -> Rows:
    """Measure epochs with all features on the device and with features that are read anew."""
    stores = {}
    for layout, packing, _ in setup.size.stores:
        path = setup.folder / f"{layout}-{packing}.zarr"
        if path.exists():
            stores[f"{layout}, {packing}"] = FeatureStore.open(path)
    if not stores:
        raise FileNotFoundError("`extract` has left no stores, so there is nothing to train on")
    first, *others = stores
    sources: list[tuple[str, FeatureStore | JoinedStores, tuple[int, ...] | str, str]] = [
        (first, stores[first], (4, 5, 6), "float32"),
        (first, stores[first], (4, 5, 6), setup.precision),
        (first, stores[first], "all", "float32"),
        *((name, store, "all", setup.precision) for name, store in stores.items()),
    ]
    if others:
        joined = join_stores({"first": stores[first], "second": stores[others[0]]})
        sources.insert(4, (f"{first}, joined with {others[0]}", joined, "all", setup.precision))
    for name, source, blocks, precision in sources:
        (config,) = expand_heads(
            source,
            blocks=blocks,
            precision=precision,
            head_type=setup.size.head_type,
            epochs=setup.size.epochs,
            val_fraction=0.1,
        )
        row: Row = {"source": name, "blocks": blocks, "precision": precision, "images": len(stores[first])}
        ways = {"read": 0} if name in others else {"resident": 2**40, "read": 0}
        for kept, memory_bytes in ways.items():
            with peak_memory(setup) as memory, timed_batches() as batches:
                times = later_epochs(source, setup.folder, config, str(setup.device), memory_bytes)
            row |= {f"{kept}_s": min(times), f"{kept}_peak_bytes": memory["peak_bytes"]}
        yield row | {"waiting_share": batches.share(first=1)}  # without the epoch that warms up


def measure_profile(setup: Setup) -> Rows:
    """List the kernels that take most time."""
    model, size, device = setup.load(), setup.size, setup.device
    images = tissue_patches(36 if setup.on_gpu else 1)
    maps = {b: torch.randn(1, size.grid.patches, c, s, s, device=device) for b, (c, s) in size.shapes.items()}
    head = FCNHead({b: c for b, (c, _) in size.shapes.items()}, 2).to(device)
    mask = torch.zeros(1, *size.grid.size, dtype=torch.long, device=device)
    step = training_step(head, lambda: head(maps, (size.grid.rows, size.grid.cols)), mask)
    for name, call in (("stage one", partial(forward, model, images, setup.precision)), ("head step", step)):
        with ieee_float32():
            yield from ({"of": name, **row} for row in top_kernels(call, device.type))


TOTAL_S = 480  # unless set otherwise
PREPARE_S = 40  # of these for the images and the model
# part -> function, seconds that are reserved for it of these, imports and loading included
PARTS: dict[str, tuple[Callable[[Setup], Rows], int]] = {
    "golden": (measure_golden, 45),
    "agreement": (measure_agreement, 70),
    "speed": (measure_speed, 75),
    "extract": (measure_extract, 95),
    "step": (measure_step, 45),
    "epoch": (measure_epoch, 80),
    "profile": (measure_profile, 25),
}


def budgets(names: Sequence[str], *, left: float, total: float) -> tuple[float, float]:
    """Return the seconds reserved for the first of the parts that are left to run, and those that it may take.

    The latter are all that the others do not need of the `left` seconds, so that together they take no longer.
    """
    reserved, *others = (PARTS[name][1] * total / TOTAL_S for name in names)
    return reserved, left - sum(others)


def run_part(name: str, setup: Setup, out: Path) -> None:
    """Run one part in this process; write its rows to a file after each of them."""
    rows: list[Row] = []
    for row in PARTS[name][0](setup):
        rows.append(row)
        print("  " + "  ".join(f"{key} {_text(value)}" for key, value in row.items() if value is not None), flush=True)
        out.write_text(json.dumps(rows))


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def prepare(folder: Path, size: str) -> str:
    """Write the images, and the model of the paper's size with random weights; return the model."""
    chosen = SIZES[size]
    write_png_dataset(folder / "tissue", chosen.drawn, chosen.side_px)
    for kind in ("images", "masks"):
        for file in list((folder / "tissue" / kind).iterdir()):
            for number in range(1, chosen.copies):
                shutil.copy(file, file.with_stem(f"{file.stem}-{number}"))
    if size == "small":
        return "mini"
    subprocess.run(module_command("benchmarks.extract.full_size_release", folder / "release"), check=True)
    return str(folder / "release")


def measure_all(arguments: argparse.Namespace, folder: Path) -> bool:
    """Run the parts one after the other, as far as the time goes; return whether all have passed."""
    started, failed = time.monotonic(), False
    machine = describe_machine(folder) | {"size": arguments.size, "device": arguments.device}
    result: dict[str, Any] = {"machine": machine, "seconds": {}}

    def save() -> None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")

    model = prepare(folder, arguments.size)
    result["seconds"]["prepare"] = time.monotonic() - started
    save()
    names = arguments.only.split(",")
    for number, name in enumerate(names):
        left = arguments.seconds - (time.monotonic() - started)
        reserved, budget = budgets(names[number:], left=left, total=arguments.seconds)
        part: Row = {"rows": []}
        result[name] = part
        if budget < reserved:
            part["left_out"] = (
                f"{budget:.0f} of {arguments.seconds} s are left for it, and it may take {reserved:.0f} s"
            )
            print(f"{name}: left out ({part['left_out']})", flush=True)
            save()
            continue
        print(name, flush=True)
        began, rows = time.monotonic(), folder / f"{name}.json"
        command = module_command(
            "benchmarks.gpu", "--part", name, "--device", arguments.device, "--size", arguments.size,
            "--folder", folder, "--model", model, "--out", rows,
        )  # fmt: skip
        try:
            code = subprocess.run(command, timeout=budget).returncode
            if code:
                part["failed"] = f"exit code {code}"
        except subprocess.TimeoutExpired:
            part["failed"] = f"ended after {budget:.0f} s"
        if rows.exists():
            part["rows"] = json.loads(rows.read_text())
        part["passed"] = "failed" not in part and all(row.get("passed", True) for row in part["rows"])
        failed |= not part["passed"]
        result["seconds"][name] = time.monotonic() - began
        if "failed" in part:
            print(f"{name}: {part['failed']}", flush=True)
        save()
    print(f"rows in {arguments.out}")
    return not failed


def main() -> None:
    """Run the chosen parts, each in a process of its own, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", help="of the results file, by default that of the GPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--seconds", type=int, default=TOTAL_S, help="for everything")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for stores: 30 GB free")
    parser.add_argument("--only", default=",".join(PARTS), help="comma list of parts")
    parser.add_argument("--out", type=Path, help="in place of benchmarks/results/gpu-<name>.json")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        setup = Setup(torch.device(arguments.device), SIZES[arguments.size], arguments.folder, arguments.model)
        if setup.device.index is not None:
            torch.cuda.set_device(setup.device)  # whose work `seconds` and `matmul_flops` wait for
        run_part(arguments.part, setup, arguments.out)
        return
    if unknown := set(arguments.only.split(",")) - set(PARTS):
        sys.exit(f"no part {min(unknown)!r}; there are {', '.join(PARTS)}")
    if arguments.device != "cpu" and not torch.cuda.is_available():
        sys.exit("no GPU is available; pass --device cpu --size small to try the command")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    name = arguments.name or "-".join(gpu.lower().split())
    arguments.out = arguments.out or RESULTS / f"gpu-{name}.json"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        passed = measure_all(arguments, Path(folder))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
