"""Slides with outlines: windows where something is outlined, masks of what is outlined, one line for each fault."""

import json
import pickle
import unicodedata
from collections import Counter

import numpy as np
import pytest
import tifffile
from PIL import Image

from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import DatasetError, DatasetOptions, open_dataset
from pathseg.extract.pipeline import extract
from pathseg.extract.plan import plan_extraction
from pathseg.store.features import FeatureStore
from pathseg.store.key import Surroundings
from pathseg.store.verify import verify
from tests.extract.conftest import CountingModel

OPTIONS = {"window_px": 256, "min_labelled_px": 100, "target_mpp": 0.5}


def box(left, top, right, bottom, name="gland"):
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    properties = {"objectType": "annotation", "classification": {"name": name, "color": [200, 0, 0]}}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def write_slide(path, *, size=(1200, 1600), mpp=0.25, seed=0):
    """A tiled TIFF that OpenSlide reads, of random squares."""
    squares = np.random.default_rng(seed).integers(80, 255, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    pixels = np.kron(squares, np.ones((8, 8, 1), np.uint8))
    resolution = (1e4 / mpp, 1e4 / mpp)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", resolution=resolution, resolutionunit=3)
    return pixels


def write_outlines(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))


@pytest.fixture
def root(tmp_path):
    """Three slides of 1200x1600 px at 0.25 um/px (600x800 px at 0.5) with a gland and stroma each."""
    for number, name in enumerate(("a", "b", "c")):
        write_slide(tmp_path / f"{name}.tif", seed=number)
        write_outlines(
            tmp_path / f"{name}.geojson", box(100, 100, 300, 200), box(520, 40, 1000, 500, "stroma"),
        )  # fmt: skip
    (tmp_path / "splits.csv").write_text("id,split\na,train\nb,train\nc,test\n")
    return tmp_path


@pytest.fixture
def counting():
    return CountingModel()


def listed(root, **options):
    return open_dataset("slides", DatasetOptions(root=root, **(OPTIONS | options)))


def test_windows_with_labels_are_samples_of_their_slide(root):
    dataset = listed(root)
    own = [sample.id for sample in dataset.samples if sample.source == "a"]
    assert own == ["a_y000000_x000000", "a_y000000_x000256"]  # 0..50 x 50..150 px and 260..500 x 20..250 px
    assert [sample.split for sample in dataset.samples] == ["train"] * 4 + ["test"] * 2
    assert (dataset.classes, dataset.ignore, dataset.background) == (("gland", "stroma"), 255, None)
    assert (dataset.size, dataset.mpp) == ((256, 256), 0.5)


def test_a_mask_has_the_outlines_where_they_were_drawn_and_ignores_the_rest(root):
    dataset = listed(root)
    mask = dataset.load(dataset.samples[0]).mask
    expected = np.full((256, 256), 255, np.uint8)
    expected[50:100, 50:150] = 0
    np.testing.assert_array_equal(mask, expected)
    beside = dataset.load(dataset.samples[1]).mask
    assert (beside == 1).sum() == (250 - 20) * (500 - 260) and set(np.unique(beside)) == {1, 255}


def test_a_class_name_that_is_far_too_long_is_refused(root):
    write_outlines(root / "a.geojson", box(100, 100, 300, 200, "g" * 10_000), box(520, 40, 1000, 500, "stroma"))
    with pytest.raises(DatasetError, match="at most 200 letters") as error:
        listed(root)
    assert len(str(error.value)) < 1000


def test_the_image_of_a_window_is_the_slide_at_the_target_resolution(root):
    whole = np.asarray(Image.fromarray(write_slide(root / "a.tif")).resize((800, 600), Image.Resampling.BICUBIC))
    dataset = listed(root)
    image = dataset.load(dataset.samples[1]).image
    difference = abs(image.astype(int) - whole[:256, 256:512])
    assert difference[8:-8, 8:-8].max() <= 1


