import dataclasses
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr
from PIL import Image

from pathseg.extract.inputs.images import open_input_image
from pathseg.store.runtime.file_lock import file_lock
from pathseg.store.sampling import Sampling
from pathseg.train.config import Layer
from pathseg.train.heads.pixel_ensemble import PixelEnsemble
from pathseg.train.metrics.object import ObjectRule
from pathseg.train.predict.config import PredictConfig
from pathseg.train.predict.feature_sources import ModelFeatures, computed_features
from pathseg.train.predict.ground_truth import GroundTruth
from pathseg.train.predict.predictor import Predictor, predict, summary
from pathseg.train.predict.records import PredictedImage, PredictionMetrics
from pathseg.train.predict.sliding_window import WindowAxis

WHITE, GLAND, STROMA = (243, 243, 243), (80, 60, 150), (220, 130, 180)
HEADS_V1 = Path(__file__).parents[2] / "fixtures" / "workspace-v1" / "heads"  # written by release 0.1.0
ALL = ("mask", "overlay", "geojson", "probabilities")


def tissue(height, width, corner=0):
    """Stroma with a gland in the middle, from `corner` on; white background before it."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = WHITE
    pixels[corner:, corner:] = STROMA
    y, x = np.mgrid[:height, :width]
    middle = (corner + height) / 2, (corner + width) / 2
    inside = np.hypot(y - middle[0], x - middle[1]) < (min(height, width) - corner) / 3
    pixels[inside] = GLAND
    return pixels, inside


@pytest.fixture
def image(tmp_path):
    pixels, inside = tissue(400, 560)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png", inside


@pytest.fixture
def slide(tmp_path):
    """800x700 px, upper left without tissue, at 0.5 um/px."""
    pixels, inside = tissue(800, 700, corner=420)
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), resolution=(2e4, 2e4), resolutionunit="CENTIMETER", metadata=None)
    return path, inside


@pytest.fixture
def predictor(tmp_path, colour_head, colour_features):
    def make(out="out", formats=ALL, mask=None, head=None, features=colour_features, **settings):
        ground_truth = None if mask is None else GroundTruth("masks", mask)
        config = PredictConfig(formats=formats, **settings)
        head = head or colour_head()
        return Predictor(head, ModelFeatures(head, (features,), config), tmp_path / out, config, ground_truth)

    return make


def predict_one(predictor, path):
    return predictor.predict_image(open_input_image(path, predictor.head.sampling))


def files(folder):
    """All files of a folder with their bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_image_is_segmented_up_to_a_cell_at_the_border(predictor, image, tmp_path):
    path, inside = image
    predict_one(predictor(), path)
    mask = np.asarray(Image.open(tmp_path / "out" / "mask" / "image.png"))
    assert mask.shape == inside.shape
    assert (mask != inside).mean() < 0.01


def test_a_slide_is_segmented_and_windows_without_tissue_are_not_computed(predictor, slide, tmp_path, colour_features):
    path, inside = slide
    record = predict_one(predictor(), path)
    mask = tifffile.imread(tmp_path / "out" / "mask" / "slide.tif", key=0)
    assert mask.shape == inside.shape
    assert (mask != inside).mean() < 0.01
    assert record.windows < record.windows_total
    assert colour_features.patches == record.windows


def test_a_slides_mask_may_be_ome_zarr_with_the_codes_of_the_tiff(predictor, slide, tmp_path):
    for pyramid in ("tiff", "ome-zarr"):
        predict_one(predictor(pyramid=pyramid, formats=("mask",)), slide[0])
    group = zarr.open_group(tmp_path / "out" / "mask" / "slide.ome.zarr", mode="r")
    assert sorted(group.array_keys()) == ["0", "1"]
    for level in (0, 1):
        codes = tifffile.imread(tmp_path / "out" / "mask" / "slide.tif", key=level)
        np.testing.assert_array_equal(group[str(level)][:], codes)
    (multiscale,) = group.attrs["ome"]["multiscales"]
    assert multiscale["name"] == "slide"
    assert multiscale["datasets"][0]["coordinateTransformations"][0]["scale"] == [0.5, 0.5]


def test_all_is_computed_when_tissue_is_not_looked_for(predictor, slide):
    record = predict_one(predictor(tissue="all"), slide[0])
    assert record.windows == record.windows_total


def test_objects_are_counted_and_measured(predictor, slide):
    path, inside = slide
    found = predict_one(predictor(), path).objects.classes["gland"]
    assert found.count == 1
    assert found.area_um2 == pytest.approx(inside.sum() * 0.25, rel=0.02)


