import numpy as np
import openslide
import pytest
import tifffile

from pathseg.train.predict.mosaic import Mosaic
from pathseg.train.predict.pyramid_tiff import write_pyramid

COLOURS = ("#8A8A8A", "#009E73")


def write(path, codes):
    mosaic = Mosaic(tuple(codes[:: 2**level, :: 2**level] for level in range(3)), 255, np.array([0, 0]))
    write_pyramid(mosaic, path, mpp=0.5, colours=COLOURS, legend="0: background, 1: gland")
    return path


@pytest.fixture
def codes():
    codes = np.zeros((600, 1100), np.uint8)
    codes[200:500, 300:900] = 1
    codes[550:, 1000:] = 255
    return codes


@pytest.fixture
def path(tmp_path, codes):
    return write(tmp_path / "mask.tif", codes)


def test_the_codes_are_read_back_at_every_level(path, codes):
    with tifffile.TiffFile(path) as file:
        for level, page in enumerate(file.pages):
            np.testing.assert_array_equal(page.asarray(), codes[:: 2**level, :: 2**level])
        assert file.pages[0].description == "0: background, 1: gland"
        assert len(file.pages) == 3


def test_openslide_opens_it_with_levels_and_um_per_px(path):
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == (1100, 600)
        assert slide.level_count == 3
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5, rel=1e-3)


def test_each_level_has_twice_the_um_per_px_of_the_one_before_whatever_its_sides_are(tmp_path):
    path = write(tmp_path / "odd.tif", np.zeros((601, 1101), np.uint8))
    with tifffile.TiffFile(path) as file:
        for level, page in enumerate(file.pages):
            across, per = page.tags["XResolution"].value
            assert across / per == pytest.approx(2e4 / 2**level, rel=1e-9)
            assert page.tags["YResolution"].value == page.tags["XResolution"].value


def test_classes_are_seen_in_their_colours(path):
    with openslide.OpenSlide(path) as slide:
        seen = [slide.read_region(at, 0, (1, 1)).getpixel((0, 0)) for at in ((0, 0), (400, 300), (1080, 580))]
    assert seen == [(0x8A, 0x8A, 0x8A, 255), (0, 0x9E, 0x73, 255), (255, 255, 255, 255)]


def test_the_same_codes_give_the_same_bytes(path, codes, tmp_path):
    assert write(tmp_path / "again.tif", codes).read_bytes() == path.read_bytes()
