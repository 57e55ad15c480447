import dataclasses
import re
import unicodedata

import numpy as np
import pytest
from PIL import Image

from pathseg.extract.inputs.images import ground_truth_reader, list_input_images, open_input_image
from pathseg.store.sampling import Sampling

PLAIN = Sampling(size=(256, 256), mpp=0.5, resized=False, original_px=(256, 256))
RESIZED = Sampling(size=(256, 256), mpp=0.5, resized=True, original_px=(200, 300))


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def file(tmp_path):
    Image.fromarray(image(210, 290)).save(tmp_path / "one.png")
    return tmp_path / "one.png"


def test_an_image_of_a_run_without_resize_is_taken_as_it_is(file):
    opened = open_input_image(file, PLAIN)
    assert (opened.id, opened.size, opened.scale, opened.mpp) == ("one", (210, 290), (1, 1), 0.5)
    np.testing.assert_array_equal(opened.read(10, 20, 30, 40), image(210, 290)[10:40, 20:60])


def test_an_image_of_a_resized_run_is_resized_as_in_training(file):
    opened = open_input_image(file, RESIZED)
    expected = Image.fromarray(image(210, 290)).resize((256, 256), Image.Resampling.BICUBIC)
    assert opened.size == (256, 256)
    np.testing.assert_array_equal(opened.read(0, 0, 256, 256), np.asarray(expected))


def test_a_resized_image_has_the_resolution_that_its_size_gives(file):
    # 200x300 px became 0.5 um/px at 256x256, so a file has 0.5 * 256 / sqrt(200 * 300) = 0.52256 um/px
    assert open_input_image(file, RESIZED).mpp == pytest.approx(0.52256 * (210 * 290) ** 0.5 / 256, rel=1e-4)


def test_with_mpp_an_image_is_brought_to_the_trained_resolution(file):
    opened = open_input_image(file, RESIZED, file_mpp=0.25)
    assert (opened.size, opened.scale) == ((105, 145), (2, 2))


@pytest.mark.parametrize(("dpi", "size"), [(101_600, (105, 145)), (50_800, (210, 290)), (72, (210, 290))])
def test_an_image_is_brought_to_the_trained_resolution_where_its_tags_are_credible(tmp_path, dpi, size):
    Image.fromarray(image(210, 290)).save(tmp_path / "one.png", dpi=(dpi, dpi))
    opened = open_input_image(tmp_path / "one.png", PLAIN)
    assert (opened.size, opened.mpp_from) == (size, "training" if dpi == 72 else "tag")


@pytest.mark.parametrize(
    ("save", "name", "source"), [({"dpi": (101_600, 101_600)}, "one.tif", "tag"), ({}, "x_MPP-0.2500.png", "name")]
)
def test_a_credible_resolution_prevails_over_the_resize_of_the_training_images_and_is_warned_of(
    tmp_path, save, name, source
):
    Image.fromarray(image(210, 290)).save(tmp_path / name, **save)
    opened = open_input_image(tmp_path / name, RESIZED)
    assert (opened.size, opened.scale, opened.mpp, opened.mpp_from) == ((105, 145), (2, 2), 0.5, source)
    assert all(words in opened.mpp_note for words in (name, "0.25 um/px", "0.523", "--mpp"))


@pytest.mark.parametrize("padded", [False, True])
def test_an_image_whose_tags_confirm_the_training_files_is_resized_as_they_were(tmp_path, padded):
    sampling = dataclasses.replace(RESIZED, padded=padded)
    stated = 1.03 * sampling.file_mpp
    Image.fromarray(image(210, 290)).save(tmp_path / "one.tif", dpi=(25_400 / stated,) * 2)
    opened = open_input_image(tmp_path / "one.tif", sampling)
    assert opened.size == ((185, 256) if padded else (256, 256))
    assert opened.mpp == pytest.approx(stated * (opened.scale[0] * opened.scale[1]) ** 0.5, rel=1e-3)
    assert (opened.mpp_from, opened.mpp_note) == ("tag", None)