def test_objects_carry_how_sure_they_are(predictor, slide, tmp_path):
    path, inside = slide
    predict_one(predictor(), path)
    (feature,) = json.loads((tmp_path / "out" / "geojson" / "slide.geojson").read_text())["features"]
    sure = feature["properties"]["measurements"]
    group = zarr.open_group(tmp_path / "out" / "probabilities" / "slide.zarr", mode="r")
    probabilities = np.asarray(group["probabilities"][:]).astype(np.float64)
    gland = probabilities[:, (probabilities[1] > 0.5) & inside]
    assert sure["Mean probability"] == pytest.approx(gland[1].mean(), abs=0.01)
    assert sure["Mean entropy (nats)"] == pytest.approx(-(gland * np.log(gland)).sum(axis=0).mean(), abs=0.01)


def test_files_have_the_colours_that_the_classes_have_already(predictor, slide, tmp_path, colour_head):
    predict_one(predictor(head=colour_head(colours=(None, "#0080FF"))), slide[0])
    (feature,) = json.loads((tmp_path / "out" / "geojson" / "slide.geojson").read_text())["features"]
    assert feature["properties"]["classification"]["color"] == [0, 128, 255]
    with tifffile.TiffFile(tmp_path / "out" / "mask" / "slide.tif") as file:
        assert (file.pages[0].colormap[:, 1] // 257).tolist() == [0, 128, 255]
    red, _, blue = np.asarray(Image.open(tmp_path / "out" / "overlay" / "slide.jpg")).astype(int).transpose(2, 0, 1)
    assert (blue - red > 200).any()  # the outline


def test_objects_of_another_type_are_not_mixed_in_one_folder(predictor, image, tmp_path):
    predict_one(predictor(objects_as="detections"), image[0])
    (feature,) = json.loads((tmp_path / "out" / "geojson" / "image.geojson").read_text())["features"]
    assert feature["properties"]["objectType"] == "detection"
    with pytest.raises(ValueError, match=r"objects_as is detections there, annotations asked for.*--out"):
        predict_one(predictor(), image[0])


def test_outlines_of_another_origin_are_not_mixed_in_one_folder(predictor, image):
    predict_one(predictor(outline_origin="file"), image[0])
    with pytest.raises(ValueError, match=r"outline_origin is file there, bounds asked for.*--out"):
        predict_one(predictor(), image[0])


@pytest.fixture
def spotted(tmp_path):
    """A gland of 200x200 px with a hole of 40x40, and a speck of 40x40 px beside it."""
    pixels = np.full((256, 512, 3), STROMA, np.uint8)
    pixels[20:220, 20:220], pixels[100:140, 100:140], pixels[100:140, 400:440] = GLAND, STROMA, GLAND
    Image.fromarray(pixels).save(tmp_path / "spotted.png")
    return tmp_path / "spotted.png"


def outlined(predictor, path):
    """Area and number of holes of each object, and the mask."""
    predict_one(predictor, path)
    features = json.loads((predictor.out / "geojson" / "spotted.geojson").read_text())["features"]
    measured = [feature["properties"]["measurements"] for feature in features]
    areas = [values.get("Area µm^2", values.get("Area px^2")) for values in measured]
    mask = np.asarray(Image.open(predictor.out / "mask" / "spotted.png"))
    return sorted(zip(areas, [values["Holes"] for values in measured], strict=True)), mask


def test_objects_are_those_of_the_rule_that_the_run_chose_unless_raw_ones_are_wanted(predictor, colour_head, spotted):
    head = colour_head(object_rule=ObjectRule(1601, fill_holes=True))
    raw, as_predicted = outlined(predictor("raw", head=head, objects="raw"), spotted)
    tuned, mask = outlined(predictor("tuned", head=head), spotted)
    small, large, filled = (pytest.approx(px / 4, rel=0.1) for px in (40 * 40, 200 * 200 - 40 * 40, 200 * 200))  # um2
    assert raw == [(small, 0), (large, 1)]
    assert tuned == [(filled, 0)] and tuned[0][0] > raw[1][0]
    np.testing.assert_array_equal(mask, as_predicted)
    assert len(outlined(predictor("less", head=colour_head(object_rule=ObjectRule(1200))), spotted)[0]) == 2


@pytest.mark.parametrize("mpp", [0.5, None])
def test_the_least_size_is_in_px_of_the_training_files_whatever_they_were_resized_to(
    predictor, colour_head, spotted, mpp
):
    sampling = Sampling(size=(512, 1024), mpp=mpp, resized=True, original_px=(256, 512))
    kept, dropped = (
        outlined(predictor(str(least), head=colour_head(sampling=sampling, object_rule=ObjectRule(least))), spotted)[0]
        for least in (1200, 1700)
    )
    assert (len(kept), len(dropped)) == (2, 1)


def test_tuned_and_raw_objects_are_not_mixed_in_one_folder(predictor, colour_head, spotted):
    tuned = colour_head(object_rule=ObjectRule(1601))
    predict_one(predictor(head=tuned, objects="raw"), spotted)  # as a release that knew no tuned ones
    with pytest.raises(ValueError, match=r"objects is any size there, at least 1,601 px asked for.*--out"):
        predict_one(predictor(head=tuned), spotted)
    predict_one(predictor("tuned", head=tuned), spotted)
    with pytest.raises(ValueError, match=r"objects is at least 1,601 px there, any size asked for"):
        predict_one(predictor("tuned", head=tuned, objects="raw"), spotted)


def test_a_note_says_that_objects_are_tuned_and_masks_are_not(predictor, colour_head, spotted):
    head = colour_head(object_rule=ObjectRule(1601))
    (note,) = predictor(head=head).predict_all([spotted], open_input_image).notes
    assert "at least 1,601 px" in note and "masks are as predicted" in note and "--objects raw" in note
    assert predictor("raw", head=head, objects="raw").predict_all([spotted], open_input_image).notes == ()


def glas_like(colour_head):
    """A head on images of 522x775 px of 0.62 um/px, resized to 256x256 px."""
    return colour_head(sampling=Sampling((256, 256), 0.62 * (522 * 775) ** 0.5 / 256, True, (522, 775)))


def test_areas_rest_on_the_resolution_in_the_tags_of_an_image(predictor, colour_head, tmp_path):
    pixels, inside = tissue(600, 900)
    Image.fromarray(pixels).save(tmp_path / "tagged.tif", dpi=(101_600, 101_600))  # 0.25 um/px
    notes = []
    result = predictor(head=glas_like(colour_head)).predict_all(
        [tmp_path / "tagged.tif"], open_input_image, lambda *window: notes.append(window), notes.append
    )
    (record,) = result.images
    assert record.objects.classes["gland"].area_um2 == pytest.approx(inside.sum() * 0.0625, rel=0.1)
    assert record.mpp_from == "tag" and "900x600 px, 0.25 um/px (stated in the file)" in summary(result)
    assert "0.25 um/px" in notes[0] and "0.62" in notes[0] and notes[2:] == [("tagged", 0, 1), ("tagged", 1, 1)]
    assert notes[0] in result.notes


def test_an_assumed_resolution_is_told_until_a_flag_states_it(predictor, colour_head, image, tmp_path):
    path = image[0]

    def measurements(out):
        (feature,) = json.loads((tmp_path / out / "geojson" / "image.geojson").read_text())["features"]
        return feature["properties"]["measurements"]

    result = predictor(head=glas_like(colour_head)).predict_all([path], open_input_image)
    values = measurements("out")
    assert values["µm/px assumed"] == pytest.approx(0.62, abs=1e-3) and values["Area µm^2"] > 0
    assert "0.62 um/px (assumed" in summary(result) and "--mpp" in summary(result)
    assert json.loads((tmp_path / "out" / "_done" / "image.json").read_text())["mpp_from"] == "training"

    plain = predictor(out="plain")
    plain.predict_all([path], open_input_image)
    assert "µm/px assumed" in measurements("plain")
    result = plain.predict_all([path], lambda path, sampling: open_input_image(path, sampling, file_mpp=0.5))
    assert result.images[0].mpp_from == "flag" and "µm/px assumed" not in measurements("plain")

    later = predictor(out="later")
    later.predict_all([path], open_input_image)
    stated = partial(open_input_image, file_mpp=0.5)
    (record,) = predictor(out="later", formats=("mask",)).predict_all([path], stated).images
    assert "geojson" not in record.formats and record.mpp_from == "flag"  # the file that is there says assumed
    later.predict_all([path], stated)
    assert "µm/px assumed" not in measurements("later")


def told_before_windows(predictor, path, **flags):
    """The notes before the first window, all of which the result must hold, and whether windows came after them."""
    events = []
    result = predictor.predict_all(
        [path],
        lambda path, sampling: open_input_image(path, sampling, **flags),
        lambda image_id, completed, total: events.append((completed, total)),
        events.append,
    )
    assert not result.failures
    notes = [event for event in events if isinstance(event, str)]
    assert events[: len(notes)] == notes and len(events) > len(notes) and set(notes) <= set(result.notes)
    return [note for note in notes if "stretched" in note]


def test_a_slide_for_a_head_of_stretched_tissue_is_warned_of_before_its_first_window(predictor, colour_head, slide):
    (note,) = told_before_windows(predictor(head=glas_like(colour_head)), slide[0])
    assert all(
        words in note for words in ("slide.tif", "not stretched", "1.48 times down", "by-colour", "--keep-aspect")
    )


def test_an_image_brought_to_a_resolution_is_warned_of_like_a_slide(predictor, colour_head, image):
    head = glas_like(colour_head)  # its files had 0.62 um/px: with that, images are stretched as they were
    assert told_before_windows(predictor(head=head, out="same"), image[0], file_mpp=0.62) == []
    (note,) = told_before_windows(predictor(head=head), image[0], file_mpp=0.5)
    assert "image.png" in note and "not stretched" in note and "1.48 times down" in note


@pytest.mark.parametrize(
    ("size", "words"),
    [((522, 775), None), ((453, 589), None), ((775, 522), "1.48 times across"), ((640, 640), "not stretched")],
)
def test_a_resized_image_is_warned_of_where_its_shape_is_far_from_the_training_images(
    predictor, colour_head, tmp_path, size, words
):
    Image.fromarray(tissue(*size)[0]).save(tmp_path / "image.png")
    notes = told_before_windows(predictor(head=glas_like(colour_head)), tmp_path / "image.png")
    assert len(notes) == (words is not None) and all(words in note for note in notes)


def test_heads_of_tissue_that_is_not_stretched_warn_of_no_slide_or_image(predictor, slide, image):
    assert told_before_windows(predictor(out="a"), slide[0]) == []
    assert told_before_windows(predictor(out="b"), image[0], file_mpp=0.25) == []


def test_warnings_of_one_kind_are_told_once_with_the_number_of_images(predictor, tmp_path):
    for name in ("a", "b"):
        Image.fromarray(tissue(256, 256)[0]).save(tmp_path / f"{name}.png", dpi=(72, 72))
    told = []
    result = predictor().predict_all([tmp_path / "a.png", tmp_path / "b.png"], open_input_image, on_note=told.append)
    assert len(told) == 1 and "352.7 um/px" in told[0]
    assert [note for note in result.notes if note.startswith(told[0])] == [f"{told[0]} (and so for 2 images in all)"]


def test_a_record_without_the_source_of_um_per_px_still_reads(predictor, image, tmp_path):
    predict_one(predictor(), image[0])
    path = tmp_path / "out" / "_done" / "image.json"
    content = json.loads(path.read_text())
    del content["mpp_from"]
    path.write_text(json.dumps(content))
    result = predictor().predict_all([image[0]], open_input_image)
    assert "560x400 px, 6 of" in summary(result) and "mpp_from" not in json.loads(path.read_text())


def test_probabilities_lie_in_an_array_of_the_slides_size(predictor, slide, tmp_path):
    predict_one(predictor(), slide[0])
    group = zarr.open_group(tmp_path / "out" / "probabilities" / "slide.zarr", mode="r")
    values = np.asarray(group["probabilities"][:])
    assert values.shape == (2, 800, 700)
    assert group.attrs["classes"] == ["background", "gland"]
    counted = values[:, 600:, 600:].astype(np.float32)
    np.testing.assert_allclose(counted.sum(0), 1, atol=2e-3)


def test_only_the_wanted_formats_are_written(predictor, image, tmp_path):
    predict_one(predictor(formats=("geojson",)), image[0])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"geojson", "_done"}


