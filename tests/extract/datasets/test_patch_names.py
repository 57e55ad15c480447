import time

import pytest

from pathseg.extract.datasets.patch_names import slides_by_name

SLIDES = {  # name -> its slide, None where it is no patch
    # as ever
    "slide_x123_y456": "slide",
    "slide_tile12": "slide",
    "slide_tile12_5": "slide",
    "slide-row1-col2": "slide",
    "slide_123_456": "slide",
    "slide_10-20": "slide",
    "case_1_10_20": "case_1",
    "case_1_x10_y20": "case_1",
    "mouse_t2_x0_y0": "mouse_t2",
    "core_row2_col3_tile5": "core_row2_col3",
    "core_r2_c3_512_1024": "core_r2_c3",
    "2021-03-04_10_20": "2021-03-04",
    "TCGA-AA-3529_10_20": "TCGA-AA-3529",
    "patch_patient_004_node_4_x_3328_y_21792": "patch_patient_004_node_4",
    # brackets
    "slide [x=0,y=512,w=512,h=512]": "slide",
    "slide [d=2,x=0,y=512,w=512,h=512]": "slide",
    "slide [d=1.5,x=-10,y=512,w=512,h=512,z=1,t=0]": "slide",
    "slide.svs [x=0,y=512,w=512,h=512].ome": "slide.svs",
    "core_r2_c3 [x=0,y=0,w=512,h=512]": "core_r2_c3",
    "slide_(10,20)": "slide",
    "slide (10, 20)": "slide",
    # keys
    "TCGA-A1-A0SB-01Z-00-DX1_xmin45749_ymin25055_MPP-0.2500": "TCGA-A1-A0SB-01Z-00-DX1",
    "slide_x1000y2000": "slide",
    "slide_x=1000,y=2000": "slide",
    "slide_r01c02": "slide",
    "slide-tile-r12-c5-x4096-y12288-w1024-h1024": "slide",
    "slide_tile_0_level0_100-200-612-712": "slide",
    "block_xini_7827_yini_59786": "block",
    # sizes and scale
    "slide_0_0_512_512": "slide",
    "slide_1024_512_1536_1024": "slide",
    "slide_1_0_0_512_512": "slide_1",
    "slide_0_0_512x512": "slide",
    "slide_x0_y0_20x": "slide",
    "slide_10_20_0.5mpp": "slide",
    "slide_10_20_w512_h512": "slide",
    "slide_1000x2000": "slide",
    "slide_mpp0.5": "slide",
    # no coordinates
    "case_12": None,
    "case 12": None,
    "case (1)": None,
    "case (1.5)": None,
    "case (2024-05-06)": None,
    "mouse_t2": None,
    "slide_20x": None,
    "TCGA-AA-3529": None,
    "TCGA-AA-3529_20": None,  # a field of a TCGA barcode is no coordinate
}


@pytest.mark.parametrize(("name", "slide"), SLIDES.items())
def test_a_slide_is_what_is_left_of_a_name_without_coordinates_sizes_and_scale(name, slide):
    assert slides_by_name([name]) == ({} if slide is None else {name: slide})


GRID = [(x, y) for x in (0, 512, 1024) for y in (0, 512, 1024)]


@pytest.mark.parametrize(
    "name",
    [
        lambda x, y: f"{x}_{y}_{min(512, 1300 - x)}_{min(512, 1300 - y)}",  # cut at the edges of the slide
        lambda x, y: f"{x}_{y}_{min(x + 512, 1300)}_{min(y + 512, 1300)}",
        lambda x, y: f"{x}_{y}_640_480",
        lambda x, y: f"{x}_{y}_512",
    ],
)
def test_sizes_behind_coordinates_are_known_by_all_names(name):
    names = [f"{slide}_{name(x, y)}" for slide in ("a", "b") for x, y in GRID]
    assert slides_by_name(names) == {each: each[0] for each in names}


@pytest.mark.parametrize("slide", ["case_1", "case_2", "case_1_2", "case_2_2"])
def test_numbers_before_coordinates_are_part_of_the_slide(slide):
    names = [f"{each}_{x}_{y}" for each in (slide, "case_3_4") for x, y in GRID]
    assert slides_by_name(names) == {each: each.rsplit("_", 2)[0] for each in names}


@pytest.mark.parametrize("part", ["_1", "__1", "1.1x", "x-1", "1x-", "_1x1", "_x1 [x=1]", "_0 ,1", " (1,2)", "."])
def test_long_names_take_no_longer(part):
    start = time.perf_counter()
    slides_by_name(["a" + (part * 255)[:250] + "!"])
    assert time.perf_counter() - start < 2
