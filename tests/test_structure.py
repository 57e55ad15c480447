"""The structure of the code: who may import whom, what is documented, and what is packaged."""

import ast
import configparser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("store", "extract", "train")
FILES = sorted([ROOT / "cli.py", *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))])
MAY_IMPORT = {
    "store": {"store"},
    "extract": {"store", "extract"},
    "train": {"store", "train"},
}


def name(path):
    return path.relative_to(ROOT).as_posix()


def imported_modules(tree):
    """Full names of all modules that a file imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are by full name"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != ROOT], ids=name)
def test_packages_import_in_one_direction(path):
    package = path.relative_to(ROOT).parts[0]
    for module in imported_modules(ast.parse(path.read_text())):
        if module.startswith("pathseg."):
            assert module.split(".")[1] in MAY_IMPORT[package], module


def public(nodes):
    return [node for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_"]


def protocols():
    """Method names of each Protocol: a class whose docstring names it need not document them again."""
    found = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == "Protocol" for base in node.bases):
                found[f"`{node.name}`"] = {method.name for method in public(node.body)}
    return found


PROTOCOLS = protocols()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in public(tree.body):
        about = ast.get_docstring(node)
        assert about, node.name
        if isinstance(node, ast.ClassDef):
            described = set().union(*(names for protocol, names in PROTOCOLS.items() if protocol in about))
            for method in public(node.body):
                assert ast.get_docstring(method) or method.name in described, f"{node.name}.{method.name}"


def test_the_packages_listed_are_the_folders():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    folders = {path.parent.relative_to(ROOT) for path in FILES if path.parent != ROOT}
    assert sorted(listed) == sorted(["pathseg", *(".".join(["pathseg", *folder.parts]) for folder in folders)])


def test_every_folder_with_modules_is_a_package():
    for folder in {path.parent for path in FILES if path.parent != ROOT}:
        assert (folder / "__init__.py").is_file(), folder


def test_the_root_holds_no_other_module():
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "cli.py"}
    assert ast.unparse(ast.parse((ROOT / "__init__.py").read_text())).count("\n") == 0  # a docstring, no imports


def test_tests_lie_where_their_packages_do():
    """A folder of tests names a folder of the code."""
    tests = ROOT / "tests"
    for folder in {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")}:
        assert (ROOT / folder).is_dir(), folder
