"""The weights of a network: checked against its shapes, put into it, and their digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

Shape = tuple[int, ...]
Network = TypeVar("Network", bound=nn.Module)


def check_weights(tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, Shape], source: str) -> None:
    """Raise ValueError, naming `source` and the first tensor that is wrong, unless these are the weights of a network.

    That is: the tensors have the names and shapes of `shapes`, and hold finite floating-point numbers.
    """
    missing = [name for name in shapes if name not in tensors]
    unexpected = [name for name in tensors if name not in shapes]
    wrong = [name for name in shapes if name in tensors and tuple(tensors[name].shape) != shapes[name]]
    for names, what in ((missing, "lacks"), (unexpected, "has the unexpected"), (wrong, "does not fit its config in")):
        if names:
            sizes = "" if names is not wrong else f": {tuple(tensors[names[0]].shape)}, not {shapes[names[0]]}"
            found = f"; {named_instead(tensors, names[0])}" if names is missing else ""
            raise ValueError(f"{source} {what} tensor {names[0]}{sizes}{_more(names)}{found}")
    if others := [name for name, tensor in tensors.items() if not tensor.is_floating_point()]:
        dtype = tensors[others[0]].dtype
        raise ValueError(
            f"{source} has {dtype} in tensor {others[0]}{_more(others)}; floating-point weights are needed"
        )
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{source} has NaN or infinity in tensor {broken[0]}{_more(broken)}; get the file again")


def named_instead(tensors: Mapping[str, torch.Tensor], wanted: str) -> str:
    """Describe the names of tensors among which one is missing: its name with a prefix, or else the first names."""
    for name in tensors:
        prefix = name.removesuffix(wanted)
        if name.endswith(f".{wanted}") and 2 * sum(other.startswith(prefix) for other in tensors) > len(tensors):
            return f"it has {name}: remove {prefix!r} from the names and save it again"
    names = ", ".join(list(tensors)[:3]) or "none"
    return f"its tensors are {names}{f' and {len(tensors) - 3} more' if len(tensors) > 3 else ''}"


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def shapes_of(network: nn.Module) -> dict[str, Shape]:
    """Return the shape of every tensor of a network's state dict."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def load_frozen(network: Network, tensors: Mapping[str, torch.Tensor]) -> Network:
    """Put float32 copies of tensors into a network, which may be on the meta device; freeze it, in evaluation mode.

    They are copies because a tensor of a checkpoint can be a map of a file that is later moved or replaced.
    """
    network.load_state_dict({n: t.to(torch.float32, copy=True) for n, t in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)


def weights_digest(tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> str:
    """Return the hex SHA-256 over names, shapes and float32 values of tensors, sorted by name, and over settings.

    Settings are the numbers outside the tensors that change features; they must be JSON. Paths, file formats and the
    order in a file do not enter.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        values = tensors[name].to("cpu", torch.float32).contiguous()
        digest.update(f"\n{name} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().astype("<f4", copy=False).data if values.numel() else b"")
    return digest.hexdigest()
