import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image

from pathseg.extract.datasets.image_files import (
    image_size,
    list_files,
    mask_size,
    paired_size,
    read_image,
    read_mask,
    require_stated_mpp,
    resize_image,
    resize_mask,
    stated_mpp,
)

RGB = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
CODES = np.random.default_rng(1).integers(0, 5, (30, 40), np.uint8)


def save(path, array, **kwargs):
    Image.fromarray(array).save(path, **kwargs)
    return path


def save_rgb16(path):
    """A 16-bit RGB png, which Pillow cannot write: header, one chunk of data, end."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + np.arange(12, dtype=">u2").tobytes() for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("suffix", [".bmp", ".png", ".tif"])
def test_lossless_images_come_back_as_they_were_saved(tmp_path, suffix):
    np.testing.assert_array_equal(read_image(save(tmp_path / f"a{suffix}", RGB)), RGB)


def test_a_jpeg_is_read_as_an_image(tmp_path):
    flat = np.full((16, 16, 3), (200, 100, 150), np.uint8)
    assert np.abs(read_image(save(tmp_path / "a.jpg", flat, quality=95)).astype(int) - flat).max() <= 3


@pytest.mark.parametrize("suffix", [".bmp", ".png", ".tif"])
def test_masks_come_back_as_they_were_saved(tmp_path, suffix):
    np.testing.assert_array_equal(read_mask(save(tmp_path / f"a{suffix}", CODES)), CODES)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_16_bit_mask_keeps_ids_above_255(tmp_path, suffix):
    ids = CODES.astype(np.uint16) * 1000
    mask = read_mask(save(tmp_path / f"a{suffix}", ids))
    np.testing.assert_array_equal(mask, ids)
    assert mask.dtype == np.uint16


def test_a_palette_mask_gives_its_indices(tmp_path):
    palette = Image.fromarray(CODES).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9, 1, 2, 3])
    palette.putdata(CODES.ravel().tolist())
    palette.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), CODES)


def test_a_palette_of_greys_gives_its_grey_values(tmp_path):
    palette = Image.fromarray(4 - CODES)
    palette.putpalette([grey for code in range(4, -1, -1) for grey in [code] * 3])
    palette.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), CODES)


def test_a_palette_that_gives_two_codes_one_grey_is_refused(tmp_path):
    palette = Image.fromarray(CODES)
    palette.putpalette([0] * 15)
    palette.save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: the palette gives 5 codes 1 greys"):
        read_mask(tmp_path / "a.png")


def test_a_mask_in_a_tiff_with_lossy_compression_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.tif: .*JPEG may change codes; .*png.*TIFF"):
        read_mask(save(tmp_path / "a.tif", CODES, compression="jpeg"))


@pytest.mark.parametrize(
    "options",
    [{}, {"irreversible": True}, {"quality_mode": "rates", "quality_layers": [50]}],
    ids=["lossless", "9-7", "5-3 cut off"],
)
def test_a_jpeg_2000_mask_is_refused_because_no_header_says_that_its_codes_are_whole(tmp_path, options):
    path = save(tmp_path / "a.jp2", np.tile(CODES, (8, 8)), **options)
    for read in (read_mask, mask_size):
        with pytest.raises(ValueError, match=r"a\.jp2: .*JPEG 2000 may change codes; .*png.*TIFF"):
            read(path)


def test_a_jpeg_2000_image_is_read(tmp_path):
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.jp2", RGB)), RGB)


def test_a_tiff_mask_with_inverted_codes_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", CODES, photometric="miniswhite")
    with pytest.raises(ValueError, match=r"a\.tif: .*inverted \(WhiteIsZero\)"):
        read_mask(tmp_path / "a.tif")


def test_a_black_and_white_mask_gives_0_and_1(tmp_path):
    mask = read_mask(save(tmp_path / "a.png", CODES > 2))
    np.testing.assert_array_equal(mask, CODES > 2)
    assert mask.dtype == np.uint8


def test_sizes_are_read_without_decoding(tmp_path):
    whole = save(tmp_path / "a.bmp", RGB).read_bytes()
    (tmp_path / "cut.bmp").write_bytes(whole[:200])
    assert image_size(tmp_path / "cut.bmp") == (30, 40)


def test_mask_sizes_are_height_and_width(tmp_path):
    assert mask_size(save(tmp_path / "a.png", CODES)) == (30, 40)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")


@pytest.mark.parametrize(("read", "pixels"), [(read_image, RGB), (read_mask, CODES)])
def test_pixels_of_a_png_that_do_not_fit_their_checksum_are_refused(tmp_path, read, pixels):
    """The compressed pixels are exchanged for others that decode: only the chunk's own CRC-32 tells."""
    path, other = save(tmp_path / "a.png", pixels), save(tmp_path / "b.png", pixels[::-1])
    (start, end), (first, last) = (
        (d.index(b"IDAT") + 4, d.index(b"IEND") - 8) for d in (path.read_bytes(), other.read_bytes())
    )
    content, stranger = bytearray(path.read_bytes()), other.read_bytes()[first:last]
    content[start - 8 : start - 4] = struct.pack(">I", len(stranger))
    content[start:end] = stranger
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png: the file is damaged"):
        read(path)


