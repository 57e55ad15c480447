"""Masks as QuPath's GeoJSON and back: what is written is read as the same mask, up to the stated simplification."""

import numpy as np
import pytest
import shapely
import shapely.affinity
from scipy import ndimage

from pathseg.extract.inputs.outlines import rasterise, read_outlines
from pathseg.train.predict.geojson import OutlineSettings, write_geojson

CLASSES = {1: ("gland", "#009E73"), 2: ("stroma", "#E69F00")}
CODES = {name: code for code, (name, _) in CLASSES.items()}


def mask(seed, side=160):
    """Class codes with nested and touching objects and holes."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(side, side)), rng.uniform(2, 8))
    return (field > 0).astype(np.uint8) + (field > np.quantile(field, 0.8))


def again(tmp_path, codes, *, simplify, scale=(1.0, 1.0), origin=(0, 0)):
    """The codes, written and read; those of no object are 0."""
    path = tmp_path / "a.geojson"
    settings = OutlineSettings(CLASSES, scale, None, simplify=simplify, smallest=0, origin=origin)
    write_geojson(path, codes, settings, source="a")
    found = read_outlines(path, brush_px=1, origin=origin)
    areas = [(outline.area, CODES[outline.class_name]) for outline in found.outlines]
    assert not found.flat and not found.mended and not found.left_out
    return rasterise(areas, corner=(0, 0), size=codes.shape, scale=scale, fill=0)


def border_distance(codes):
    """The distance in px of each px from the nearest border between two codes or of the image, (h, w)."""
    edges = np.ones(codes.shape, bool)
    edges[1:-1, 1:-1] = False
    for axis in (0, 1):
        step = np.diff(codes, axis=axis) != 0
        edges |= np.pad(step, [(0, 1) if a == axis else (0, 0) for a in (0, 1)])
        edges |= np.pad(step, [(1, 0) if a == axis else (0, 0) for a in (0, 1)])
    return ndimage.distance_transform_edt(~edges)


@pytest.mark.parametrize("origin", [(0, 0), (1234, 98765)])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.0, 2.0), (4.0003, 3.9987), (0.97, 1.31), (16.0, 16.0)])
@pytest.mark.parametrize("seed", range(3))
def test_every_corner_written_is_the_same_mask_again(tmp_path, seed, scale, origin):
    """At several pyramid levels, um/px and offsets; coordinates have two decimals."""
    codes = mask(seed)
    np.testing.assert_array_equal(again(tmp_path, codes, simplify=0, scale=scale, origin=origin), codes)


@pytest.mark.parametrize("simplify", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("seed", range(5))
def test_simplified_masks_differ_by_no_more_than_was_asked(tmp_path, seed, simplify):
    codes = mask(seed)
    read = again(tmp_path, codes, simplify=simplify, scale=(2.0, 2.0))
    assert (
        border_distance(codes)[read != codes].max(initial=0) <= simplify + 1
    )  # px of the mask; a px is reached at its centre


def polygons(rng, side):
    """Up to six stars with holes, of random size and place, some beyond the window."""
    found = []
    for _ in range(rng.integers(1, 7)):
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 30)))
        if np.diff(angles, append=angles[0] + 2 * np.pi).max() >= np.pi:  # the centre lies outside
            continue
        ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.3, 1, (len(angles), 1))
        star = shapely.Polygon(ring * rng.uniform(2, side / 2) + rng.uniform(-5, side + 5, 2))
        if rng.random() < 0.5:
            star = star.difference(shapely.affinity.scale(star, 0.4, 0.4))
        if star.is_valid and star.area:
            found.append(star)
    return found


def expected_codes(areas, corner, size, scale, fill):
    """The smallest area around the centre of each px, by shapely's own test of points."""
    y, x = ((corner[axis] + np.arange(size[axis]) + 0.5) * scale[axis] for axis in (0, 1))
    points = np.broadcast_arrays(x[None], y[:, None])
    codes = np.full(size, fill, np.uint8)
    for area, code in sorted(areas, key=lambda pair: -pair[0].area):
        codes[shapely.contains_xy(area, *points)] = code
    return codes


@pytest.mark.parametrize("sets", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_polygons_cover_the_pixels_whose_centres_lie_in_them(sets):
    rng, size = np.random.default_rng(sets), (48, 40)
    for _ in range(sets):
        scale = tuple(rng.uniform(0.5, 4, 2))
        corner = tuple(rng.integers(0, 50, 2).tolist())
        offset = corner[1] * scale[1], corner[0] * scale[0]
        areas = [
            (shapely.affinity.translate(one, *offset), int(code))
            for one, code in zip(polygons(rng, 40 * min(scale)), rng.integers(0, 200, 6), strict=False)
        ]
        drawn = rasterise(areas, corner=corner, size=size, scale=scale, fill=255)
        np.testing.assert_array_equal(drawn, expected_codes(areas, corner, size, scale, 255))
