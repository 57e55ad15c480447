"""Free memory of a device, and how much of it cached features may fill."""

from __future__ import annotations

import torch

from pathseg.store.runtime.memory import free_machine_memory

CPU = torch.device("cpu")
KEEP_SHARE = 0.5  # of the memory that is free at the start


def keep_limits(device: torch.device, memory_bytes: int | None) -> dict[torch.device, int]:
    """Return the bytes of features that may be kept in the memory of each device, the first to be filled first.

    Half of what is free on each, or `memory_bytes` in all. A GPU's memory is never filled by more than half: the heads
    need the rest. Batches are not counted: those that are read ahead, as stored, and of layers that are stored scaled
    one more in float32, the one in use.
    """
    machine = int(free_memory(CPU) * KEEP_SHARE) if memory_bytes is None else memory_bytes
    if device.type != "cuda":  # other accelerators share the machine's memory
        return {device: machine}
    gpu = int(free_memory(device) * KEEP_SHARE)
    if memory_bytes is None:
        return {device: gpu, CPU: machine}
    return {device: min(gpu, machine), CPU: max(0, machine - gpu)}


def free_memory(device: torch.device) -> int:
    """Return the bytes of the device's memory that are free, of a GPU with those that PyTorch holds unused."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return free_machine_memory()
