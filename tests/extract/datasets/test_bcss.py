from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathseg.extract.datasets import bcss
from pathseg.extract.datasets.image_files import decoded_image, read_image, read_mask
from pathseg.extract.datasets.registry import DatasetError, DatasetOptions, open_dataset
from pathseg.store.key import Preprocessing

TRAIN, VAL, TEST = (
    "TCGA-A2-A0T0-DX1_xmin72865_ymin59458_MPP-0.2500",
    "TCGA-BH-A0BG-DX1_xmin20101_ymin33_MPP-0.2500",
    "TCGA-OL-A5D6-DX1_xmin115108_ymin40554_MPP-0.2500",
)
OFFICIAL = Path(__file__).parents[4] / "shared" / "data" / "bcss"
needs_official = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official BCSS masks (../shared/data) are absent")


def listed(root, **options):
    return open_dataset("bcss", DatasetOptions(root=root, **options))


def ids(dataset, region):
    return [sample.id.removeprefix(f"{region}_") for sample in dataset.samples if sample.source == region]


@needs_official
def test_the_official_masks_are_cut_at_half_their_size(tmp_path):
    (tmp_path / "masks").symlink_to(OFFICIAL / "masks")
    (tmp_path / "images").mkdir()
    for path in (OFFICIAL / "masks").glob("*.png"):
        with Image.open(path) as mask:
            Image.new("RGB", mask.size).save(tmp_path / "images" / path.name, compress_level=1)
    # none of the four is of a test institute, which is what is said of them
    with pytest.raises(DatasetError, match="no region of a test institute"):
        listed(tmp_path)
    files, problems = bcss._pair_files(tmp_path, "images", DatasetOptions())
    # 2467x3394 px are 1233x1697 px of 0.5 um: rows from 0 and 433, columns from 0, 600 and 897
    assert not problems
    assert len(list(bcss._tiles(files["TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500"], 600))) == 2 * 3


@pytest.mark.parametrize("institute", ["OL", "LL", "E2", "EW", "GM", "S3"])
def test_the_held_out_institutes_test(bcss_root, institute):
    for path in bcss_root.glob(f"*/{TEST}.png"):
        path.rename(path.with_name(path.name.replace("-OL-", f"-{institute}-")))
    splits = {sample.source.split("-")[1]: sample.split for sample in listed(bcss_root).samples}
    assert splits == {"A2": "train", "BH": "train", institute: "test"}


def test_named_institutes_validate_instead_of_training(drawn_regions):
    dataset = listed(drawn_regions, val_institutes=("BH",))
    assert {sample.source.split("-")[1]: sample.split for sample in dataset.samples} == {
        "A2": "train", "BH": "val", "OL": "test"
    }  # fmt: skip


@pytest.mark.parametrize("given", [("BH", ""), ("bh",), (" Bh ",)])
def test_institutes_are_known_in_any_case_and_by_a_list_with_a_comma_too_many(drawn_regions, given):
    assert listed(drawn_regions, val_institutes=given).samples == listed(drawn_regions, val_institutes=("BH",)).samples


@pytest.mark.parametrize(("name", "why"), [("OL", "is held out for testing"), ("XX", "has no region here")])
def test_an_institute_that_cannot_validate_says_why(drawn_regions, name, why):
    with pytest.raises(ValueError, match=f"--val-institutes names {name}, which {why}; choose from A2, BH"):
        listed(drawn_regions, val_institutes=("BH", name))


def test_training_on_nothing_is_refused(drawn_regions):
    with pytest.raises(DatasetError, match="no region to train on"):
        listed(drawn_regions, val_institutes=("A2", "BH"))


def test_a_training_patch_has_its_views_and_any_other_its_centre(drawn_regions):
    dataset = listed(drawn_regions, views=3, val_institutes=("BH",))
    # 1700 px at 0.25 um/px are 850 px at 0.5, so one tile at 0 and one flush with the edge at 50
    assert ids(dataset, TRAIN) == [f"y0000_x{x:04d}_v{view}" for x in (0, 50) for view in range(3)]
    assert ids(dataset, VAL) == ids(dataset, TEST) == ["y0000_x0000_v0"]


