import dataclasses

import numpy as np
import pytest
from PIL import Image

from pathseg.extract.inputs.images import open_input_image
from pathseg.train.predict.ground_truth import GroundTruth, mask_digest, mosaic_confusion, prediction_metrics
from pathseg.train.predict.mosaic import Mosaic
from pathseg.train.predict.records import PredictedImage, PredictionIdentity, PredictionMetrics

TISSUES = ("background", "gland", "lumen")


def class_codes(mask, head):
    mask = None if mask is None else np.array(mask)
    found = GroundTruth("masks", lambda image_id: mask).class_codes("a", head)
    return None if found is None else found.tolist()


def predicted(name, confusion):
    identity = PredictionIdentity(
        file=f"{name}.png", size_bytes=9, content_digest="ab", size=(1, 9), mpp=0.5, run="by-colour",
        weights_digest="cd", model_digest="ef", overlap=64, tissue="otsu",
    )  # fmt: skip
    return PredictedImage(
        id=name, identity=identity, formats=("mask",), ground_truth_digest=None, file_px=(1, 9), size_px=(1, 9),
        mpp=0.5, windows=1, windows_total=1, pixels={"background": 9, "gland": 0}, confusion=confusion,
    )  # fmt: skip


@pytest.mark.parametrize("mask", [[[0, 255]], [[0, 7]], [[0, 1]]])
def test_of_two_classes_every_code_above_the_background_is_the_second(colour_head, mask):
    assert class_codes(mask, colour_head()) == [[0, 1]]


def test_the_background_is_known_by_its_code_not_its_name(colour_head):
    assert class_codes([[0, 255]], colour_head(classes=("stroma", "gland"), background=0)) == [[0, 1]]
    with pytest.raises(ValueError, match="255"):
        class_codes([[0, 255]], colour_head(background=None))


def test_more_classes_are_taken_by_their_codes(colour_head):
    assert class_codes([[0, 2]], colour_head(classes=TISSUES)) == [[0, 2]]


def test_a_code_without_a_class_is_named_with_the_classes(colour_head):
    with pytest.raises(ValueError, match=r"mask of a in masks .* 9,.*0 background, 1 gland, 2 lumen"):
        class_codes([[0, 9]], colour_head(classes=TISSUES))


def test_the_ignored_code_may_be_beyond_the_classes(colour_head):
    assert class_codes([[255, 1]], colour_head(classes=TISSUES, ignore=255)) == [[255, 1]]


def test_the_code_of_the_padding_is_none_of_a_mask(colour_head):
    head = colour_head(classes=(*TISSUES, "padding"), ignore=3)
    head = dataclasses.replace(head, sampling=dataclasses.replace(head.sampling, resized=True, padded=True))
    assert class_codes([[0, 2]], head) == [[0, 2]]
    with pytest.raises(ValueError, match="holds the code 3"):
        class_codes([[0, 3]], head)


def test_an_image_without_a_mask_has_no_ground_truth(colour_head):
    assert class_codes(None, colour_head()) is None


def test_pixels_are_counted_over_all_tiles(colour_head):
    codes = np.zeros((600, 700), np.uint8)
    codes[:, 350:] = 1
    mosaic = Mosaic((codes,), 0, np.array([0, 0]))
    matrix = mosaic_confusion(mosaic, np.array([[0, 1], [0, 1]]), colour_head())
    assert matrix.tolist() == [[600 * 350, 0], [0, 600 * 350]]


def test_scores_are_pooled_over_the_images_that_have_a_mask(colour_head):
    images = [predicted("a", ((3, 1), (0, 4))), predicted("b", ((1, 0), (0, 1))), predicted("c", None)]
    found = prediction_metrics(images, colour_head())
    assert found.scores.accuracy == 0.9  # 9 of 10
    assert found.constant.scores.accuracy == 0.5
    assert found.images == 2
    assert found.without_mask == ("c",)
    assert [one.id for one in found.per_image] == ["a", "b"]
    assert PredictionMetrics.from_json(found.to_json(), source="metrics.json") == found


def test_without_any_mask_the_naming_is_explained(colour_head):
    with pytest.raises(ValueError, match=r"--truth.*NAME\.png"):
        prediction_metrics([predicted("c", None)], colour_head())


@pytest.fixture
def opened(tmp_path, colour_head):
    """An image of 90x60 px."""
    Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(tmp_path / "a.png")
    return open_input_image(tmp_path / "a.png", colour_head().sampling)


@pytest.mark.parametrize("shape", [(60, 90), (20, 30), (19, 28)])
def test_a_mask_may_have_any_resolution(opened, shape):
    assert len(mask_digest(np.zeros(shape, np.uint8), opened)) == 64


def test_a_mask_of_another_aspect_ratio_is_refused_with_both_sizes(opened):
    with pytest.raises(ValueError, match=r"90x60 px.*50x50 px"):
        mask_digest(np.zeros((50, 50), np.uint8), opened)
