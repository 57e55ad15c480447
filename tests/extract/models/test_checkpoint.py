import argparse
import builtins
import collections
import os
import pickle
import runpy
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pathseg.extract.models.checkpoint import REBUILT, VALUES, read_checkpoint

FILES = runpy.run_path(Path(__file__).parents[2] / "golden/files.py")


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def zip_with(data, path):
    """A torch.save file whose pickle is these bytes."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, data if name.endswith("/data.pkl") else content)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_come_back_as_saved(tmp_path, zipped):
    base = torch.arange(24.0).reshape(4, 6)
    saved = {
        "a": base,
        "view": base[1:, ::2],
        "half": base.half(),
        "count": torch.tensor(7),
        "n": [1, "x", (2.5, None)],
    }
    torch.save(saved, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(tmp_path / "a.ckpt")
    assert read["n"] == saved["n"]
    for name in ("a", "view", "half", "count"):
        assert torch.equal(read[name], saved[name])
        assert read[name].dtype == saved[name].dtype


def test_parameters_come_back_as_tensors_without_gradient(tmp_path):
    torch.save({"w": torch.nn.Parameter(torch.ones(3))}, tmp_path / "a.ckpt")
    assert not read_checkpoint(tmp_path / "a.ckpt")["w"].requires_grad


def test_a_state_dict_with_metadata_is_read(tmp_path):
    module = torch.nn.Linear(3, 2)
    torch.save(module.state_dict(), tmp_path / "a.ckpt")
    read = read_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(read["weight"], module.weight)
    assert not hasattr(read, "_metadata")


def test_safetensors_are_read(tmp_path):
    save_file({"w": torch.ones(3)}, tmp_path / "a.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "a.safetensors")["w"], torch.ones(3))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_classes_that_are_not_installed_are_read_past(tmp_path, zipped):
    with FILES["absent_class"]("pytorch_lightning.callbacks", "ModelCheckpoint") as callback:
        saved = {"w": torch.ones(2), "by_class": {callback: {"monitor": "loss"}}, "instance": callback()}
        torch.save(saved, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(read["w"], torch.ones(2))
    assert list(read["by_class"].values()) == [{"monitor": "loss"}]


class Attributes(dict):
    """A dict of another class with state, as Lightning's hyper-parameters are."""


