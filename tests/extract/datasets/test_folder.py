import dataclasses
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pathseg.cli import main
from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import DatasetError, DatasetOptions, open_dataset
from pathseg.extract.pipeline import extract
from pathseg.extract.plan import plan_extraction
from pathseg.store.key import Preprocessing
from pathseg.store.verify import verify
from pathseg.train.config import HeadConfig
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.loop import train_heads
from tests.extract.conftest import ToyModel

IDS = [f"case {number}" for number in range(10)]


def add(root, id_, *, codes=(0, 1), size=(256, 256), image_suffix=".png", mask_suffix=".png"):
    """An image, and a mask with one stripe of each code."""
    (root / "images").mkdir(exist_ok=True, parents=True)
    (root / "masks").mkdir(exist_ok=True)
    Image.fromarray(np.full((*size, 3), 200, np.uint8)).save(root / "images" / f"{id_}{image_suffix}")
    mask = np.array(codes, np.uint8)[np.arange(size[1]) * len(codes) // size[1]]
    Image.fromarray(np.tile(mask, (size[0], 1))).save(root / "masks" / f"{id_}{mask_suffix}")


@pytest.fixture
def root(tmp_path):
    for id_ in IDS:
        add(tmp_path, id_)
    return tmp_path


def listed(root, **options):
    return open_dataset("folder", DatasetOptions(root=root, **options))


def problems_of(root, **options):
    with pytest.raises(DatasetError) as caught:
        listed(root, **options)
    return caught.value.problems


def write_splits(root, *rows, header="id,split"):
    (root / "splits.csv").write_text("\n".join([header, *rows]) + "\n")


def test_the_id_is_the_name_without_its_suffix(root):
    assert [sample.id for sample in listed(root).samples] == IDS


def test_image_and_mask_may_have_other_types(tmp_path):
    add(tmp_path, "a", image_suffix=".jpg", mask_suffix=".tif")
    add(tmp_path, "b", image_suffix=".bmp")
    assert len(listed(tmp_path).samples) == 2


def test_the_split_comes_from_splits_csv(root):
    write_splits(root, *(f"{id_},{'test' if id_ == IDS[3] else 'train'}" for id_ in IDS))
    assert [sample.id for sample in listed(root).samples if sample.split == "test"] == [IDS[3]]


def test_splits_csv_may_have_a_byte_order_mark_and_columns_in_any_order(root):
    rows = "".join(f"p,{'test' if id_ == IDS[0] else 'val' if id_ == IDS[1] else 'train'},{id_}\n" for id_ in IDS)
    (root / "splits.csv").write_text("source,split,id\n" + rows, encoding="utf-8-sig")
    assert {sample.split for sample in listed(root).samples} == {"train", "val", "test"}


def test_a_source_column_of_splits_csv_names_the_slide_of_each_image(root):
    rows = (f"{id_},{'test' if number > 7 else 'train'},{number // 2 or ''}" for number, id_ in enumerate(IDS))
    write_splits(root, *rows, header="id,split,source")
    dataset = listed(root)
    assert [sample.source for sample in dataset.samples] == [None, None, *"11223344"]
    assert dataset.warnings == ()


def test_a_source_in_two_splits_is_a_warning(root):
    write_splits(
        root, *(f"{id_},{'test' if id_ == IDS[0] else 'train'},slide7" for id_ in IDS), header="id,split,source"
    )
    (warning,) = listed(root).warnings
    assert "'slide7': test and train" in warning


@pytest.mark.parametrize("header", ["id,split,patient", "id,split,split"])
def test_a_column_of_splits_csv_that_would_be_dropped_is_refused(root, header):
    write_splits(root, *(f"{id_},{'test' if id_ == IDS[0] else 'train'},train" for id_ in IDS), header=header)
    (problem,) = problems_of(root)
    assert "splits.csv: the column" in problem and "source" in problem


@pytest.mark.parametrize(
    "name",
    [
        "slide_x{}_y0",
        "slide_{}_256",
        "slide_tile{}",
        "slide-row{}-col3",
        "slide [x={},y=512,w=512,h=512]",
        "slide [d=2,x={},y=512,w=512,h=512]",
        "slide_xmin{}_ymin25055_MPP-0.2500",
        "slide_x{}y2000",
        "slide_({},20)",
        "slide_{}_0_512_512",
    ],
)
def test_patches_of_a_slide_in_several_splits_are_a_warning_without_sources(tmp_path, name):
    for number in range(10):
        add(tmp_path, name.format(number))
    (warning,) = listed(tmp_path).warnings
    assert "'slide': test and train" in warning and "splits.csv" in warning


def test_the_command_warns_of_qupath_tiles_of_a_slide_in_several_splits(tmp_path):
    for number in range(10):
        add(tmp_path, f"slide [x={512 * number},y=512,w=512,h=512]")
    arguments = ["extract", "--dataset", "folder", "--root", str(tmp_path), "--model", "mini", "--dry-run"]
    result = CliRunner().invoke(main, [*arguments, "--workspace", str(tmp_path / "work")])
    assert result.exit_code == 0, result.output
    (warning,) = (line for line in result.output.splitlines() if "warning" in line)
    assert "1 slides or patients" in warning and "'slide': test and train" in warning


def test_numbered_images_are_no_patches_of_a_slide(root):
    add(root, "case_10")
    add(root, "case_11")
    assert listed(root).warnings == ()


def add_objects(root, counts=(7, 20, 4, 11, 2, 9)):
    for number, count in enumerate(counts):
        add(root, f"n{number}", codes=range(count + 1))


def test_masks_that_number_objects_are_refused_as_classes(tmp_path):
    add_objects(tmp_path)
    (problem,) = problems_of(tmp_path)
    assert "n1.png" in problem and "--instances" in problem and "--classes" in problem


def test_scattered_ids_are_refused_as_classes(tmp_path):
    for number in range(5):
        add(tmp_path, f"n{number}", codes=(0, *range(3 + 7 * number, 8 + 7 * number)))
    (problem,) = problems_of(tmp_path)
    assert "--instances" in problem


def test_codes_that_the_user_names_are_classes(tmp_path):
    add_objects(tmp_path, counts=(3, 5, 4))
    assert listed(tmp_path, classes=tuple("abcdef")).classes == tuple("abcdef")


@pytest.fixture
def wide(tmp_path):
    """Two images of 512x128 px, grey, with three stripes of codes."""
    for id_ in ("a", "b"):
        add(tmp_path, id_, codes=(0, 3, 7), size=(128, 512))
    return tmp_path


def test_with_keep_aspect_resized_images_keep_their_shape_and_padding_is_a_class_of_its_own(wide):
    dataset = listed(wide, resize=256, keep_aspect=True, classes=("background", "b", "c"))
    pixels = dataset.load(dataset.samples[0])
    assert (dataset.classes, dataset.background, dataset.ignore) == (("background", "b", "c", "padding"), 0, 3)
    assert pixels.image.shape == (256, 256, 3) and (pixels.image[:64] == 200).all() and (pixels.image[64:] == 255).all()
    assert (pixels.mask[64:] == 3).all()
    assert (pixels.mask[:64, [0, 84, 85, 170, 171, 255]] == [0, 0, 1, 1, 2, 2]).all()  # px 2k + 1 of the file
    assert dataset.preprocessing == Preprocessing(True, {"mask_codes": (0, 3, 7), "padded": "right and below"})


def test_with_keep_aspect_numbered_objects_keep_the_size_of_the_file(wide):
    dataset = listed(wide, resize=256, keep_aspect=True, instances=True)
    pixels = dataset.load(dataset.samples[0])
    assert dataset.classes == ("background", "object", "padding") and dataset.ignore == 2
    assert pixels.instances.shape == (128, 512) and np.unique(pixels.mask[:64]).tolist() == [0, 1]


def test_keep_aspect_is_refused_where_nothing_is_resized(root):
    with pytest.raises(ValueError, match="--keep-aspect does nothing without --resize"):
        listed(root, keep_aspect=True)


def test_a_class_cannot_have_the_name_of_the_padding(wide):
    (problem,) = problems_of(wide, resize=256, keep_aspect=True, classes=("a", "padding", "c"))
    assert "padding" in problem and "--keep-aspect" in problem


def test_with_instances_numbered_objects_are_one_class_with_their_ids(tmp_path):
    add_objects(tmp_path)
    dataset = listed(tmp_path, instances=True)
    pixels = dataset.load(dataset.samples[1])
    assert (dataset.classes, dataset.background, dataset.has_instances) == (("background", "object"), 0, True)
    assert (pixels.instances.dtype, pixels.instances.max(), np.unique(pixels.mask).tolist()) == (np.uint16, 20, [0, 1])
    assert dataset.preprocessing != Preprocessing(settings={"mask_codes": (0, 1)})


def test_with_instances_masks_of_0_and_255_are_refused_on_loading(tmp_path):
    add(tmp_path, "a", codes=(0, 255))
    add(tmp_path, "b", codes=(0, 1))
    dataset = listed(tmp_path, instances=True)
    with pytest.raises(ValueError, match=r"a\.png: .*255 alone"):
        dataset.load(dataset.samples[0])


def test_classes_are_counted_by_mask(tmp_path):
    for id_, codes in (("a", (0, 9)), ("b", (0, 4)), ("c", (0, 4))):
        add(tmp_path, id_, codes=codes)
    assert listed(tmp_path).masks_per_class == {"code 0": 3, "code 4": 2, "code 9": 1}


STORED = {  # one mask of background and one class, as programs store it
    "0 and 1": lambda mask: Image.fromarray(mask),
    "0 and 255": lambda mask: Image.fromarray(mask * 255),
    "one bit": lambda mask: Image.fromarray(mask.astype(bool)),
    "grey palette": lambda mask: with_palette(1 - mask, [255] * 3 + [0] * 3),
    "colour palette": lambda mask: with_palette(mask, [0, 0, 0, 250, 0, 0]),
}


def with_palette(mask, palette):
    image = Image.fromarray(mask)
    image.putpalette(palette)
    return image


@pytest.mark.parametrize("store", STORED.values(), ids=STORED)
def test_a_mask_gives_the_same_classes_however_it_is_stored(tmp_path, store):
    for id_ in "ab":
        add(tmp_path, id_)
        path = tmp_path / "masks" / f"{id_}.png"
        store(np.array(Image.open(path))).save(path)
    dataset = listed(tmp_path)
    mask = dataset.load(dataset.samples[0]).mask
    assert (len(dataset.classes), mask[0, 0], mask[0, -1]) == (2, 0, 1)


@pytest.mark.parametrize("other", ["0 and 1", "one bit"])
def test_one_class_stored_in_two_ways_is_refused_and_not_taken_for_two(tmp_path, other):
    for id_, kind in (("a", "0 and 255"), ("b", other)):
        add(tmp_path, id_)
        path = tmp_path / "masks" / f"{id_}.png"
        STORED[kind](np.array(Image.open(path))).save(path)
    (problem,) = problems_of(tmp_path)
    assert "b.png holds 1" in problem and "a.png holds 255" in problem
    assert len(listed(tmp_path, classes=("a", "b", "c")).classes) == 3


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_pair_in_composed_and_decomposed_unicode(root, forms):
    image, mask = (unicodedata.normalize(form, "Gewebe-Ä-é") for form in forms)
    add(root, image)
    (root / "masks" / f"{image}.png").rename(root / "masks" / f"{mask}.png")
    write_splits(root, f"{mask},test", *(f"{id_},train" for id_ in IDS))
    assert [sample.id for sample in listed(root).samples if sample.split == "test"] == [image]


def test_a_dead_link_is_named_and_not_left_out(root):
    (root / "images" / "gone.png").symlink_to(root / "annex" / "gone.png")
    with pytest.raises(ValueError, match=r"gone\.png: a link to .*annex.*fetch it"):
        listed(root)


def test_linked_folders_are_read(root, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    (root / "images").rename(scratch / "images")
    (root / "images").symlink_to(scratch / "images")
    assert len(listed(root).samples) == len(IDS)


def test_without_splits_csv_there_are_both_splits(root):
    assert {sample.split for sample in listed(root).samples} == {"train", "test"}


def test_two_images_without_splits_csv_are_one_of_each(tmp_path):
    add(tmp_path, "a")
    add(tmp_path, "b")
    assert sorted(sample.split for sample in listed(tmp_path).samples) == ["test", "train"]


def test_further_images_leave_the_split_of_the_others(tmp_path):
    for number in range(30):
        add(tmp_path, f"n{number}", size=(256, 256))
    before = {sample.id: sample.split for sample in listed(tmp_path).samples}
    for number in range(30, 50):
        add(tmp_path, f"n{number}", size=(256, 256))
    after = {sample.id: sample.split for sample in listed(tmp_path).samples}
    assert {id_: after[id_] for id_ in before} == before


def test_a_split_by_hash_puts_about_a_fifth_into_test(tmp_path):
    for number in range(100):
        add(tmp_path, f"n{number}")
    assert 10 <= sum(sample.split == "test" for sample in listed(tmp_path).samples) <= 30


def test_a_mask_of_0_and_255_has_the_classes_0_and_1(tmp_path):
    add(tmp_path, "a", codes=(0, 255))
    add(tmp_path, "b", codes=(0, 255))
    dataset = listed(tmp_path)
    mask = dataset.load(dataset.samples[0]).mask
    assert (mask.dtype, mask[0, 0], mask[0, -1], dataset.classes) == (np.uint8, 0, 1, ("code 0", "code 255"))


def test_codes_that_only_one_mask_has_count_for_all(tmp_path):
    add(tmp_path, "a", codes=(0, 9))
    add(tmp_path, "b", codes=(0, 4))
    dataset = listed(tmp_path)
    assert dataset.load(dataset.samples[0]).mask[0, -1] == 2


def test_a_limit_does_not_change_the_codes(tmp_path):
    for id_, codes in (("a", (0, 9)), ("b", (0, 4)), ("c", (0, 7))):
        add(tmp_path, id_, codes=codes)
    assert len(listed(tmp_path, limit=2).classes) == 4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "mask codes 0, 255 are classes 0..1"),
        (
            {"resize": 512},
            "resized to 512x512 px (images bicubic, masks nearest), aspect ratio not kept; "
            "mask codes 0, 255 are classes 0..1",
        ),
    ],
)
def test_the_preprocessing_is_that_of_stores_of_format_1(tmp_path, options, sentence):
    add(tmp_path, "a", codes=(0, 255))
    add(tmp_path, "b", codes=(0, 255))
    assert listed(tmp_path, **options).preprocessing == Preprocessing.from_sentence(sentence)