def test_inside_a_region_what_is_not_outlined_is_background(root):
    write_outlines(root / "a.geojson", box(100, 100, 300, 200), box(60, 60, 400, 400, "Region*"),
                   box(60, 300, 400, 400, "Ignore*"))  # fmt: skip
    dataset = listed(root)
    assert (dataset.classes, dataset.background) == (("background", "gland", "stroma"), 0)
    mask = dataset.load(dataset.samples[0]).mask
    expected = np.full((256, 256), 255, np.uint8)
    expected[30:150, 30:200] = 0
    expected[50:100, 50:150] = 1
    np.testing.assert_array_equal(mask, expected)


def test_windows_between_scattered_regions_are_not_looked_at(root):
    write_outlines(root / "a.geojson", box(100, 100, 300, 200), box(60, 60, 400, 400, "Region*"),
                   box(1100, 800, 1500, 1100, "Region*"))  # fmt: skip
    dataset = listed(root)  # windows of 256 px of 600x800 px; regions of 30..200 and 400..550 x 550..750 px
    own = [sample.id for sample in dataset.samples if sample.source == "a"]
    assert own == ["a_y000000_x000000", "a_y000256_x000512", "a_y000512_x000512"] and dataset.left_out == ""


def test_another_class_can_bound_the_region(root):
    write_outlines(root / "a.geojson", box(100, 100, 300, 200), box(60, 60, 400, 400, "done"))
    assert listed(root, region_class="done").classes == ("background", "gland", "stroma")


def test_named_classes_give_the_order_of_the_codes(root):
    assert listed(root, classes=("stroma", "gland")).classes == ("stroma", "gland")
    assert (listed(root, classes=("stroma", "gland", "fat")).masks_per_class) == {"stroma": 3, "gland": 3, "fat": 0}


def test_beyond_the_slide_nothing_is_labelled(root):
    write_outlines(root / "a.geojson", box(1500, 1100, 1700, 1300), box(520, 40, 1000, 500, "stroma"))
    dataset = listed(root)  # the slide ends at 800x600 px, the gland reaches from 750 to 850 and from 550 to 650 px
    left, right = [dataset.load(one).mask for one in dataset.samples if one.id.startswith("a_y000512")]
    assert (left == 0).sum() == (768 - 750) * 50 and (right == 0).sum() == (800 - 768) * 50
    assert (right[88:] == 255).all() and (right[:, 32:] == 255).all()


def test_lines_and_points_are_drawn_with_the_brush(root):
    line = box(0, 0, 1, 1)
    line["geometry"] = {"type": "LineString", "coordinates": [[100, 100], [400, 100]]}
    write_outlines(root / "a.geojson", line, box(520, 40, 1000, 500, "stroma"))
    for um, rows in ((10, 20), (4, 8)):  # at 0.5 um/px
        dataset = listed(root, brush_um=um)
        mask = dataset.load(dataset.samples[0]).mask
        assert (mask[:, 100] == 0).sum() == rows


def coloured(one, colour):
    one["properties"]["classification"]["color"] = colour
    return one


def test_a_class_has_the_colour_of_most_of_its_outlines(root):
    glands = [coloured(box(100 + 60 * i, 100, 150 + 60 * i, 200), [0, 0, blue]) for i, blue in enumerate((9, 7, 7))]
    write_outlines(root / "a.geojson", *glands, coloured(box(520, 40, 1000, 500, "stroma"), "odd"),
                   box(60, 60, 1100, 600, "Region*"))  # fmt: skip
    (root / "b.geojson").unlink()
    (root / "c.geojson").unlink()
    (root / "splits.csv").write_text("id,split\na,train\n")
    dataset = listed(root)
    assert (dataset.classes, dataset.colours) == (("background", "gland", "stroma"), (None, "#000007", None))
    write_outlines(root / "a.geojson", *[coloured(one, None) for one in glands], box(60, 60, 1100, 600, "Region*"))
    assert listed(root, classes=("background", "gland")).colours == ()


