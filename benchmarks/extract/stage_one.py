"""Speed of stage one's forward pass, its share of the machine's arithmetic rate, and where its time goes.

    python -m benchmarks.extract.stage_one [--model DIR] [--only speed,variants,waiting,agreement,profile]
                                           [--device cpu] [--out FILE]

speed      Patches a second of all arithmetic of stage one (ViT, first stage, all 13 blocks, features copied to the host
           as float16) for each precision and batch size, as a share of the rate of a large matrix product of that
           precision in the same run. Operations are counted by torch. Float32 does not use TF32.
variants   The same batch with one change at a time, float32: the UNet's weights channels-last; its linear layers as 1x1
           convolutions; attention as plain products in place of PyTorch's fused one; diffusers' divisions by one,
           which are left out; residual and transformer blocks compiled by `torch.compile`; and only up to block 6 in
           place of 12. Seconds relative to the unchanged network, and the relative change of its features.
waiting    A whole extraction to a local disk (native layout; bfloat16 on a GPU): the share of its time in which no
           forward pass runs, because of decoding, copying to the host or writing; and the same without writing.
agreement  Features in bfloat16 and float16 against float32: relative error of each block (norm of the difference by
           norm), on generated tissue with the noise of a run.
profile    The operators that take most time, by torch's profiler, in stage one and in a training step of the FCN head.

--model: `mini`, or a release folder (`benchmarks.extract.full_size_release` writes one of the paper's size).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

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
from benchmarks.store.store import write_png_dataset
from benchmarks.train.heads import count_flops, training_step
from benchmarks.waiting import timed_computation
from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.models import FeatureModel, load_model
from pathseg.extract.models.arithmetic import FACTORS
from pathseg.extract.pipeline import open_extraction, run_extraction
from pathseg.store.grid import PatchGrid
from pathseg.store.writer import StoreWriter
from pathseg.train.heads.fcn import FCNHead

TURNS = 5
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BATCHES = {"cpu": (1, 3, 9), "cuda": (1, 9, 36, 72)}
Rows = list[dict[str, object]]


def tissue_patches(count: int) -> np.ndarray:
    """Return patches (count, 256, 256, 3) uint8 of generated tissue."""
    dataset = open_dataset("synthetic", DatasetOptions(limit=-(-count // 4)))
    grid = PatchGrid.of(*dataset.size)
    patches = [grid.cut(dataset.load(sample).image) for sample in dataset.samples]
    return np.concatenate(patches * (1 + count // (len(patches) * grid.patches)))[:count]


def forward(model: FeatureModel, images: np.ndarray, precision: str) -> dict[int, torch.Tensor]:
    """Compute all blocks of a batch on the model's device, as `pathseg extract --precision` does."""
    autocast = torch.autocast(model.device.type, PRECISIONS[precision]) if precision != "float32" else nullcontext()
    with autocast:
        return model.features(images, t=50, blocks=tuple(model.blocks))


def forward_to_host(model: FeatureModel, images: np.ndarray, precision: str) -> Callable[[], object]:
    """Return a call that computes all blocks of a batch and copies them to the host as float16."""
    return lambda: [maps.half().cpu() for maps in forward(model, images, precision).values()]


def forward_flops(model: FeatureModel, images: np.ndarray) -> int:
    """Count the floating-point operations of a forward pass for these patches."""
    with sdpa_kernel(SDPBackend.MATH):  # torch does not count the fused attention of a CPU
        return count_flops(lambda: forward(model, images, "float32"))


def measure_speed(model: FeatureModel) -> Rows:
    """Measure patches a second for every precision and batch size."""
    device, rows = model.device.type, []
    precisions = list(PRECISIONS) if device == "cuda" else ["float32", "bfloat16"]
    images = tissue_patches(max(BATCHES[device]))
    flops = forward_flops(model, images[:1])
    peaks = {precision: matmul_flops(device, PRECISIONS[precision]) for precision in precisions}
    calls = {
        (precision, batch): forward_to_host(model, images[:batch], precision)
        for precision in precisions
        for batch in BATCHES[device]
    }
    all_times = time_in_turn(calls, TURNS)
    for (precision, batch), times in all_times.items():
        rate = batch / statistics.median(times)
        peak = peaks[precision]
        row = {"precision": precision, "batch": batch, "patches_per_s": rate, "gflop_per_patch": flops / 1e9}
        row |= {"matrix_gflops": peak / 1e9, "of_rate": rate * flops / peak}
        row["times"] = statistics.median(all_times["float32", 1]) * rate  # against float32, one patch at a time
        rows.append(row)
        print(f"  {precision} batch {batch:>2}: {rate:7.2f} patches/s, {row['times']:5.2f} times float32 batch 1, "
              f"{row['of_rate']:.2f} of {peak / 1e9:.0f} GFLOP/s")  # fmt: skip
    return rows