@pytest.mark.parametrize("sampling", [PLAIN, RESIZED])
@pytest.mark.parametrize(
    ("dpi", "value"), [((72, 72), "352.8"), ((25.4, 25.4), "1000"), ((50_800, 101_600), "0.5 and 0.25")]
)
def test_tags_that_no_scan_has_are_not_believed_and_named(tmp_path, sampling, dpi, value):
    Image.fromarray(image(210, 290)).save(tmp_path / "one.tif", dpi=dpi)
    opened = open_input_image(tmp_path / "one.tif", sampling)
    assert opened.mpp_from == "training" and f"{sampling.file_mpp:.3g} um/px" in opened.mpp_note
    assert re.search(rf"one\.tif: its tags state {value} um/px.*--mpp", opened.mpp_note)


@pytest.mark.parametrize("padded", [False, True])
def test_a_flag_that_confirms_the_training_files_resizes_as_their_tags_would(tmp_path, padded):
    """Notes on tags that are not believed tell to pass --mpp: the true one must not change how the head sees tissue."""
    sampling = dataclasses.replace(RESIZED, padded=padded)
    Image.fromarray(image(210, 290)).save(tmp_path / "one.tif", dpi=(72, 72))
    opened = open_input_image(tmp_path / "one.tif", sampling, file_mpp=1.03 * sampling.file_mpp)
    assert opened.size == ((185, 256) if padded else (256, 256))
    assert opened.mpp == pytest.approx(1.03 * sampling.file_mpp * (opened.scale[0] * opened.scale[1]) ** 0.5, rel=1e-3)
    assert (opened.mpp_from, opened.mpp_note) == ("flag", None)


def test_a_flag_is_the_way_out_for_an_image_of_the_trained_resolution_and_another_size(tmp_path):
    Image.fromarray(image(900, 1300)).save(tmp_path / "big.png")
    opened = open_input_image(tmp_path / "big.png", RESIZED, file_mpp=RESIZED.file_mpp)
    assert opened.size == (round(900 * RESIZED.file_mpp / 0.5), round(1300 * RESIZED.file_mpp / 0.5))


def test_where_the_resolution_of_an_image_is_from_is_told(file):
    assert open_input_image(file, RESIZED).mpp_from == "training" and open_input_image(file, RESIZED).mpp_note is None
    assert open_input_image(file, RESIZED, file_mpp=0.25).mpp_from == "flag"
    assert open_input_image(file, dataclasses.replace(PLAIN, mpp=None)).mpp_from is None


def test_beyond_its_edges_an_image_is_white(file):
    region = open_input_image(file, PLAIN).read(200, 280, 20, 20)
    np.testing.assert_array_equal(region[:10, :10], image(210, 290)[200:, 280:])
    assert (region[10:] == 255).all()
    assert (region[:, 10:] == 255).all()


def test_an_image_far_from_the_trained_size_needs_its_resolution(tmp_path):
    Image.fromarray(image(900, 1300)).save(tmp_path / "big.png")
    with pytest.raises(ValueError, match=r"300x200 px, resized to 256x256, but this one is 1300x900.*--mpp"):
        open_input_image(tmp_path / "big.png", RESIZED)


def test_without_the_trained_resolution_the_flag_is_named(file):
    with pytest.raises(ValueError, match=r"one.png: .*pass --trained-mpp"):
        open_input_image(file, dataclasses.replace(PLAIN, mpp=None), file_mpp=0.25)


def test_an_overview_keeps_the_aspect_of_the_file(file):
    assert open_input_image(file, RESIZED).overview(145).shape == (105, 145, 3)
    assert open_input_image(file, RESIZED).overview(5000).shape == (210, 290, 3)


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("this is no image")


def cmyk(path):
    Image.fromarray(image(64, 64)).convert("CMYK").save(path, "TIFF")


def gray(path):
    Image.fromarray(image(64, 64)[..., 0]).save(path, "PNG")


