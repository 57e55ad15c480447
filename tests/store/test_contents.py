import json

import pytest

from pathseg.store.contents import Contents, ImageEntry
from pathseg.store.errors import StoreError

VIEWS = (
    ImageEntry("a_v0", "train", 768, 768, "region", "a", 0),
    ImageEntry("a_v1", "train", 768, 768, "region", "a", 1),
    ImageEntry("b", "test", 768, 768),
)


def through_json(contents):
    return Contents.from_attributes(json.loads(json.dumps(contents.to_attributes())), store="a.zarr")


@pytest.mark.parametrize("changes", [{}, {"ignore": 1}, {"images": VIEWS}])
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


def test_something_else_is_no_store():
    with pytest.raises(StoreError, match="no pathseg store"):
        Contents.from_attributes({}, store="a.zarr")