def test_nothing_of_the_work_stays(predictor, slide, tmp_path):
    predict_one(predictor(), slide[0])
    assert not (tmp_path / "out" / "_work" / "slide").exists()
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_predicting_again_computes_nothing(predictor, slide, colour_features):
    predict_one(predictor(), slide[0])
    before = colour_features.patches
    predict_one(predictor(), slide[0])
    assert colour_features.patches == before


def test_a_format_that_was_left_out_can_be_had_later(predictor, image, tmp_path, colour_features):
    predict_one(predictor(formats=("mask",)), image[0])
    predict_one(predictor(formats=("geojson",)), image[0])
    before = colour_features.patches
    predict_one(predictor(formats=("mask", "geojson")), image[0])
    assert colour_features.patches == before
    assert (tmp_path / "out/mask/image.png").is_file()
    assert (tmp_path / "out/geojson/image.geojson").is_file()


def test_other_settings_in_the_same_folder_are_refused_with_both_values(predictor, slide):
    predict_one(predictor(), slide[0])
    with pytest.raises(ValueError, match=r"overlap is 64.*32.*--out"):
        predict_one(predictor(overlap=32), slide[0])


def test_other_outlines_are_refused_also_after_a_format_was_added(predictor, image):
    predict_one(predictor(formats=("geojson",)), image[0])
    predict_one(predictor(formats=("mask",)), image[0])
    with pytest.raises(ValueError, match=r"smallest is 100.* 5 "):
        predict_one(predictor(formats=("geojson",), smallest=5), image[0])


