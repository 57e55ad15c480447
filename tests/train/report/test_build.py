"""The page: one file that opens offline, has the scores of metrics.json, and names what is missing."""

import base64
import csv
import dataclasses
import hashlib
import io
import shutil
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pathseg.cli import main
from pathseg.store.contents import Contents, ImageEntry
from pathseg.store.features import FeatureStore
from pathseg.store.format.size import BlockShape
from pathseg.store.key import StoreKey
from pathseg.store.writer import StoreWriter
from pathseg.train.metrics.object import OBJECT_DEFINITIONS
from pathseg.train.metrics.pixel import DEFINITIONS, confusion_matrix
from pathseg.train.report.build import Report, build_report
from pathseg.train.report.staged_folder import file_name
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.record import Epoch

CLASSES = ("background", "gland")
SIDE = 256
SHOWN = 4  # test images of a run; IMAGES_PER_RUN are more
SPLITS = {"train": 2, "testA": 1, "testB": SHOWN + 2}
FEW = SPLITS | {"testB": 2}  # each image costs a row of pictures
SYSTEMS = "Systems on testB, GlaS (as the paper's Table 4)"
VOID = {"meta", "img", "br", "link", "input", "hr"}
FIXTURE = Path(__file__).parents[2] / "fixtures" / "workspace-v1"


def write_store(path: Path, splits: Mapping[str, int] = SPLITS) -> FeatureStore:
    key = StoreKey.from_json({
        "dataset": "glas", "preprocessing": {"settings": {"note": "<to> 256"}}, "size": (SIDE, SIDE), "mpp": 0.62,
        "model": "mini", "model_digest": "0" * 64, "first_stage": "vq-f4", "condition": "ssl", "seed": 0,
        "layout": "native", "dtype": "float32",
    })  # fmt: skip
    entries = tuple(ImageEntry(f"{s}_{n}", s, SIDE, SIDE) for s, count in splits.items() for n in range(1, count + 1))
    writer = StoreWriter(path, Contents(
        key=key, images=entries, classes=CLASSES, background=0, ignore=None, test_split="testB",
        blocks={0: BlockShape(1, 1)}, model_trained=True, has_instances=False, made_by={},
    ))  # fmt: skip
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for index in range(len(entries)):
        mask = ((rows - 128) ** 2 + (columns - 128) ** 2 < (40 + 4 * index) ** 2).astype(np.uint8)
        image = np.where(mask[..., None] == 1, (150, 90, 160), (235, 190, 215)).astype(np.uint8)
        writer.write_pixels(index, [(image, mask, None)])
    return writer.store


@pytest.fixture(scope="session")
def write_run(make_run, make_split):
    """Write a run whose prediction is the ground truth moved by `shift` px; other settings are the same in all."""

    def write(
        workspace: Path, name: str, store: FeatureStore, *, shift: int, scored: bool = True, trained: bool = True,
        dataset: str = "glas", **settings: Any,
    ) -> RunFolder:  # fmt: skip
        folder = RunFolder(workspace / "heads" / name)
        images = {split: tuple(i for i, s in zip(store.ids, store.splits, strict=True) if s == split)
                  for split in SPLITS}  # fmt: skip
        splits = {}
        for split in ("testA", "testB"):
            matrices = {}
            for image_id in images[split]:
                index = store.ids.index(image_id)
                predicted = np.roll(store.mask(index), shift, axis=1)
                matrices[image_id] = confusion_matrix(store.mask(index), predicted, classes=2)
                if scored:
                    folder.write_prediction(image_id, predicted)
            losses = {image_id: number / 8 for number, image_id in enumerate(images[split])}
            splits[split] = make_split(matrices, losses=losses)
        run = make_run(
            name, folder=folder, trained=trained, splits=splits, metrics={"best_epoch": 2, "epochs": 3},
            data={
                "store": str(store.location), "images": images,
                "key": dataclasses.replace(store.contents.key, dataset=dataset),
            },
            **{"blocks": (4, 5, 6), "epochs": 3, **settings},
        )  # fmt: skip
        predictions = {path: path.read_bytes() for path in folder.path.glob("predictions/*.png")}
        folder.begin(run.config)
        for path, content in predictions.items():
            path.write_bytes(content)
        for e in (1, 2, 3) if scored else (1, 2):
            folder.append_history(Epoch(e, 1 / e, 1.2 / e, val_dice=e / 4, val_miou=e / 5))
        if scored:
            folder.write_metrics(run.metrics)
        return folder

    return write


