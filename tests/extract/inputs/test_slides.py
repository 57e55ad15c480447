from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pathseg.extract.inputs import slides
from pathseg.extract.inputs.images import open_input_image
from pathseg.extract.inputs.slides import Slide, is_slide, slide_files
from pathseg.store.sampling import Sampling

SVS = Path(__file__).parents[4] / "shared" / "data" / "slides" / "CMU-1-Small-Region.svs"
REAL = pytest.mark.skipif(not SVS.is_file(), reason="needs ../shared/data/slides, which is not part of the project")


def field(height=1500, width=1100):
    """A smooth coloured field, so that resampling changes it little."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / 90) * np.cos(x / 70), np.sin((x + y) / 110), np.cos(y / 60 - x / 130)]
    return np.stack([120 + 60 * wave for wave in waves], axis=-1).round().astype(np.uint8)


def write(path, levels, mpp=0.25):
    """A tiled TIFF as scanners write it: finest level first, reduced copies behind it."""
    with tifffile.TiffWriter(path) as file:
        for number, pixels in enumerate(levels):
            size = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
            file.write(
                pixels,
                tile=(256, 256),
                photometric="rgb",
                compression="zlib",
                subfiletype=min(number, 1),
                metadata=None,
                **size,
            )
    return path


@pytest.fixture
def tiff(tmp_path):
    pixels = field()
    half = np.asarray(Image.fromarray(pixels).resize((550, 750), Image.Resampling.BOX))
    return write(tmp_path / "slide.tif", [pixels, half])


def test_a_tiled_tiff_is_a_slide_and_a_plain_one_is_not(tiff, tmp_path):
    Image.fromarray(field(64, 64)).save(tmp_path / "plain.tif")
    assert is_slide(tiff)
    assert not is_slide(tmp_path / "plain.tif")


def test_a_slide_has_the_size_it_has_at_the_wanted_resolution(tiff):
    slide = Slide(tiff, mpp=0.5)
    assert (slide.size, slide.file_px, slide.scale) == ((750, 550), (1500, 1100), pytest.approx((2, 2), rel=1e-3))


@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.7])
def test_a_region_is_what_lies_there_at_that_resolution(tiff, mpp):
    times = mpp / 0.25
    region = Slide(tiff, mpp=mpp).read(100, 50, 200, 150)
    box = (50 * times, 100 * times, 200 * times, 300 * times)
    expected = Image.fromarray(field()).resize((150, 200), Image.Resampling.BICUBIC, box=box)
    difference = np.abs(region.astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= 3


def test_neighbouring_regions_fit_together(tiff):
    slide = Slide(tiff, mpp=0.7)
    whole, parts = slide.read(0, 0, 200, 200), [slide.read(y, 0, 100, 200) for y in (0, 100)]
    assert np.abs(whole.astype(int) - np.concatenate(parts).astype(int)).max() <= 1


def test_beyond_its_edges_a_slide_is_white(tiff):
    slide = Slide(tiff, mpp=0.5)
    assert (slide.read(760, 560, 50, 50) == 255).all()


def test_the_resolution_that_is_passed_goes_before_the_slides_own(tiff):
    assert Slide(tiff, mpp=0.5, file_mpp=0.5).size == (1500, 1100)


def test_a_slide_without_resolution_names_the_flag(tmp_path):
    with pytest.raises(ValueError, match=r"slide\.tif: the slide does not say its um/px; pass --mpp"):
        Slide(write(tmp_path / "slide.tif", [field(300, 300)], mpp=None), mpp=0.5)


@pytest.mark.parametrize(("mpp", "shown"), [(25_400 / 72, "352.7"), (1000.0, "1000"), (0.001, "0.001")])
def test_a_resolution_that_no_scan_has_is_refused_with_its_value(tmp_path, mpp, shown):
    path = write(tmp_path / "slide.tif", [field(300, 300)], mpp=mpp)
    with pytest.raises(ValueError, match=rf"slide\.tif: .*{shown}.*--mpp"):
        Slide(path, mpp=0.5)
    assert Slide(path, mpp=0.5, file_mpp=0.5).size == (300, 300)


@pytest.mark.parametrize("limit", [10**8, 10**5])  # Pillow's limit on the px of an image, which slides exceed
def test_a_tiled_tiff_that_is_to_be_turned_is_refused_as_images_are(tmp_path, monkeypatch, limit):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", limit)
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, field(600, 600), tile=(256, 256), photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    with pytest.raises(ValueError, match=r"slide\.tif: .*EXIF orientation 6"):
        Slide(path, mpp=0.5, file_mpp=0.25)


def test_a_slide_of_one_level_is_read(tmp_path):
    slide = Slide(write(tmp_path / "slide.tif", [field(600, 600)]), mpp=0.5)
    assert slide.read(0, 0, 300, 300).shape == (300, 300, 3)


def test_an_overview_is_read_in_blocks(tiff, monkeypatch):
    slide = Slide(tiff, mpp=0.25)
    at_once = slide.overview(700)
    monkeypatch.setattr("pathseg.extract.inputs.slides.READ_PX", 200)
    assert at_once.shape == (700, 513, 3)
    assert np.abs(slide.overview(700).astype(int) - at_once.astype(int)).max() <= 2


def test_a_slide_that_is_cut_short_is_named(tiff):
    whole = tiff.read_bytes()
    path = tiff.with_name("cut.tif")
    path.write_bytes(whole[: len(whole) // 2] + b"\0" * (len(whole) - len(whole) // 2 - 20_000) + whole[-20_000:])
    with pytest.raises(ValueError, match=r"cut\.tif: .*replace"):
        Slide(path, mpp=0.25).read(0, 0, 1500, 1100)


def test_a_slide_that_ends_early_is_named(tiff):
    path = tiff.with_name("cut.tif")
    path.write_bytes(tiff.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.tif: .*replace"):
        open_input_image(path, Sampling((256, 256), 0.5, False, (256, 256)))


@REAL
def test_a_scanners_slide_is_read_at_its_own_resolution():
    slide = open_input_image(SVS, Sampling((256, 256), 0.998, False, (256, 256)))
    assert slide.file_px == (2967, 2220)
    assert slide.size == (1484, 1110)
    assert 0.25 < slide.tissue().mean() < 0.75  # a strip of skin with background on both sides


def test_a_slide_whose_full_resolution_changed_is_another_one(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    pixels = field(600, 600)
    half = np.asarray(Image.fromarray(pixels).resize((300, 300), Image.Resampling.BOX))
    old = write(tmp_path / "old" / "slide.tif", [pixels, half])
    same, digest = Slide(old, mpp=0.5), Slide(old, mpp=0.5).digest
    changed = pixels.copy()
    changed[100:200, 100:200] ^= 1
    assert same.digest == digest
    assert Slide(write(tmp_path / "new" / "slide.tif", [changed, half]), mpp=0.5).digest != digest


@pytest.mark.parametrize("mpp", [353.0, 1000.0])
def test_a_slide_with_a_resolution_that_no_scan_has_is_refused(tmp_path, mpp):
    with pytest.raises(ValueError, match=r"slide\.tif: .*--mpp"):
        Slide(write(tmp_path / "slide.tif", [field(300, 300)], mpp=mpp), mpp=0.5)


def test_a_slide_of_several_files_is_the_content_of_all(tmp_path, monkeypatch):
    """An MRXS slide has a folder of data, a VMS slide names its files, a DICOM slide has those of its series."""
    series = {"a": "1", "b": "1", "other": "2"}
    for name in ("m.mrxs", "m/Slidedat.ini", "m/sub/Data0001.dat", "n/no.dat", "v_0.jpg", "v.opt", "w.jpg", "a.dcm",
                 "b.dcm", "other.dcm"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "v.vms").write_text("[Virtual Microscope Specimen]\nImageFile=v_0.jpg\nOptimisationFile=v.opt\nMap=\n"
                                    "ImageFile(1,0)=../v_0.jpg\n")  # fmt: skip
    monkeypatch.setattr(slides, "dicom_series", lambda path: series[path.stem])
    expected = {
        "m.mrxs": ["m.mrxs", "m/Slidedat.ini", "m/sub/Data0001.dat"],
        "v.vms": ["v.vms", "v.opt", "v_0.jpg"],
        "b.dcm": ["b.dcm", "a.dcm"],
        "w.jpg": ["w.jpg"],
    }
    for name, files in expected.items():
        assert [path.relative_to(tmp_path).as_posix() for path in slide_files(tmp_path / name)] == files
        digest = slides._content_digest(slide_files(tmp_path / name), "")
        (tmp_path / files[-1]).write_bytes(b"changed")
        assert slides._content_digest(slide_files(tmp_path / name), "") != digest


def test_tissue_is_found_again_only_where_the_file_or_its_resolution_differs(tiff):
    def tissue(mpp=0.5, file_mpp=None):
        slide = Slide(tiff, mpp=mpp, file_mpp=file_mpp)
        try:
            return slide.tissue()
        finally:
            slide.close()

    first = tissue()
    assert tissue() is first
    assert tissue(mpp=1.0).shape != first.shape
    assert tissue(file_mpp=0.5).shape != first.shape
    write(tiff, [np.full_like(field(), 255)])
    assert first.any() and not tissue().any()
