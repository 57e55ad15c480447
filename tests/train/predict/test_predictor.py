import json
import time

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from pathseg.extract.inputs.images import open_input_image
from pathseg.store.sampling import Sampling
from pathseg.train.heads.pixel_ensemble import PixelEnsemble
from pathseg.train.predict.config import PredictConfig
from pathseg.train.predict.ground_truth import Truth
from pathseg.train.predict.predictor import Predictor, predict_all, summary
from pathseg.train.predict.sliding_window import Axis

GLASS, GLAND, STROMA = (243, 243, 243), (80, 60, 150), (220, 130, 180)
ALL = ("mask", "overlay", "geojson", "probabilities")


def tissue(height, width, corner=0):
    """Stroma with a gland in the middle, from `corner` on; glass before it."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = GLASS
    pixels[corner:, corner:] = STROMA
    y, x = np.mgrid[:height, :width]
    middle = (corner + height) / 2, (corner + width) / 2
    inside = np.hypot(y - middle[0], x - middle[1]) < (min(height, width) - corner) / 4
    pixels[inside] = GLAND
    return pixels, inside


@pytest.fixture
def image(tmp_path):
    pixels, inside = tissue(400, 560)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png", inside


@pytest.fixture
def slide(tmp_path):
    """1200x1000 px of glass and tissue at 0.5 um/px."""
    pixels, inside = tissue(1200, 1000, corner=520)
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), resolution=(2e4, 2e4), resolutionunit="CENTIMETER", metadata=None)
    return path, inside


@pytest.fixture
def predictor(tmp_path, colour_head, colour_features):
    def make(out="out", formats=ALL, truth=None, head=None, features=colour_features, **settings):
        head = head or colour_head()
        return Predictor(head, features, tmp_path / out, PredictConfig(**settings), formats, truth)

    return make


def predict(predictor, path):
    return predictor.predict(open_input_image(path, predictor.head.sampling))


def files(folder):
    """All files of a folder with their bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_image_is_segmented_up_to_a_cell_at_the_border(predictor, image, tmp_path):
    path, inside = image
    predict(predictor(), path)
    mask = np.asarray(Image.open(tmp_path / "out" / "mask" / "image.png"))
    assert mask.shape == inside.shape
    assert (mask != inside).mean() < 0.01


def test_a_slide_is_segmented_and_its_glass_is_not_computed(predictor, slide, tmp_path, colour_features):
    path, inside = slide
    record = predict(predictor(), path)
    mask = tifffile.imread(tmp_path / "out" / "mask" / "slide.tif", key=0)
    assert mask.shape == inside.shape
    assert (mask != inside).mean() < 0.01
    assert record["windows"] < record["windows_in_all"]
    assert colour_features.patches == record["windows"]


def test_all_is_computed_when_tissue_is_not_looked_for(predictor, slide):
    record = predict(predictor(tissue="all"), slide[0])
    assert record["windows"] == record["windows_in_all"]


def test_objects_are_counted_and_measured(predictor, slide):
    path, inside = slide
    found = predict(predictor(), path)["objects"]["classes"]["gland"]
    assert found["count"] == 1
    assert found["area_um2"] == pytest.approx(inside.sum() * 0.25, rel=0.02)


def test_probabilities_lie_in_an_array_of_the_slides_size(predictor, slide, tmp_path):
    predict(predictor(), slide[0])
    group = zarr.open_group(tmp_path / "out" / "probabilities" / "slide.zarr", mode="r")
    values = np.asarray(group["probabilities"][:])
    assert values.shape == (2, 1200, 1000)
    assert group.attrs["classes"] == ["background", "gland"]
    counted = values[:, 900:, 900:].astype(np.float32)
    np.testing.assert_allclose(counted.sum(0), 1, atol=2e-3)


def test_only_the_formats_asked_for_are_written(predictor, image, tmp_path):
    predict(predictor(formats=("geojson",)), image[0])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"geojson", "_done"}


def test_nothing_of_the_work_stays(predictor, slide, tmp_path):
    predict(predictor(), slide[0])
    assert not (tmp_path / "out" / "_work" / "slide").exists()
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_predicting_again_computes_nothing(predictor, slide, colour_features):
    predict(predictor(), slide[0])
    before = colour_features.patches
    predict(predictor(), slide[0])
    assert colour_features.patches == before


def test_a_format_that_was_left_out_can_be_had_later(predictor, image, tmp_path, colour_features):
    predict(predictor(formats=("mask",)), image[0])
    predict(predictor(formats=("geojson",)), image[0])
    before = colour_features.patches
    predict(predictor(formats=("mask", "geojson")), image[0])
    assert colour_features.patches == before
    assert (tmp_path / "out/mask/image.png").is_file()
    assert (tmp_path / "out/geojson/image.geojson").is_file()