def split_scores(workspace: Path, name: str, split: str = "testB"):
    return FinishedRun.read(RunFolder(workspace / "heads" / name)).metrics.splits[split]


class Page(HTMLParser):
    """The page as lists of facts: tags with attributes, tables as rows of cell texts, all text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.words: list[str] = []
        self._open: list[str] = []
        self._cell: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th", "caption"):
            self._cell = []
        if tag == "td" and "colspan" in dict(attrs):
            self._rows[-1] += [""] * (int(dict(attrs)["colspan"]) - 1)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"{tag} closed out of order"
        text = " ".join("".join(self._cell).split())
        if tag in ("td", "th"):
            self._rows[-1].append(text)
        elif tag == "caption":
            self._caption = text
        elif tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data):
        self._cell.append(data)
        if not {"style", "script"} & set(self._open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def find(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def main_table(self) -> list[list[str]]:
        return self.tables["Results on testB, GlaS (the test split that results are quoted on)"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, write_run) -> Path:
    """A workspace with two finished runs and an unfinished one of an untrained model, and its report."""
    workspace = tmp_path_factory.mktemp("work")
    store = write_store(workspace / "glas-mini.zarr")
    write_run(workspace, "near", store, shift=6, trained=False)
    write_run(workspace, "far <b>", store, shift=40, trained=False)
    write_run(workspace, "cut short", store, shift=0, scored=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathseg.train.report.build.IMAGES_PER_RUN", SHOWN)
        build_report(workspace)
    return workspace


@pytest.fixture(scope="module")
def page(made: Path) -> Page:
    return Page(made / "report" / "index.html")


@pytest.fixture(scope="module")
def one_run(tmp_path_factory, write_run) -> Path:
    """A workspace with one run of a trained model, to be read only."""
    workspace = tmp_path_factory.mktemp("one")
    write_run(workspace, "one", write_store(workspace / "glas.zarr", FEW), shift=10)
    return workspace


@pytest.fixture(scope="module")
def report(one_run: Path) -> Report:
    """The report of that workspace."""
    return build_report(one_run)


@pytest.fixture
def trained(tmp_path: Path, write_run) -> Path:
    """A workspace with one run of a trained model, without its report."""
    write_run(tmp_path, "one", write_store(tmp_path / "glas.zarr", FEW), shift=10)
    return tmp_path


def test_nothing_is_loaded_from_outside(page):
    loaded = [attrs.get(name) for tag, attrs in page.tags for name in ("src", "srcset", "data") if attrs.get(name)]
    assert loaded and all(source.startswith("data:image/") for source in loaded)


def test_there_are_no_linked_files(page):
    assert not page.find("link") and "@import" not in page.source and "url(" not in page.source


def test_the_only_script_is_the_one_that_the_page_allows(page):
    assert page.find("script") == [{}]
    script = page.source.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (tag["content"] for tag in page.find("meta") if tag.get("http-equiv") == "Content-Security-Policy")
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_tables_of_several_runs_can_be_sorted(page):
    tables = [attrs.get("class") for attrs in page.find("table")]
    assert tables.count("sortable") >= 6  # results and images of both splits, classes


def test_links_lead_into_the_page_or_to_the_paper(page):
    links = {attrs["href"] for attrs in page.find("a")}
    assert {link for link in links if not link.startswith("#")} == {"https://arxiv.org/abs/2504.06950"}


def test_images_of_the_highest_loss_are_links_to_their_pictures(page):
    assert "Images of testB with the highest loss" in page.text
    links = {attrs["href"] for attrs in page.find("a") if "-image-" in attrs["href"]}
    assert {f"#data-1-run-{run}-image-{row}" for run in (1, 2) for row in range(1, SHOWN + 1)} == links


def test_every_link_into_the_page_has_its_target(page):
    ids = {attrs["id"] for _, attrs in page.tags if attrs.get("id")}
    assert {attrs["href"][1:] for attrs in page.find("a") if attrs["href"].startswith("#")} <= ids


def test_no_two_elements_share_an_id(page):
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))


def test_every_picture_has_a_text_and_can_be_decoded(page):
    for picture in page.find("img"):
        assert picture["alt"]
        kind, content = picture["src"].split(",", 1)
        if "svg" in kind:
            assert ElementTree.fromstring(base64.b64decode(content))
            continue
        with Image.open(io.BytesIO(base64.b64decode(content))) as decoded:
            decoded.load()


def test_the_page_names_its_language_and_title(page):
    assert page.find("html")[0]["lang"] == "en" and "<title>Segmentation report: GlaS</title>" in page.source


def test_header_cells_say_what_they_are_for(page):
    assert all(attrs.get("scope") in ("row", "col") for attrs in page.find("th"))


def test_our_runs_stand_before_the_constant(page):
    assert [row[0] for row in page.main_table()] == ["run", "near", "far <b>", "always background"]


def test_our_systems_stand_before_those_of_the_paper(page):
    names = [row[0] for row in page.tables[SYSTEMS]]
    assert names[:3] == ["system", "PathSegDiff", "HIPT"] and names[-1] == "PathSegDiff"


@pytest.mark.parametrize("name", ["near", "far <b>"])
def test_numbers_of_the_table_are_those_of_metrics_json(made, page, name):
    split = split_scores(made, name)
    scores = split.scores
    row = next(row for row in page.main_table() if row[0] == name)
    expected = [f"{value:.3f}" for value in (scores.accuracy, scores.dice, scores.miou, scores.f1)]
    gain = f"{scores.dice - split.constant.scores.dice:+.3f}".replace("-", "−")
    assert row[-6:] == ["6", *expected, gain]


def test_rows_all_have_the_width_of_the_head(page):
    assert {len(row) for row in page.main_table()} == {16}


def test_rows_of_the_paper_are_marked(page):
    reported = page.tables[SYSTEMS][2:]
    assert len(reported) == 8 and all("reported, Table 4" in row for row in reported)


def test_the_other_test_split_has_its_own_table(page):
    assert [row[0] for row in page.tables["Results on testA, GlaS"]] == ["run", "near", "far <b>", "always background"]


def test_classes_have_their_own_table(made, page):
    one = split_scores(made, "near").scores.classes[1]
    row = next(row for row in page.tables["Classes on testB, GlaS"] if row[:2] == ["near", "gland"])
    assert row[2:] == [f"{one.pixels:,}", *(f"{value:.3f}" for value in (one.dice, one.iou, one.precision, one.recall))]


def test_names_are_escaped(page):
    assert "far <b>" not in page.source and "far &lt;b&gt;" in page.source


def test_a_run_that_is_not_finished_is_listed_as_such(page):
    assert "cut short: 2 of 3 epochs" in page.text


def test_an_untrained_model_brings_the_banner(page):
    assert [attrs for attrs in page.find("p") if attrs.get("class") == "banner"]
    assert "random weights: numbers show that the pipeline works" in page.text


def test_a_trained_model_brings_no_banner(report):
    page = Page(report.path)
    assert not [attrs for attrs in page.find("p") if attrs.get("class") == "banner"]
    assert "nothing about pathology" not in page.text


def test_the_page_shows_at_most_so_many_images_of_a_run_and_says_how_many_are_left_out(page):
    rows = [attrs for attrs in page.find("figure") if attrs.get("class") == "row"]
    assert len(rows) == 2 * SHOWN
    assert f"{SHOWN} of 6 test images of testB are shown, 2 are left out" in page.text


def test_the_worst_image_is_shown_first(made, page):
    worst = min(split_scores(made, "near").per_image, key=lambda image: image.scores.dice).id
    assert next(attrs["alt"] for attrs in page.find("img") if "tissue" in attrs["alt"]) == f"{worst}: tissue"


def test_the_map_of_an_ensemble_is_a_fifth_picture_of_its_row(trained):
    RunFolder(trained / "heads" / "one").write_uncertainty("testB_2", np.full((SIDE, SIDE), 0.5))
    page = Page(build_report(trained).path)
    assert [attrs["alt"] for attrs in page.find("img") if "uncertainty" in attrs["alt"]] == ["testB_2: uncertainty"]
    assert [attrs.get("class") for attrs in page.find("div")].count("panels five") == 1


def test_every_metric_is_defined_in_the_page(page):
    assert len(DEFINITIONS) > 5 and all(text in page.text for text in (DEFINITIONS | OBJECT_DEFINITIONS).values())


def test_the_configuration_is_in_the_page(page):
    rows = dict(page.tables["config.json of near"])
    assert (rows["settings.blocks"], rows["data.sources.1.key.preprocessing.settings.note"]) == ("4-6", "<to> 256")


def test_commands_of_the_page_are_accepted_by_the_command_line(page):
    shown = [line.split() for line in page.text.split("pathseg ")[1:] if line.startswith("train-head --workspace")]
    known = {flag for option in main.commands["train-head"].params for flag in option.opts}
    assert shown and {word for words in shown for word in words if word.startswith("--")} <= known


def test_tables_are_written_as_markdown(made):
    text = (made / "report" / "tables.md").read_text(encoding="utf-8")
    assert "\n| near | mini (untrained) | ssl | 50 | 4-6 |" in text and "nothing about pathology" in text


def test_every_table_lies_beside_the_page_for_papers_and_for_programs(made):
    text = (made / "report" / "tables.md").read_text(encoding="utf-8")
    counts = [len(list((made / "report").glob(f"table-*.{kind}"))) for kind in ("csv", "tex")]
    assert counts == [text.count("\n| ---")] * 2


def test_the_csv_of_a_table_has_its_scores_in_full_precision(made):
    with (made / "report" / "table-1-glas-results-testB.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["near", "far <b>", "always background"]
    assert float(rows["near"]["Dice"]) == split_scores(made, "near").scores.dice
    assert (rows["near"]["parameters"], rows["near"]["images"]) == ("2654274", "6")


@pytest.mark.parametrize("split", ["testA", "testB"])
def test_scores_of_each_image_lie_beside_the_page(made, split):
    with (made / "report" / f"images-near-{split}.csv").open(encoding="utf-8", newline="") as file:
        found = {row["image"]: float(row["Dice"]) for row in csv.DictReader(file)}
    assert found == {image.id: image.scores.dice for image in split_scores(made, "near", split).per_image}
    assert r"\caption" in (made / "report" / f"images-near-{split}.tex").read_text()


def test_systems_are_shown_side_by_side_in_the_page_and_beside_it(made, page):
    picture = base64.b64encode((made / "report" / "sidebyside-1-glas.jpg").read_bytes()).decode()
    assert f"data:image/jpeg;base64,{picture}" in {attrs["src"] for attrs in page.find("img")}
    assert "PathSegDiff: run far <b>, mini (untrained)" in page.text  # the first of two that differ in their name only


def test_the_confusion_matrix_is_that_of_metrics_json(made, page):
    counts = split_scores(made, "far <b>").matrix
    row = page.tables["Confusion matrix of far <b> on testB"][2]
    assert row[:3] == ["gland", *(f"{count:,}" for count in counts[1])]
    assert row[3:] == [f"{count / counts[1].sum():.3f}" for count in counts[1]]


@pytest.mark.parametrize("split", ["testA", "testB"])
def test_runs_have_intervals_and_are_tested_against_the_best(page, split):
    assert [row[0] for row in page.tables[f"Confidence intervals on {split}, GlaS"]] == ["run", "near", "far <b>"]
    assert [row[0] for row in page.tables[f"Each run against near on {split}, GlaS"]] == ["run", "far <b>"]
    assert "Wilcoxon signed-rank test" in page.text and "2,000 resamples" in page.text


def test_figures_lie_beside_the_page(made):
    names = sorted(path.name for path in (made / "report").iterdir() if path.suffix in (".png", ".svg", ".jpg"))
    assert names == [
        "comparison-1-glas.svg", file_name("curves-far <b>.svg"), "curves-near.svg", file_name("images-far <b>.jpg"),
        "images-near.jpg", "sidebyside-1-glas.jpg",
    ]  # fmt: skip


def test_the_page_is_small(made):
    assert (made / "report" / "index.html").stat().st_size < 15e6


def test_reporting_again_gives_the_same_bytes(one_run, report):
    before = {path.name: path.read_bytes() for path in report.path.parent.iterdir()}
    build_report(one_run)
    assert {path.name: path.read_bytes() for path in report.path.parent.iterdir()} == before


def test_reporting_again_loads_neither_matplotlib_nor_pandas(one_run, report):
    """The imports take longer than a report whose figures are there."""
    code = (
        "import sys; from pathseg.train.report.build import build_report;"
        "build_report(sys.argv[1]); print({'matplotlib', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, one_run], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()"]


@pytest.fixture
def without_store(trained) -> Path:
    """The workspace of one run without its store, whose report has no pictures and is made in less time."""
    shutil.rmtree(trained / "glas.zarr")
    return trained


def test_without_the_store_all_but_the_pictures_is_there(without_store):
    page = Page(build_report(without_store).path)
    assert "No pictures: there is no feature store at" in page.text and page.main_table()[1][0] == "one"
    assert len(page.find("img")) == 2


def test_the_table_for_the_terminal_is_the_quoted_one(report):
    lines = report.table.splitlines()
    assert lines[0].startswith("Systems on testB, GlaS") and any(line.startswith("one ") for line in lines)
    assert any(line.startswith("PathSegDiff ") and "reported, Table 4" in line for line in lines)


@pytest.fixture(scope="module")
def swept(tmp_path_factory, write_run) -> Path:
    """A workspace with two timesteps of two seeds each, another block and another rate, and its report."""
    workspace = tmp_path_factory.mktemp("swept")
    store = write_store(workspace / "glas-mini.zarr", FEW)
    for name, shift, settings in (
        ("t50-s0", 6, {}), ("t50-s1", 10, {"seed": 1}), ("t10-s0", 30, {"t": 10}), ("t10-s1", 40, {"t": 10, "seed": 1}),
        ("b7", 20, {"blocks": (7,)}), ("lr3", 15, {"lr": 1e-3}),
    ):  # fmt: skip
        write_run(workspace, name, store, shift=shift, trained=False, **settings)
    build_report(workspace)
    return workspace


@pytest.fixture(scope="module")
def sweeps(swept: Path) -> Page:
    return Page(swept / "report" / "index.html")


def test_without_a_sweep_there_is_no_heading_for_sweeps(page):
    assert "Sweeps" not in page.text and "Over seeds" not in page.text


def test_a_single_run_has_no_cost_table(report):
    assert "Cost" not in Page(report.path).text


def test_each_setting_that_was_varied_has_its_table(sweeps):
    captions = [caption for caption in sweeps.tables if caption.startswith("Scores by")]
    about = ", GlaS (untrained model): mean ± standard deviation over seeds"
    assert captions == [f"Scores by {name}{about}" for name in ("timestep", "blocks", "learning rate")]


def test_the_mean_over_seeds_is_that_of_metrics_json(swept, sweeps):
    dice = [split_scores(swept, name).scores.dice for name in ("t10-s0", "t10-s1")]
    table = next(rows for caption, rows in sweeps.tables.items() if caption.startswith("Scores by timestep"))
    deviation = abs(dice[0] - dice[1]) / 2**0.5  # of two values, divisor n - 1
    assert table[1][0] == "10" and table[1][-1] == f"{sum(dice) / 2:.3f} ± {deviation:.3f}"


def test_sweeps_have_their_figures_in_the_page_and_beside_it(swept, sweeps):
    names = sorted(path.name for path in (swept / "report").glob("*.png") if path.name[:5] in ("times", "block"))
    assert names == ["blocks-1-glas-1.png", "timesteps-1-glas-1.png"]
    sources = {attrs["src"].split(",", 1)[1] for attrs in sweeps.find("img")}
    assert {base64.b64encode((swept / "report" / name).read_bytes()).decode() for name in names} <= sources


def test_the_figure_of_a_sweep_has_its_caption(sweeps):
    assert "n = 2 seeds for each value" in sweeps.text and "The model is untrained" in sweeps.text


def test_seeds_are_one_row_and_costs_one_a_run(sweeps):
    seeds = sweeps.tables["Mean ± standard deviation over seeds, GlaS"]
    assert [row[:2] for row in seeds] == [["settings", "n (seeds)"], ["t = 50", "2 (0, 1)"], ["t = 10", "2 (0, 1)"]]
    assert len(sweeps.tables["Cost of each run, GlaS"]) == 1 + 6


def test_the_contents_lead_to_the_sweeps(sweeps):
    assert "#data-1-sweeps" in {attrs["href"] for attrs in sweeps.find("a")}
    assert "data-1-sweeps" in {attrs["id"] for attrs in sweeps.find("h3") if "id" in attrs}


def test_sweeps_are_written_as_markdown(swept):
    text = (swept / "report" / "tables.md").read_text(encoding="utf-8")
    assert "**Scores by timestep" in text and "\n| 0.0001 | reported, Table 5 | 0.826 | 0.646 | 0.780 |" in text
    assert "**Mean ± standard deviation over seeds" in text and "**Cost of each run" in text


def test_figures_of_a_run_and_of_a_sweep_that_are_gone_are_removed(trained, write_run):
    other = write_run(trained, "other", FeatureStore.open(trained / "glas.zarr"), shift=3, t=10)
    build_report(trained)
    figures = [trained / "report" / name for name in ("curves-other.svg", "images-other.jpg", "timesteps-1-glas-1.png")]
    assert all(figure.exists() for figure in figures)
    shutil.rmtree(other.path)
    figures.append(trained / "report" / "curves-one.png")  # as 0.1.0 wrote them
    figures[-1].touch()
    build_report(trained)
    assert not any(figure.exists() for figure in figures) and (trained / "report" / "curves-one.svg").exists()


def test_sweeps_beyond_those_shown_are_in_the_markdown(tmp_path, write_run, monkeypatch):
    monkeypatch.setattr("pathseg.train.report.sections.SWEEPS_SHOWN", 1)
    trained, store = tmp_path, write_store(tmp_path / "glas.zarr", FEW)
    write_run(trained, "one", store, shift=10)
    for n in range(2):
        for lr in (1e-3, 1e-4):
            write_run(trained, f"n{n}-{lr}", store, shift=3 + n, lr=lr, batch_size=2 + n)
    shutil.rmtree(store.location.root)  # pictures take the time
    text = Page(build_report(trained).path).text
    assert "1 more sweep over learning rate is in tables.md" in text
    assert (trained / "report" / "tables.md").read_text().count("**Scores by learning rate") == 2


def test_data_sets_have_their_own_sections(trained, write_run):
    write_run(trained, "elsewhere", FeatureStore.open(trained / "glas.zarr"), shift=3, dataset="folder")
    page = Page(build_report(trained).path)
    headings = [attrs["id"] for attrs in page.find("h2")]
    assert headings == ["data-1-title", "data-2-title", "metrics-title"]
    assert "Results on testB, folder (the test split that results are quoted on)" in page.tables


def test_a_run_without_history_has_no_curves_and_says_so(without_store):
    for name in ("history.jsonl", "checksums.json"):
        (without_store / "heads" / "one" / name).unlink()
    assert "no learning curves" in Page(build_report(without_store).path).text


def test_a_workspace_without_runs_raises_with_a_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"no finished run under .*heads; run pathseg train-head first"):
        build_report(tmp_path)


def test_only_unfinished_runs_are_no_report(tmp_path, write_run):
    write_run(tmp_path, "cut", write_store(tmp_path / "glas.zarr", FEW), shift=3, scored=False)
    with pytest.raises(ValueError, match=r"no finished run under .*heads \(1 unfinished\)"):
        build_report(tmp_path)


def odd_copy(workspace, name):
    """A copy of the workspace's run, to be damaged."""
    return RunFolder(shutil.copytree(workspace / "heads" / "one", workspace / "heads" / name))


