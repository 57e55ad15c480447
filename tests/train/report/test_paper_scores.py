"""The reported scores against a second transcription of the paper's tables."""

import dataclasses

import pytest

from pathseg.train.report.paper_scores import IOUS, RATES, SCORES, paper_scores

TABLE_2 = """HIPT .619 .353 .321 .170 · Res-UNet .751 .529 .524 .658 · VGG16-FCN8 .786 .567 .577 .724
· PathSegDiff-uncond .815 .757 .616 .757 · PathSegDiff .826 .781 .647 .780"""
TABLE_4 = """HIPT .745 .742 .591 .374 · Res-UNet .778 .771 .630 .765 · CUMedVision2 – .868 – .887
· DDPMSeg – – .654 .759 · CIMD – – .569 .692 · MedSegDiff – – .778 .852
· PathSegDiff-uncond .896 .893 .807 .890 · PathSegDiff .900 .896 .812 .894"""
TABLE_3 = """HistoSegNet .3314 .4646 .2905 .0191 .2764 · SEAM .7437 .6216 .5079 .4843 .5894
· C-CAM .7557 .6796 .3100 .4943 .5599 · WSSS-Tissue .7798 .7295 .6098 .6687 .6970
· PistoSeg .8110 .7504 .6184 .6422 .7055 · PathSegDiff .8220 .6998 .6205 .6976 .7100"""
TABLE_5 = "1e-3 .819 .632 .769 · 1e-4 .826 .646 .780 · 1e-5 .821 .638 .774"


def lines(text: str) -> list[tuple[str, ...]]:
    return [tuple(line.split()) for line in text.split("·")]


def values(words: tuple[str, ...]) -> tuple[float | None, ...]:
    return tuple(None if word == "–" else float(word) for word in words)


@pytest.mark.parametrize(("dataset", "text"), [("bcss", TABLE_2), ("glas", TABLE_4)])
def test_scores_are_those_of_the_paper(dataset, text):
    ours = [(r.method, r.accuracy, r.dice, r.miou, r.f1) for r in SCORES if r.dataset == dataset]
    assert ours == [(name, *values(words)) for name, *words in lines(text)]


def test_ious_are_those_of_the_paper():
    ours = [(r.method, r.tumor, r.stroma, r.inflammatory, r.necrosis, r.mean) for r in IOUS]
    assert ours == [(name, *values(words)) for name, *words in lines(TABLE_3)]


def test_learning_rates_are_those_of_the_paper():
    assert [(r.lr, r.accuracy, r.miou, r.dice) for r in RATES] == [values(words) for words in lines(TABLE_5)]


def test_tables_are_numbered_as_in_the_paper():
    tables = {(type(row).__name__, row.dataset): row.table for row in (*SCORES, *IOUS, *RATES)}
    assert tables == {
        ("PaperScores", "bcss"): 2, ("PaperScores", "glas"): 4, ("PaperIou", "bcss"): 3, ("PaperRate", "bcss"): 5,
    }  # fmt: skip


def test_the_printed_mean_iou_is_the_mean_of_its_classes():
    for row in IOUS:
        assert (row.tumor + row.stroma + row.inflammatory + row.necrosis) / 4 == pytest.approx(row.mean, abs=1e-4)


def test_glas_scores_belong_to_test_b_only():
    assert (
        len(paper_scores("glas", "testB", quoted="testB")) == 8 and paper_scores("glas", "testA", quoted="testB") == ()
    )


def test_bcss_scores_belong_to_the_quoted_split_whatever_its_name():
    assert len(paper_scores("bcss", "test", quoted="test")) == 5 and paper_scores("bcss", "test2", quoted="test") == ()


def test_nothing_is_reported_for_another_data_set():
    assert paper_scores("synthetic", "test", quoted="test") == ()


def test_records_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SCORES[0].dice = 1.0