@pytest.mark.parametrize("read", [read_image, read_mask, image_size, mask_size])
def test_a_file_that_is_no_image_is_named(tmp_path, read):
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"text\.png: not a readable image: .*; replace the file"):
        read(tmp_path / "text.png")


def test_libtiff_prints_nothing_beside_the_error(tmp_path, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    path = save(tmp_path / "a.tif", noise, compression="tiff_adobe_deflate")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tif: the file is damaged or cut short"):
        read_image(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".bmp", ".png", ".jpg"])
def test_a_truncated_image_is_named(tmp_path, suffix):
    path = save(tmp_path / f"cut{suffix}", RGB)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    with pytest.raises(ValueError, match=rf"cut\{suffix}: the file is damaged or cut short: .*; replace the file"):
        read_image(path)


@pytest.mark.parametrize(
    ("mode", "words"),
    [("RGBA", "alpha"), ("L", "grayscale"), ("LA", "alpha"), ("1", "black and white"), ("P", "palette")],
)
def test_an_image_that_is_not_rgb_is_refused_with_its_kind(tmp_path, mode, words):
    Image.fromarray(RGB).convert(mode).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=rf"a\.png: an image must be 8-bit RGB, but this one .*{words}.*; convert it"):
        read_image(tmp_path / "a.png")


def test_a_16_bit_rgb_image_is_refused_and_not_cut_to_8_bit(tmp_path):
    with pytest.raises(ValueError, match="8-bit RGB, but this one has 16 bits"):
        read_image(save_rgb16(tmp_path / "a.png"))


def test_a_16_bit_grayscale_image_is_refused(tmp_path):
    with pytest.raises(ValueError, match="8-bit RGB, but this one has 16 bits"):
        read_image(save(tmp_path / "a.png", CODES.astype(np.uint16)))


def test_the_size_of_an_image_that_is_not_rgb_is_refused_too(tmp_path):
    with pytest.raises(ValueError, match="8-bit RGB"):
        image_size(save(tmp_path / "a.png", CODES))


def test_an_rgb_mask_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.png: a mask must hold one integer code a pixel, but this one is RGB; "):
        read_mask(save(tmp_path / "a.png", RGB))


def test_a_floating_point_mask_is_refused(tmp_path):
    with pytest.raises(ValueError, match="one integer code a pixel, but this one is F; "):
        read_mask(save(tmp_path / "a.tif", CODES.astype(np.float32)))


def test_a_jpeg_mask_is_refused_because_jpeg_changes_codes(tmp_path):
    with pytest.raises(ValueError, match=r"a\.jpg: .*JPEG may change codes; .*png.*TIFF"):
        read_mask(save(tmp_path / "a.jpg", CODES))


def test_a_mask_of_another_size_than_its_image_prints_both(tmp_path):
    image, mask = save(tmp_path / "a.png", RGB), save(tmp_path / "m.png", CODES[:, :20])
    with pytest.raises(ValueError, match=r"m\.png: .* 20x30 px and a\.png is 40x30 px; "):
        paired_size(image, mask)


def test_an_image_beyond_the_limit_of_pillow_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", RGB)), RGB)


def test_the_limit_of_pillow_is_as_before_after_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    read_image(save(tmp_path / "a.png", RGB))
    assert Image.MAX_IMAGE_PIXELS == 100


def save_header(path, width, height):
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.mark.parametrize("read", [read_image, read_mask, image_size, mask_size])
def test_an_image_bomb_is_refused_by_its_declared_size(tmp_path, read):
    with pytest.raises(ValueError, match=r"a\.png: .*40000x40000 px.*tiled TIFF"):
        read(save_header(tmp_path / "a.png", 40_000, 40_000))


def test_an_image_that_does_not_fit_into_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(ValueError, match=r"a\.png: .*40x30 px.*memory"):
        read_image(save(tmp_path / "a.png", RGB))


def test_an_image_that_does_not_fit_into_its_container_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("pathseg.store.runtime.memory.cgroup_limits", lambda: [1000])
    with pytest.raises(ValueError, match=r"a\.png: .*40x30 px.*memory"):
        read_image(save(tmp_path / "a.png", RGB))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
@pytest.mark.parametrize("read", [read_image, read_mask, image_size, mask_size])
def test_eps_of_any_name_starts_no_program(tmp_path, monkeypatch, suffix, read):
    gs = tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    path = tmp_path / f"x{suffix}"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nnewpath\nshowpage\n%%EOF\n")
    with pytest.raises(ValueError, match=rf"x\{suffix}: not a readable image"):
        read(path)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("error", [OverflowError, MemoryError, KeyError, AssertionError, zlib.error])