@pytest.mark.parametrize(
    ("classes", "code"), [((), None), (("background", "gland"), 0), (("gland", "Background"), 1), (("a", "b"), None)]
)
def test_the_class_named_background_is_the_background(root, classes, code):
    assert listed(root, classes=classes).background == code


def test_class_names_are_taken_in_the_order_of_codes(root):
    assert listed(root, classes=("stroma", "tumor")).classes == ("stroma", "tumor")


def test_a_code_without_a_class_name_is_named_with_its_file(root):
    add(root, IDS[4], codes=(0, 1, 77))
    (problem,) = problems_of(root, classes=("stroma", "tumor"))
    assert f"77 (first in {IDS[4]}.png)" in problem and "stroma,tumor" in problem and "name 3" in problem


def test_a_class_name_without_a_code_is_refused(root):
    (problem,) = problems_of(root, classes=("stroma", "tumor", "fat"))
    assert "the masks hold 2" in problem


def test_equal_class_names_are_refused(root):
    (problem,) = problems_of(root, classes=("stroma", "stroma"))
    assert "class names must differ" in problem


@pytest.fixture
def three(tmp_path):
    """Six images whose masks have stripes of 64 px: of the codes 0 and 5, and two of 9."""
    for id_ in IDS[:6]:
        add(tmp_path, id_, codes=(0, 5, 9, 9))
    return tmp_path