def test_samples_say_their_region_patch_and_view(drawn_regions):
    sample = listed(drawn_regions, views=3).samples[4]
    assert (sample.source, sample.group, sample.view) == (TRAIN, f"{TRAIN}_y0000_x0050", 1)
    assert (sample.height, sample.width) == (768, 768)


def test_the_centre_is_what_lies_in_the_middle_of_the_patch(drawn_regions):
    dataset = listed(drawn_regions)
    pixels = dataset.load(next(sample for sample in dataset.samples if sample.group.endswith("x0050")))
    # every 2x2 px of the files are alike, so one of them is their mean; the tile starts at 50, its centre 16 further
    whole = read_image(drawn_regions / "images" / f"{TRAIN}.png")[::2, ::2]
    assert np.array_equal(pixels.image, whole[16:784, 66:834])
    raw = read_mask(drawn_regions / "masks" / f"{TRAIN}.png")[::2, ::2][16:784, 66:834]
    assert np.array_equal(pixels.mask == 255, raw == 0)
    assert np.array_equal(pixels.mask == 0, np.isin(raw, (1, 19, 20)))


def test_another_seed_draws_other_views_and_keeps_the_centres(drawn_regions):
    one, other = (listed(drawn_regions, seed=seed) for seed in (0, 1))
    for sample in [sample for sample in one.samples if sample.source == TRAIN]:
        same = np.array_equal(one.load(sample).image, other.load(sample).image)
        assert same == (sample.view == 0)
    assert one.preprocessing != other.preprocessing


def test_a_view_does_not_depend_on_what_else_is_there(drawn_regions):
    alone, among = listed(drawn_regions, limit=3), listed(drawn_regions, views=4)
    for sample in alone.samples:
        assert np.array_equal(alone.load(sample).image, among.load(sample).image)


def test_a_region_below_800_px_is_filled_up_and_what_is_added_ignored(drawn_regions):
    dataset = listed(drawn_regions)
    pixels = dataset.load(next(sample for sample in dataset.samples if sample.source == VAL))
    # 750 px high, the view begins at 16: its last 34 rows lie beyond the region and mirror those before
    assert (pixels.mask[734:] == 255).all() and (pixels.mask[733] != 255).any()
    assert np.array_equal(pixels.image[734:], pixels.image[732:698:-1])


def test_patches_that_are_hardly_annotated_are_dropped(bcss_root):
    mask = np.zeros((1600, 1700), np.uint8)
    mask[:, 1600:] = 1  # 50 of 800 columns: nothing of the tile at 0, 6 % of the one at 50
    mask[:128, :] = 1  # 8 %, so 92 % and 86.5 % are ignored
    Image.fromarray(mask).save(bcss_root / "masks" / f"{TRAIN}.png")
    assert ids(listed(bcss_root, views=1), TRAIN) == ["y0000_x0050_v0"]


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, {}),
        ({"stride": 700, "views": 4, "seed": 9}, {"stride": "700", "drawn": " and, to train on, 3 drawn with seed 9"}),
        ({"views": 1}, {"drawn": ""}),
        ({"mpp": 0.2523456789, "target_mpp": 0.5123456}, {"mpp": "0.252346", "target": "0.512346"}),
    ],
)
def test_the_preprocessing_is_that_of_stores_of_format_1(drawn_regions, options, changes):
    values = {"mpp": "0.25", "target": "0.5", "stride": "600", "drawn": " and, to train on, 1 drawn with seed 0"}
    sentence = (
        "regions of images, {mpp} um/px, brought to {target} (images by averaging areas, masks nearest); 800 px "
        "patches every {stride} px and flush with the edges, without those above 90% ignored; smaller regions "
        "mirrored, what is added ignored; 768 px views of each: the centre{drawn}"
    ).format(**(values | changes))
    assert listed(drawn_regions, **options).preprocessing == Preprocessing.from_sentence(sentence)


