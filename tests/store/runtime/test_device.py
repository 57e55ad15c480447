import platform
import re
import threading
from pathlib import Path

import pytest
import torch

from pathseg.store.runtime.device import device, ieee_float32, precision_warnings, upload, worker_device


def settings():
    """What PyTorch may compute float32 products and convolutions in, and how cuDNN chooses its algorithms."""
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    backends = torch.backends.cuda.matmul, cudnn.conv, mkldnn.matmul, mkldnn.conv
    return [backend.fp32_precision for backend in backends] + [cudnn.benchmark, cudnn.deterministic]


@pytest.fixture
def fast_float32():
    """A process that has allowed TF32, bfloat16 on a CPU, and cuDNN to choose by speed."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = True
    yield settings()
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.benchmark = before[1]


def test_float32_is_computed_as_float32_and_the_settings_are_put_back(fast_float32):
    assert "tf32" in fast_float32 and "bf16" in fast_float32
    with pytest.raises(KeyError), ieee_float32():
        assert settings() == ["ieee"] * 4 + [False, True]
        raise KeyError
    assert settings() == fast_float32


def test_the_settings_are_those_of_a_process_that_sets_nothing_too():
    before = settings()
    with ieee_float32():
        assert settings() == ["ieee"] * 4 + [False, True]
    assert settings() == before


def test_settings_of_cudnn_can_still_be_read_and_changed_for_a_while():
    before = torch.backends.cudnn.allow_tf32
    with ieee_float32():
        assert torch.backends.cudnn.allow_tf32 is False
        with torch.backends.cudnn.flags(enabled=True):  # reads it, and raises where PyTorch's two ways disagree
            pass
        assert torch.backends.cudnn.conv.fp32_precision != "tf32"
    assert torch.backends.cudnn.allow_tf32 is before


def test_a_process_that_has_set_convolutions_alone_gets_its_setting_back():
    conv, before = torch.backends.cudnn.conv, torch.backends.cudnn.conv.fp32_precision
    conv.fp32_precision = "ieee"
    try:
        with ieee_float32():
            assert settings() == ["ieee"] * 4 + [False, True]
        assert (conv.fp32_precision, torch.backends.cudnn.rnn.fp32_precision) == ("ieee", "tf32")
    finally:
        conv.fp32_precision = before


def test_a_device_without_values_is_not_available():
    with pytest.raises(ValueError, match=r"device meta is not available .*--device auto"):
        device("meta")


def test_local_workers_share_the_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [worker_device("auto", number) for number in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert worker_device("auto", "tcp://10.0.0.1:4000") == "cuda:0"
    assert worker_device("cpu", 1) == "cpu"


def test_a_worker_without_a_gpu_takes_auto(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert worker_device("auto", 1) == "auto"


def test_values_are_uploaded():
    values = torch.arange(6).view(2, 3).T
    assert torch.equal(upload(values, torch.device("cpu")), values)


def test_arithmetic_that_a_cpu_lacks_is_warned_of():
    flags = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not flags.exists():
        pytest.skip("needs /proc/cpuinfo of an x86 processor")
    known = set(re.findall(r"^flags\s*:(.*)$", flags.read_text(), re.M)[0].split())
    # oneDNN computes in bfloat16 from AVX-512 or AVX-NE-CONVERT on
    bfloat16 = {"avx512bw", "avx512vl", "avx512dq"} <= known or "avx_ne_convert" in known
    assert len(precision_warnings("cpu", "bfloat16")) == (not bfloat16)
    assert precision_warnings("cpu", "float32") == precision_warnings("cuda", "bfloat16") == ()


def test_float32_stays_float32_while_a_thread_that_entered_later_is_inside(fast_float32):
    """Two runs in one process: the first to enter leaves first."""
    entered, left, seen = threading.Event(), threading.Event(), []

    def second():
        with ieee_float32():
            entered.set()
            left.wait(10)
            seen.append(settings())

    with ieee_float32():
        inside = settings()
        thread = threading.Thread(target=second)
        thread.start()
        assert entered.wait(10)
    left.set()
    thread.join()
    assert seen == [inside]
    assert inside != fast_float32 == settings()


def test_settings_are_put_back_where_one_of_them_cannot_be_set(fast_float32, monkeypatch):
    class Fixed:
        fp32_precision = property(lambda self: "tf32")  # without a setter

    monkeypatch.setattr(torch.backends.mkldnn, "conv", Fixed())
    before = torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.fp32_precision
    with pytest.raises(AttributeError), ieee_float32():
        pass
    assert (torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.fp32_precision) == before