@pytest.mark.parametrize(("ignore", "kept"), [(0, (5, 9)), (5, (0, 9)), (9, (0, 5))])
@pytest.mark.parametrize("names", [(), ("stroma", "tumor")])
def test_the_ignored_code_is_of_no_class(three, ignore, kept, names):
    dataset = listed(three, ignore=ignore, classes=names)
    assert dataset.classes == (names or tuple(f"code {code}" for code in kept)) and dataset.ignore == 255
    assert dataset.masks_per_class == dict.fromkeys(dataset.classes, 6)
    assert dataset.preprocessing.settings == {"mask_codes": kept, "ignored_code": ignore}
    expected = np.array([kept.index(code) if code in kept else 255 for code in (0, 5, 9, 9)]).repeat(64)
    np.testing.assert_array_equal(dataset.load(dataset.samples[0]).mask, np.tile(expected, (256, 1)))


def test_masks_may_hold_255_for_what_is_ignored_or_nothing_else(three):
    add(three, IDS[6], codes=(0, 5, 9, 255))
    add(three, IDS[7], codes=(255,))
    dataset = listed(three, ignore=255)
    assert dataset.classes == ("code 0", "code 5", "code 9")
    assert (dataset.load(dataset.samples[7]).mask == 255).all()


def test_a_code_that_no_mask_holds_cannot_be_ignored(three):
    (problem,) = problems_of(three, ignore=7)
    assert "--ignore 7" in problem and "0, 5, 9" in problem