def test_px_of_the_file_are_those_of_a_slide_that_states_no_bounds(root):
    bounds, file = (listed(root, outline_origin=origin) for origin in ("bounds", "file"))
    assert [one.id for one in bounds.samples] == [one.id for one in file.samples]
    np.testing.assert_array_equal(bounds.load(bounds.samples[0]).mask, file.load(file.samples[0]).mask)
    assert "outline_origin" not in bounds.preprocessing.settings
    assert file.preprocessing.settings["outline_origin"] == "file"


def test_images_with_a_scale_are_slides_too(root):
    Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(root / "d.png", dpi=(50800, 50800))  # 0.5 um/px
    write_outlines(root / "d.png.geojson", box(10, 10, 60, 60))
    (root / "splits.csv").write_text("id,split\na,train\nb,train\nc,test\nd,train\n")
    dataset = listed(root)
    (sample,) = [sample for sample in dataset.samples if sample.source == "d"]
    pixels = dataset.load(sample)
    assert pixels.image.shape == (256, 256, 3) and (pixels.mask[10:60, 10:60] == 0).all()


def test_a_patient_named_in_the_splits_is_the_source(root):
    (root / "splits.csv").write_text("id,split,source\na,train,p1\nb,train,p1\nc,test,p2\n")
    assert {sample.source for sample in listed(root).samples} == {"p1", "p2"}


def test_the_surroundings_are_the_slides_tissue(root):
    dataset = listed(root)
    field = dataset.load_surroundings(dataset.samples[1], 128)
    np.testing.assert_array_equal(field[128:-128, 128:-128], dataset.load(dataset.samples[1]).image)
    assert (field[:120] == 255).all()  # above the slide, but for the reach of the resampling filter


def test_the_surroundings_of_a_plain_image_are_mirrored_at_its_edges(root):
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "d.png", dpi=(50800, 50800))  # 0.5 um/px
    write_outlines(root / "d.png.geojson", box(10, 10, 60, 60))
    (root / "splits.csv").write_text("id,split\na,train\nb,train\nc,test\nd,train\n")
    dataset = listed(root)
    (sample,) = [sample for sample in dataset.samples if sample.source == "d"]
    field = dataset.load_surroundings(sample, 40)
    np.testing.assert_array_equal(
        field[:296, :296], np.pad(pixels, ((40, 0), (40, 0), (0, 0)), mode="reflect")[:296, :296]
    )
    assert "mirrored" in str(Surroundings(2, "region")) and "white (slides)" in str(Surroundings(2, "region"))


def test_the_surroundings_of_a_turned_window_are_turned_alike(root):
    dataset = listed(root, views="flips")
    assert {one.view for one in dataset.samples} == set(range(8))
    for sample in dataset.samples[:8]:
        field = dataset.load_surroundings(sample, 64)
        np.testing.assert_array_equal(field[64:-64, 64:-64], dataset.load(sample).image)


def test_the_scale_given_for_the_files_is_in_the_key(root):
    assert "file_mpp" not in listed(root).preprocessing.settings
    assert listed(root, mpp=0.3).preprocessing.settings["file_mpp"] == 0.3


@pytest.mark.filterwarnings("error")
def test_a_region_without_an_area_is_named_in_a_warning(root):
    collapsed = box(100, 100, 100, 100, "Region*")
    write_outlines(root / "a.geojson", box(100, 100, 300, 200), collapsed)
    dataset = listed(root)
    dataset.load(dataset.samples[0])
    assert any("a.geojson: object 2" in line for line in dataset.warnings)


def test_a_data_set_can_be_sent_to_workers(root):
    dataset = listed(root)
    sent = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(sent.load(sent.samples[0]).mask, dataset.load(dataset.samples[0]).mask)


