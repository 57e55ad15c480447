"""Read the tensors of a checkpoint file without executing anything from it.

A pickle is a program: it can name any importable function and call it. `torch.load(weights_only=True)` runs only
functions of its own list, but refuses every checkpoint that names another class, such as a Lightning callback. So the
pickle is first followed opcode by opcode, without making an object: calls other than those in CALLS, storages that the
file does not hold and tuples that would take forever to hash are refused. Then torch reads it, with an inert class in
the place of every class that it does not know. The bytes of a zip file are compared with their CRC-32, which torch does
not do; the older format has none.
"""

from __future__ import annotations

import _compat_pickle
import io
import pickletools
import threading
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pathseg.store.runtime.regular_files import errors_naming

ZIP_MAGIC = b"PK\x03\x04"  # torch.save since 1.6
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
LEGACY_PICKLES = 5  # magic number, protocol, system, content, storage keys; then the bytes of the storages

# The only functions and classes that a checkpoint may call. torch runs its own; the others become placeholders.
CALLS = frozenset(
    {
        "_codecs.encode",
        "builtins.bytes",
        "builtins.complex",
        "builtins.frozenset",
        "builtins.set",
        "builtins.slice",
        "collections.Counter",
        "collections.OrderedDict",
        "collections.defaultdict",
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
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch.device",
    }
)

ITEM_BYTES = {
    "torch.BoolStorage": 1,
    "torch.ByteStorage": 1,
    "torch.CharStorage": 1,
    "torch.ShortStorage": 2,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.IntStorage": 4,
    "torch.FloatStorage": 4,
    "torch.LongStorage": 8,
    "torch.DoubleStorage": 8,
    "torch.ComplexFloatStorage": 8,
    "torch.ComplexDoubleStorage": 16,
    "torch.storage.UntypedStorage": 1,
}

WRAPPERS = ("state_dict", "model_state_dict", "model", "student")  # entries that hold a state dict, beside `key`

LARGEST_TUPLE = 1000  # values, those of inner tuples included: hashing a dict key visits each

_allowlist = threading.Lock()  # torch keeps one list of allowed classes per process

WAY_OUT = "re-save its state_dict alone, with torch.save or as .safetensors, if you trust it"


