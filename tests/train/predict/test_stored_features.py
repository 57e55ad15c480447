"""Slides segmented from the features of a store: no model, the windows of the store, one line for each wrong input."""

import dataclasses
import json
import shutil
import unicodedata

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.inputs.images import open_input_image
from pathseg.extract.pipeline import extract
from pathseg.store.features import FeatureStore
from pathseg.store.grid import PatchGrid
from pathseg.train.config import HeadConfig, Layer
from pathseg.train.data.joined import join_stores
from pathseg.train.heads.linear import LinearHead
from pathseg.train.predict.config import PredictConfig
from pathseg.train.predict.feature_sources import ModelFeatures, StoredFeatures, stored_features
from pathseg.train.predict.ground_truth import GroundTruth
from pathseg.train.predict.predictor import Predictor
from pathseg.train.runs.record import Source
from tests.extract.conftest import ToyModel

WHITE, GLAND, STROMA = (243, 243, 243), (80, 60, 150), (220, 130, 180)
OPTIONS = {"window_px": 256, "min_labelled_px": 100, "target_mpp": 0.5}
CONFIG = ExtractConfig(layout="native", blocks=(0,))


class ColourModel(ToyModel):
    """A model whose block 0 is the mean colour of cells of 4 px, 0..1."""

    blocks, default_blocks = {0: (3, 64)}, (0,)

    def denoise(self, z0, context, t, blocks, noise):
        return {0: z0 * (t / 50)}


def write_slide(path, *, size=(700, 1000), right=600):
    """Stroma with a gland, up to `right` px from the left; white beside it. Returns where the gland is."""
    pixels = np.empty((*size, 3), np.uint8)
    pixels[:] = WHITE
    pixels[:, :right] = STROMA
    y, x = np.mgrid[: size[0], : size[1]]
    inside = np.hypot(y - 330, x - 300) < 200
    pixels[inside] = GLAND
    if path.suffix == ".png":
        Image.fromarray(pixels).save(path, dpi=(50800, 50800))
    else:
        tifffile.imwrite(path, pixels, tile=(256, 256), resolution=(2e4, 2e4), resolutionunit=3, metadata=None)
    return inside