def test_what_is_not_used_is_counted(root):
    detection = box(0, 0, 9, 9)
    detection["properties"]["objectType"] = "detection"
    unclassified = box(0, 0, 9, 9)
    del unclassified["properties"]["classification"]
    write_outlines(root / "a.geojson", box(100, 100, 300, 200), detection, unclassified)
    write_slide(root / "bare.tif")
    dataset = listed(root)
    assert "1 slides without outlines" in dataset.left_out
    assert any("1 annotations without a class" in line for line in dataset.warnings)
    assert any("1 objects are detections" in line for line in dataset.warnings)


def spoil_other_slide(root):
    write_outlines(root / "a.geojson", box(5000, 100, 5200, 300))


def spoil_no_slide(root):
    (root / "a.geojson").rename(root / "z.geojson")


def spoil_two_files(root):
    (root / "a.tif.geojson").write_text((root / "a.geojson").read_text())


def spoil_one_class(root):
    for name in "abc":
        write_outlines(root / f"{name}.geojson", box(100, 100, 300, 200))


def spoil_empty(root):
    (root / "a.geojson").write_bytes(b"")


def spoil_no_scale(root):
    Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(root / "d.png")
    write_outlines(root / "d.geojson", box(10, 10, 60, 60))


def spoil_two_slides(root):
    write_slide(root / "a.tiff")


def spoil_training_labels(root):
    for name in "ab":
        write_outlines(root / f"{name}.geojson", box(100, 100, 104, 104))


def spoil_training_slides(root):
    (root / "splits.csv").write_text("id,split\na,test\nb,test\nc,test\nbare,train\n")
    write_slide(root / "bare.tif")


def spoil_damaged(root):
    (root / "a.tif").write_bytes(b"no TIFF")


def test_a_slide_that_is_cut_short_is_named_when_it_is_read(root):
    dataset = listed(root)
    (root / "a.tif").write_bytes((root / "a.tif").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"a\.tif: the slide is damaged or cut short"):
        listed(root).load(dataset.samples[1])


def spoil_splits(root):
    (root / "splits.csv").write_text("id,split\na,train\nb,train\n")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_other_slide, r"a\.geojson: annotation 1 .* beside a\.tif, which has 1600x1200 px"),
        (spoil_no_slide, r"z\.geojson: no slide or image is called z"),
        (spoil_two_files, r"outlines of a\.tif are also in"),
        (spoil_one_class, r"two classes or more, but have gland"),
        (spoil_empty, r"a\.geojson: no GeoJSON"),
        (spoil_no_scale, r"d\.png: the image does not say its um/px; pass --mpp"),
        (spoil_damaged, r"a\.tif: "),
        (spoil_splits, r"no row for the image 'c'"),
        (spoil_two_slides, r"a\.tiff: .*a\.tif is called a too.*rename"),
        (spoil_training_labels, r"no window of 256x256 px of the training slides has 100 labelled px"),
        (spoil_training_slides, r"no image is in a train split"),
    ],
)
def test_a_fault_gets_one_line_with_the_file_and_the_way_out(root, spoil, words):
    spoil(root)
    with pytest.raises(DatasetError, match=words):
        listed(root)


@pytest.mark.parametrize("spoil", [spoil_damaged, spoil_no_slide, spoil_empty])
def test_an_unreadable_file_leads_to_no_other_line(root, spoil):
    for name in "bc":  # what is left has one class and no training slide
        write_outlines(root / f"{name}.geojson", box(100, 100, 300, 200))
    (root / "splits.csv").write_text("id,split\na,train\nb,test\nc,test\n")
    spoil(root)
    with pytest.raises(DatasetError) as error:
        listed(root)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("ending", [".geojson", ".tif.geojson"])
def test_outlines_pair_in_composed_and_decomposed_unicode(root, forms, ending):
    slide, outlines = (unicodedata.normalize(form, "M\u00fcller") for form in forms)
    (root / "a.tif").rename(root / f"{slide}.tif")
    (root / "a.geojson").rename(root / f"{outlines}{ending}")
    (root / "splits.csv").write_text(f"id,split\n{outlines},train\nb,train\nc,test\n", encoding="utf-8")
    assert [sample.slide for sample in listed(root).samples if sample.slide not in "bc"] == [slide] * 2