def read_state_dict(path: str | Path, key: str) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint by name, on the CPU and without gradient.

    The file is of `torch.save` (zip or legacy) or `.safetensors`. Where its content is a dict with an entry `key`, the
    state dict is that entry, else the only one of WRAPPERS that it has, otherwise the content itself. Names are those
    without the prefixes of torch.compile (`_orig_mod.`) and DataParallel (`module.`). Tensors of a zip file are
    memory-mapped.

    Raises FileNotFoundError; OSError, naming the file, where it cannot be read; ValueError, naming it, where it is of
    another kind or damaged, holds no state dict or several, does not hold all bytes of its tensors, or calls a function
    that is not in CALLS.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {path}")
    with errors_naming(path):
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch_save(path)
    content = _unwrapped(content, key, path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold tensors by name, got {type(content).__name__}; a state dict is needed")
    for name in content:
        if not isinstance(name, str):
            found = name if isinstance(name, int) else type(name).__name__
            raise ValueError(f"{path} must name its tensors by strings, got the key {found}; a state dict is needed")
    tensors = {name: tensor.detach() for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}
    _check_bytes(tensors, path)
    return _without_prefixes(tensors, path)


def _unwrapped(content: Any, key: str, path: Path) -> Any:
    """Return the state dict of a checkpoint: its entry `key`, else its only entry of WRAPPERS, else all of it."""
    while isinstance(content, Mapping):
        if key in content:
            return content[key]
        found = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        if len(found) > 1:
            raise ValueError(f"{path} holds several state dicts: {', '.join(found)}; re-save the one to use alone")
        if not found:
            return content
        content = content[found[0]]
    return content


def _without_prefixes(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Return tensors under the names that they have without torch.compile and DataParallel."""
    named: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        plain = name.replace("_orig_mod.", "")
        while plain.startswith("module."):
            plain = plain.removeprefix("module.")
        if plain in named:
            raise ValueError(
                f"{path} holds tensor {plain} twice, with and without a prefix; re-save one of the two alone"
            )
        named[plain] = tensor
    return named


def _check_bytes(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse tensors that are larger than the file: expanded views, and storages that torch enlarged."""
    storages = {}
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise ValueError(f"{path}: tensor {name} is {tensor.layout} on {tensor.device}; {WAY_OUT}")
        storage, needed = tensor.untyped_storage(), tensor.numel() * tensor.element_size()
        storages[storage.data_ptr()] = storage.nbytes()
        if needed > storage.nbytes():
            raise ValueError(
                f"{path}: tensor {name} of shape {tuple(tensor.shape)} has {needed} bytes, but the file holds "
                f"{storage.nbytes()} of them (an expanded view); save a contiguous copy"
            )
    if (needed := sum(storages.values())) > (held := path.stat().st_size):
        raise ValueError(f"{path}: the tensors have {needed} bytes, but the file only {held}; get the file again")


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as e:
        raise ValueError(f"{path} is truncated or no safetensors file: {_first_line(e)}") from e


def _read_torch_save(path: Path) -> Any:
    with path.open("rb") as file:
        magic = file.read(len(LEGACY_MAGIC))
    zipped = magic.startswith(ZIP_MAGIC)
    if not zipped and magic != LEGACY_MAGIC:
        found = f"starts with {magic[:8]!r}" if magic else "is empty"
        raise ValueError(f"{path} is no checkpoint: a torch.save or .safetensors file is needed, but it {found}")
    try:
        pickle = _check_zip(path) if zipped else _check_legacy(path)
        stand_ins: list[Any] = [(_stand_in(name, name in pickle.dicts), name) for name in pickle.names]
        with _allowlist, torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except _Refused as e:
        raise ValueError(f"{path} {e}") from None
    except Exception as e:  # a damaged pickle can raise anything (Python's documentation of pickle says so)
        raise ValueError(f"{path} is truncated or damaged: {_first_line(e)}; get it again, or {WAY_OUT}") from e


def _first_line(error: Exception) -> str:
    """Return the line that says what is wrong: the last of torch's explanations, the only one of most errors."""
    text = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


class _Refused(Exception):
    """The file is not read; the message continues its name."""


@dataclass
class _Pickle:
    """What a pickle uses: names of classes and functions, those called, those whose instances get dict items, and
    bytes of each storage by its key."""

    names: set[str] = field(default_factory=set)
    calls: set[str] = field(default_factory=set)
    dicts: set[str] = field(default_factory=set)
    storages: dict[Any, int] = field(default_factory=dict)


def _check_zip(path: Path) -> _Pickle:
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        root = records[0].filename.partition("/")[0]
        sizes = {record.filename: record.file_size for record in records}
        if len({name.lower() for name in sizes}) < len(records):
            raise _Refused(f"holds two records of one name; get it again, or {WAY_OUT}")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise _Refused(
                "is a compressed zip file, whose tensors cannot be memory-mapped; unzip it and zip it again without "
                "compression (zip -0), or load it with torch.load(weights_only=True) and torch.save it again"
            )
        if f"{root}/constants.pkl" in sizes:
            raise _Refused(f"asks to run a TorchScript program when read; {WAY_OUT}")
        _check_crcs(path)  # before a record is read, which compares its CRC-32 too, and says less
        pickle = _follow(io.BytesIO(archive.read(f"{root}/data.pkl")))
    _check_calls(pickle)
    for key, needed in pickle.storages.items():
        if (held := sizes.get(f"{root}/data/{key}", 0)) < needed:
            raise _Refused(f"is damaged: storage {key} has {held} of {needed} bytes; get it again")
    return pickle


def _check_crcs(path: Path) -> None:
    """Compare every record of a zip file with its CRC-32."""
    with zipfile.ZipFile(path) as archive:
        if (total := sum(record.file_size for record in archive.infolist())) > (held := path.stat().st_size):
            raise _Refused(f"is damaged: its records have {total} bytes, but the file only {held}; get it again")
        if (damaged := archive.testzip()) is not None:
            raise _Refused(
                f"is damaged: {damaged!r:.200} does not fit its CRC-32; get it again, or, if it was saved without "
                "checksums (torch.serialization.set_crc32_options), save it again with them"
            )


def _check_legacy(path: Path) -> _Pickle:
    with path.open("rb") as file:
        *_, pickle, _ = [_follow(file) for _ in range(LEGACY_PICKLES)]
        held = path.stat().st_size - file.tell()
    _check_calls(pickle)
    if (needed := sum(pickle.storages.values())) > held:
        raise _Refused(f"is truncated or damaged: its storages have {held} of {needed} bytes; get it again")
    return pickle


def _check_calls(pickle: _Pickle) -> None:
    forbidden = {name for name in pickle.names if name.partition(".")[0] in ("nt", "os", "posix", "sys")}
    if refused := sorted((pickle.calls - CALLS) | forbidden):  # torch does not read past the names of these modules
        raise _Refused(
            f"asks to run {refused[0]} when read; pathseg takes tensors and runs nothing, so the file is refused; "
            + WAY_OUT
        )


@dataclass(frozen=True, slots=True)
class _Value:
    """What is known of a value on a pickle's stack: a literal, the items of a tuple, or the name of a class or
    function, which an instance or result of it keeps; and how many values it is made of."""

    literal: str | int | None = None
    items: tuple[_Value, ...] = ()
    name: str = ""
    size: int = 1


POPS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "BINPERSID": 1, "REDUCE": 2, "NEWOBJ": 2, "BUILD": 2, "APPEND": 2,
        "SETITEM": 3}  # fmt: skip
POPS_TO_MARK = {"TUPLE": 0, "APPENDS": 1, "SETITEMS": 1}  # and so many values below the mark


def _follow(file: IO[bytes]) -> _Pickle:
    """Follow one pickle to its end, in time and memory linear in its length."""
    found = _Pickle()
    stack: list[_Value] = []
    marks: list[int] = []
    memo: dict[Any, _Value] = {}
    for opcode, argument, _ in pickletools.genops(file):
        code = opcode.name
        if code == "MARK":
            marks.append(len(stack))
            continue
        if code in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
            continue
        if code == "PROTO" and argument != 2:
            raise _Refused(f"is a pickle of protocol {argument}, but torch reads protocol 2 alone; {WAY_OUT}")
        if code in ("PROTO", "STOP"):
            continue
        start = len(stack) - POPS.get(code, 0)
        if code in POPS_TO_MARK:
            start = marks.pop() - POPS_TO_MARK[code]
        popped = stack[start:]
        del stack[start:]
        if code in ("BINGET", "LONG_BINGET"):
            value = memo[argument]
        elif code == "GLOBAL":
            value = _Value(name=_python3_name(*str(argument).split(" ", 1)))
            found.names.add(value.name)
        elif code.startswith("TUPLE"):
            value = _Value(items=tuple(popped), size=1 + sum(item.size for item in popped))
            if value.size > LARGEST_TUPLE:
                raise _Refused(f"holds a tuple of more than {LARGEST_TUPLE} values; {WAY_OUT}")
        elif code == "BINPERSID":
            _, kind, key, _, length, *_ = popped[0].items
            if kind.name not in ITEM_BYTES:
                raise _Refused(f"holds a storage of the kind {kind.name or 'unknown'}; {WAY_OUT}")
            bytes_ = ITEM_BYTES[kind.name] * int(length.literal or 0)
            found.storages[key.literal] = max(bytes_, found.storages.get(key.literal, 0))
            value = _Value()
        elif popped:  # REDUCE, NEWOBJ, BUILD, APPEND(S), SETITEM(S): the first operand, or made by it
            value = popped[0]
            if code == "REDUCE":
                found.calls.add(value.name or "what another call returned")
            if code in ("SETITEM", "SETITEMS") and value.name:
                found.dicts.add(value.name)
        else:
            value = _Value(literal=argument if isinstance(argument, str | int) else None)
        stack.append(value)
    return found


def _python3_name(module: str, name: str) -> str:
    """Return the name that Python 3 has for what a pickle of protocol 2 calls by its name in Python 2."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        module, name = _compat_pickle.NAME_MAPPING[module, name]
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


class _StandIn(list):
    """An instance of a class that torch does not know: takes any arguments, items and state, and keeps no state."""

    def __new__(cls, *args: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None: ...

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


class _DictStandIn(_StandIn):
    """The same of a subclass of dict: torch gives items to three classes only, of which a Counter takes state too."""

    def __new__(cls, *args: Any) -> Any:
        return Counter()


def _stand_in(name: str, is_dict: bool) -> type:
    return type(name.rpartition(".")[2], (_DictStandIn if is_dict else _StandIn,), {})