def test_the_objects_stay_known_after_a_format_was_added(predictor, image):
    first = predict_one(predictor(formats=("geojson",)), image[0])
    assert predict_one(predictor(formats=("mask",)), image[0]).objects == first.objects


def test_a_result_that_was_deleted_is_made_again(predictor, image, tmp_path):
    predict_one(predictor(), image[0])
    (tmp_path / "out/overlay/image.jpg").unlink()
    predict_one(predictor(), image[0])
    assert (tmp_path / "out/overlay/image.jpg").is_file()


def test_another_image_of_the_same_name_and_size_is_refused(predictor, tmp_path):
    for folder, red in (("a", 40), ("b", 200)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (300, 300), (red, 100, 150)).save(tmp_path / folder / "same.bmp")
    predict_one(predictor(), tmp_path / "a" / "same.bmp")
    with pytest.raises(ValueError, match=r"content is .*pass another --out"):
        predict_one(predictor(), tmp_path / "b" / "same.bmp")


def test_another_resolution_of_the_same_pixels_is_refused(predictor, image, colour_head):
    predict_one(predictor(), image[0])
    head = colour_head(sampling=Sampling(size=(256, 256), mpp=0.25, resized=False, original_px=(256, 256)))
    with pytest.raises(ValueError, match=r"mpp is 0\.5.* 0\.25 "):
        predict_one(predictor(head=head), image[0])


