import numpy as np
import pytest
from PIL import Image

from pathseg.extract.inputs.images import open_input_image
from pathseg.train.predict.ground_truth import Truth, count, digest_for, score
from pathseg.train.predict.mosaic import Canvas


def truth(mask):
    return Truth("masks", lambda image_id: mask)


@pytest.mark.parametrize("codes", [[[0, 255]], [[0, 7]], [[0, 1]]])
def test_of_two_classes_every_code_above_the_background_is_the_second(colour_head, codes):
    found = truth(np.array(codes)).read("a", colour_head())
    assert found.tolist() == [[0, 1]]


def test_more_classes_are_taken_by_their_codes(colour_head):
    head = colour_head(classes=("background", "gland", "lumen"))
    assert truth(np.array([[0, 2]])).read("a", head).tolist() == [[0, 2]]


def test_a_code_that_is_no_class_is_named_with_those_there_are(colour_head):
    head = colour_head(classes=("background", "gland", "lumen"))
    with pytest.raises(ValueError, match=r"mask of a in masks holds the code 9.*0 background, 1 gland, 2 lumen"):
        truth(np.array([[0, 9]])).read("a", head)


def test_the_ignored_code_may_be_beyond_the_classes(colour_head):
    head = colour_head(classes=("background", "gland", "lumen"), ignore=255)
    assert truth(np.array([[255, 1]])).read("a", head).tolist() == [[255, 1]]


def test_an_image_without_a_mask_has_no_truth(colour_head):
    assert truth(None).read("a", colour_head()) is None


def test_pixels_are_counted_over_all_tiles(colour_head):
    canvas = Canvas(None, (600, 700), empty=0)
    canvas.codes[0][:, 350:] = 1
    matrix = count(canvas, np.array([[0, 1], [0, 1]]), colour_head())
    assert matrix.tolist() == [[600 * 350, 0], [0, 600 * 350]]


def test_scores_are_pooled_over_the_images_that_have_a_mask(colour_head):
    records = [
        {"id": "a", "confusion": [[3, 1], [0, 4]]},
        {"id": "b", "confusion": [[1, 0], [0, 1]]},
        {"id": "c", "confusion": None},
    ]
    found = score(records, colour_head())
    assert found["scores"]["accuracy"] == 0.9  # 9 of 10
    assert found["constant"]["scores"]["accuracy"] == 0.5
    assert found["without_mask"] == ["c"]
    assert [one["id"] for one in found["per_image"]] == ["a", "b"]


def test_without_any_mask_the_naming_is_explained(colour_head):
    with pytest.raises(ValueError, match=r"called like its image, NAME\.png"):
        score([{"id": "c", "confusion": None}], colour_head())


@pytest.fixture
def opened(tmp_path, colour_head):
    """An image of 90x60 px."""
    Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(tmp_path / "a.png")
    return open_input_image(tmp_path / "a.png", colour_head().sampling)


@pytest.mark.parametrize("shape", [(60, 90), (20, 30), (19, 28)])
def test_a_mask_may_have_any_resolution(opened, shape):
    assert len(digest_for(np.zeros(shape, np.uint8), opened)) == 64


def test_a_mask_of_a_part_of_the_image_is_refused_with_both_sizes(opened):
    with pytest.raises(ValueError, match=r"90x60 px.*it is 50x50 px"):
        digest_for(np.zeros((50, 50), np.uint8), opened)