def test_values_that_no_model_needs_are_placeholders(tmp_path):
    attributes = Attributes(lr=0.1)
    attributes.extra = 1
    saved = {
        "w": torch.ones(2),
        "args": argparse.Namespace(patch_size=16, out=Path("runs")),
        "score": np.float64(0.5),
        "array": np.arange(3),
        "objects": np.array([{}], dtype=object),
        "size": torch.Size([2, 3]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "seen": {1, 2},
        "lists": collections.defaultdict(list, a=[1]),
        "attributes": attributes,
    }
    torch.save(saved, tmp_path / "a.ckpt")
    read = read_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(read["w"], torch.ones(2))
    assert read["lists"] == {"a": [1]}
    assert not any(isinstance(read[name], type(saved[name])) for name in saved if name not in ("w", "lists"))


def touch(path):
    return f"touch {path}"


ATTACKS = {
    "os.system": lambda mark: Calls(os.system, touch(mark)),
    "subprocess.Popen": lambda mark: Calls(subprocess.Popen, ["touch", str(mark)]),
    "builtins.exec": lambda mark: Calls(builtins.exec, f"open({str(mark)!r}, 'w')"),
    "builtins.eval": lambda mark: Calls(builtins.eval, f"open({str(mark)!r}, 'w')"),
    "builtins.getattr": lambda mark: Calls(getattr, Path, "touch"),
    "builtins.__import__": lambda mark: Calls(__import__, "os"),
    "pathlib.Path.touch": lambda mark: Calls(Path.touch, mark),
    "torch.load": lambda mark: Calls(torch.load, str(mark)),
    "torch.storage._load_from_bytes": lambda mark: Calls(torch.storage._load_from_bytes, b""),
    "nested": lambda mark: {"state_dict": {"w": [(torch.ones(1), Calls(os.system, touch(mark)))]}},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pickle_that_calls_is_refused_and_nothing_happens(tmp_path, attack, zipped):
    mark, path = tmp_path / "mark", tmp_path / "evil.ckpt"
    torch.save({"evil": ATTACKS[attack](mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil\.ckpt asks to run \S+ when read") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not mark.exists()


def test_the_refusal_names_the_callable(tmp_path):
    torch.save(Calls(os.system, "true"), tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"asks to run \w+\.system when read"):
        read_checkpoint(tmp_path / "evil.ckpt")


PROGRAMS = {  # pickles written by hand, for what Python's own pickler does not write
    "protocol 0 instance": "(S'{command}'\nios\nsystem\n.",
    "protocol 1 object": "(cos\nsystem\nS'{command}'\no.",
    "dotted name": "\x80\x04\x8c\x02os\x8c\x0bpath.exists\x93\x8c\x01/\x85R.",
    "call of the result of a call": "ccollections\nOrderedDict\n)R(S'{command}'\ntR.",
    "call of an instance": "cos\nsystem\n)\x81(S'{command}'\ntR.",
    "state that is called": "cos\nsystem\n)\x81}}S'__setstate__'\ncos\nsystem\nsbS'{command}'\nb(S'{command}'\ntR.",
    "state of a function": "ctorch._utils\n_rebuild_tensor_v2\n(N}}S'path'\nVos.system\nstb(S'{command}'\ntR.",
    "class state": "cos\nsystem\n(N}}S'path'\nVcollections.OrderedDict\nstb(S'{command}'\ntR.",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_hand_written_program_is_refused_and_nothing_happens(tmp_path, program):
    mark = tmp_path / "mark"
    code = PROGRAMS[program].format(command=touch(mark)).encode("latin1")
    with pytest.raises(ValueError, match=r"evil\.ckpt (asks to run|is truncated or damaged)"):
        read_checkpoint(zip_with(code, tmp_path / "evil.ckpt"))
    assert not mark.exists()


def test_state_is_never_given_to_the_class_it_names(tmp_path):
    class_with_setstate = "cfractions\nFraction\n)\x81}S'_numerator'\nI1\nsb."
    read = read_checkpoint(zip_with(class_with_setstate.encode("latin1"), tmp_path / "a.ckpt"))
    assert type(read).__module__ == "pathseg.extract.models.checkpoint"


def test_real_torch_functions_are_untouched_by_what_is_read(tmp_path):
    before = torch._utils._rebuild_tensor_v2.__defaults__
    program = "ctorch._utils\n_rebuild_tensor_v2\n(N}S'__defaults__'\nNstb."
    read_checkpoint(zip_with(program.encode(), tmp_path / "a.ckpt"))
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


def test_a_torchscript_program_is_refused(tmp_path):
    torch.save({}, tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt", "a") as archive:
        folder = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{folder}/constants.pkl", b"\x80\x02).")
    with pytest.raises(ValueError, match="asks to run a TorchScript program"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("name", [*REBUILT, *VALUES])
def test_only_our_own_code_is_behind_a_name(tmp_path, name):
    module, _, attribute = name.rpartition(".")
    code = pickle.PROTO + b"\x04" + f"c{module}\n{attribute}\n.".encode()
    assert type(read_checkpoint(zip_with(code, tmp_path / "a.ckpt"))).__name__ == "_InertType"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_is_named(tmp_path, zipped):
    path = tmp_path / "short.ckpt"
    torch.save({"w": torch.ones(1000)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"short\.ckpt is truncated or damaged") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n....", b"state_dict: no", pickle.dumps({"w": 1})])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "other.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.ckpt is no checkpoint"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_a_truncated_safetensors_file_is_named(tmp_path):
    save_file({"w": torch.ones(100)}, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"a\.safetensors is truncated"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint file .*gone\.ckpt"):
        read_checkpoint(tmp_path / "gone.ckpt")