def packed(head, *packings):
    """The head, trained from stores of these packings."""
    (source,) = head.sources
    keys = [dataclasses.replace(source.key, packing=packing) for packing in packings]
    return dataclasses.replace(head, sources=tuple(dataclasses.replace(source, key=key) for key in keys))


@pytest.mark.parametrize("packing", ["rounded", "int8"])
def test_results_of_a_release_that_did_not_round_features_are_refused(predictor, image, colour_head, tmp_path, packing):
    head, path = packed(colour_head(), packing), tmp_path / "out" / "_done" / "image.json"
    predict_one(predictor(head=head, formats=("mask",)), image[0])
    record = json.loads(path.read_text())
    assert record["about"].pop("packing") == packing
    predict_one(predictor(head=head, formats=("overlay",)), image[0])
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"packing is none there, {packing} asked for; pass another --out"):
        predict_one(predictor(head=head, formats=("mask",)), image[0])


@pytest.mark.parametrize("packing", ["none", "lossless"])
def test_a_packing_that_changes_no_value_is_not_recorded(predictor, image, colour_head, tmp_path, packing):
    predict_one(predictor(head=packed(colour_head(), packing), formats=("mask",)), image[0])
    assert "packing" not in json.loads((tmp_path / "out" / "_done" / "image.json").read_text())["about"]


def test_windows_of_a_release_that_did_not_round_features_are_computed_again(
    predictor, slide, colour_head, tmp_path, colour_features
):
    head, cut_off = packed(colour_head(), "rounded"), stopping(colour_features, 2)
    with pytest.raises(Stop):
        predict_one(predictor(head=head, features=cut_off, batch_size=1), slide[0])
    about = tmp_path / "out" / "_work" / "slide" / "about.json"
    identity = json.loads(about.read_text())
    assert identity.pop("packing") == "rounded"
    about.write_text(json.dumps(identity))
    before = colour_features.patches
    record = predict_one(predictor(head=head, batch_size=1), slide[0])
    assert colour_features.patches - before == record.windows


