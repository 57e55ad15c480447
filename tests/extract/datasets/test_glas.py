from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathseg.extract.datasets.registry import DatasetError, DatasetOptions, open_dataset
from pathseg.store.key import Preprocessing

SHARED = Path(__file__).parents[4] / "shared" / "data" / "glas_sample"
needs_sample = pytest.mark.skipif(not SHARED.is_dir(), reason="the GlaS sample (../shared/data/glas_sample) is absent")

GLANDS = np.zeros((50, 70), np.uint8)
GLANDS[5:20, 5:30] = 1
GLANDS[25:45, 20:60] = 3  # ids need not be consecutive
TISSUE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


def add(folder, name, *, suffix=".bmp", mask_suffix=".bmp", mask=GLANDS, mask_name=None):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(TISSUE).save(folder / f"{name}{suffix}")
    Image.fromarray(mask).save(folder / f"{mask_name or name + '_anno'}{mask_suffix}")


PATIENTS = {"train_1": "7", "train_2": "7", "train_10": "12", "testA_3": "3", "testB_4": "4"}


@pytest.fixture
def release(tmp_path):
    """The layout of the official release, with few images."""
    folder = tmp_path / "Warwick QU Dataset (Released 2016_07_08)"
    for name in ("train_1", "train_2", "train_10", "testA_3", "testB_4"):
        add(folder, name)
    rows = ["name, patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    rows += [f"{name},{patient},benign, adenomatous" for name, patient in PATIENTS.items()]
    (folder / "Grade.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def listed(root, **options):
    return open_dataset("glas", DatasetOptions(root=root, **options))


def problems_of(root):
    with pytest.raises(DatasetError) as caught:
        listed(root)
    return caught.value.problems


def test_ids_are_the_official_names_in_natural_order(release):
    assert [sample.id for sample in listed(release).samples] == ["train_1", "train_2", "train_10", "testA_3", "testB_4"]


def test_the_folder_of_the_release_can_be_the_root(release):
    assert len(listed(release / "Warwick QU Dataset (Released 2016_07_08)").samples) == 5


def grades(release):
    return next(release.rglob("Grade.csv"))


def test_the_patients_of_the_release_are_the_sources(release):
    dataset = listed(release)
    assert {sample.id: sample.source for sample in dataset.samples} == PATIENTS
    assert dataset.warnings == ()


def test_patients_of_the_train_split_that_are_in_a_test_split_too_are_counted_in_one_warning(release):
    text = grades(release).read_text().replace("testA_3,3,", "testA_3,12,")  # train_10 is of patient 12
    grades(release).write_text(text)
    (warning,) = listed(release).warnings
    assert "1 of 1 in testA" in warning and "testB" not in warning and "not those of unseen patients" in warning


def test_with_keep_aspect_images_keep_their_shape_and_the_rest_is_white_and_ignored(tmp_path):
    wide = np.random.default_rng(0).integers(0, 200, (128, 256, 3), np.uint8)
    for name in ("train_1", "testB_1"):
        add(tmp_path, name)
        Image.fromarray(wide).save(tmp_path / f"{name}.bmp")
        Image.fromarray(np.ones((128, 256), np.uint8)).save(tmp_path / f"{name}_anno.bmp")
    dataset = listed(tmp_path, resize=256, keep_aspect=True)
    pixels = dataset.load(dataset.samples[0])
    assert (dataset.classes[dataset.ignore], dataset.size, dataset.preprocessing.padded) == (
        "padding",
        (256, 256),
        True,
    )
    np.testing.assert_array_equal(pixels.image[:128], wide)  # at the size of the file, so nothing is interpolated
    assert (pixels.image[128:] == 255).all()
    assert (pixels.mask[:128] == 1).all() and (pixels.mask[128:] == dataset.ignore).all()
    assert pixels.instances.shape == (128, 256)
    assert listed(tmp_path, resize=256).preprocessing != dataset.preprocessing  # which is part of the key


@pytest.mark.parametrize("text", [None, "name,patient ID,grade\n"])
def test_without_patients_there_are_no_sources_but_a_warning(release, text):
    grades(release).unlink() if text is None else grades(release).write_text(text)
    dataset = listed(release)
    assert {sample.source for sample in dataset.samples} == {None}
    assert "Grade.csv" in dataset.warnings[0] and "patients are unknown" in dataset.warnings[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("train_2,7", "train_3,7"), "no row for train_2"),
        (lambda text: text.replace("name, patient ID,", "name, who,"), "must name the columns name,patient id"),
        (lambda text: text.replace("grade (GlaS)", "scanner"), "the column 'scanner' is unknown"),
        (lambda text: text + "train_01,9,benign,healthy\n", "line 7: a second row for train_1"),
        (lambda text: text + "train_99,9,benign,healthy\n", "line 7: 'train_99' is none of"),
        (lambda text: text.replace("train_2,7", "train_2,"), "line 3: no patient ID for train_2"),
        (lambda text: text + "train_5,9,benign,healthy,more\n", "line 7: more values than columns"),
    ],
)
def test_a_table_of_patients_that_cannot_be_relied_on_is_refused(release, change, words):
    grades(release).write_text(change(grades(release).read_text()))
    assert any("Grade.csv: " in problem and words in problem for problem in problems_of(release))


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "testA", "testB"), ["train", "testA", "testB"]),
        (("Train_Folder", "Test A", "test_b"), ["train", "testA", "testB"]),
        (("training", "Test_Folder"), ["train", "test"]),
    ],
)
def test_a_reupload_with_numbers_for_names_takes_the_split_from_its_folders(tmp_path, folders, splits):
    for folder in folders:
        add(tmp_path / folder / "img", "01", suffix=".png", mask_suffix=".png")
        (tmp_path / folder / "labelcol").mkdir()
        (tmp_path / folder / "img" / "01_anno.png").rename(tmp_path / folder / "labelcol" / "1.png")
    dataset = listed(tmp_path)
    assert [sample.split for sample in dataset.samples] == splits
    assert [sample.id for sample in dataset.samples] == [f"{split}_1" for split in splits]
    assert dataset.test_split == splits[-1]
    np.testing.assert_array_equal(dataset.load(dataset.samples[0]).instances, GLANDS)