@pytest.mark.parametrize("option", [{"instances": True}, {"keep_aspect": True, "resize": 256}])
def test_an_ignored_code_is_refused_beside_what_it_does_not_go_with(three, option):
    with pytest.raises(ValueError, match=r"--ignore 5.* leave one out"):
        listed(three, ignore=5, **option)


def test_masks_of_one_code_beside_the_ignored_one_are_refused(root):
    (problem,) = problems_of(root, ignore=1)
    assert "two or more codes" in problem


def test_ignored_pixels_count_in_no_class_weight_and_no_metric(three):
    write_splits(three, *(f"{id_},{'test' if id_ == IDS[3] else 'train'}" for id_ in IDS[:6]))
    store = extract(
        listed(three, ignore=5), ToyModel(), three / "s.zarr", ExtractConfig(layout="native", blocks=(4,))
    ).store
    assert store.contents.ignore == 255
    config = HeadConfig(blocks=(4,), head_type="linear", lr=1e-2, epochs=1, class_weights="balanced")
    (state,) = train_heads(store, [(config, RunFolder(three / "run"))])
    assert state.failure is None
    # of the counted px a third is of code 0, two thirds of code 9; weights are 1 - the share
    torch.testing.assert_close(state.class_weights.cpu(), torch.tensor([2 / 3, 1 / 3]))
    confusion = np.array(state.run.read_metrics().splits["test"].confusion)
    np.testing.assert_array_equal(confusion.sum(axis=1), [64 * 256, 128 * 256])


