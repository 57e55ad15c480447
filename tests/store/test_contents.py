import json

import pytest

from pathseg.store.contents import Contents, ImageEntry
from pathseg.store.errors import Damaged, StoreError

VIEWS = (
    ImageEntry("a_v0", "train", 768, 768, "region", "a", 0),
    ImageEntry("a_v1", "train", 768, 768, "region", "a", 1),
    ImageEntry("b", "test", 768, 768),
)


def through_json(contents):
    return Contents.from_attributes(json.loads(json.dumps(contents.to_attributes())), store="a.zarr")


@pytest.mark.parametrize("changes", [{}, {"ignore": 1}, {"images": VIEWS}, {"colours": (None, "#0080FF")}])
def test_contents_come_back_equal_through_json(toy_contents, changes):
    assert through_json(toy_contents(**changes)) == toy_contents(**changes)


def test_sources_patches_and_views_are_attributes_where_there_are_any(toy_contents):
    attributes = toy_contents(images=VIEWS).to_attributes()
    assert attributes["sources"] == ["region", "region", None]
    assert attributes["groups"] == ["a", "a", None]
    assert attributes["views"] == [0, 1, 0]


def test_a_store_of_whole_images_says_nothing_of_views(toy_contents):
    assert not {"sources", "groups", "views"} & set(toy_contents().to_attributes())


def test_a_store_without_views_is_of_whole_images(toy_contents):
    image = through_json(toy_contents()).images[0]
    assert (image.source, image.group, image.view) == (None, None, 0)


def test_a_store_whose_classes_have_no_colours_says_nothing_of_them(toy_contents):
    assert "colours" not in toy_contents().to_attributes()
    assert through_json(toy_contents()).colours == ()


@pytest.mark.parametrize("colours", [["#0080FF"], [None, "blue"], [None, "#0080ff"], [None, 255]])
def test_colours_that_are_none_or_too_few_are_damage(toy_contents, colours):
    with pytest.raises(Damaged, match="colours"):
        Contents.from_attributes(toy_contents().to_attributes() | {"colours": colours}, store="a.zarr")


def test_other_colours_are_the_same_labels(toy_contents):
    plain, coloured = toy_contents(), toy_contents(colours=(None, "#0080FF"))
    assert plain.same_labels(coloured) and plain.grown(coloured, store="a.zarr") == coloured


def test_something_else_is_no_store():
    with pytest.raises(StoreError, match="no pathseg store"):
        Contents.from_attributes({}, store="a.zarr")


REQUIRED = (
    "key", "ids", "splits", "sizes", "classes", "ignore", "test_split", "blocks", "model_trained", "has_instances",
    "made_by", "images_per_unit",
)  # fmt: skip
WRONG = {
    "pathseg_format": ["2", 0, None, True],
    "key": ["glas", None],
    "ids": ["a", [1, 2, 3, 4, 5], []],
    "splits": [None, ["train"]],
    "sizes": [[[200, 300, 1]] * 5, [[200, -300]] * 5, [[0, 300]] * 5, [[200.5, 300]] * 5],
    "classes": [[], "background", [0, 1], ["a"] * 257],
    "background": [-1, 2, "background", 300],
    "ignore": [-1, 256, "none"],
    "test_split": [None, 1],
    "blocks": [
        {},
        {"4": [6]},
        {"4": [10**12, 16]},
        {"4": [0, 16]},
        {"4": [6, -1]},
        {"100": [6, 16]},
        {"a": [6, 16]},
        [],
    ],
    "model_trained": [None, "yes"],
    "has_instances": [None, 1],
    "made_by": [None, {"zarr": 3}],
    "images_per_unit": [0, -1, 10**12, "1", None, 1.5],
    "sources": [["a"], 1],
    "groups": [["a"], [1, 2, 3, 4, 5]],
    "views": [[0], [-1] * 5],
}


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_attribute_is_damage_that_names_store_and_attribute(toy_contents, name):
    attributes = toy_contents().to_attributes()
    del attributes[name]
    with pytest.raises(Damaged, match=f"a.zarr.*{name}"):
        Contents.from_attributes(attributes, store="a.zarr")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_an_attribute_of_the_wrong_type_or_range_is_damage(toy_contents, name, value):
    with pytest.raises(Damaged, match=r"a\.zarr"):
        Contents.from_attributes(toy_contents().to_attributes() | {name: value}, store="a.zarr")


@pytest.mark.parametrize("name", ["ids", "ignore", "classes", "images_per_unit", "background"])
def test_the_damaged_attribute_is_named(toy_contents, name):
    with pytest.raises(Damaged, match=rf"a\.zarr.*{name}.*--repair"):
        Contents.from_attributes(toy_contents().to_attributes() | {name: "x"}, store="a.zarr")


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", [256]), ("size", [-256, 512]), ("size", [100, 512]), ("seed", "x"), ("layout", "nativ"),
     ("dtype", "int8"), ("packing", "zip")],
)  # fmt: skip
def test_a_damaged_key_names_the_store(toy_contents, field, value):
    attributes = toy_contents().to_attributes()
    attributes["key"] = attributes["key"] | {field: value}
    with pytest.raises(StoreError, match=r"a\.zarr"):
        Contents.from_attributes(attributes, store="a.zarr")


def test_format_1_takes_the_class_named_background(toy_contents):
    attributes = toy_contents(classes=("Background ", "gland")).to_attributes() | {"pathseg_format": 1}
    del attributes["background"]
    assert Contents.from_attributes(attributes, store="a.zarr").background == 0
