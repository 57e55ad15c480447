import hashlib
import threading

import numpy as np
import pytest
from PIL import Image

from pathseg.extract.datasets.bcss_regions import (
    RegionReader,
    pad_to_tile,
    shrink_image,
    shrink_mask,
    tile_starts,
    view_offset,
)


@pytest.mark.parametrize(
    ("length", "stride", "starts"),
    [
        (2000, 600, (0, 600, 1200)),  # 1200 + 800 = 2000: the last fits without a rest
        (2100, 600, (0, 600, 1200, 1300)),  # flush with the edge
        (1697, 600, (0, 600, 897)),
        (850, 600, (0, 50)),
        (800, 600, (0,)),
        (799, 600, (0,)),
        (1, 1, (0,)),
    ],
)
def test_patches_cover_a_side_and_the_last_is_flush_with_the_edge(length, stride, starts):
    assert tile_starts(length, stride) == starts


@pytest.mark.parametrize("length", [1568, 1569, 2000, 4001])
def test_centre_views_at_the_largest_stride_leave_no_gap_but_the_outer_16_px(length):
    seen = np.zeros(length, bool)
    for start in tile_starts(length, 768):
        seen[start + 16 : start + 16 + 768] = True
    assert seen[16:-16].all() and not seen[:16].any() and not seen[-16:].any()


def test_the_first_view_is_the_centre():
    assert view_offset("tile", 0, seed=7) == (16, 16)  # (800 - 768) / 2


def test_a_drawn_view_is_that_of_the_rule():
    digest = hashlib.sha256(b"3/region_y0000_x0600/view 2").digest()
    expected = int.from_bytes(digest[:8], "big") % 33, int.from_bytes(digest[8:16], "big") % 33
    assert view_offset("region_y0000_x0600", 2, seed=3) == expected


def test_drawn_views_reach_every_place_and_no_other():
    places = np.array([view_offset(f"p{number}", 1, seed=0) for number in range(2000)])
    for axis in (0, 1):
        assert set(places[:, axis].tolist()) == set(range(33))


def shrunk_image(pixels, factor):
    return shrink_image(Image.fromarray(pixels), factor)


def shrunk_mask(codes, factor):
    return shrink_mask(Image.fromarray(codes), factor)


def test_images_shrink_by_the_mean_of_areas():
    image = np.array([[0, 10, 1, 1], [20, 30, 1, 1]], np.uint8)[..., None].repeat(3, 2)
    assert shrunk_image(image, 2.0)[..., 0].tolist() == [[15, 1]]


def test_a_factor_that_is_not_whole_averages_too():
    ramp = np.tile(np.arange(0, 200, 2, dtype=np.uint8), (100, 1))[..., None].repeat(3, 2)
    small = shrunk_image(ramp, 2.5)
    assert small.shape == (40, 40, 3)
    centres = (np.arange(40) + 0.5) * 2.5 - 0.5  # in px of the file, whose values are twice their number
    assert np.abs(small[0, :, 0] - 2 * centres).max() <= 1.5


def test_what_is_left_of_a_last_pixel_is_cut_off():
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    assert np.array_equal(shrunk_image(image, 2.0), shrunk_image(image[:4, :6], 2.0))
    assert shrunk_mask(image[..., 0], 2.0).shape == (2, 3)


def test_masks_shrink_to_codes_that_were_there():
    mask = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.uint8)
    assert shrunk_mask(mask, 2.0).tolist() == [[6, 8]]


FACTORS = (1.0, 1.25, 1.6, 2.0, 2.1, 2.5, 0.5 / 0.2464, 3.0)  # at 2.1 pixels' centres lie on edges of new pixels


@pytest.mark.parametrize("factor", FACTORS)
def test_an_image_shrunk_in_strips_is_the_one_that_pillow_shrinks_at_once(factor):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3301, 53, 3), dtype=np.uint8))
    height, width = int(3301 / factor + 1e-6), int(53 / factor + 1e-6)
    box = (0, 0, min(53, width * factor), min(3301, height * factor))
    at_once = np.asarray(image.resize((width, height), Image.Resampling.BOX, box=box))
    assert np.array_equal(shrink_image(image, factor), at_once)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_a_mask_shrunk_in_strips_has_the_code_at_each_centre(factor, dtype):
    mask = np.random.default_rng(0).integers(0, 250, (3301, 53)).astype(dtype)
    height, width = int(3301 / factor + 1e-6), int(53 / factor + 1e-6)
    rows, cols = (((np.arange(side) + 0.5) * factor).astype(int) for side in (height, width))
    small = shrunk_mask(mask, factor)
    assert small.dtype == dtype and np.array_equal(small, mask[np.ix_(rows, cols)])


@pytest.mark.parametrize("shrink", [shrunk_image, shrunk_mask])
def test_a_factor_of_one_changes_nothing(shrink):
    pixels = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)[:, :, : 3 if shrink is shrunk_image else 1].squeeze()
    assert np.array_equal(shrink(pixels, 1.0), pixels)


def test_a_small_region_is_mirrored_and_what_is_added_ignored():
    image, mask = np.arange(790 * 810, dtype=np.uint8).reshape(790, 810), np.zeros((790, 810), np.uint8)
    filled, codes = pad_to_tile(image[..., None], mirrored=True)[..., 0], pad_to_tile(mask, mirrored=False)
    assert filled.shape == codes.shape == (800, 810)
    assert np.array_equal(filled[790:], image[-2:-12:-1])
    assert (codes[790:] == 255).all() and (codes[:790] == 0).all()


def test_a_region_that_is_large_enough_is_left_as_it_is():
    mask = np.zeros((800, 900), np.uint8)
    assert pad_to_tile(mask, mirrored=False) is mask


def reader_of(calls):
    return RegionReader(lambda name: calls.append(name) or (np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8)))


def test_a_region_is_decoded_once_while_it_is_asked_for():
    calls = []
    reader = reader_of(calls)
    for name in ("a", "a", "b", "b", "a"):
        reader.read(name)
    assert calls == ["a", "b", "a"]


def test_threads_that_want_one_region_decode_it_once():
    calls = []
    reader = reader_of(calls)
    threads = [threading.Thread(target=reader.read, args=("a",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == ["a"]


def test_a_region_that_cannot_be_read_is_tried_again():
    def fail(name):
        raise ValueError(name)

    reader = RegionReader(fail)
    for _ in range(2):
        with pytest.raises(ValueError, match="a"):
            reader.read("a")