@pytest.mark.parametrize("given", [None, "NFC", "NFD"])
def test_a_class_in_composed_and_in_decomposed_unicode_is_one_class(root, given):
    forms = {form: unicodedata.normalize(form, "Dr\u00fcse") for form in ("NFC", "NFD")}
    for name, form in (("a", "NFC"), ("b", "NFD"), ("c", "NFC")):
        write_outlines(root / f"{name}.geojson", box(100, 100, 300, 200, forms[form]), box(520, 40, 900, 500, "zone"))
    options = {} if given is None else {"classes": (forms[given], "zone")}
    assert listed(root, **options).classes == (forms["NFC"], "zone")


def test_regions_that_overlap_are_one_region(root):
    write_outlines(
        root / "a.geojson", box(0, 0, 400, 400, "Region*"), box(200, 200, 480, 480, "Region*"), box(600, 0, 700, 99)
    )  # fmt: skip
    dataset = listed(root)
    mask = dataset.load(dataset.samples[0]).mask  # px of half the size
    assert np.count_nonzero(mask == dataset.background) == 200 * 200 + 140 * 140 - 100 * 100


def test_two_slides_whose_names_differ_in_the_form_of_unicode_alone_are_refused(root):
    for form in ("NFC", "NFD"):
        write_slide(root / (unicodedata.normalize(form, "M\u00fcller") + ".tif"))
    with pytest.raises(DatasetError, match="but slides must differ in name"):
        listed(root)


def test_a_store_and_results_below_the_root_are_no_slides_and_outlines(root, counting):
    write_slide(root / "bare.tif")
    before = listed(root)
    extract(before, counting, root / "work" / "s.zarr", ExtractConfig(layout="native", blocks=(4,)))
    for name in ("results/_done", "results/mask", "results/geojson", "work/heads/run", "work/report"):
        (root / name).mkdir(parents=True)
    Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(root / "results/mask/bare.png")
    write_outlines(root / "results/geojson/bare.geojson", box(100, 100, 300, 200))
    (root / "work/heads/run/config.json").write_text("{}")
    for folder in ("work/heads/run", "work/report"):
        Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(root / folder / "a.png")
    after = listed(root)
    assert (after.samples, after.left_out) == (before.samples, before.left_out)


def test_a_root_with_results_of_its_own_is_refused(root):
    (root / "_done").mkdir()
    with pytest.raises(DatasetError, match=r"holds a folder _done.* move the slides"):
        listed(root)


def test_json_files_of_others_are_counted(root):
    (root / "classifiers").mkdir()
    (root / "classifiers/classes.json").write_text('{"pathClasses": []}')
    assert "1 .json files" in listed(root).left_out


def test_a_slide_to_be_outlined_later_can_have_its_split_already(root):
    write_slide(root / "later.tif")
    (root / "splits.csv").write_text("id,split\na,train\nb,train\nc,test\nlater,test\n")
    assert "1 slides without outlines" in listed(root).left_out


def test_a_limit_takes_a_window_of_each_slide_first(root):
    kept = listed(root, limit=3).samples
    assert sorted(sample.source for sample in kept) == ["a", "b", "c"]


def test_labels_too_small_for_any_window_say_so(root):
    with pytest.raises(DatasetError, match=r"no window of 256x256 px has 60000 labelled px"):
        listed(root, min_labelled_px=60000)


def test_a_folder_without_slides_or_outlines_shows_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no slide or image(?s:.*)NAME\.geojson"):
        listed(tmp_path)
    write_slide(tmp_path / "a.tif")
    with pytest.raises(FileNotFoundError, match="has outlines"):
        listed(tmp_path)


@pytest.mark.parametrize(("option", "value"), [("window_px", 300), ("min_labelled_px", 0), ("brush_um", 0.0)])
def test_an_option_out_of_range_is_named(root, option, value):
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} must be .*{value}"):
        listed(root, **{option: value})


