"""Tensors out of a checkpoint file, with nothing in the file executed.

A pickle is a small program: reading one the ordinary way runs whatever its author put in. Here every name that a
pickle mentions becomes an inert class of our own, never the thing itself. Naming a class, making an instance of it
or setting its state does nothing, so Lightning callbacks or an `argparse.Namespace` are read past. Calling does
something only for the few names in REBUILT; for VALUES it gives an inert instance; for any other name it is refused.
"""

from __future__ import annotations

import pickle
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

ZIP_START = b"PK\x03\x04"  # torch.save since 1.6
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # before: torch's pickled magic number

PYTHON2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # names in a pickle of protocol 2, torch.save's


def read_checkpoint(path: str | Path) -> Any:
    """Read a `torch.save` file (zip or legacy) or a `.safetensors` file: nested dicts, lists, numbers, CPU tensors.

    Tensors of a zip file are mapped, not read, until they are used. Whatever is neither a tensor nor a plain value
    (callbacks, arguments, numpy numbers) is an inert placeholder.

    Raises FileNotFoundError where there is no such file; ValueError when it is of another kind, is damaged, or asks
    for a call that is not on the list here, in which case nothing of it has been run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with path.open("rb") as file:
        start = file.read(len(LEGACY_START))
    if not start.startswith(ZIP_START) and start != LEGACY_START:
        found = f"starts with {start[:8]!r}" if start else "is empty"
        raise ValueError(f"{path} is no checkpoint: a torch.save or .safetensors file is needed, but it {found}")
    return _read_pickle(path, mmap=start.startswith(ZIP_START))


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as e:
        raise ValueError(f"{path} is truncated or no safetensors file: {_first_line(e)}") from e


def _read_pickle(path: Path, *, mmap: bool) -> Any:
    """torch.load finds the storages; our Unpickler decides about everything that has a name."""
    try:
        if mmap and "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records():
            raise _Refused("a TorchScript program")  # torch.load would hand it to torch.jit.load, which runs code
        return torch.load(path, map_location="cpu", pickle_module=_module(), weights_only=False, mmap=mmap)
    except _Refused as e:
        raise ValueError(
            f"{path} asks to run {e} when read; pathseg takes tensors and runs nothing, so the file "
            "is refused; re-save its state_dict alone if you trust it"
        ) from None
    except Exception as e:  # a damaged pickle can raise anything (Python's documentation of pickle says so)
        raise ValueError(f"{path} is truncated or damaged: {_first_line(e)}") from e


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _Refused(Exception):
    """A pickle asks for a call that is not on the list; the message names it."""


class _InertType(type):
    """The type of every inert class: calling one is the only thing that a pickle can make happen."""

    path: str

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.path in REBUILT:
            return REBUILT[cls.path](*args)
        if cls.path in VALUES:
            return object.__new__(_Inert)
        raise _Refused(cls.path)

    def __setattr__(cls, name: str, value: Any) -> NoReturn:
        raise _Refused(f"an assignment to {cls.path}.{name}")


class _Inert(metaclass=_InertType):
    """Stands for anything that a pickle names: takes every state and every item, keeps none."""

    __slots__ = ()
    path = "object"

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return object.__new__(cls)

    def _ignore(self, *args: Any) -> None: ...

    __setstate__ = __setitem__ = append = extend = add = _ignore


class _Dict(dict):
    """An ordered dict without attributes: torch hangs `_metadata` on state dicts, which is dropped here."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None: ...


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        path = f"{PYTHON2.get(module, module)}.{name}"
        return _InertType(name, (_Inert,), {"__slots__": (), "path": path})


def _module() -> Any:
    """What torch.load expects of a pickle module: a name, an Unpickler, a load function."""
    module = types.ModuleType("inert_pickle")
    vars(module).update(Unpickler=_Unpickler, load=lambda file, **options: _Unpickler(file, **options).load())
    return module


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *unused: Any) -> torch.Tensor:
    """A view of a storage: torch._utils._rebuild_tensor_v2 without gradient, hooks and metadata."""
    empty = torch.empty(0, dtype=storage.dtype)
    return empty.set_(storage._untyped_storage, offset, tuple(size), tuple(stride))


def _parameter(data: torch.Tensor, *unused: Any) -> torch.Tensor:
    return data


def _defaultdict(factory: Any = None, *items: Any) -> _Dict:
    return _Dict(*items)


# Callables that checkpoints need, each as a harmless function of our own.
REBUILT: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _Dict,
    "collections.defaultdict": _defaultdict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}

# Callables that make plain values which no model needs; not called, the value becomes a placeholder.
VALUES = frozenset(
    {
        "_codecs.encode",
        "builtins.frozenset",
        "builtins.set",
        "builtins.slice",
        "collections.Counter",
        "collections.deque",
        "copyreg._reconstructor",
        "datetime.datetime",
        "datetime.timedelta",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy.dtype",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
        "torch.Size",
        "torch.device",
    }
)