@pytest.mark.parametrize("folder", ["images", "val"])
def test_numbers_for_names_without_a_folder_that_names_the_split_are_refused(tmp_path, folder):
    add(tmp_path / folder, "1")
    assert all("folders called train, testA, testB" in problem for problem in problems_of(tmp_path))


def test_splits_are_the_parts_of_the_challenge(release):
    assert [sample.split for sample in listed(release).samples] == ["train", "train", "train", "testA", "testB"]


def test_results_are_quoted_on_test_b(release):
    assert listed(release).test_split == "testB"


def test_without_test_b_results_are_quoted_on_test_a(tmp_path):
    add(tmp_path, "train_1")
    add(tmp_path, "testA_1")
    assert listed(tmp_path).test_split == "testA"


def test_samples_have_their_original_size(release):
    sample = listed(release).samples[0]
    assert (sample.height, sample.width) == (50, 70)


def test_images_and_masks_are_brought_to_768_px_as_in_the_paper(release):
    dataset = listed(release)
    pixels = dataset.load(dataset.samples[0])
    assert (dataset.size, pixels.image.shape, pixels.mask.shape) == ((768, 768), (768, 768, 3), (768, 768))


def test_another_size_can_be_asked_for(release):
    dataset = listed(release, resize=256)
    assert dataset.load(dataset.samples[0]).image.shape == (256, 256, 3)