def test_a_single_slide_is_for_training(root):
    (root / "splits.csv").unlink()
    for name in "bc":
        (root / f"{name}.geojson").unlink()
    assert {sample.split for sample in listed(root).samples} == {"train"}


def test_new_outlines_rewrite_masks_and_add_windows_without_computing_features(root, tmp_path_factory, counting):
    store, config = tmp_path_factory.mktemp("made") / "slides.zarr", ExtractConfig(layout="native", blocks=(4,))
    extract(listed(root), counting, store, config)
    before = FeatureStore.open(store)
    write_outlines(root / "a.geojson", box(100, 100, 400, 200), box(520, 40, 1000, 500, "stroma"),
                   box(100, 600, 300, 800, "fat"))  # fmt: skip
    plan = str(plan_extraction(listed(root), counting, store, config))
    assert "1 new images" in plan and "with changed masks" in plan and "other classes" in plan
    result = extract(listed(root), counting, store, config)
    assert result.computed == 1 + 6  # the new window; the masks of all others, whose codes are other ones now
    assert set(counting.computed.values()) == {1} and counting.computed.total() == 7
    after = result.store
    assert after.ids == (*before.ids, "a_y000256_x000000") and after.classes == ("fat", "gland", "stroma")
    files = [f"t50/block04/c/{index}/0/0/0/0" for index in range(6)]
    assert [after.location.read(name) for name in files] == [before.location.read(name) for name in files]
    for sample in listed(root).samples:
        np.testing.assert_array_equal(after.mask(after.ids.index(sample.id)), listed(root).load(sample).mask)
    assert verify(store) == ()