def test_another_making_in_the_same_folder_is_refused_with_both_values(predictor, slide):
    predict(predictor(), slide[0])
    with pytest.raises(ValueError, match="overlap is 64 there, 32 asked for; pass another --out"):
        predict(predictor(overlap=32), slide[0])


def test_other_outlines_are_refused_also_after_a_format_was_added(predictor, image):
    predict(predictor(formats=("geojson",)), image[0])
    predict(predictor(formats=("mask",)), image[0])
    with pytest.raises(ValueError, match="smallest is 100 there, 5 asked for"):
        predict(predictor(formats=("geojson",), smallest=5), image[0])


def test_the_objects_stay_known_after_a_format_was_added(predictor, image):
    first = predict(predictor(formats=("geojson",)), image[0])
    assert predict(predictor(formats=("mask",)), image[0])["objects"] == first["objects"]


def test_a_result_that_was_deleted_is_made_again(predictor, image, tmp_path):
    predict(predictor(), image[0])
    (tmp_path / "out/overlay/image.jpg").unlink()
    predict(predictor(), image[0])
    assert (tmp_path / "out/overlay/image.jpg").is_file()


def test_another_image_of_the_same_name_and_size_is_refused(predictor, tmp_path):
    for folder, red in (("a", 40), ("b", 200)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (300, 300), (red, 100, 150)).save(tmp_path / folder / "same.bmp")
    predict(predictor(), tmp_path / "a" / "same.bmp")
    with pytest.raises(ValueError, match=r"content is .*pass another --out"):
        predict(predictor(), tmp_path / "b" / "same.bmp")


def test_another_resolution_of_the_same_pixels_is_refused(predictor, image, colour_head):
    predict(predictor(), image[0])
    head = colour_head(sampling=Sampling(size=(256, 256), mpp=0.25, resized=False, original_px=(256, 256)))
    with pytest.raises(ValueError, match=r"mpp is 0\.5 there, 0\.25 asked for"):
        predict(predictor(head=head), image[0])


def test_patches_are_numbered_by_window_and_place_for_the_noise(predictor, colour_head, colour_features, tmp_path):
    Image.fromarray(tissue(512, 1000)[0]).save(tmp_path / "wide.png")
    predict(predictor(head=colour_head(size=(512, 512))), tmp_path / "wide.png")
    assert colour_features.numbers == list(range(12))  # three windows of 2x2 patches


class Stop(Exception):
    pass


def stopping(features, after):
    def cut_off(patches, numbers, image_id):
        if cut_off.left == 0:
            raise Stop
        cut_off.left -= 1
        return features(patches, numbers, image_id)

    cut_off.left = after
    return cut_off


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_slide_that_was_cut_off_goes_on_with_the_same_result(predictor, slide, tmp_path, colour_features, batch_size):
    settings = {"batch_size": batch_size, "tissue": "all"}
    predict(predictor("whole", **settings), slide[0])
    in_all = colour_features.patches
    with pytest.raises(Stop):
        predict(predictor("cut", features=stopping(colour_features, 2), **settings), slide[0])
    before = colour_features.patches
    predict(predictor("cut", **settings), slide[0])
    assert colour_features.patches - before == in_all - 2 * batch_size
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_slide_cut_off_while_results_are_written_computes_nothing_again(
    predictor, slide, tmp_path, colour_features, monkeypatch
):
    predict(predictor("whole"), slide[0])
    before = colour_features.patches
    monkeypatch.setattr("pathseg.train.predict.outputs.write_pyramid", lambda *a, **k: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        predict(predictor("cut"), slide[0])
    monkeypatch.undo()
    assert not (tmp_path / "cut" / "_done").exists()
    predict(predictor("cut"), slide[0])
    assert colour_features.patches == 2 * before
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_no_seam_is_seen_where_windows_meet(predictor, tmp_path, colour_head):
    """Probabilities of a smooth field: the step between neighbouring pixels at window borders and elsewhere."""
    y, x = np.mgrid[:700, :900]
    red = 128 + 12 * np.sin(y / 80) + 12 * np.cos(x / 110)
    pixels = np.stack([red, red * 0 + 120, red * 0 + 180], axis=-1).round().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "smooth.png")
    predict(predictor(formats=("probabilities",)), tmp_path / "smooth.png")
    values = zarr.open_group(tmp_path / "out" / "probabilities" / "smooth.zarr", mode="r")["probabilities"][1]
    steps = np.abs(np.diff(values.astype(np.float32), axis=1))  # between x and x + 1
    near = np.zeros(899, bool)
    for border in Axis(900, 256, 64).borders:
        near[int(border) - 40 : int(border) + 40] = True
    assert steps[:, near].mean() <= 1.1 * steps[:, ~near].mean()
    assert steps[:, near].max() <= 1.1 * steps[:, ~near].max()