@pytest.mark.parametrize("method", ["open", "Image.load"])
def test_any_error_of_a_decoder_names_the_file(tmp_path, monkeypatch, error, method):
    def fail(*args, **kwargs):
        raise error("odd")

    path = save(tmp_path / "a.bmp", RGB)
    monkeypatch.setattr(f"PIL.Image.{method}" if method == "open" else "PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(ValueError, match=r"a\.bmp: .*odd.*; replace the file"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_an_image_that_exif_turns_is_refused_whatever_its_type(tmp_path, suffix):
    exif = Image.Exif()
    exif[274] = 6
    path = save(tmp_path / f"a{suffix}", RGB, exif=exif)
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match=rf"a\{suffix}: .*EXIF orientation 6"):
            read(path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_mask_that_exif_turns_is_refused(tmp_path, suffix):
    exif = Image.Exif()
    exif[274] = 3
    with pytest.raises(ValueError, match=rf"a\{suffix}: .*EXIF orientation 3"):
        read_mask(save(tmp_path / f"a{suffix}", CODES, exif=exif))


def test_a_turn_in_a_chunk_behind_the_pixels_is_refused_too(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    data = save(tmp_path / "a.png", RGB, exif=exif).read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
    (tmp_path / "a.png").write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    with pytest.raises(ValueError, match="EXIF orientation 6"):
        read_image(tmp_path / "a.png")


def test_an_image_that_exif_says_is_upright_is_read(tmp_path):
    exif = Image.Exif()
    exif[274] = 1
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", RGB, exif=exif)), RGB)


def test_images_are_resized_with_the_bicubic_filter_of_pillow():
    expected = np.asarray(Image.fromarray(RGB).resize((64, 48), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize_image(RGB, (48, 64)), expected)


def test_shrinking_averages_what_is_lost():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resize_image(stripes, (8, 8))[2:-2, 2:-2].astype(int) - 127).max() < 12


@pytest.mark.parametrize("size", [(768, 768), (256, 512), (522, 775), (100, 90)])
def test_masks_are_resized_as_pillow_does_with_nearest(size):
    codes = np.random.default_rng(2).integers(0, 200, (522, 775), np.uint8)
    expected = np.asarray(Image.fromarray(codes).resize(size[::-1], Image.Resampling.NEAREST))
    np.testing.assert_array_equal(resize_mask(codes, size), expected)


def test_a_resized_mask_keeps_its_dtype():
    assert resize_mask(CODES.astype(np.uint16), (7, 9)).dtype == np.uint16


def test_files_of_other_types_and_hidden_files_are_not_listed(tmp_path):
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "deep").mkdir()
    for name in ("b.PNG", "deep/a.tif", "Grade.csv", "._b.png", "__MACOSX/b.png"):
        (tmp_path / name).touch()
    assert [path.name for path in list_files(tmp_path)] == ["b.PNG", "a.tif"]


def test_stores_results_and_runs_below_a_folder_are_not_listed(tmp_path):
    for name in (
        "a.png", "new/_done/a.json", "new/mask/a.png", "work/heads/run/config.json", "work/heads/run/a.png",
        "work/report/a.png", "work/b.png", "tumours/heads/c.png", "tumours/report/d.png",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listed = [path.relative_to(tmp_path).as_posix() for path in list_files(tmp_path)]
    assert listed == ["a.png", "tumours/heads/c.png", "tumours/report/d.png", "work/b.png"]
    assert list_files(tmp_path / "new") == [tmp_path / "new/mask/a.png"]  # named itself


def test_linked_folders_are_entered_once_and_dead_links_named(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.png").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "up").symlink_to(tmp_path / "data")
    assert list_files(tmp_path / "data") == [tmp_path / "data" / "linked" / "a.png"]
    (tmp_path / "far" / "more").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"more: a link to .*nowhere, which is not there"):
        list_files(tmp_path / "data")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_the_scale_of_an_image_is_that_of_its_tags_where_a_scan_can_have_it(tmp_path, suffix):
    assert stated_mpp(save(tmp_path / f"a{suffix}", RGB, dpi=(50_800, 50_800))) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("dpi", [None, (72, 72), (25.4, 25.4), (50_800, 25_400)])
def test_a_scale_that_no_scan_has_is_not_believed(tmp_path, dpi):
    assert stated_mpp(save(tmp_path / "a.png", RGB, **({"dpi": dpi} if dpi else {}))) is None


@pytest.mark.parametrize(
    ("dpi", "words"),
    [
        (None, "does not say its um/px"),
        ((72, 72), "353 um/px across and 353 um/px down, which no scan has"),
        ((25_400, 50_800), "1 um/px across and 0.5 um/px down"),
    ],
)
def test_a_scale_that_is_needed_is_refused_with_its_value(tmp_path, dpi, words):
    path = save(tmp_path / "a.png", RGB, **({"dpi": dpi} if dpi else {}))
    with pytest.raises(ValueError, match=rf"a\.png: the image .*{words}.*; pass --mpp"):
        require_stated_mpp(path)