def cut(path):
    Image.fromarray(image(64, 64)).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("make", "words"),
    [(empty, "empty"), (text, "not a readable image"), (cmyk, "CMYK"), (gray, "grayscale"), (cut, "cut short")],
)
def test_a_file_that_cannot_be_taken_is_named_with_its_reason_in_one_line(tmp_path, make, words):
    make(tmp_path / "odd.png")
    with pytest.raises(ValueError, match=words) as caught:
        open_input_image(tmp_path / "odd.png", PLAIN)
    assert str(tmp_path / "odd.png") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_slide_that_openslide_does_not_know_is_named(tmp_path):
    (tmp_path / "a.ndpi").write_bytes(b"II*\0 and nothing more")
    with pytest.raises(ValueError, match=r"a\.ndpi: not a slide that OpenSlide reads"):
        open_input_image(tmp_path / "a.ndpi", PLAIN)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file"):
        open_input_image(tmp_path / "none.png", PLAIN)


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.tif", "c.svs", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def names(paths):
    return [path.name for path in paths]


def test_of_a_folder_images_and_slides_are_taken(folder):
    assert names(list_input_images([str(folder)])) == ["a.tif", "b.png", "c.svs"]


def test_folders_below_are_searched_as_of_a_download_from_gdc(folder):
    for name in ("0a1b/d.svs", "2c3d/logs/e.tif", "2c3d/.cache/f.tif"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"x")
    assert names(list_input_images([str(folder)])) == ["d.svs", "e.tif", "a.tif", "b.png", "c.svs"]


def test_a_dicom_slide_of_several_files_is_one_slide(tmp_path, monkeypatch):
    series = {"level0": "1.2.3", "level1": "1.2.3", "other": "1.2.4", "broken": None}
    for name in series:
        (tmp_path / f"{name}.dcm").write_bytes(b"x")
    monkeypatch.setattr("pathseg.extract.inputs.slides.dicom_series", lambda path: series[path.stem])
    assert names(list_input_images([str(tmp_path)])) == ["broken.dcm", "level0.dcm", "other.dcm"]


def test_a_dead_link_among_inputs_is_named(folder):
    (folder / "z.svs").symlink_to(folder / "annex")
    for argument in (folder, folder / "z.svs", folder / "*.svs"):
        with pytest.raises(ValueError, match=r"z\.svs: a link to .*annex"):
            list_input_images([str(argument)])


def test_a_glob_below_a_folder_with_brackets_finds_its_files(folder):
    (folder / "[case 1]*").mkdir()
    (folder / "[case 1]*" / "q.png").write_bytes(b"x")
    assert names(list_input_images([str(folder / "[case 1]*" / "*.png")])) == ["q.png"]


def test_the_home_directory_may_be_written_as_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert names(list_input_images(["~/b.png", "~/a.*"])) == ["b.png", "a.tif"]


def test_a_glob_and_a_file_are_taken_once(folder):
    assert names(list_input_images([str(folder / "b.png"), str(folder / "[bc].*")])) == ["b.png", "c.svs"]


def test_what_names_no_file_is_said(folder):
    with pytest.raises(FileNotFoundError, match=r"x\*\.png: there is no image"):
        list_input_images([str(folder / "x*.png")])


def test_two_files_of_one_name_are_refused(folder):
    (folder / "b.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="both give results called b"):
        list_input_images([str(folder)])


@pytest.mark.parametrize("name", ["one.png", "one_anno.bmp", "one_mask.png"])
def test_a_mask_is_found_by_the_name_of_its_image(tmp_path, name):
    Image.fromarray(np.eye(5, dtype=np.uint8)).save(tmp_path / name)
    mask = ground_truth_reader(tmp_path)
    np.testing.assert_array_equal(mask("one"), np.eye(5))
    assert mask("two") is None


def test_a_mask_is_found_in_the_other_form_of_unicode(tmp_path):
    Image.fromarray(np.eye(5, dtype=np.uint8)).save(tmp_path / f"{unicodedata.normalize('NFD', 'é')}.png")
    assert ground_truth_reader(tmp_path)(unicodedata.normalize("NFC", "é")) is not None


def test_two_masks_of_one_name_are_refused(tmp_path):
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.eye(5, dtype=np.uint8)).save(tmp_path / folder / "one.png")
    with pytest.raises(ValueError, match=r"first.*second.*--truth"):
        ground_truth_reader(tmp_path)("one")


def test_a_folder_of_masks_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--truth"):
        ground_truth_reader(tmp_path / "masks")