@contextmanager
def channels_last(model: FeatureModel) -> Iterator[None]:
    """Store the UNet's weights channels-last, as its activations are: the first stage's output has that format."""
    model._unet.to(memory_format=torch.channels_last)
    yield
    model._unet.to(memory_format=torch.contiguous_format)


@contextmanager
def plain_attention(model: FeatureModel) -> Iterator[None]:
    """Compute attention as plain matrix products."""
    before = model._unet.attn_processors
    model._unet.set_attn_processor(AttnProcessor())
    yield
    model._unet.set_attn_processor(before)


@contextmanager
def compiled(model: FeatureModel) -> Iterator[None]:
    """Compile block by block, so that features can still be read between the blocks."""
    torch._dynamo.config.recompile_limit = 256  # the blocks share their code and differ in their shapes
    blocks = [module for module in model._unet.modules() if isinstance(module, ResnetBlock2D | BasicTransformerBlock)]
    for block in blocks:
        block.forward = _compiled(block)
    yield
    for block in blocks:
        del block.forward


@contextmanager
def linear_as_convolution(model: FeatureModel) -> Iterator[None]:
    """Compute linear layers as 1x1 convolutions: on a CPU torch uses different libraries for the two."""
    layers = [module for module in model._unet.modules() if isinstance(module, torch.nn.Linear)]
    for layer in layers:
        layer.forward = partial(_convolve, layer)
    yield
    for layer in layers:
        del layer.forward


def _convolve(layer: torch.nn.Linear, tokens: torch.Tensor) -> torch.Tensor:
    if tokens.ndim != 3:
        return F.linear(tokens, layer.weight, layer.bias)
    x = F.conv2d(tokens[:, :, None].permute(0, 3, 1, 2), layer.weight[:, :, None, None], layer.bias)
    return x.permute(0, 2, 3, 1)[:, :, 0]


@contextmanager
def divisions_by_one(model: FeatureModel) -> Iterator[None]:
    """Divide the sums of residual and attention layers by one, as diffusers does by itself."""
    layers = [(module, name) for module in model._unet.modules() for name in FACTORS if hasattr(module, name)]
    before = [getattr(module, name) for module, name in layers]
    for module, name in layers:
        setattr(module, name, 1.0)
    yield
    for (module, name), factor in zip(layers, before, strict=True):
        setattr(module, name, factor)


@cache
def _compiled(block: torch.nn.Module) -> Callable[..., object]:
    return torch.compile(block.forward)


VARIANTS: dict[str, Callable[[FeatureModel], AbstractContextManager]] = {
    "channels-last weights": channels_last,
    "linear layers as convolutions": linear_as_convolution,
    "plain attention": plain_attention,
    "divisions by one": divisions_by_one,
    "compiled": compiled,
}


def measure_variants(model: FeatureModel) -> Rows:
    """Measure each change against the unchanged network, in alternating turns."""
    images, rows = tissue_patches(3 if model.device.type == "cpu" else 36), []
    run = forward_to_host(model, images, "float32")
    exact = forward(model, images, "float32")
    calls = {
        "unchanged": run,
        "up to block 6": lambda: [m.half().cpu() for m in model.features(images, t=50, blocks=range(7)).values()],
    }
    taken = time_in_turn(calls, TURNS)
    rows.append({"variant": "up to block 6", "of_time": median_ratio(taken["up to block 6"], taken["unchanged"])})
    for name, variant in VARIANTS.items():
        try:
            with variant(model):
                first_call = seconds(run)  # compiles
                changed = forward(model, images, "float32")
        except RuntimeError as e:  # for example no compiler
            rows.append({"variant": name, "failed": str(e).splitlines()[0]})
            print(f"  {name}: failed ({rows[-1]['failed']})")
            continue
        times, unchanged_times = [], []
        for _ in range(TURNS):
            unchanged_times.append(seconds(run))
            with variant(model):
                times.append(seconds(run))
        moved = max(((changed[b] - exact[b]).norm() / exact[b].norm()).item() for b in exact)
        row = {"variant": name, "of_time": median_ratio(times, unchanged_times)}
        rows.append(row | {"first_call_s": first_call, "moved": moved})
    for row in (row for row in rows if "failed" not in row):
        print(f"  {row['variant']}: {row['of_time']:.2f} of the time" + (
            f", features change by {row['moved']:.0e}, first call {row['first_call_s']:.1f} s" if "moved" in row else ""
        ))  # fmt: skip
    return rows


