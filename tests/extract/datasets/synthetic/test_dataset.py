import hashlib
import pickle

import numpy as np
import pytest
from scipy import ndimage

from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.store.key import Preprocessing


def listed(**options):
    return open_dataset("synthetic", DatasetOptions(**options))


def loaded(index, **options):
    dataset = listed(limit=index + 1, **options)
    return dataset.load(dataset.samples[index])


def digest(pixels):
    parts = (pixels.image, pixels.mask, pixels.instances)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


@pytest.fixture(scope="module")
def pieces():
    """The first four pieces of tissue of seed 0."""
    return [loaded(index) for index in range(4)]


def test_there_are_16_images_to_train_on_and_8_to_test_on():
    splits = [sample.split for sample in listed().samples]
    assert (splits.count("train"), splits.count("test")) == (16, 8)


def test_any_number_of_images_can_be_asked_for_in_the_same_proportion():
    splits = [sample.split for sample in listed(limit=300).samples]
    assert (splits.count("train"), splits.count("test")) == (200, 100)


def test_two_images_are_one_of_each_split():
    assert [sample.split for sample in listed(limit=2).samples] == ["train", "test"]


def test_fewer_images_are_the_first_of_more():
    assert listed(limit=40).samples[:7] == listed(limit=7).samples


def test_the_same_seed_gives_the_same_bytes():
    assert digest(loaded(0, resize=256)) == digest(loaded(0, resize=256))


def test_an_image_does_not_depend_on_the_number_of_images():
    few, many = listed(limit=2, resize=256), listed(limit=50, resize=256)
    assert digest(few.load(few.samples[1])) == digest(many.load(many.samples[1]))


def test_the_listing_can_be_sent_to_another_process():
    dataset = listed(limit=1, resize=256)
    assert digest(pickle.loads(pickle.dumps(dataset)).load(dataset.samples[0])) == digest(loaded(0, resize=256))


def test_another_seed_gives_another_image():
    assert digest(loaded(0, resize=256)) != digest(loaded(0, resize=256, seed=1))


def test_the_images_of_a_seed_differ(pieces):
    assert len({digest(piece) for piece in pieces}) == 4


def test_the_preprocessing_is_that_of_stores_of_format_1():
    assert listed(seed=5).preprocessing == Preprocessing.from_sentence("generated with seed 5")


def test_no_class_is_the_background():
    assert listed().background is None


def test_shapes_and_types_are_those_of_stage_one(pieces):
    piece = pieces[0]
    assert (piece.image.shape, piece.image.dtype) == ((512, 512, 3), np.uint8)
    assert (piece.mask.shape, piece.mask.dtype) == ((512, 512), np.uint8)
    assert (piece.instances.shape, piece.instances.dtype) == ((512, 512), np.uint16)


def test_a_larger_piece_can_be_asked_for():
    dataset = listed(limit=1, resize=768)
    assert (dataset.size, dataset.load(dataset.samples[0]).image.shape) == ((768, 768), (768, 768, 3))


def test_all_classes_are_in_every_piece(pieces):
    assert all(np.unique(piece.mask).tolist() == [0, 1, 2] for piece in pieces)


def test_glands_are_exactly_epithelium_and_lumen(pieces):
    for piece in pieces:
        np.testing.assert_array_equal(piece.instances > 0, piece.mask > 0)


def test_gland_ids_are_numbered_from_1_without_gaps(pieces):
    for piece in pieces:
        assert np.unique(piece.instances).tolist() == list(range(piece.instances.max() + 1))


def test_glands_do_not_touch_each_other(pieces):
    for piece in pieces:
        ids = piece.instances.astype(int)
        highest = ndimage.maximum_filter(ids, 3)
        lowest = -ndimage.maximum_filter(np.where(ids > 0, -ids, -(10**6)), 3)
        assert (highest[ids > 0] == lowest[ids > 0]).all()


def test_a_lumen_never_opens_to_the_stroma(pieces):
    for piece in pieces:
        beside = ndimage.binary_dilation(piece.mask == 2) & (piece.mask == 0)
        assert not beside.any()


def test_lumens_are_brighter_than_epithelium(pieces):
    for piece in pieces:
        assert piece.image[piece.mask == 2].mean() > piece.image[piece.mask == 1].mean() + 30


def test_epithelium_is_more_purple_than_stroma(pieces):
    for piece in pieces:
        red, _, blue = (piece.image[..., channel].astype(int) for channel in range(3))
        assert (red - blue)[piece.mask == 1].mean() < (red - blue)[piece.mask == 0].mean()


def test_brightness_alone_does_not_tell_epithelium_from_stroma(pieces):
    for piece in pieces:
        grey = piece.image.mean(-1)
        epithelium, stroma = grey[piece.mask == 1], grey[piece.mask == 0]
        best = max(((epithelium < cut).mean() + (stroma >= cut).mean()) / 2 for cut in range(20, 250, 5))
        assert best < 0.9


def test_stain_varies_from_slide_to_slide(pieces):
    means = np.array([piece.image[piece.mask == 0].mean(0) for piece in pieces])
    assert means.std(0).max() > 3