def test_runs_with_a_changed_or_missing_file_are_named_and_the_rest_goes_on(without_store):
    expected = []
    for number, name in enumerate(("head.safetensors", "head-last.safetensors", "history.jsonl")):
        for content in (b"other", None):
            run = odd_copy(without_store, f"odd{number}-{content is None}")
            for weights in (run.weights, run.last_weights):
                weights.write_bytes(b"weights")
            run.write_metrics(run.read_metrics())
            if content is None:
                (run.path / name).unlink()
            else:
                (run.path / name).write_bytes(content)
            expected.append(str(run.path / name))
    digit, broken = odd_copy(without_store, "odd digit"), odd_copy(without_store, "odd metrics")
    content = (digit.path / "metrics.json").read_text()
    (digit.path / "metrics.json").write_text(content.replace('"best_epoch": ', '"best_epoch": 1', 1))
    (broken.path / "metrics.json").write_text("{")
    expected += [f"{digit.path / 'metrics.json'} is damaged: its SHA-256", f"{broken.path / 'metrics.json'} is damaged"]
    require_named(build_report(without_store), expected)


def test_runs_with_a_damaged_configuration_are_named_and_the_rest_goes_on(without_store):
    expected = []
    for number, content in enumerate(("{", "[]", '{"format": 2}', '{"head": [1]}')):
        for finished in (True, False):
            run = odd_copy(without_store, f"odd{number}-{finished}")
            (run.path / "config.json").write_text(content)
            if not finished:
                (run.path / "metrics.json").unlink()
            expected.append(str(run.path / "config.json"))
    require_named(build_report(without_store), expected)