def measure_agreement(model: FeatureModel) -> Rows:
    """Measure the relative error of each block in half precision."""
    images, rows = tissue_patches(4), []
    exact = forward(model, images, "float32")
    for precision in ("bfloat16", "float16"):
        half = forward(model, images, precision)
        errors = {b: ((half[b].float() - exact[b]).norm() / exact[b].norm()).item() for b in exact}
        rows.append({"precision": precision, "relative_error": errors})
        print(f"  {precision}: " + "  ".join(f"{b}: {error:.1e}" for b, error in errors.items()))
    return rows


def head_step(device: str) -> Callable[[], None]:
    """Return a training step of the FCN head on one 768 px image with all blocks of the paper's model."""
    maps = {b: torch.randn(1, 9, c, s, s, device=device) for b, (c, s) in FULL_SIZE.items()}
    head = FCNHead({b: c for b, (c, _) in FULL_SIZE.items()}, 2).to(device)
    mask = torch.zeros(1, 768, 768, dtype=torch.long, device=device)
    return training_step(head, lambda: head(maps, (3, 3)), mask)


def top_kernels(run: Callable[[], object], device: str) -> Rows:
    """Profile one call after a warm-up: the ten operators, on a GPU kernels, that take most time, with their share."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    run()
    with profile(activities=activities) as profiler:
        run()
    own = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, own))
    if device == "cuda":  # kernels alone: the operators that launch them are listed with the same time
        events = [event for event in events if event.device_type == DeviceType.CUDA]
    total = sum(getattr(event, own) for event in events)
    return [
        {"operator": event.key, "calls": event.count, "share": getattr(event, own) / total} for event in events[:10]
    ]


def measure_profile(model: FeatureModel) -> Rows:
    """Profile stage one and a training step: the ten operators that take most time, with their share."""
    device, images = model.device.type, tissue_patches(9)
    rows = []
    for name, run in (("stage one", forward_to_host(model, images, "float32")), ("head step", head_step(device))):
        for row in top_kernels(run, device):
            rows.append({"of": name, **row})
            print(f"  {name}: {row['share']:6.1%}  {row['calls']:>5} calls  {row['operator']}")
    return rows


def discard_features(writer: StoreWriter, unit: int, *, t: int, features: Iterator[tuple[int, object]]) -> None:
    """Replace `write_features`: bring maps to layout, dtype and host, and write nothing."""
    for _ in features:
        pass


def measure_waiting(model: FeatureModel) -> Rows:
    """Measure the share of an extraction in which no forward pass runs, with and without writing."""
    device = model.device.type
    images = 40 if device == "cuda" else 8 if model.name == "mini" else 2
    config = ExtractConfig(layout="native", precision="bfloat16" if device == "cuda" else "float32")
    rows: Rows = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_png_dataset(Path(folder) / "tissue", images)
        for number, written in enumerate((True, True, False)):  # the first warms up
            extraction = open_extraction(dataset, model, Path(folder) / f"{number}.zarr", config)
            with ExitStack() as stack:
                computing = stack.enter_context(timed_computation())
                if not written:
                    stack.enter_context(patch.object(StoreWriter, "write_features", discard_features))
                wall = seconds(lambda extraction=extraction: run_extraction(extraction))
            row = {"written": written, "images": images, "precision": config.precision}
            rows.append(row | {"seconds": wall, "forward_s": computing(), "waiting_share": 1 - computing() / wall})
    for row in rows[1:]:
        print(f"  {images} images, {config.precision}, {'with' if row['written'] else 'without'} writing: "
              f"{row['seconds']:.1f} s, {row['waiting_share']:.1%} without a forward pass")  # fmt: skip
    return rows[1:]


SECTIONS = {
    "speed": measure_speed,
    "variants": measure_variants,
    "waiting": measure_waiting,
    "agreement": measure_agreement,
    "profile": measure_profile,
}


def main() -> None:
    """Run the chosen sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="comma list of what to measure")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / "stage_one.json")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = load_model(arguments.model, device=arguments.device)
    size = {"model": "mini" if model.name == "mini" else "full size"}
    for section in arguments.only.split(","):
        print(section)
        machine = describe_machine(Path(tempfile.gettempdir())) | size
        save_rows(arguments.out, section, SECTIONS[section](model), machine=machine)


if __name__ == "__main__":
    main()