def test_patches_are_numbered_by_window_and_position_for_the_noise(predictor, colour_head, colour_features, tmp_path):
    Image.fromarray(tissue(512, 1000)[0]).save(tmp_path / "wide.png")
    predict_one(predictor(head=colour_head(size=(512, 512))), tmp_path / "wide.png")
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
    predict_one(predictor("whole", **settings), slide[0])
    in_all = colour_features.patches
    with pytest.raises(Stop):
        predict_one(predictor("cut", features=stopping(colour_features, 2), **settings), slide[0])
    before = colour_features.patches
    predict_one(predictor("cut", **settings), slide[0])
    assert colour_features.patches - before == in_all - 2 * batch_size
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_slide_cut_off_while_results_are_written_computes_nothing_again(
    predictor, slide, tmp_path, colour_features, monkeypatch
):
    predict_one(predictor("whole"), slide[0])
    before = colour_features.patches
    monkeypatch.setattr("pathseg.train.predict.outputs.write_pyramid", lambda *a, **k: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        predict_one(predictor("cut"), slide[0])
    monkeypatch.undo()
    assert [file.name for file in (tmp_path / "cut" / "_done").iterdir()] == ["slide.written"]
    predict_one(predictor("cut"), slide[0])
    assert colour_features.patches == 2 * before
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_no_seam_is_seen_where_windows_meet(predictor, tmp_path, colour_head):
    """Probabilities of a smooth field: the step between neighbouring pixels at window borders and elsewhere."""
    y, x = np.mgrid[:700, :900]
    red = 128 + 12 * np.sin(y / 80) + 12 * np.cos(x / 110)
    pixels = np.stack([red, red * 0 + 120, red * 0 + 180], axis=-1).round().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "smooth.png")
    predict_one(predictor(formats=("probabilities",)), tmp_path / "smooth.png")
    values = zarr.open_group(tmp_path / "out" / "probabilities" / "smooth.zarr", mode="r")["probabilities"][1]
    steps = np.abs(np.diff(values.astype(np.float32), axis=1))  # between x and x + 1
    near = np.zeros(899, bool)
    for border in WindowAxis(900, 256, 64).borders:
        near[int(border) - 40 : int(border) + 40] = True
    assert steps[:, near].mean() <= 1.1 * steps[:, ~near].mean()
    assert steps[:, near].max() <= 1.1 * steps[:, ~near].max()


def test_the_batch_size_does_not_change_a_prediction(predictor, image, tmp_path):
    for name, batch_size in (("one", 1), ("many", 9)):
        predict_one(predictor(name, batch_size=batch_size), image[0])
    a, b = (np.asarray(Image.open(tmp_path / name / "mask" / "image.png")) for name in ("one", "many"))
    np.testing.assert_array_equal(a, b)


def test_a_slide_without_tissue_has_an_empty_mask_and_the_flag_is_named(predictor, tmp_path):
    pixels = np.full((600, 600, 3), 243, np.uint8)
    path = tmp_path / "blank.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), resolution=(2e4, 2e4), resolutionunit="CENTIMETER", metadata=None)
    result = predictor().predict_all([path], open_input_image)
    assert result.images[0].windows == 0
    assert not tifffile.imread(tmp_path / "out" / "mask" / "blank.tif", key=0).any()
    assert "--tissue all" in summary(result)


