import argparse
import builtins
import collections
import io
import os
import pickle
import runpy
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pathseg.extract.models.checkpoint import LEGACY_MAGIC, read_state_dict

FILES = runpy.run_path(Path(__file__).parents[2] / "golden/files.py")
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
PROTO = pickle.PROTO + b"\x02"


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Attributes(dict):
    """A dict of another class with state, as Lightning's hyper-parameters are."""


def read(path):
    return read_state_dict(path, "state_dict")


def save(content, path, *, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def zip_with(pickled, path, compression=zipfile.ZIP_STORED, **records):
    """A torch.save file with this pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in ({"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"} | records).items():
            archive.writestr(f"a/{name}", content)
    return path


def refusal(path):
    """The one line that names the file."""
    with pytest.raises(ValueError) as error:
        read(path)
    message = str(error.value)
    assert path.name in message
    assert "\n" not in message
    return message


@FORMATS
def test_tensors_come_back_as_saved(tmp_path, zipped):
    base = torch.arange(24.0).reshape(4, 6)
    saved = {"a": base, "view": base[1:, ::2], "half": base.half(), "count": torch.tensor(7), "empty": torch.zeros(0)}
    found = read(save(saved | {"n": [1, "x", (2.5, None)]}, tmp_path / "a.ckpt", zipped=zipped))
    assert found.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float64, torch.uint8, torch.bool, torch.complex64, torch.uint16]
)
def test_every_kind_of_number_is_read(tmp_path, dtype):
    saved = torch.tensor([1, 0, 1]).to(dtype)
    assert torch.equal(read(save({"w": saved}, tmp_path / "a.ckpt"))["w"], saved)


def test_tensors_of_a_zip_file_are_memory_mapped(tmp_path):
    read_in_full = read(save({"w": torch.ones(1 << 22)}, tmp_path / "a.ckpt"))["w"]
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux lists what is mapped")
    assert str(tmp_path / "a.ckpt") in maps.read_text()
    assert read_in_full.sum() == 1 << 22


def test_the_state_dict_below_the_key_is_read(tmp_path):
    saved = {"state_dict": {"w": torch.ones(2)}, "optimizer": {"m": torch.zeros(2)}, "epoch": 3}
    assert read(save(saved, tmp_path / "a.ckpt")).keys() == {"w"}
    assert read_state_dict(tmp_path / "a.ckpt", "optimizer").keys() == {"m"}


def test_parameters_come_back_as_tensors_without_gradient(tmp_path):
    assert not read(save({"w": torch.nn.Parameter(torch.ones(3))}, tmp_path / "a.ckpt"))["w"].requires_grad


def test_a_state_dict_with_metadata_is_read(tmp_path):
    module = torch.nn.Linear(3, 2)
    assert torch.equal(read(save(module.state_dict(), tmp_path / "a.ckpt"))["weight"], module.weight)


def test_safetensors_are_read(tmp_path):
    save_file({"w": torch.ones(3)}, tmp_path / "a.safetensors")
    assert torch.equal(read(tmp_path / "a.safetensors")["w"], torch.ones(3))


@FORMATS
def test_classes_that_are_not_installed_are_read_past(tmp_path, zipped):
    with FILES["absent_class"]("pytorch_lightning.callbacks", "ModelCheckpoint") as callback:
        instance = callback()
        instance.best = Path("best.ckpt")
        saved = {"w": torch.ones(2), "callbacks": {callback: {"monitor": "loss"}, instance: 1}, "instance": instance}
        save(saved, tmp_path / "a.ckpt", zipped=zipped)
    assert torch.equal(read(tmp_path / "a.ckpt")["w"], torch.ones(2))


@FORMATS
def test_values_that_no_model_needs_are_read_past(tmp_path, zipped):
    attributes = Attributes(lr=0.1)
    attributes.extra = 1
    saved = {
        "args": argparse.Namespace(patch_size=16, out=Path("runs")),
        "score": np.float64(0.5),
        "array": np.arange(3),
        "objects": np.array([{}], dtype=object),
        "size": torch.Size([2, 3]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "seen": {1, 2},
        "lists": collections.defaultdict(list, a=[1]),
        "counts": collections.Counter("aab"),
        "queue": collections.deque([1, 2], maxlen=5),
        "attributes": attributes,
        "activation": torch.nn.functional.relu,
    }
    assert read(save(saved | {"w": torch.ones(2)}, tmp_path / "a.ckpt", zipped=zipped)).keys() == {"w"}


def test_no_class_stays_allowed_after_reading(tmp_path):
    before = torch.serialization.get_safe_globals()
    read(save({"w": torch.ones(2), "args": argparse.Namespace(a=1)}, tmp_path / "a.ckpt"))
    assert set(torch.serialization.get_safe_globals()) == set(before)


def touch(path):
    return f"touch {path}"


ATTACKS = {
    "os.system": lambda mark: Calls(os.system, touch(mark)),
    "subprocess.Popen": lambda mark: Calls(subprocess.Popen, ["touch", str(mark)]),
    "builtins.exec": lambda mark: Calls(builtins.exec, f"open({str(mark)!r}, 'w')"),
    "builtins.eval": lambda mark: Calls(builtins.eval, f"open({str(mark)!r}, 'w')"),
    "builtins.getattr": lambda mark: Calls(getattr, Path, "touch"),
    "builtins.__import__": lambda mark: Calls(__import__, "os"),
    "builtins.bytearray": lambda mark: Calls(bytearray, 1 << 40),
    "pathlib.Path.touch": lambda mark: Calls(Path.touch, mark),
    "torch.load": lambda mark: Calls(torch.load, str(mark)),
    "torch.storage._load_from_bytes": lambda mark: Calls(torch.storage._load_from_bytes, b""),
    "nested": lambda mark: {"state_dict": {"w": [(torch.ones(1), Calls(os.system, touch(mark)))]}},
}


@FORMATS
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pickle_that_calls_is_refused_by_name_and_nothing_happens(tmp_path, attack, zipped):
    path = save({"evil": ATTACKS[attack](tmp_path / "mark")}, tmp_path / "evil.ckpt", zipped=zipped)
    message = refusal(path)
    assert "asks to run" in message and "state_dict" in message
    called = {"os.system": "system", "nested": "system", "pathlib.Path.touch": "getattr"}.get(attack, attack)
    assert called.rpartition(".")[2] in message
    assert not (tmp_path / "mark").exists()


PROGRAMS = {  # pickles written by hand, for what Python's own pickler does not write
    "protocol 0 instance": "(S'COMMAND'\nios\nsystem\n.",
    "protocol 1 object": "(cos\nsystem\nS'COMMAND'\no.",
    "dotted name": "\x80\x04\x8c\x02os\x8c\x0bpath.exists\x93\x8c\x01/\x85R.",
    "call of the result of a call": "ccollections\nOrderedDict\n)RU\x04true\x85R.",
    "call of an instance": "csubprocess\nPopen\n)\x81U\x04true\x85R.",
    "new instance of a function": "csubprocess\ncall\nU\x04true\x85\x81.",
    "state of a class": "csubprocess\nPopen\n}X\x04\x00\x00\x00nameK\x01sb.",
    "state of a function": "ctorch._utils\n_rebuild_tensor_v2\n}U\x0c__defaults__Nsb.",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_hand_written_program_does_nothing(tmp_path, program):
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    code = PROGRAMS[program].replace("COMMAND", touch(tmp_path / "mark")).encode("latin1")
    refusal(zip_with(code, tmp_path / "evil.ckpt"))
    assert not (tmp_path / "mark").exists()
    assert torch._utils._rebuild_tensor_v2.__defaults__ == defaults


def test_state_is_never_given_to_the_class_it_names(tmp_path):
    class_with_setstate = b"cfractions\nFraction\n)\x81}X\x0a\x00\x00\x00_numeratorK\x01sb."
    assert "Fraction" in refusal(zip_with(class_with_setstate, tmp_path / "a.ckpt"))


def test_a_torchscript_program_is_refused(tmp_path):
    path = zip_with(PROTO + b"}.", tmp_path / "a.ckpt", **{"constants.pkl": PROTO + b")."})
    assert "asks to run a TorchScript program" in refusal(path)


@FORMATS
def test_a_truncated_file_is_refused(tmp_path, zipped):
    path = save({"w": torch.ones(1000)}, tmp_path / "short.ckpt", zipped=zipped)
    path.write_bytes(path.read_bytes()[:-500])
    assert "truncated or damaged" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n....", b"state_dict: no", pickle.dumps({"w": 1})])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "other.ckpt").write_bytes(content)
    assert "is no checkpoint" in refusal(tmp_path / "other.ckpt")


def test_a_truncated_safetensors_file_is_refused(tmp_path):
    save_file({"w": torch.ones(100)}, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-10])
    assert "is truncated" in refusal(tmp_path / "a.safetensors")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's file that cannot be read")
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_that_the_disk_cannot_read_is_named(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="weights") as caught:
        read_state_dict(path, "state_dict")
    assert caught.value.filename == str(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint file .*gone\.ckpt"):
        read(tmp_path / "gone.ckpt")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"state_dict": None}, "got NoneType"),
        ({"state_dict": [1]}, "got list"),
        (torch.zeros(3), "got Tensor"),
        ({0: torch.zeros(3)}, "the key 0"),
        ({"state_dict": {(1, 2): torch.zeros(3)}}, "the key tuple"),
    ],
)
def test_a_file_without_named_tensors_is_refused(tmp_path, content, found):
    message = refusal(save(content, tmp_path / "a.ckpt"))
    assert found in message and "a state dict is needed" in message


# What a file can hold by mistake or by malice: every case is small and must be refused quickly and in little memory.


def test_a_compressed_zip_file_is_refused_with_the_way_out(tmp_path):
    save({"w": torch.randn(64, 64)}, tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt") as stored, zipfile.ZipFile(tmp_path / "b.ckpt", "w", 8) as deflated:
        for record in stored.infolist():
            deflated.writestr(record.filename, stored.read(record))
    message = refusal(tmp_path / "b.ckpt")
    assert "compress" in message and "torch.save" in message


def tensor_pickle(size, stride, length, *, legacy=False):
    """The pickle of {"w": a float32 tensor of this size and stride over a storage of this length}."""

    def number(value):
        return pickle.dumps(value, 2)[2:-1]

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value

    storage = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + number(length)
    axes = b"".join(b"(" + b"".join(map(number, values)) + b"t" for values in (size, stride))
    view = b"N" if legacy else b""
    return (
        PROTO + b"}" + text(b"w") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tQ" + number(0) + axes
        + b"\x89ccollections\nOrderedDict\n)RtRs."
    )  # fmt: skip


def test_a_storage_shorter_than_its_tensor_is_refused(tmp_path):
    records = {"data/0": bytes(8), "data/1": bytes(4096)}
    path = zip_with(tensor_pickle((4, 4), (4, 1), 16), tmp_path / "short.ckpt", **records)
    assert "8 of 64 bytes" in refusal(path)


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path):
    path = zip_with(tensor_pickle((1 << 20,), (1,), 2), tmp_path / "beyond.ckpt", **{"data/0": bytes(8)})
    refusal(path)


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_bit_in_the_bytes_of_a_tensor_is_noticed(tmp_path, where):
    path = save({"a": torch.ones(1000), "b": torch.full((1000,), 2.0)}, tmp_path / "a.ckpt")
    content = bytearray(path.read_bytes())
    ones = content.index(np.float32(1).tobytes() * 1000)
    content[ones + {"first": 0, "middle": 2002, "last": 3999}[where]] ^= 0x08
    path.write_bytes(content)
    assert "does not fit its CRC-32; get it again" in refusal(path)


def test_records_that_declare_more_bytes_than_the_file_are_not_read(tmp_path):
    path = save({"a": torch.ones(4)}, tmp_path / "a.ckpt")
    content = path.read_bytes()
    at = content.rindex(b"PK\x01\x02")  # of the last record in the directory: sizes at 20 and 24
    huge = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(content[: at + 20] + huge + content[at + 28 :])
    assert "bytes, but the file only" in refusal(path)


def test_a_legacy_file_without_its_storages_is_refused(tmp_path):
    system = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)
    content = tensor_pickle((256, 256), (256, 1), 65536, legacy=True)
    path = tmp_path / "nokeys.ckpt"
    path.write_bytes(LEGACY_MAGIC + pickle.dumps(1001, 2) + system + content + pickle.dumps([], 2))
    assert "0 of 262144 bytes" in refusal(path)


def test_an_expanded_tensor_is_refused(tmp_path):
    path = save({"w": torch.zeros(1).expand(1 << 40)}, tmp_path / "big.ckpt")
    assert "4 of them" in refusal(path)


BOMBS = {
    "a key of shared tuples": b"})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
    "a key of nested tuples": b"})" + b"\x85" * 300_000 + b"K\x01s.",
    "a set of shared tuples": b"}c__builtin__\nset\n])" + b"q\x00h\x00\x86" * 60 + b"a\x85R.",
    "a duplicated tuple": b"})" + b"2\x86" * 60 + b"K\x01s.",
    "a large memo index": b"}r" + struct.pack("<I", 2**32 - 1) + b"X" + struct.pack("<I", 2**32 - 1) + b".",
    "an uninitialised tensor": b"}ctorch\nFloatTensor\n" + pickle.dumps(1 << 40, 2)[2:-1] + b"\x85R.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_pickle_that_would_take_forever_is_refused(tmp_path, bomb):
    refusal(zip_with(PROTO + BOMBS[bomb], tmp_path / "bomb.ckpt"))


def test_lists_may_be_nested_deeply(tmp_path):
    path = zip_with(PROTO + b"}X\x01\x00\x00\x00n" + b"]" * 100_000 + b"a" * 99_999 + b"s.", tmp_path / "a.ckpt")
    assert read(path) == {}


def test_a_tar_file_that_begins_as_a_legacy_checkpoint_is_refused(tmp_path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("x"))
        fifo = tarfile.TarInfo("storages")
        fifo.type = tarfile.FIFOTYPE
        archive.addfile(fifo)
    block = bytearray(content.getvalue())
    block[:100] = LEGACY_MAGIC.ljust(100, b"\0")
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * ord(" ") + sum(block[156:512]))
    (tmp_path / "tar.ckpt").write_bytes(block)
    refusal(tmp_path / "tar.ckpt")


def test_two_records_of_one_name_are_refused(tmp_path):
    path = zip_with(PROTO + b"}.", tmp_path / "a.ckpt", **{"DATA.PKL": PROTO + b"cos\nsystem\nX\x00\x00\x00\x00\x85R."})
    assert "two records of one name" in refusal(path)


def test_another_pickle_protocol_is_refused_with_the_way_out(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.ckpt", pickle_protocol=4)
    message = refusal(tmp_path / "a.ckpt")
    assert "protocol 4" in message and "re-save" in message


def test_a_file_saved_without_checksums_is_told_how_to_be_saved_again(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save({"a": torch.ones(3)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert "set_crc32_options), save it again with them" in refusal(tmp_path / "a.pt")
