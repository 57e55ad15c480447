import pytest

from pathseg.store.format.size import BlockShape, fitting_layouts, format_bytes, patch_bytes

CHANNELS = (960, 960, 960, 960, 576, 576, 576, 384, 384, 384, 192, 192, 192)
SIDES = (8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64, 64)  # the full-size model with the VQ-f4 first stage
FULL = {block: BlockShape(c, side) for block, (c, side) in enumerate(zip(CHANNELS, SIDES, strict=True))}


@pytest.mark.parametrize(("layout", "values"), [("image", 478_150_656), ("grid", 29_884_416), ("native", 6_033_408)])
def test_the_full_size_model_takes_the_published_bytes(layout, values):
    assert sum(patch_bytes(FULL, layout=layout, dtype="float16").values()) == 2 * values
    assert sum(patch_bytes(FULL, layout=layout, dtype="float32").values()) == 4 * values


def test_the_layouts_that_fit_are_named():
    fit = {"layouts": ("grid", "native"), "patches": 10, "dtype": "float16"}
    assert fitting_layouts(FULL, free_bytes=700_000_000, **fit) == ["grid", "native"]
    assert fitting_layouts(FULL, free_bytes=500_000_000, **fit) == ["native"]
    assert fitting_layouts(FULL, free_bytes=5_000_000, **fit) == []


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (59_768_832, "59.8 MB"),
        (956_301_312, "956 MB"),
        (1.4e12, "1.4 TB"),
        (999_999, "1.0 MB"),
        (5e15, "5000 TB"),
    ],
)
def test_sizes_are_written_short(size_bytes, text):
    assert format_bytes(size_bytes) == text


def test_a_compressing_packing_takes_its_measured_share_and_says_about():
    exact = sum(patch_bytes(FULL, layout="native", dtype="float16").values())
    for packing, ratio in (("none", 1), ("lossless", 1.12), ("rounded", 1.77)):
        expected = sum(patch_bytes(FULL, layout="native", dtype="float16", packing=packing).values())
        assert expected == pytest.approx(exact / ratio, rel=1e-6)
        assert format_bytes(expected, packing=packing).startswith("about ") == (packing != "none")


def test_a_layout_that_fits_only_when_packed_is_named():
    fit = {"layouts": ("grid",), "patches": 10, "dtype": "float16", "free_bytes": 500_000_000}
    assert fitting_layouts(FULL, packing="rounded", **fit) == ["grid"]
    assert fitting_layouts(FULL, packing="lossless", **fit) == []