def test_the_preprocessing_names_the_kind_of_images(bcss_root):
    (bcss_root / "images").rename(bcss_root / "rgbs_colorNormalized")
    assert listed(bcss_root).preprocessing.settings["image_folder"] == "rgbs_colorNormalized"


def test_no_class_is_the_background(drawn_regions):
    assert listed(drawn_regions).background is None


def test_of_both_kinds_of_images_those_as_scanned_are_taken(bcss_root):
    (bcss_root / "rgbs_colorNormalized").mkdir()
    for path in (bcss_root / "images").glob("*.png"):
        Image.fromarray(255 - read_image(path)).save(bcss_root / "rgbs_colorNormalized" / path.name, compress_level=1)
    usual, other = listed(bcss_root), listed(bcss_root, image_folder="rgbs_colorNormalized")
    assert np.array_equal(usual.load(usual.samples[0]).image, 255 - other.load(other.samples[0]).image)
    assert usual.preprocessing != other.preprocessing


@pytest.mark.parametrize(
    ("options", "folder"),
    [({}, "masks"), ({"image_folder": "rgbs_colorNormalized"}, "rgbs_colorNormalized"), ({}, "images")],
)
def test_a_missing_folder_is_named_with_the_layout(bcss_root, options, folder):
    if (bcss_root / folder).is_dir():
        (bcss_root / folder).rename(bcss_root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"there is no folder .*{folder}.* in [\s\S]*gtruth_codes"):
        listed(bcss_root, **options)


def test_the_scale_is_that_of_the_name(bcss_root):
    for path in bcss_root.glob("*/*.png"):
        path.rename(path.with_name(path.name.replace("MPP-0.2500", "MPP-0.5000")))
    dataset = listed(bcss_root, views=1)
    assert dataset.mpp == 0.5 and dataset.preprocessing.settings["file_mpp"] == (0.5,)
    # 1600x1700 px are not shrunk: 0, 600, 800 along the rows, 0, 600, 900 along the columns
    assert len(ids(dataset, TRAIN.replace("0.2500", "0.5000"))) == 9


def test_a_flag_overrides_the_scale_of_the_name(drawn_regions):
    assert len(ids(listed(drawn_regions, views=1, mpp=0.5), TRAIN)) == 9


def test_a_name_without_scale_needs_the_flag(bcss_root):
    for path in bcss_root.glob("*/*.png"):
        path.rename(path.with_name(path.name.replace("_MPP-0.2500", "")))
    with pytest.raises(DatasetError, match="the name states no um/px"):
        listed(bcss_root)
    assert listed(bcss_root, mpp=0.25).preprocessing.settings["file_mpp"] == (0.25,)


def test_another_scale_can_be_asked_for(drawn_regions):
    dataset = listed(drawn_regions, target_mpp=0.4, views=1, stride=768)
    assert dataset.mpp == 0.4
    # 1600x1700 px of 0.25 um are 1000x1062 px of 0.4 um
    assert ids(dataset, TRAIN) == [f"y{y:04d}_x{x:04d}_v0" for y in (0, 200) for x in (0, 262)]


def test_regions_are_never_enlarged(drawn_regions):
    with pytest.raises(DatasetError, match=r"0.25 um/px .*0.2; pass --target-mpp 0.25"):
        listed(drawn_regions, target_mpp=0.2)


def test_a_region_is_decoded_once_for_all_its_tiles(drawn_regions, monkeypatch):
    read = []
    monkeypatch.setattr(bcss, "decoded_image", lambda path: read.append(path.stem) or decoded_image(path))
    dataset = listed(drawn_regions, views=2)
    for sample in dataset.samples:
        dataset.load(sample)
    assert read == [TRAIN, VAL, TEST]


