"""Seeded mutations of files, and the conditions under which tests read the mutated ones.

The functions that mutate take a `random.Random` and return the mutated content: bytes, JSON values, the text of a YAML
or csv file, a pickle, a zip file; `mutate_folder` changes one entry of a folder on disk.
"""

import copy
import faulthandler
import io
import json
import os
import pickletools
import resource
import shutil
import signal
import struct
import sys
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

from pathseg.cli import error_line

DEEP = json.loads("[" * 300 + "]" * 300)
NUMBERS = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    7,
    255,
    2**31,
    -(2**63),
    2**64,
    10**12,
    10**30,
    0.5,
    1.5,
    -0.0,
    1e-320,
    1e308,
)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
PATHS = ("../x", "/etc/passwd", "../../outside/mine.txt", ".", "a/b", "C:\\x", "\0", "~")
TEXTS = ("", "x", "\n\x1b[31m", "\ud83d\ude00\u202e", "9" * 5000, "NaN", "1", "true", "!!python/name:os.system")
VALUES = (
    *NUMBERS,
    *NOT_FINITE,
    *PATHS,
    *TEXTS,
    [],
    {},
    [[]],
    [1, 2],
    {"a": 1},
    {"": None},
    DEEP,
    ["a"] * 300,
    [0.5] * 5,
)
INTEGERS = tuple(
    struct.pack(form, value) for form in ("<I", ">I", "<Q") for value in (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
)

LONGEST_LINE = 2000  # characters of a message
CASE_SECONDS = 20  # of processor time of one case; the slowest take a few
WAITING_SECONDS = 200  # of one case: on a busy machine it waits for a processor, a case that hangs waits for ever
CASE_BYTES = 2**30  # of address space that one case may add


def mutated_bytes(data, rng):
    """Return bytes with one to three bits flipped, spans deleted, doubled, zeroed or overwritten, or cut off."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        if not data:
            return bytes(rng.randbytes(rng.randint(0, 9)))
        start, length = rng.randrange(len(data)), rng.randint(1, 1 + min(64, len(data) // 4))
        action = rng.choice(["flip", "flip", "flip", "byte", "cut", "delete", "double", "zero", "random", "integer"])
        if action == "flip":
            data[start] ^= 1 << rng.randrange(8)
        elif action == "byte":
            data[start] = rng.randrange(256)
        elif action == "cut":
            del data[start:]
        elif action == "delete":
            del data[start : start + length]
        elif action == "double":
            data[start:start] = data[start : start + length]
        elif action == "zero":
            data[start : start + length] = bytes(len(data[start : start + length]))
        elif action == "random":
            data[start : start + length] = rng.randbytes(length)
        else:
            value = rng.choice(INTEGERS)
            data[start : start + len(value)] = value
    return bytes(data)


def mutated_values(values, rng):
    """Return a copy of JSON values in which one to three are replaced, deleted, renamed, doubled, wrapped or moved."""
    values = copy.deepcopy(values)
    for _ in range(rng.randint(1, 3)):
        node = values
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.7:
                node = node[key]
                continue
            action = rng.choice(
                ["replace", "replace", "replace", "change", "change", "delete", "rename", "swap", "double"]
            )
            if action == "replace":
                node[key] = copy.deepcopy(rng.choice(VALUES))
            elif action == "change":
                node[key] = _changed(node[key], rng)
            elif action == "delete":
                del node[key]
            elif action == "swap":
                other = rng.choice(keys)
                node[key], node[other] = node[other], node[key]
            elif isinstance(node, list):
                node[key:key] = [copy.deepcopy(node[key])] * rng.choice([1, 1, 5])
            elif action == "rename":
                node[str(rng.choice(VALUES))[:300]] = node.pop(key)
            break
    return values


def _changed(value, rng):
    """Return a value that resembles another one: its text, its negative, it in a list, a little more or much more."""
    changes = [str(value), [value], {"value": value}]
    if isinstance(value, int | float):
        changes += [-value, value + 1, value - 1, value * 10**6, value + 0.5]
    if isinstance(value, str):
        changes += [value.upper(), value + " ", value[:-1], value * 50, value + rng.choice(PATHS), value[::-1]]
    return rng.choice(changes)


def mutated_json(text, rng):
    """Return the text of a JSON file whose values, or less often whose bytes, are mutated."""
    try:
        values = json.loads(text)
    except ValueError:  # mutated before, or exchanged with another file
        values = None
    if not isinstance(values, dict | list) or rng.random() < 0.2:
        return mutated_bytes(text, rng)
    return json.dumps(mutated_values(values, rng)).encode("utf-8", "surrogatepass")


def mutated_lines(text, rng):
    """Return the text of a csv or YAML file with lines and fields mutated, or less often its bytes."""
    if rng.random() < 0.2:
        return mutated_bytes(text, rng)
    lines = text.decode(errors="replace").splitlines(keepends=True)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines)) if lines else 0
        action = rng.choice(["delete", "double", "insert", "field", "field", "field"])
        if action == "delete":
            del lines[at : at + 1]
        elif action == "double":
            lines[at:at] = lines[at : at + 1]
        elif action == "insert":
            lines.insert(at, f"{rng.choice(VALUES)}"[:6000] + rng.choice(["\n", ",", ", a: *b\n", '"\n', "\r"]))
        elif lines:
            separator = rng.choice([",", ":", " "])
            fields = lines[at].split(separator)
            fields[rng.randrange(len(fields))] = str(rng.choice(VALUES))[:6000]
            lines[at] = separator.join(fields)
    return "".join(lines).encode("utf-8", "surrogatepass")


NUMBER_OPCODES = (
    b"K\x01", b"M\xff\xff", b"J\xff\xff\xff\xff", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
)  # fmt: skip
OPCODES = (
    *NUMBER_OPCODES,
    *(bytes([code]) for code in b"N]})(taesuRbQ021.\x81\x85\x86\x87\x88"),
    b"X\x01\x00\x00\x00w", b"h\x00", b"h\x01", b"q\x00", b"r\xff\xff\xff\x7f", b"j\x00\x00\x00\x00",
    b"\x80\x02", b"\x80\x04", b"G\x7f\xf8\x00\x00\x00\x00\x00\x00",
    *(
        b"c%b\n" % name.replace(b" ", b"\n")
        for name in (
            b"os system", b"builtins eval", b"__builtin__ set", b"collections OrderedDict", b"torch FloatStorage",
            b"torch DoubleStorage", b"torch._utils _rebuild_tensor_v2", b"torch._utils _rebuild_parameter",
            b"torch Size", b"torch FloatTensor", b"datetime datetime", b"numpy dtype", b"absent Thing",
        )
    ),
)  # fmt: skip


def mutated_pickle(data, rng):
    """Return a pickle with opcodes deleted, doubled, exchanged, inserted, or with other numbers in them."""
    try:
        starts = [position for _, _, position in pickletools.genops(data)]
    except Exception:  # mutated before
        return mutated_bytes(data, rng)
    ops = [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(ops))
        action = rng.choice(["delete", "double", "swap", "insert", "replace", "number", "number"])
        if action == "delete" and len(ops) > 1:
            del ops[at]
        elif action == "double":
            ops[at:at] = [ops[at]] * rng.choice([1, 1, 50])
        elif action == "swap":
            other = rng.randrange(len(ops))
            ops[at], ops[other] = ops[other], ops[at]
        elif action == "insert":
            ops.insert(at, rng.choice(OPCODES))
        elif action == "replace":
            ops[at] = rng.choice(OPCODES)
        elif numbers := [i for i, op in enumerate(ops) if op[:1] in b"KMJ\x8a"]:
            ops[rng.choice(numbers)] = rng.choice(NUMBER_OPCODES)
    return b"".join(ops)


def mutated_zip(data, rng):
    """Return a zip file, as `torch.save` writes it, with an entry mutated, dropped, renamed, doubled or compressed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    compression = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
    pickles = [i for i, (name, _) in enumerate(entries) if name.endswith(".pkl")]
    for _ in range(rng.randint(1, 2)):
        at = rng.choice(pickles) if rng.random() < 0.6 else rng.randrange(len(entries))
        name, content = entries[at]
        action = rng.choice(["pickle"] * 6 + ["bytes", "drop", "rename", "double", "swap"])
        if action == "pickle" and name.endswith(".pkl"):
            entries[at] = name, mutated_pickle(content, rng)
        elif action in ("pickle", "bytes"):
            entries[at] = name, mutated_bytes(content, rng)
        elif action == "drop" and len(entries) > 1:
            del entries[at]
            pickles = [i for i, (name, _) in enumerate(entries) if name.endswith(".pkl")] or [0]
        elif action == "rename":
            entries[at] = (
                rng.choice([name.upper(), f"../{name}", f"/{name}", "x", name + "/", rng.choice(entries)[0]]),
                content,
            )
        elif action == "double":
            entries.append((name, rng.choice(entries)[1]))
        else:
            other = rng.randrange(len(entries))
            entries[at], entries[other] = (name, entries[other][1]), (entries[other][0], content)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of entries with one name
        for name, content in entries:
            archive.writestr(name, content, compression)
    return made.getvalue() if rng.random() < 0.9 else mutated_bytes(made.getvalue(), rng)


def mutate_folder(folder, rng, outside, mutate=lambda path, rng: mutated_bytes(path.read_bytes(), rng)):
    """Change one file below a folder and return what was done, as text.

    It is mutated, emptied, deleted, exchanged with another one, or replaced by a folder, a named pipe or a link (dead,
    in a circle, to a file of the folder `outside`, to a device that never ends).
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    path = rng.choice(files)
    action = rng.choice(
        ["mutate"] * 12 + ["empty", "delete", "exchange", "folder", "dead link", "circle", "link", "device", "pipe"]
    )
    name = path.relative_to(folder).as_posix()
    if action == "mutate":
        path.write_bytes(mutate(path, rng))
        return f"{action} {name}"
    if action == "exchange":
        other = rng.choice(files)
        content = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return f"{action} {name} {other.relative_to(folder)}"
    path.unlink()
    if action == "empty":
        path.write_bytes(b"")
    elif action == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    elif action == "pipe":
        os.mkfifo(path)
    elif action != "delete":
        targets = {
            "dead link": "/nowhere/at/all",
            "circle": path.name,
            "link": outside / "mine.txt",
            "device": "/dev/zero",
        }
        path.symlink_to(targets[action])
    return f"{action} {name}"


def snapshot(folder):
    """Return the content of each file below a folder and the target of each link, by name; None for other entries."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


class Forbidden(BaseException):
    """A case wrote outside of its folder or started something; no `except Exception` hides it."""


class TooSlow(BaseException):
    """A case took longer than CASE_SECONDS, or waited longer than WAITING_SECONDS."""


STARTS = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn",
    "pickle.find_class", "socket.connect", "ctypes.dlopen",
)  # fmt: skip
CHANGES = {  # audit event -> how many of its first arguments are paths
    "os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.symlink": 2, "os.truncate": 1,
    "os.chmod": 1, "os.chown": 1, "os.utime": 1, "shutil.rmtree": 1, "shutil.move": 2,
}  # fmt: skip


