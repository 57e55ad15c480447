"""The torch device to compute on, and how: which one, in which float32, and copies that do not hold it up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import torch


def device(name: str) -> str:
    """Return the name of a torch device; `auto` is the first available of cuda, mps and cpu.

    Raises ValueError for a device that is not available.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if torch.empty(0, device=name).is_meta:
            raise RuntimeError("it holds no values")
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"device {name} is not available ({str(e).splitlines()[0]}); pass --device auto") from e
    return name


def precision_warnings(device_type: str, precision: str) -> tuple[str, ...]:
    """Warn of arithmetic in half precision that a CPU does not have: PyTorch then takes many times as long.

    device_type: torch's name for the kind of device; another than a CPU is not asked. precision: torch's name.
    """
    supported = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}
    if device_type != "cpu" or precision not in supported or not torch.backends.mkldnn.is_available():
        return ()
    if getattr(torch.ops.mkldnn, supported[precision])():
        return ()
    return (f"a CPU such as this machine's has no arithmetic in {precision}: float32 is many times as fast on it",)


def worker_device(name: str, worker: object) -> str:
    """Return the name of the device of a Dask worker, on its machine; worker: its name, of local workers a number.

    `auto` gives the GPUs to local workers in turn, and another worker the first GPU that it sees. Without a GPU it is
    as of `device`.
    """
    if name != "auto" or not torch.cuda.is_available():
        return name
    return f"cuda:{worker % torch.cuda.device_count() if isinstance(worker, int) else 0}"


class _Float32Settings:
    """How many contexts of `ieee_float32` are open in this process, and the settings from before the first of them."""

    lock, depth = threading.Lock(), 0
    before: ClassVar[list[tuple[object, str, object]]] = []


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Compute float32 as float32 in this context, on a GPU with convolutions that repeat to the bit.

    PyTorch computes float32 convolutions on a GPU in TF32, which has 10 bits of mantissa, unless it is told otherwise,
    and a process may have allowed that for matrix products too, or bfloat16 on a CPU. A process may also have let cuDNN
    choose its algorithms by their speed at that moment. These are settings of the whole process; they are put back when
    no thread is inside of such a context any more.
    """
    shared = _Float32Settings
    with shared.lock:
        if shared.depth == 0:
            shared.before = _set_ieee_float32()
        shared.depth += 1
    try:
        yield
    finally:
        with shared.lock:
            shared.depth -= 1
            if shared.depth == 0:
                _put_back(shared.before)


def _set_ieee_float32() -> list[tuple[object, str, object]]:
    """Set the float32 of this process to IEEE's; return owner, name and earlier value of each setting."""
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    settings: list[tuple[object, str, object]] = [(cudnn, "benchmark", False), (cudnn, "deterministic", True)]
    if hasattr(cudnn, "conv"):
        with suppress(RuntimeError):  # unreadable where a process has set convolutions and recurrent layers apart
            _ = cudnn.allow_tf32
            settings.append((cudnn, "allow_tf32", False))  # first, as it sets both; `cudnn.flags` reads it
        backends = torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv
        settings += [(backend, "fp32_precision", "ieee") for backend in backends]
    else:  # before PyTorch 2.9
        settings += [(backend, "allow_tf32", False) for backend in (torch.backends.cuda.matmul, cudnn)]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in settings]
    try:
        for owner, name, value in settings:
            setattr(owner, name, value)
    except BaseException:
        _put_back(before)
        raise
    return before


def _put_back(settings: list[tuple[object, str, object]]) -> None:
    for owner, name, value in settings:
        setattr(owner, name, value)


def upload(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to a device, to a GPU without waiting for the kernels that are queued there.

    A copy from memory that is not pinned waits for them, and then the GPU waits for the kernels that are queued after
    the copy. PyTorch does not reuse pinned memory before copies from it have finished.
    """
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def wait_for_stream(stream: torch.cuda.Stream) -> None:
    """Wait until the work that is queued on a CUDA stream has finished; the thread sleeps meanwhile.

    `Stream.synchronize` keeps a core busy.
    """
    event = torch.cuda.Event(blocking=True)
    event.record(stream)
    event.synchronize()


def device_label(name: str) -> str:
    """Return the name of a device for people: of a GPU the one that its maker gave it."""
    return torch.cuda.get_device_name(name) if torch.device(name).type == "cuda" else name