def test_a_store_follows_another_ignored_code_without_computing_features(three):
    config = ExtractConfig(layout="native", blocks=(4,))
    extract(listed(three), ToyModel(), three / "s.zarr", config)
    files = {path: path.read_bytes() for path in (three / "s.zarr" / "t50").rglob("*") if path.is_file()}
    for ignore in (9, 0):
        dataset = listed(three, ignore=ignore, classes=("a", "b"))
        plan = plan_extraction(dataset, ToyModel(), three / "s.zarr", config)
        assert not plan.missing_maps and len(plan.changes.relabelled) == 6
        store = extract(dataset, ToyModel(), three / "s.zarr", config).store
        assert store.contents.key.preprocessing.settings["ignored_code"] == ignore
        assert files == {path: path.read_bytes() for path in files}
        np.testing.assert_array_equal(store.mask(0), dataset.load(dataset.samples[0]).mask)
    assert verify(three / "s.zarr") == ()


def test_a_store_that_does_not_record_its_ignored_code_gets_it_and_keeps_its_masks(three):
    config, dataset = ExtractConfig(layout="native", blocks=(4,)), listed(three, ignore=9)
    earlier = dataclasses.replace(dataset, preprocessing=Preprocessing(settings={"mask_codes": (0, 5)}))
    extract(earlier, ToyModel(), three / "s.zarr", config)
    plan = plan_extraction(dataset, ToyModel(), three / "s.zarr", config)
    assert not plan.missing_maps and not plan.changes.relabelled
    store = extract(dataset, ToyModel(), three / "s.zarr", config).store
    assert store.contents.key.preprocessing.settings == {"mask_codes": (0, 5), "ignored_code": 9}