def test_a_limit_takes_from_every_region_before_a_second_of_any(drawn_regions):
    counts = Counter(sample.source for sample in listed(drawn_regions, views=4, limit=3).samples)
    assert counts == {TRAIN: 1, VAL: 1, TEST: 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "masks" / f"{TEST}.png").unlink(), rf"images/{TEST}.png: no mask"),
        (lambda root: (root / "images" / f"{TEST}.png").unlink(), rf"masks/{TEST}.png: no image"),
        (
            lambda root: [(root / kind / f"{VAL}.png").rename(root / kind / "x.png") for kind in ("images", "masks")],
            r"images/x.png: no name of a BCSS region",
        ),
        (
            lambda root: Image.new("L", (9, 9), 1).save(root / "masks" / f"{VAL}.png"),
            rf"{VAL}.png: a mask must have its image's size",
        ),
        (
            lambda root: Image.new("L", (1601, 1500), 77).save(root / "masks" / f"{VAL}.png"),
            rf"{VAL}.png: code 77 has no row",
        ),
        (
            lambda root: [(root / kind / f"{TEST}.png").unlink() for kind in ("images", "masks")],
            "no region of a test institute",
        ),
    ],
)
def test_files_that_are_not_as_they_must_be_are_named(bcss_root, change, words):
    change(bcss_root)
    with pytest.raises(DatasetError, match=words):
        listed(bcss_root)


def test_an_image_that_cannot_be_decoded_is_named_when_it_is_read(bcss_root):
    path = bcss_root / "images" / f"{TRAIN}.png"
    path.write_bytes(path.read_bytes()[:5000])
    dataset = listed(bcss_root)
    with pytest.raises(ValueError, match=f"{TRAIN}.png"):
        dataset.load(dataset.samples[0])


@pytest.mark.parametrize(
    ("option", "value"), [("target_mpp", bcss.TARGET_MPP), ("stride", bcss.STRIDE_PX), ("views", bcss.VIEWS)]
)
def test_the_help_says_the_default(option, value):
    assert f"[default: {value}" in DatasetOptions.__dataclass_fields__[option].metadata["help"]


def unannotate(root, *names):
    for name in names:
        path = root / "masks" / f"{name}.png"
        with Image.open(path) as mask:
            empty = Image.new("L", mask.size)
        empty.save(path)


@pytest.mark.parametrize(
    ("names", "splits"), [((TEST,), ["test"]), ((VAL,), ["val"]), ((TRAIN, VAL, TEST), ["train", "val", "test"])]
)
def test_a_split_without_a_patch_is_refused_in_a_line(bcss_root, names, splits):
    unannotate(bcss_root, *names)
    with pytest.raises(DatasetError) as caught:
        listed(bcss_root, val_institutes=("BH",))
    for line, split in zip(caught.value.problems, splits, strict=True):
        assert line.startswith(f"every tile of the {split} regions (1) is above 90% ignored")
        assert "check the masks and --mpp" in line


def test_a_scale_that_leaves_no_patch_is_refused(drawn_regions):
    # 1600x1700 px of 0.05 um are 80x85 px of 1 um: a hundredth of a tile, the rest is filled up
    with pytest.raises(DatasetError, match="every tile of the train regions"):
        listed(drawn_regions, mpp=0.05, target_mpp=1.0)


@pytest.mark.parametrize("stated", ["0.0025", "25.00"])
def test_a_name_with_a_scale_that_no_scan_has_is_named(bcss_root, stated):
    for kind in ("images", "masks"):
        path = bcss_root / kind / f"{TRAIN}.png"
        path.rename(path.with_name(path.name.replace("0.2500", stated)))
    with pytest.raises(DatasetError, match=rf"MPP-{stated}.png: the name states .* scans have 0.05 to 10; pass --mpp"):
        listed(bcss_root)


def test_what_was_left_out_is_counted(bcss_root):
    assert listed(bcss_root).left_out == ""
    unannotate(bcss_root, VAL)
    # four tiles: two of the first region, one each of the others
    assert listed(bcss_root).left_out == ("1 of 4 tiles, which are above 90% ignored; 1 of 3 regions have no other")
