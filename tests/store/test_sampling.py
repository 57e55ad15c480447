import math

import pytest

from pathseg.store.contents import ImageEntry
from pathseg.store.key import Preprocessing
from pathseg.store.resolution import require_plausible_mpp
from pathseg.store.runtime.json_records import decode_json, encode_json
from pathseg.store.sampling import Sampling


def test_without_a_resize_the_resolution_is_that_of_the_images(toy_contents):
    sampling = Sampling.of(toy_contents())
    assert (sampling.size, sampling.mpp, sampling.resized) == ((256, 512), 0.5, False)


def test_after_a_resize_it_is_the_mean_of_both_axes(toy_contents, toy_key):
    # GlaS as the paper takes it: 775x522 px of 0.62 um brought to 768x768 px: 0.6257 across, 0.4214 down
    resized = toy_key(size=(768, 768), mpp=0.62, preprocessing=Preprocessing(resized=True))
    images = tuple(ImageEntry(f"{part}_1", part, 522, 775) for part in ("train", "test"))
    sampling = Sampling.of(toy_contents(key=resized, images=images))
    assert sampling.mpp == pytest.approx(math.sqrt(0.62567 * 0.42141), rel=1e-4)
    assert sampling.original_px == (522, 775)
    assert sampling.mpp_axes == pytest.approx((0.42141, 0.62567), rel=1e-4)
    assert sampling.stretch == pytest.approx(775 / 522)
    assert sampling.mpp_text() == "0.626 um/px across, 0.421 um/px down"


@pytest.mark.parametrize("mpp", [math.inf, math.nan, 1e9, 1e-9, 352.8, 1000.0])
def test_a_resolution_that_no_scan_has_is_refused_with_value_and_flag(mpp):
    with pytest.raises(ValueError, match="--mpp") as error:
        require_plausible_mpp(mpp, source="a.tif", flag="--mpp")
    assert f"a.tif: {mpp:g} um/px" in str(error.value)


def test_an_unknown_resolution_stays_unknown(toy_contents, toy_key):
    assert Sampling.of(toy_contents(key=toy_key(mpp=None, preprocessing=Preprocessing(resized=True)))).mpp is None


def test_a_sampling_comes_back_from_json_as_it_was(toy_contents):
    sampling = Sampling.of(toy_contents())
    assert decode_json(encode_json(sampling), Sampling, source="config.json") == sampling