def test_masks_of_one_code_are_refused(tmp_path):
    add(tmp_path, "a", codes=(0,))
    add(tmp_path, "b", codes=(0,))
    (problem,) = problems_of(tmp_path)
    assert "all hold 0" in problem


def test_a_mask_of_very_many_codes_is_refused_as_no_class_mask(root):
    add(root, IDS[0], codes=tuple(range(200)))
    (problem,) = problems_of(root)
    assert f"{IDS[0]}.png" in problem and "holds 200" in problem


def test_one_size_of_whole_patches_is_kept(tmp_path):
    add(tmp_path, "a", size=(256, 512))
    add(tmp_path, "b", size=(256, 512))
    assert listed(tmp_path).size == (256, 512)


def test_images_of_different_sizes_are_named(root):
    add(root, IDS[2], size=(256, 512))
    (problem,) = problems_of(root)
    assert f"{IDS[2]}.png is 512x256 px (most are 256x256 px); pass --resize 256" in problem


def test_a_size_that_is_no_multiple_of_the_patch_is_named(tmp_path):
    add(tmp_path, "a", size=(700, 750))
    add(tmp_path, "b", size=(700, 750))
    (problem,) = problems_of(tmp_path)
    assert "a.png is 750x700 px" in problem and problem.endswith("pass --resize 768")


def test_resize_brings_all_to_one_size(root):
    add(root, IDS[2], size=(300, 200))
    dataset = listed(root, resize=512)
    pixels = dataset.load(dataset.samples[2])
    assert (pixels.image.shape, pixels.mask.shape, dataset.size) == ((512, 512, 3), (512, 512), (512, 512))


def test_there_are_no_instances(root):
    dataset = listed(root)
    assert not dataset.has_instances and dataset.load(dataset.samples[0]).instances is None


def test_the_scale_is_the_one_given(root):
    assert (listed(root, mpp=0.25).mpp, listed(root).mpp) == (0.25, None)


@pytest.mark.parametrize("missing", ["images", "masks"])
def test_a_missing_folder_says_which_layout_is_expected(tmp_path, missing):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / ("images" if missing == "masks" else "masks") / "a.png")
    with pytest.raises(FileNotFoundError, match=rf"no image files in .*{missing}.*\n(.*\n)*.*masks/NAME\.png"):
        listed(tmp_path)


def test_an_image_without_mask_is_named(root):
    (root / "masks" / f"{IDS[1]}.png").unlink()
    (problem,) = problems_of(root)
    assert f"{IDS[1]}.png: no mask" in problem


def test_an_image_without_mask_leads_to_no_line_about_its_split(root):
    write_splits(root, *(f"{id_},{'test' if id_ == IDS[3] else 'train'}" for id_ in IDS))
    (root / "masks" / f"{IDS[3]}.png").unlink()
    (problem,) = problems_of(root)
    assert "no mask" in problem


def test_a_mask_without_image_is_named(root):
    (root / "images" / f"{IDS[1]}.png").unlink()
    (problem,) = problems_of(root)
    assert str(Path("masks") / f"{IDS[1]}.png: no image") in problem


def test_two_files_of_one_id_are_named(root):
    Image.new("RGB", (256, 256)).save(root / "images" / f"{IDS[1]}.jpg")
    (problem,) = problems_of(root)
    assert f"{IDS[1]}.png: a second file" in problem and f"{IDS[1]}.jpg" in problem


def test_a_mask_of_another_size_is_named(root):
    Image.new("L", (200, 100)).save(root / "masks" / f"{IDS[1]}.png")
    (problem,) = problems_of(root)
    assert "200x100 px" in problem and "256x256 px" in problem


def test_an_image_with_alpha_is_named_when_listing(root):
    Image.new("RGBA", (256, 256)).save(root / "images" / f"{IDS[1]}.png")
    (problem,) = problems_of(root)
    assert f"{IDS[1]}.png: an image must be 8-bit RGB" in problem


