"""The snippet in store/README.md runs."""

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "store" / "README.md").read_text(encoding="utf-8")


def test_the_snippet_runs_on_a_store(toy_store):
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    names: dict = {}
    exec(snippet.replace("pathseg-work/glas-mini.zarr", str(toy_store.location)), names)
    assert sorted(names["features"]) == [0, 4, 5, 9]
    assert sorted(names["means"]) == ["t50/block00", "t50/block04", "t50/block05", "t50/block09"]


def test_every_attribute_of_the_format_is_described(toy_contents):
    assert [name for name in toy_contents().to_attributes() if f"`{name}`" not in README] == []
