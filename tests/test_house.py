"""The rules of the house: size of files, classes and functions, and who may import whom."""

import ast
import configparser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("store", "extract", "train")
FILES = sorted([ROOT / "cli.py", *(path for room in ROOMS for path in (ROOT / room).glob("*.py"))])
MAY_IMPORT = {"store": {"store"}, "extract": {"store", "extract"}, "train": {"store", "train"}}


def name(path):
    return path.relative_to(ROOT).as_posix()


def code_lines(node, source):
    """Lines of a definition without its docstring, comments and blank lines."""
    first = node.body[0]
    docstring = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    skipped = range(first.lineno, first.end_lineno + 1) if docstring else ()
    lines = source.splitlines()
    return sum(
        1
        for number in range(node.lineno, node.end_lineno + 1)
        if number not in skipped and (line := lines[number - 1].strip()) and not line.startswith("#")
    )


def parameters(node):
    arguments = node.args
    named = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [n for n in named if n not in ("self", "cls")]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_has_under_300_lines(path):
    assert len(path.read_text().splitlines()) < 300


@pytest.mark.parametrize("path", FILES, ids=name)
def test_definitions_keep_the_budget(path):
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < 200, node.name
        if isinstance(node, ast.FunctionDef):
            most = 60 if node.name == "train_heads" else 39  # the training loop is read top to bottom
            assert code_lines(node, source) <= most, node.name
            assert len(parameters(node)) <= 8, node.name


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != ROOT], ids=name)
def test_rooms_import_in_one_direction(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are by full name"
            modules = [node.module]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        for module in modules:
            if module.startswith("pathseg."):
                assert module.split(".")[1] in MAY_IMPORT[path.parent.name], module


@pytest.mark.parametrize("room", [".", *ROOMS])
def test_a_room_has_a_docstring_and_imports_nothing(room):
    (only,) = ast.parse((ROOT / room / "__init__.py").read_text()).body
    assert isinstance(only.value.value, str)


def public(nodes):
    return [node for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_"]


def methods_of(room, file, protocol):
    """Names that a protocol describes, so that what follows it need not say them again."""
    (found,) = (n for n in ast.parse((ROOT / room / file).read_text()).body if getattr(n, "name", "") == protocol)
    return {method.name for method in public(found.body)}


PROTOCOLS = {
    "`Location`": methods_of("store", "location.py", "Location"),
    "`models.FeatureModel`": methods_of("extract", "models.py", "FeatureModel"),
}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_public_names_have_docstrings(path):
    """Classes, functions, and methods, unless the class says which protocol it follows and that describes them."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in public(tree.body):
        about = ast.get_docstring(node)
        assert about, node.name
        if isinstance(node, ast.ClassDef):
            said = set().union(*(names for protocol, names in PROTOCOLS.items() if protocol in about))
            for method in public(node.body):
                assert ast.get_docstring(method) or method.name in said, f"{node.name}.{method.name}"


def test_the_packages_listed_are_the_folders():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    assert listed == ["pathseg", *(f"pathseg.{room}" for room in ROOMS)]
    python_folders = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests", "benchmarks", "build"}
    assert python_folders == set(ROOMS)


def test_the_root_holds_no_other_module():
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "cli.py"}