def test_an_image_alone_and_with_others_in_a_batch_gets_the_same_answer(predictor, image, tmp_path):
    for name, batch_size in (("one", 1), ("many", 9)):
        predict(predictor(name, batch_size=batch_size), image[0])
    a, b = (np.asarray(Image.open(tmp_path / name / "mask" / "image.png")) for name in ("one", "many"))
    np.testing.assert_array_equal(a, b)


def test_a_slide_of_glass_alone_has_an_empty_mask_and_the_flag_is_named(predictor, tmp_path):
    pixels = np.full((600, 600, 3), 243, np.uint8)
    path = tmp_path / "glass.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), resolution=(2e4, 2e4), resolutionunit="CENTIMETER", metadata=None)
    record = predict(predictor(), path)
    assert record["windows"] == 0
    assert not tifffile.imread(tmp_path / "out" / "mask" / "glass.tif", key=0).any()
    assert "--tissue all" in summary([record], tmp_path / "out")


def test_what_cannot_be_read_is_set_aside_and_the_rest_goes_on(predictor, image, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    one, paths = predictor(), [tmp_path / "broken.png", image[0]]
    records, failures = predict_all(one, paths, lambda p: open_input_image(p, one.head.sampling), lambda *a: None)
    assert [record["id"] for record in records] == ["image"]
    (line,) = failures
    assert "broken.png" in line
    assert "\n" not in line


def test_a_truth_gives_the_reports_scores(predictor, image, tmp_path):
    path, inside = image
    judge = predictor(truth=Truth("masks", lambda image_id: inside.astype(np.uint8) * 255))
    records, _ = predict_all(judge, [path], lambda p: open_input_image(p, judge.head.sampling), lambda *a: None)
    mask = np.asarray(Image.open(tmp_path / "out" / "mask" / "image.png"))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["scores"]["accuracy"] == pytest.approx((mask == inside).mean())
    assert metrics["images"] == 1
    assert "1 images with a mask: accuracy" in summary(records, tmp_path / "out")


def test_a_mask_that_came_or_changed_since_is_scored(predictor, image):
    path, inside = image
    masks = [None, inside.astype(np.uint8), np.zeros_like(inside, np.uint8)]
    records = [predict(predictor(truth=Truth("masks", lambda image_id, mask=mask: mask)), path) for mask in masks]
    assert records[0]["confusion"] is None
    assert [np.sum(record["confusion"], axis=1)[1] for record in records[1:]] == [inside.sum(), 0]


def test_scores_of_an_earlier_run_are_not_shown_where_none_are_asked_for(predictor, image):
    path, inside = image
    predict(predictor(truth=Truth("masks", lambda image_id: inside.astype(np.uint8))), path)
    assert predict(predictor(), path)["confusion"] is None


def test_the_slide_is_not_closed_while_its_next_windows_are_read(predictor, slide, colour_features):
    reading = []

    def slow(picture):
        read = picture.read

        def one(*place):
            reading.append(place)
            time.sleep(0.05)
            pixels = read(*place)
            reading.pop()
            return pixels

        picture.read = one
        return picture

    judge = predictor(features=stopping(colour_features, 1), batch_size=1, tissue="all")
    picture = slow(open_input_image(slide[0], judge.head.sampling))
    with pytest.raises(Stop) as caught:
        judge.predict(picture)
    assert caught.tb is not None  # it holds the frames
    assert not reading


def test_glass_is_computed_where_it_is_scored_and_no_class_stands_for_it(predictor, slide, colour_head):
    head = colour_head(classes=("stroma", "gland"))
    truth = Truth("masks", lambda image_id: slide[1].astype(np.uint8))
    record = predict(predictor(head=head, truth=truth), slide[0])
    assert record["windows"] == record["windows_in_all"]
    assert np.sum(record["confusion"]) == 1200 * 1000


def test_an_overlap_that_does_not_fit_the_head_is_refused_before_anything_runs(predictor):
    with pytest.raises(ValueError, match="--overlap"):
        predictor(overlap=100)


def test_an_uncertainty_that_a_head_gives_is_written_beside_the_probabilities(predictor, slide, tmp_path, colour_head):
    predict(predictor(head=colour_head(head=PixelEnsemble({0: 3}, 2)), tissue="all"), slide[0])
    group = zarr.open_group(tmp_path / "out" / "probabilities" / "slide.zarr", mode="r")
    unsure = np.asarray(group["uncertainty"][:])
    assert unsure.shape == group["probabilities"].shape[1:]
    assert 0 <= unsure.min() <= unsure.max() <= np.log(2)  # of two classes