def outlined(left, top, right, bottom, name):
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    properties = {"objectType": "annotation", "classification": {"name": name}}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def listed(root, **options):
    return open_dataset("slides", DatasetOptions(root=root, **(OPTIONS | {"windows": "tissue"} | options)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder `slides` with slide.tif, which is outlined, and plain.png; the store s.zarr of all their tissue."""
    folder = tmp_path_factory.mktemp("made")
    root = folder / "slides"
    root.mkdir()
    for name in ("slide.tif", "plain.png"):
        write_slide(root / name)
    outlines = [outlined(200, 250, 300, 350, "gland"), outlined(20, 20, 90, 90, "background")]
    (root / "slide.geojson").write_text(json.dumps(outlines))
    extract(listed(root), ColourModel(), folder / "s.zarr", CONFIG)
    return folder


@pytest.fixture
def work(made, tmp_path):
    """A copy that a test may change; sizes and times of the files are other ones then."""
    shutil.copytree(made, tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def head_of(colour_head):
    def make(*stores, **changes):
        sources = tuple(Source(str(one.location), "", one.contents.key, True, {0: 3}) for one in stores)
        return colour_head(sources=sources, **changes)

    return make


def predict_one(head, stores, path, out, **settings):
    config = PredictConfig(**({"formats": ("mask", "overlay", "geojson")} | settings))
    predictor = Predictor(head, stored_features(stores)(head, config), out, config)
    return predictor.predict_image(open_input_image(path, head.sampling))


def codes_by_hand(head, store, slide, size):
    """The head on the stored features of each window, side by side; 0 where the store has none."""
    codes = np.zeros((1024, 1024), np.uint8)
    for index, entry in enumerate(store.contents.images):
        if entry.slide == slide:
            maps = torch.from_numpy(store.read(index, t=50, blocks=(0,))[0])[None]
            y, x = entry.corner
            codes[y : y + 256, x : x + 256] = head.predict({Layer(0, 50, 0): maps}, PatchGrid(1, 1))[0].argmax(0)
    return codes[: size[0], : size[1]]


def test_a_slide_is_segmented_by_the_head_on_the_features_of_the_store(made, tmp_path, head_of):
    store = FeatureStore.open(made / "s.zarr")
    head, path = head_of(store), made / "slides" / "slide.tif"
    record = predict_one(head, store, path, tmp_path)
    mask = tifffile.imread(tmp_path / "mask" / "slide.tif", key=0)
    np.testing.assert_array_equal(mask, codes_by_hand(head, store, "slide", (700, 1000)))
    assert (mask != write_slide(tmp_path / "again.tif")).mean() < 0.01
    assert (record.windows, record.windows_total) == (9, 12)  # the last column has no tissue
    assert record.objects.classes["gland"].count == 1
    about = json.loads((tmp_path / "_done" / "slide.json").read_text())["about"]
    assert (about["features"], about["overlap"]) == ("stored", 0)


def test_an_image_is_segmented_like_a_slide(made, tmp_path, head_of):
    store = FeatureStore.open(made / "s.zarr")
    head = head_of(store)
    predict_one(head, store, made / "slides" / "plain.png", tmp_path)
    mask = np.asarray(Image.open(tmp_path / "mask" / "plain.png"))
    np.testing.assert_array_equal(mask, codes_by_hand(head, store, "plain", (700, 1000)))


def test_windows_that_are_no_longer_listed_still_have_their_features(work, tmp_path, head_of):
    extract(listed(work / "slides", windows="annotated"), ColourModel(), work / "s.zarr", CONFIG)
    store = FeatureStore.open(work / "s.zarr")
    assert len(store.listed) == 4
    assert predict_one(head_of(store), store, work / "slides" / "slide.tif", tmp_path / "out").windows == 9


def test_stored_and_computed_features_are_not_mixed_in_one_folder(made, tmp_path, head_of, colour_features):
    store = FeatureStore.open(made / "s.zarr")
    head, path, config = head_of(store), made / "slides" / "slide.tif", PredictConfig(formats=("mask",))
    predict_one(head, store, path, tmp_path)
    computed = Predictor(head, ModelFeatures(head, (colour_features,), config), tmp_path, config)
    with pytest.raises(ValueError, match=r"features is stored there, computed asked for; pass another --out"):
        computed.predict_image(open_input_image(path, head.sampling))
    assert not colour_features.patches


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_slide_cut_off_is_read_again_with_the_same_result(made, tmp_path, head_of, monkeypatch):
    store, path = FeatureStore.open(made / "s.zarr"), made / "slides" / "slide.tif"
    monkeypatch.setattr(StoredFeatures, "batch_size", 2)
    head, config = head_of(store), PredictConfig(formats=("mask", "overlay", "geojson"))
    predict_one(head, store, path, tmp_path / "whole")

    def stop(image_id, completed, total):
        if completed == 4:
            raise KeyboardInterrupt

    predictor = Predictor(head, stored_features(store)(head, config), tmp_path / "cut", config)
    with pytest.raises(KeyboardInterrupt):
        predictor.predict_image(open_input_image(path, head.sampling), stop)
    predictor.predict_image(open_input_image(path, head.sampling))
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_copied_slide_is_known_by_its_pixels_and_a_changed_one_is_refused(work, tmp_path, head_of):
    store, path = FeatureStore.open(work / "s.zarr"), work / "slides" / "slide.tif"
    head = head_of(store)
    assert predict_one(head, store, path, tmp_path / "copied").windows == 9  # its times are other ones than recorded
    write_slide(path, right=620)
    with pytest.raises(
        ValueError, match=r"slide\.tif: the slide is not the one .*x 512, y 0 px at [\d.]+ um/px differs.*old file"
    ):
        predict_one(head, store, path, tmp_path / "changed")
    assert not (tmp_path / "changed" / "mask").exists()


def test_windows_without_features_are_counted_and_the_command_is_named(work, tmp_path, head_of):
    shutil.rmtree(work / "s.zarr")
    store = extract(listed(work / "slides", windows="annotated"), ColourModel(), work / "s.zarr", CONFIG).store
    with pytest.raises(ValueError, match=r"slide\.tif: 5 of 9 windows with tissue .*--windows tissue --store"):
        predict_one(head_of(store), store, work / "slides" / "slide.tif", tmp_path / "out")
    store = extract(listed(work / "slides"), ColourModel(), work / "s.zarr", CONFIG).store
    store.location.remove(f"_done/t50/0/{len(store) - 1:06d}.json")  # as of an extraction that was cut off
    store = FeatureStore.open(work / "s.zarr")
    with pytest.raises(ValueError, match=r"1 of 9 windows with tissue have no features"):
        predict_one(head_of(store), store, work / "slides" / "slide.tif", tmp_path / "out")
    with pytest.raises(ValueError, match=r"4 of 12 windows, with and without tissue, .*--windows all .*--tissue otsu"):
        predict_one(head_of(store), store, work / "slides" / "slide.tif", tmp_path / "out", tissue="all")


def test_a_store_of_all_windows_segments_what_the_tissue_rule_leaves_out(work, tmp_path, head_of):
    store = extract(listed(work / "slides", windows="all"), ColourModel(), work / "s.zarr", CONFIG).store
    head, path = head_of(store), work / "slides" / "slide.tif"
    record = predict_one(head, store, path, tmp_path / "out", tissue="all", formats=("mask",))
    assert (record.windows, record.windows_total) == (12, 12)
    mask = tifffile.imread(tmp_path / "out" / "mask" / "slide.tif", key=0)
    np.testing.assert_array_equal(mask, codes_by_hand(head, store, "slide", (700, 1000)))


def test_scores_without_a_background_class_want_features_beside_the_tissue_and_truth_is_named(made, tmp_path, head_of):
    store = FeatureStore.open(made / "s.zarr")
    head, config = head_of(store, classes=("stroma", "gland")), PredictConfig(formats=("mask",))
    truth = GroundTruth("masks", lambda image_id: np.zeros((700, 1000), np.uint8))
    predictor = Predictor(head, stored_features(store)(head, config), tmp_path, config, truth)
    with pytest.raises(
        ValueError, match=r"3 of 12 windows, with and without tissue, .*--windows all .*leave --truth out"
    ):
        predictor.predict_image(open_input_image(made / "slides" / "slide.tif", head.sampling))


def test_results_from_a_store_with_rounded_values_are_as_those_of_earlier_releases(made, tmp_path, head_of):
    config = dataclasses.replace(CONFIG, packing="rounded")
    store = extract(listed(made / "slides"), ColourModel(), tmp_path / "r.zarr", config).store
    predict_one(head_of(store), store, made / "slides" / "slide.tif", tmp_path, formats=("mask",))
    assert "packing" not in json.loads((tmp_path / "_done" / "slide.json").read_text())["about"]


def test_a_slide_that_is_not_in_the_store_is_named_with_those_that_are(made, tmp_path, head_of):
    store = FeatureStore.open(made / "s.zarr")
    shutil.copy(made / "slides" / "slide.tif", tmp_path / "other.tif")
    with pytest.raises(ValueError, match=r"other\.tif: .* no windows of a slide other, only of plain, slide;"):
        predict_one(head_of(store), store, tmp_path / "other.tif", tmp_path / "out")


@pytest.mark.parametrize(("stored", "copied"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_slide_is_found_under_another_form_of_unicode_in_its_name(work, tmp_path, head_of, stored, copied):
    slides, name = work / "slides", "M\u00fcller"
    for suffix in (".tif", ".geojson"):
        (slides / f"slide{suffix}").rename(slides / f"{unicodedata.normalize(stored, name)}{suffix}")
    store = extract(listed(slides), ColourModel(), tmp_path / "s.zarr", CONFIG).store
    copy = tmp_path / f"{unicodedata.normalize(copied, name)}.tif"
    shutil.copy(slides / f"{unicodedata.normalize(stored, name)}.tif", copy)
    assert predict_one(head_of(store), store, copy, tmp_path / "out").windows == 9
    mask = tifffile.imread(tmp_path / "out" / "mask" / copy.name, key=0)
    slide = unicodedata.normalize(stored, name)
    np.testing.assert_array_equal(mask, codes_by_hand(head_of(store), store, slide, (700, 1000)))


def test_a_name_that_two_slides_of_the_store_have_in_other_forms_of_unicode_is_refused(work, tmp_path, head_of):
    slides = work / "slides"
    forms = [unicodedata.normalize(form, "\u00e9\u00fc") for form in ("NFC", "NFD")]
    for name in forms:  # one after the other: in one folder they are refused
        for file in slides.glob("*"):
            if file.suffix != ".png":
                file.rename(slides / f"{name}{file.suffix}")
        store = extract(listed(slides), ColourModel(), tmp_path / "s.zarr", CONFIG).store
    third = tmp_path / "e\u0301\u00fc.tif"
    shutil.copy(slides / f"{forms[1]}.tif", third)
    with pytest.raises(ValueError, match=r"windows of 2 slides .*form of Unicode alone; rename .*u0301.*xe9"):
        predict_one(head_of(store), store, third, tmp_path / "out")
    assert predict_one(head_of(store), store, slides / f"{forms[1]}.tif", tmp_path / "out").windows == 9


def test_a_store_that_the_run_was_not_trained_from_is_refused_with_what_differs(made, toy_store, tmp_path, head_of):
    store = FeatureStore.open(made / "s.zarr")
    source = Source("runs.zarr", "", dataclasses.replace(store.contents.key, model_digest="ef" * 32), True, {0: 3})
    with pytest.raises(ValueError, match=rf"was not trained from .*s\.zarr: model_digest is .*{'ef' * 32}.*runs\.zarr"):
        stored_features(store)(dataclasses.replace(head_of(store), sources=(source,)), PredictConfig())
    with pytest.raises(ValueError, match=r"toy\.zarr holds images of toy, no windows of slides; leave --store out"):
        stored_features(toy_store)(head_of(toy_store), PredictConfig())


def test_joined_stores_are_taken_in_the_order_of_the_run(made, tmp_path, head_of):
    once, config = FeatureStore.open(made / "s.zarr"), dataclasses.replace(CONFIG, dtype="float32", t=(100,))
    twice = extract(listed(made / "slides"), ColourModel(), tmp_path / "twice.zarr", config).store
    module = LinearHead({Layer(0, 50, 0): 3, Layer(1, 100, 0): 3}, 2)
    with torch.no_grad():  # class 1 where the second store's red, which is doubled at t 100, is below 2 * 128 / 255
        module.scores.weight.zero_()
        module.scores.bias.zero_()
        module.scores.weight[1, 3], module.scores.bias[1] = -20.0, 20.0
    settings = HeadConfig(t=(50, 100), blocks=((0,), (0,)), head_type="linear")
    head = head_of(once, twice, settings=settings, module=module)
    predict_one(head, join_stores({"b": twice, "a": once}), made / "slides" / "slide.tif", tmp_path)
    mask = tifffile.imread(tmp_path / "mask" / "slide.tif", key=0)
    np.testing.assert_array_equal(mask, codes_by_hand(head_of(once), once, "slide", (700, 1000)))
    with pytest.raises(ValueError, match=r"trained from 2 stores, but none of those given .*--store NAME=.*twice"):
        stored_features(once)(head, PredictConfig())