def test_files_in_a_folder_below_are_named(root):
    (root / "images" / "more").mkdir()
    Image.new("RGB", (256, 256)).save(root / "images" / "more" / f"{IDS[1]}.png")
    assert "not in a folder below" in problems_of(root)[0]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("ghost,train", "no image has the id 'ghost'"),
        (f"{IDS[0]},train", f"a second row for '{IDS[0]}'"),
    ],
)
def test_a_wrong_row_of_splits_csv_is_named_with_its_line(root, row, words):
    write_splits(root, *(f"{id_},{'test' if id_ == IDS[9] else 'train'}" for id_ in IDS), row)
    (problem,) = problems_of(root)
    assert f"line 12: {words}" in problem


@pytest.mark.parametrize("where", ["header", "id", "split"])
def test_a_value_as_long_as_a_file_takes_one_short_line_of_a_message(root, where):
    long = "long\n" * 20_000
    rows = [f"{id_},{'test' if id_ == IDS[9] else 'train'}" for id_ in IDS]
    header = f'id,split,"{long}"' if where == "header" else "id,split"
    more = {"header": [], "id": [f'"{long}",train'], "split": [f'{IDS[0]},"{long}"']}[where]
    write_splits(root, *(rows[1:] if where == "split" else rows), *more, header=header)
    problem = problems_of(root)[0]
    assert "long" in problem and len(problem) < 800 and "\n" not in problem


def test_an_unknown_split_is_named(root):
    write_splits(root, *(f"{id_},{'testing' if id_ == IDS[9] else 'training'}" for id_ in IDS))
    assert "must be train, val or test..., got 'training'" in problems_of(root)[0]


def test_an_image_without_a_row_in_splits_csv_is_named(root):
    write_splits(root, *(f"{id_},{'test' if id_ == IDS[9] else 'train'}" for id_ in IDS[1:]))
    (problem,) = problems_of(root)
    assert f"no row for the image '{IDS[0]}'" in problem


def test_a_splits_csv_without_header_is_refused(root):
    write_splits(root, *(f"{id_},train" for id_ in IDS[1:]), header=f"{IDS[0]},train")
    (problem,) = problems_of(root)
    assert "must name the columns id,split" in problem


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_splits_csv_with_one_split_only_is_refused(root, split):
    write_splits(root, *(f"{id_},{split}" for id_ in IDS))
    (problem,) = problems_of(root)
    assert f"no image is in a {'test' if split == 'train' else 'train'} split" in problem


def test_one_image_alone_is_refused(tmp_path):
    add(tmp_path, "a")
    (problem,) = problems_of(tmp_path)
    assert "two images are needed" in problem


def test_results_are_quoted_on_test_where_there_are_several(root):
    splits = {IDS[0]: "test", IDS[1]: "testB"}
    write_splits(root, *(f"{id_},{splits.get(id_, 'train')}" for id_ in IDS))
    assert listed(root).test_split == "test"


def test_a_mask_that_changed_after_listing_is_refused_on_loading(root):
    dataset = listed(root)
    add(root, IDS[0], codes=(0, 8))
    with pytest.raises(ValueError, match=r"case 0\.png: code 8 is none of the codes 0, 1"):
        dataset.load(dataset.samples[0])


@pytest.mark.parametrize("row", [f"{'x' * 140_000},train", f'"{IDS[0]},train' + "\n" * 140_000])
def test_a_splits_csv_with_an_endless_field_is_refused(root, row):
    write_splits(root, row)
    (problem,) = problems_of(root)
    assert f"{root / 'splits.csv'}: line " in problem and "field larger than field limit" in problem
    assert "\n" not in problem


def test_a_splits_csv_with_an_endless_header_is_refused(root):
    write_splits(root, header="x" * 140_000)
    (problem,) = problems_of(root)
    assert "splits.csv: line " in problem and "field larger than field limit" in problem


@pytest.mark.parametrize("place", ["images", "masks", "images/more"])
def test_a_file_name_that_is_not_utf8_is_named(root, place):
    (root / place).mkdir(exist_ok=True)
    strange = os.fsdecode(b"caf\xe9.png")
    try:
        Image.new("L", (256, 256)).save(root / place / strange)
    except OSError:
        pytest.skip("this file system takes no such name")
    (problem,) = problems_of(root)
    assert problem == f"{str(root / place / strange)!r}: a file name must be valid UTF-8; rename the file"
    assert problem.isascii()