class _Watch:
    """The audit hook, installed once in a process: what a case may write to, None while none runs, and what it did."""

    workspace = None
    forbidden = []  # noqa: RUF012
    installed = False


def _audit(event, arguments):
    if _Watch.workspace is None:
        return
    if event in STARTS:
        _forbid(f"{event} {arguments!r:.200}")
    elif event == "open":
        path, mode, flags = arguments
        if (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) or set(mode or "") & set("wax+"):
            _require_inside(event, path)
    elif event in CHANGES:
        descriptor = arguments[-1] if event in ("os.remove", "os.rmdir") else -1
        for path in arguments[: CHANGES[event]]:
            _require_inside(event, path, descriptor)


def _require_inside(event, path, descriptor=-1):
    if isinstance(path, int):  # a descriptor that was opened before
        return
    if descriptor not in (-1, None):  # the path is relative to this folder
        path = os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), os.fsdecode(path))  # noqa: PTH115, PTH118
    folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))  # noqa: PTH100
    real = os.path.join(os.path.realpath(folder), name)  # noqa: PTH118
    if not real.startswith(f"{_Watch.workspace}{os.sep}") and real != os.devnull:
        _forbid(f"{event} {real}")


def _forbid(what):
    _Watch.forbidden.append(what)
    raise Forbidden(what)