def test_the_mask_is_1_where_any_gland_is(release):
    dataset = listed(release, resize=256)
    mask = dataset.load(dataset.samples[0]).mask
    expected = np.asarray(Image.fromarray((GLANDS > 0).astype(np.uint8)).resize((256, 256), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(mask, expected)


def test_instances_keep_ids_and_size_of_the_file(release):
    dataset = listed(release)
    instances = dataset.load(dataset.samples[0]).instances
    np.testing.assert_array_equal(instances, GLANDS)
    assert instances.dtype == np.uint16


def test_resolution_and_background_are_those_of_the_release(release):
    dataset = listed(release)
    assert (dataset.mpp, dataset.background, dataset.classes[0]) == (0.62, 0, "background")


def test_the_preprocessing_is_that_of_stores_of_format_1(release):
    sentence = "resized to 768x768 px (images bicubic, masks nearest), aspect ratio not kept"
    assert listed(release).preprocessing == Preprocessing.from_sentence(sentence)


def test_a_mask_may_have_another_image_type(tmp_path):
    add(tmp_path, "train_1", suffix=".jpg", mask_suffix=".png")
    add(tmp_path, "testB_1", suffix=".tif", mask_suffix=".png")
    assert len(listed(tmp_path).samples) == 2


def test_a_reupload_split_in_folders_is_read(tmp_path):
    for folder, name in (("train", "train_1"), ("test", "testA_1"), ("test", "testB_1")):
        add(tmp_path / folder, name, suffix=".png", mask_suffix=".png")
        masks = tmp_path / folder / "masks"
        masks.mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}_anno.png").rename(masks / f"{name}.png")
    assert [sample.split for sample in listed(tmp_path).samples] == ["train", "testA", "testB"]


def test_an_image_without_mask_is_named(release):
    next(release.rglob("train_2_anno.bmp")).unlink()
    (problem,) = problems_of(release)
    assert "train_2.bmp: no mask" in problem


def test_a_mask_without_image_is_named(release):
    next(release.rglob("train_2.bmp")).unlink()
    (problem,) = problems_of(release)
    assert "train_2_anno.bmp: a mask without image" in problem


def test_an_id_that_comes_twice_is_named_with_both_files(release):
    add(release / "copy", "train_2", suffix=".png", mask_name="train_02_anno")
    problems = problems_of(release)
    assert len(problems) == 2 and all("of train_2 beside" in problem for problem in problems)


@pytest.mark.parametrize("name", ["slide_7", "train_86", "testB_21", "testC_1", "train_0"])
def test_a_name_that_the_release_does_not_have_is_refused(release, name):
    Image.fromarray(TISSUE).save(release / f"{name}.png")
    (problem,) = problems_of(release)
    assert f"{name}.png: no GlaS name" in problem


def test_a_mask_of_another_size_is_named_with_both_sizes(release):
    Image.fromarray(GLANDS[:, :60]).save(next(release.rglob("train_2_anno.bmp")))
    (problem,) = problems_of(release)
    assert "train_2_anno.bmp" in problem and "60x50 px" in problem and "70x50 px" in problem


def test_all_problems_are_reported_together(release):
    next(release.rglob("train_2_anno.bmp")).unlink()
    next(release.rglob("testA_3.bmp")).unlink()
    next(release.rglob("train_1.bmp")).write_bytes(b"no image")
    with pytest.raises(DatasetError) as caught:
        listed(release)
    assert len(caught.value.problems) == len(str(caught.value).splitlines()) == 3


def test_an_empty_folder_says_which_layout_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image in .*\n(.*\n)*.*train_1_anno\.bmp"):
        listed(tmp_path)


def test_a_release_without_train_part_is_refused(tmp_path):
    add(tmp_path, "testB_1")
    (problem,) = problems_of(tmp_path)
    assert "train_1..85 are needed" in problem


def test_a_release_without_test_part_is_refused(tmp_path):
    add(tmp_path, "train_1")
    (problem,) = problems_of(tmp_path)
    assert "testB_1..20 are needed" in problem


def test_a_mask_that_does_not_number_its_glands_is_refused_on_loading(release):
    Image.fromarray((GLANDS > 0).astype(np.uint8) * 255).save(next(release.rglob("train_1_anno.bmp")))
    dataset = listed(release)
    with pytest.raises(ValueError, match=r"train_1_anno\.bmp: .*holds 255 alone.*; get the numbered masks"):
        dataset.load(dataset.samples[0])


def test_gland_ids_beyond_16_bit_are_refused_on_loading(tmp_path):
    add(tmp_path, "train_1", mask=GLANDS.astype(np.int32) * 40000, mask_suffix=".tif")
    add(tmp_path, "testB_1")
    dataset = listed(tmp_path)
    with pytest.raises(ValueError, match=r"train_1_anno\.tif: object ids must be 0\.\.65535, found 0\.\.120000"):
        dataset.load(dataset.samples[0])


def test_a_truncated_image_is_named_on_loading_and_the_others_load(release):
    path = next(release.rglob("train_2.bmp"))
    path.write_bytes(path.read_bytes()[:3000])
    dataset = listed(release)
    with pytest.raises(ValueError, match=r"train_2\.bmp: the file is damaged or cut short"):
        dataset.load(dataset.samples[1])
    assert dataset.load(dataset.samples[0]).image.shape == (768, 768, 3)


@needs_sample
def test_the_real_sample_is_listed_whole():
    splits = [sample.split for sample in listed(SHARED).samples]
    assert [splits.count(split) for split in ("train", "testA", "testB")] == [16, 4, 4]


@needs_sample
def test_the_real_sizes_are_those_of_the_files():
    sizes = {sample.id: (sample.width, sample.height) for sample in listed(SHARED).samples}
    assert (sizes["train_1"], sizes["train_41"], sizes["testA_50"]) == ((775, 522), (567, 430), (574, 433))


@needs_sample
def test_real_instances_are_those_of_the_file():
    dataset = listed(SHARED)
    sample = next(sample for sample in dataset.samples if sample.id == "testB_7")
    np.testing.assert_array_equal(dataset.load(sample).instances, np.asarray(Image.open(SHARED / "testB_7_anno.png")))


@needs_sample
def test_every_real_sample_loads_with_both_classes():
    dataset = listed(SHARED, resize=256)
    assert all(np.unique(dataset.load(sample).mask).tolist() == [0, 1] for sample in dataset.samples)


def test_views_are_the_four_symmetries_that_keep_the_axes_of_the_stretched_images(release):
    dataset = open_dataset("glas", DatasetOptions(root=release, views="flips"))
    ids = [sample.id for sample in dataset.samples]
    assert ids[:5] == ["train_1", "train_1_v2", "train_1_v4", "train_1_v6", "train_2"] and len(ids) == 3 * 4 + 2
    assert {sample.source for sample in dataset.samples[:4]} == {PATIENTS["train_1"]}
    plain, upside_down = (dataset.load(dataset.samples[number]) for number in (0, 3))
    assert np.array_equal(upside_down.image, plain.image[::-1])
    assert np.array_equal(upside_down.instances, plain.instances[::-1])
    assert dataset.preprocessing == Preprocessing(resized=True, settings={"views": "flips"})
