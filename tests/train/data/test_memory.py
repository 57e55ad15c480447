import pytest
import torch

from pathseg.train.data import memory
from pathseg.train.data.memory import free_memory, keep_limits

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("allowed", "gpu", "machine"), [(None, 50, 500), (30, 30, 0), (80, 50, 30), (0, 0, 0)], ids=str
)
def test_a_gpu_is_filled_first_and_never_by_more_than_half(monkeypatch, allowed, gpu, machine):
    monkeypatch.setattr(memory, "free_memory", lambda device: 100 if device.type == "cuda" else 1000)
    assert keep_limits(torch.device("cuda"), allowed) == {torch.device("cuda"): gpu, CPU: machine}


def test_a_cpu_may_be_given_more_than_half(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    assert (keep_limits(CPU, None), keep_limits(CPU, 900)) == ({CPU: 500}, {CPU: 900})


def test_the_memory_of_a_cpu_is_what_its_container_allows(monkeypatch):
    monkeypatch.setattr("pathseg.store.runtime.memory.cgroup_limits", lambda: [5])
    assert free_memory(CPU) == 5