def write_tissue(path, *, size=(1024, 1600), mpp=0.5, right=700, seed=0):
    """A tiled TIFF whose tissue ends before `right` px; the rest is white."""
    squares = np.random.default_rng(seed).integers(80, 255, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    pixels = np.kron(squares, np.ones((8, 8, 1), np.uint8))
    pixels[:, right:] = 245
    tifffile.imwrite(
        path, pixels, tile=(256, 256), photometric="rgb", resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit=3
    )


@pytest.fixture
def tissue(tmp_path):
    """Two slides of 1024x1600 px at 0.5 um/px, tissue up to 700 px from the left; two windows of `a` are outlined."""
    root = tmp_path / "slides"
    root.mkdir()
    for seed, name in enumerate("ab"):
        write_tissue(root / f"{name}.tif", seed=seed)
    write_outlines(root / "a.geojson", box(20, 20, 120, 120), box(300, 40, 480, 240, "stroma"))
    return root


def corners(dataset, split, slide="a"):
    return [sample.corner for sample in dataset.samples if (sample.split, sample.slide) == (split, slide)]


def test_all_windows_with_tissue_are_samples_if_wanted_also_of_slides_without_outlines(tissue):
    assert {(sample.slide, sample.corner) for sample in listed(tissue).samples} == {("a", (0, 0)), ("a", (0, 256))}
    dataset = listed(tissue, windows="tissue")
    with_tissue = [(y, x) for y in range(0, 1024, 256) for x in (0, 256, 512)]  # up to 700 px and a rim of 20 um
    assert corners(dataset, "train") == with_tissue[:2]
    assert corners(dataset, "unlabelled") == with_tissue[2:]
    assert corners(dataset, "unlabelled", "b") == with_tissue
    assert dataset.left_out == ""


def test_windows_without_labels_are_ignored_everywhere_and_depend_on_the_slide_alone(tissue):
    dataset = listed(tissue, windows="tissue")
    by_split = {sample.split: sample for sample in dataset.samples}
    pixels = dataset.load(by_split["unlabelled"])
    assert (pixels.mask == 255).all() and not (pixels.image == 255).all()
    assert dataset.files(by_split["unlabelled"]) == ((tissue / "b.tif",),)
    assert dataset.files(by_split["train"]) == ((tissue / "a.tif",), tissue / "a.geojson")
    assert dataset.masks_per_class == {"gland": 1, "stroma": 1}


def test_all_windows_of_an_image_have_tissue(tissue):
    Image.fromarray(np.full((300, 400, 3), 250, np.uint8)).save(tissue / "d.png", dpi=(50800, 50800))  # 0.5 um/px
    dataset = listed(tissue, windows="tissue")
    assert corners(dataset, "unlabelled", "d") == [(0, 0), (0, 256), (256, 0), (256, 256)]


def test_a_limit_takes_windows_with_labels_before_those_without(tissue):
    few, more = (listed(tissue, windows="tissue", limit=limit).samples for limit in (2, 5))
    assert [sample.split for sample in few] == ["train"] * 2  # of 24 windows
    assert Counter(sample.split for sample in more) == {"train": 2, "unlabelled": 3} and set(few) < set(more)
    assert len(listed(tissue, windows="tissue", limit=1).samples) == 1


def test_all_windows_are_samples_if_wanted_whatever_is_tissue(tissue):
    every = [(y, x) for y in range(0, 1024, 256) for x in range(0, 1600, 256)]
    dataset = listed(tissue, windows="all")
    assert corners(dataset, "train") == every[:2]
    assert corners(dataset, "unlabelled") == every[2:] and corners(dataset, "unlabelled", "b") == every


def test_a_store_of_annotated_windows_grows_to_all_tissue_and_labels_follow_without_computing_again(tissue, counting):
    store, config = tissue.parent / "s.zarr", ExtractConfig(layout="native", blocks=(4,))
    before = extract(listed(tissue), counting, store, config).store
    grown = extract(listed(tissue, windows="tissue"), counting, store, config).store
    assert grown.ids[: len(before.ids)] == before.ids and len(grown.labelled) == 2 and len(grown.listed) == 24
    write_outlines(tissue / "a.geojson", box(20, 20, 120, 120), box(300, 40, 480, 240, "stroma"),
                   box(520, 600, 690, 700, "fat"), box(4, 516, 200, 700))  # fmt: skip
    relabelled = extract(listed(tissue, windows="tissue"), counting, store, config)
    assert set(counting.computed.values()) == {1} and counting.computed.total() == 24
    assert relabelled.computed == 4  # masks: of two windows other codes, of two the first
    after = relabelled.store
    assert [entry.corner for entry in after.contents.images if entry.split == "train"] == [
        (0, 0), (0, 256), (512, 0), (512, 512)]  # fmt: skip
    for sample in listed(tissue, windows="tissue").samples:
        np.testing.assert_array_equal(after.mask(after.ids.index(sample.id)), listed(tissue).load_mask(sample))
    assert verify(store) == ()
    back = extract(listed(tissue), counting, store, config).store
    assert len(back.listed) == len(back.labelled) == 4 and back.splits.count("unlisted") == 20
    assert set(counting.computed.values()) == {1}


def test_a_changed_colour_of_a_class_rewrites_the_description_alone(tissue, counting):
    store, config = tissue.parent / "s.zarr", ExtractConfig(layout="native", blocks=(4,))
    before = extract(listed(tissue), counting, store, config).store
    records = {path: path.read_bytes() for path in store.rglob("*") if path.is_file() and path.name != "zarr.json"}
    path = tissue / "a.geojson"
    path.write_text(path.read_text().replace("[200, 0, 0]", "[0, 128, 255]"))
    plan = plan_extraction(listed(tissue), counting, store, config)
    assert "other class colours" in str(plan)
    after = extract(listed(tissue), counting, store, config).store
    assert (before.contents.colours, after.contents.colours) == (("#C80000",) * 2, ("#0080FF",) * 2)
    assert set(counting.computed.values()) == {1}
    changed = [path for path, content in records.items() if path.read_bytes() != content]
    assert not [path for path in changed if "masks" in path.parts or "images" in path.parts]
    assert before.digest() == after.digest()
    assert verify(store) == ()