def test_a_file_that_cannot_be_read_is_set_aside_and_the_rest_goes_on(predictor, image, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    result = predictor().predict_all([tmp_path / "broken.png", image[0]], open_input_image)
    assert [found.id for found in result.images] == ["image"]
    (failure,) = result.failures
    assert "broken.png" in str(failure)
    assert "\n" not in str(failure)


def test_a_ground_truth_gives_the_reports_scores(predictor, image, tmp_path):
    path, inside = image
    scored = predictor(mask=lambda image_id: inside.astype(np.uint8) * 255)
    result = scored.predict_all([path], open_input_image)
    mask = np.asarray(Image.open(tmp_path / "out" / "mask" / "image.png"))
    assert result.metrics.scores.accuracy == pytest.approx((mask == inside).mean())
    assert result.metrics.images == 1
    assert "1 images with a mask: accuracy" in summary(result)
    written = PredictionMetrics.from_json((tmp_path / "out" / "metrics.json").read_bytes(), source="metrics.json")
    assert written == result.metrics


def test_a_metrics_file_that_cannot_be_written_whole_leaves_the_old_one(predictor, image, tmp_path, monkeypatch):
    path, inside = image
    scored = predictor(mask=lambda image_id: inside.astype(np.uint8))
    scored.predict_all([path], open_input_image)
    before = (tmp_path / "out" / "metrics.json").read_bytes()

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        scored.predict_all([path], open_input_image)  # the image is complete, only its scores are written again
    assert (tmp_path / "out" / "metrics.json").read_bytes() == before
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_mask_that_is_new_or_changed_is_scored(predictor, image):
    path, inside = image
    masks = [None, inside.astype(np.uint8), np.zeros_like(inside, np.uint8)]
    found = [predict_one(predictor(mask=lambda image_id, mask=mask: mask), path) for mask in masks]
    assert found[0].confusion is None
    assert [np.sum(one.confusion, axis=1)[1] for one in found[1:]] == [inside.sum(), 0]


def test_scores_of_an_earlier_run_are_not_shown_without_ground_truth(predictor, image):
    path, inside = image
    predict_one(predictor(mask=lambda image_id: inside.astype(np.uint8)), path)
    assert predict_one(predictor(), path).confusion is None


def test_the_record_on_disk_is_the_one_returned(predictor, slide, tmp_path):
    record = predict_one(predictor(mask=lambda image_id: slide[1].astype(np.uint8)), slide[0])
    path = tmp_path / "out" / "_done" / "slide.json"
    assert PredictedImage.from_json(path.read_bytes(), source=str(path)) == record
    about = json.loads(path.read_text())["about"]
    assert sorted(about) == sorted([
        "file", "size_bytes", "content", "size", "mpp", "run", "head", "model", "overlap", "tissue", "smallest",
        "simplify", "outline",
    ])  # fmt: skip


@pytest.mark.parametrize("format_name", ["mask", "overlay", "geojson", "probabilities"])
def test_files_that_predict_did_not_write_are_named_and_left_alone(predictor, image, tmp_path, format_name):
    """As ground truth in `mask/`, where --out is the folder of the data."""
    names = {"mask": "image.png", "overlay": "image.jpg", "geojson": "image.geojson", "probabilities": "image.zarr/a"}
    path = tmp_path / "out" / format_name / names[format_name]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"{format_name}.image.* is there already.*pass another --out"):
        predict_one(predictor(), image[0])
    assert path.read_bytes() == b"mine"


def test_a_pyramid_that_predict_did_not_write_is_left_alone_beside_its_own(predictor, slide, tmp_path):
    predict_one(predictor(formats=("mask",)), slide[0])
    (mask,) = tmp_path.glob("out/mask/*.tif")
    other = mask.with_suffix(".ome.zarr")
    other.mkdir()
    (other / "a").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"ome\.zarr is there already"):
        predict_one(predictor(pyramid="ome-zarr", formats=("mask",)), slide[0])
    assert (other / "a").read_bytes() == b"mine"


def test_an_image_is_not_replaced_by_its_own_mask(predictor, image, tmp_path):
    (tmp_path / "out" / "mask").mkdir(parents=True)
    path = image[0].rename(tmp_path / "out" / "mask" / "image.png")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is there already"):
        predict_one(predictor(formats=("mask",)), path)
    assert path.read_bytes() == before