@contextmanager
def watched(workspace):
    """Within this context nothing is started or written outside of `workspace`; time and memory are limited.

    Raises Forbidden, TooSlow, and MemoryError where the case asks for more than CASE_BYTES of address space.
    """
    if not _Watch.installed:
        sys.addaudithook(_audit)
        _Watch.installed = True
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + CASE_BYTES, hard))
    usual = {number: signal.signal(number, _too_slow) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING_SECONDS)
    faulthandler.dump_traceback_later(2 * WAITING_SECONDS, exit=True)  # where a thread or a library does not end
    _Watch.workspace, _Watch.forbidden = os.path.realpath(workspace), []
    try:
        yield
    finally:
        _Watch.workspace = None
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in usual.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    if _Watch.forbidden:
        raise Forbidden(_Watch.forbidden[0])


def _too_slow(number, frame):
    if number == signal.SIGPROF:
        raise TooSlow(f"more than {CASE_SECONDS} s of processor time")
    raise TooSlow(f"more than {WAITING_SECONDS} s")


def outcome(call, workspace):
    """Return (result, None) of a call under `watched`, or (None, line) where it ends in an error for users.

    Raises AssertionError where the command line would call it a bug, where memory ran out, or where the line is none.
    """
    try:
        with watched(workspace):
            return call(), None
    except (Exception, Forbidden, TooSlow) as e:
        error = e
    assert isinstance(error, Exception), f"{type(error).__name__}: {error}"
    assert not isinstance(error, MemoryError), "out of memory"
    line = error_line(error)
    if line.startswith(("this is a bug", "out of memory")):
        raise AssertionError(line) from error
    lines = line.split("\n") if type(error).__name__ == "DatasetError" else [line]
    assert all(0 < len(one) < LONGEST_LINE and not set(one) & {"\n", "\r"} for one in lines), (
        f"not one line: {line!r:.500}"
    )
    return None, line


def copied(source, target):
    """Replace a folder by a copy of another one."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    return target


class Findings:
    """What went wrong in which cases; `check` fails the test with all of them."""

    def __init__(self, kind):
        self.kind, self.lines, self.cases, self.accepted = kind, {}, 0, 0

    @contextmanager
    def case(self, number, what=""):
        """Count a case; an AssertionError inside is kept with its number."""
        self.cases += 1
        try:
            yield
        except AssertionError as e:
            self.lines.setdefault(str(e).splitlines()[0].split(";")[0][:300], []).append(f"{self.kind} {number} {what}")

    def check(self):
        """Fail with a line for each kind of finding."""
        lines = [f"{len(cases)} x {line} ({cases[0]})" for line, cases in self.lines.items()]
        assert not lines, f"{self.cases} cases of {self.kind}:\n" + "\n".join(lines)