def require_named(report, expected):
    """Every damaged run has one line, which says what is expected, in the result and in the page; `one` is shown."""
    text = "".join(Page(report.path).words)
    assert len(report.damaged) == len(expected)
    for words in expected:
        (line,) = (line for line in report.damaged if words in line)
        assert line in text
    assert "one" in report.table and "odd" not in report.table


def test_an_interrupted_report_leaves_the_older_one_whole(trained, monkeypatch):
    folder = build_report(trained).path.parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def interrupted(*_: object, **__: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr("pathseg.train.report.run_page.sheet", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_report(trained)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_page_says_what_a_run_does_not_record(page):
    assert "add --root, --limit," in " ".join("".join(page.words).split())


def test_of_many_runs_the_best_alone_have_pictures_and_the_others_say_so(tmp_path, write_run, monkeypatch):
    monkeypatch.setattr("pathseg.train.report.build.IMAGES_PER_PAGE", 8)
    store = write_store(tmp_path / "glas-mini.zarr", FEW)
    for shift in (2, 20, 40):
        write_run(tmp_path, f"by{shift}", store, shift=shift)
    source = build_report(tmp_path).path.read_text()
    assert {file.name for file in (tmp_path / "report").glob("images-*.jpg")} == {"images-by2.jpg", "images-by20.jpg"}
    assert source.count("No pictures: they are made for the best runs only") == 1


def test_a_notebook_gets_every_table_as_a_data_frame(one_run, report):
    assert {f"{name}.csv" for name in report.frames} == {path.name for path in report.path.parent.glob("*.csv")}
    assert report.frames["table-1-glas-results-testB"]["Dice"][0] == split_scores(one_run, "one").scores.dice


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """The workspace that release 0.1.0 wrote, with the paths of its stores brought up to date, and its report."""
    workspace = shutil.copytree(FIXTURE, tmp_path_factory.mktemp("released") / "work")
    for path in workspace.glob("heads/*/config.json"):
        path.write_text(path.read_text().replace("/data/workspace-v1", str(workspace)))
    assert build_report(workspace).damaged == ()
    return workspace


def test_runs_of_the_first_release_are_all_in_the_report(released):
    page = Page(released / "report" / "index.html")
    glas = page.main_table()
    folder = page.tables["Results on testB, folder (the test split that results are quoted on)"]
    finished = {path.parent.name for path in released.glob("heads/*/metrics.json")}
    assert {row[0] for row in (*glas[1:-1], *folder[1:-1])} == finished and len(finished) == 10
    assert "unfinished: 1 of 3 epochs" in page.text


def test_the_report_of_the_first_release_has_its_systems_sweeps_and_pictures(released):
    page = Page(released / "report" / "index.html")
    systems = [row[0] for row in page.tables[SYSTEMS]]
    assert systems[1:5] == ["PathSegDiff", "DDPMSeg (pixel ensemble)", "Res-UNet", "linear probe"]
    assert any(caption.startswith("Scores by learning rate") for caption in page.tables)
    assert not (released / "report" / "index.html").read_text().count("No pictures: there is no")
    assert [attrs["alt"] for attrs in page.find("img") if attrs["alt"].endswith(": uncertainty")]