def test_a_further_format_joins_and_spares_a_file_that_is_not_of_predict(predictor, image, tmp_path):
    predict_one(predictor(formats=("mask",)), image[0])
    (tmp_path / "out" / "overlay").mkdir()
    (tmp_path / "out" / "overlay" / "image.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"overlay.*is there already"):
        predict_one(predictor(formats=("mask", "overlay")), image[0])
    assert predict_one(predictor(formats=("mask", "geojson")), image[0]).formats == ("geojson", "mask")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": "image"}'])
def test_a_damaged_record_is_named_and_without_it_the_image_is_predicted_again(predictor, image, tmp_path, content):
    record = predict_one(predictor(), image[0])
    path = tmp_path / "out" / "_done" / "image.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="delete that file") as error:
        predict_one(predictor(), image[0])
    assert str(path) in str(error.value)
    path.unlink()
    assert predict_one(predictor(), image[0]) == record
    assert PredictedImage.from_json(path.read_bytes(), source=str(path)) == record


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_features_that_overflow_are_named_with_the_way_out(predictor, image, colour_head, dtype, colour_features):
    def overflowing(patches, numbers, image_id):
        return {
            block: torch.full_like(maps, torch.inf)
            for block, maps in colour_features(patches, numbers, image_id).items()
        }

    head = colour_head()
    (source,) = head.sources
    source = dataclasses.replace(source, key=dataclasses.replace(source.key, dtype=dtype))
    head = dataclasses.replace(head, sources=(source,))
    with pytest.raises(
        ValueError, match=f"image has features of block 0 that {dtype} cannot hold.*--dtype float32|--precision"
    ):
        predict_one(predictor(head=head, features=overflowing), image[0])


def test_two_processes_that_predict_into_one_folder_compute_each_image_once(
    predictor, slide, tmp_path, colour_features
):
    path, lock = slide[0], tmp_path / "out" / "_done" / "slide.lock"
    image = open_input_image(path, predictor().head.sampling)
    with ThreadPoolExecutor(1) as pool:
        with file_lock(lock, wait=False):
            with pytest.raises(BlockingIOError):
                predictor().predict_image(image, wait=False)
            other = pool.submit(predictor().predict_all, [path], open_input_image)
            time.sleep(0.5)
            assert not other.done()
            assert not colour_features.patches
        record = other.result().images[0]
    assert predict_one(predictor(), path) == record
    assert colour_features.patches == record.windows


def test_the_slide_is_not_closed_while_its_next_windows_are_read(predictor, slide, colour_features):
    reading = []

    def slow(image):
        read = image.read

        def read_slowly(*region):
            reading.append(region)
            time.sleep(0.05)
            pixels = read(*region)
            reading.pop()
            return pixels

        image.read = read_slowly
        return image

    one = predictor(features=stopping(colour_features, 1), batch_size=1, tissue="all")
    image = slow(open_input_image(slide[0], one.head.sampling))
    with pytest.raises(Stop) as caught:
        one.predict_image(image)
    assert caught.tb is not None  # it holds the frames
    assert not reading


def test_everything_is_computed_where_it_is_scored_and_no_class_is_the_background(predictor, slide, colour_head):
    head = colour_head(classes=("stroma", "gland"))
    record = predict_one(predictor(head=head, mask=lambda image_id: slide[1].astype(np.uint8)), slide[0])
    assert record.windows == record.windows_total
    assert np.sum(record.confusion) == 800 * 700


def test_an_overlap_that_does_not_fit_the_head_is_refused_before_anything_runs(predictor):
    with pytest.raises(ValueError, match="--overlap"):
        predictor(overlap=100)


@pytest.mark.usefixtures("two_networks")
def test_an_uncertainty_that_a_head_gives_is_written_beside_the_probabilities(predictor, image, tmp_path, colour_head):
    predict_one(predictor(head=colour_head(module=PixelEnsemble({Layer(0, 50, 0): 3}, 2)), tissue="all"), image[0])
    group = zarr.open_group(tmp_path / "out" / "probabilities" / "image.zarr", mode="r")
    unsure = np.asarray(group["uncertainty"][:])
    assert unsure.shape == group["probabilities"].shape[1:]
    assert 0 <= unsure.min() <= unsure.max() <= np.log(2)  # of two classes


@pytest.mark.parametrize(
    ("run", "config", "used"),
    [
        ("glas-ramp-t50-b4-5-linear-lr0.01-epochs2-s1", PredictConfig(batch_size=2), 2),
        ("glas-ramp-t50-b4,9-pixel-ensemble-lr0.001-epochs1-pixels256-s0", PredictConfig(), 9),  # that of the store
    ],
)
def test_a_run_of_0_1_0_predicts_an_image_from_python(tmp_path, run, config, used):
    Image.fromarray(tissue(203, 240)[0]).save(tmp_path / "image.png")
    loaded = []

    def load_features(key, t, blocks, *, batch_size):
        loaded.append((key.model, t, tuple(blocks), batch_size))
        shapes = {4: (5, 16), 5: (3, 32), 9: (2, 64)}  # channels and side

        def features(patches, indices, image_id):
            return {b: torch.ones(len(patches), shapes[b][0], shapes[b][1], shapes[b][1]) for b in blocks}

        return features

    result = predict(
        [tmp_path / "image.png"], HEADS_V1 / run, tmp_path / "out", config,
        features=computed_features(load_features), open_image=open_input_image,
    )  # fmt: skip
    assert not result.failures
    assert result.images[0].file_px == (203, 240)
    assert np.asarray(Image.open(tmp_path / "out" / "mask" / "image.png")).shape == (203, 240)
    ((model, t, _, batch_size),) = loaded
    assert (model, t, batch_size) == ("ramp", 50, used)
