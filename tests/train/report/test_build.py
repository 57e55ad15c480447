"""The page: one file that opens anywhere, says what metrics.json says, and hides nothing."""

import base64
import csv
import dataclasses
import hashlib
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

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
from pathseg.train.metrics.pixel import DEFINITIONS, Scores, confusion_matrix, constant_prediction
from pathseg.train.report.build import ROWS_PER_RUN, build_report
from pathseg.train.report.sections import SWEEPS_SHOWN
from pathseg.train.runs.folder import RunFolder

CLASSES = ("background", "gland")
SIDE = 256
SPLITS = {"train": 2, "testA": 1, "testB": 14}
SYSTEMS = "Systems on testB, GlaS (as the paper's Table 4)"
VOID = {"meta", "img", "br", "link", "input", "hr"}


def write_store(path: Path, *, trained: bool) -> FeatureStore:
    key = StoreKey(
        dataset="glas", preprocessing="resized <to> 256", size=(SIDE, SIDE), mpp=0.62, model="mini",
        model_digest="0" * 64, first_stage="vq-f4", condition="ssl", seed=0, layout="native", dtype="float32",
    )  # fmt: skip
    entries = tuple(ImageEntry(f"{s}_{n}", s, SIDE, SIDE) for s, count in SPLITS.items() for n in range(1, count + 1))
    writer = StoreWriter(path, Contents(
        key=key, images=entries, classes=CLASSES, ignore=None, test_split="testB", blocks={0: BlockShape(1, 1)},
        model_trained=trained, has_instances=False, made_by={},
    ))  # fmt: skip
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for index in range(len(entries)):
        mask = ((rows - 128) ** 2 + (columns - 128) ** 2 < (40 + 4 * index) ** 2).astype(np.uint8)
        image = np.where(mask[..., None] == 1, (150, 90, 160), (235, 190, 215)).astype(np.uint8)
        writer.write_pixels(index, [(image, mask, None)])
    return writer.store


def write_run(
    workspace: Path, name: str, store: FeatureStore, *, shift: int, scored: bool = True, **settings: Any
) -> RunFolder:
    """A run whose prediction is the truth moved by `shift` px; settings that are not named are the same in all."""
    run, key = RunFolder(workspace / "heads" / name), store.contents.key
    images = {split: [i for i, s in zip(store.ids, store.splits, strict=True) if s == split] for split in SPLITS}
    run.begin({
        "head": {"t": 50, "blocks": [4, 5, 6], "head": "fcn", "lr": 1e-4, "epochs": 3, "batch_size": 1, "seed": 0,
                 **settings},
        "data": {
            "store": str(store.location), "dataset": key.dataset, "classes": list(CLASSES), "ignore": None,
            "model": {"name": "mini", "digest": key.model_digest, "trained": store.contents.model_trained,
                      "condition": "ssl", "first_stage": "vq-f4"},
            "mpp": key.mpp, "size": [SIDE, SIDE], "layout": "native", "preprocessing": key.preprocessing,
            "channels": {"4": 1}, "test_split": "testB", "images": images,
        },
        "parameters": 1234567, "versions": {"pathseg": "0.1.0"}, "device": "cpu",
    })  # fmt: skip
    for e in (1, 2, 3) if scored else (1, 2):
        run.append_history({"epoch": e, "train_loss": 1 / e, "val_loss": 1.2 / e, "val_dice": e / 4, "val_miou": e / 5})
    if not scored:
        return run
    splits = {}
    for split in ("testA", "testB"):
        matrices = {}
        for index, image_id in enumerate(store.ids):
            if store.splits[index] == split:
                predicted = np.roll(store.mask(index), shift, axis=1)
                run.write_prediction(image_id, predicted)
                matrices[image_id] = confusion_matrix(store.mask(index), predicted, classes=2)
        whole = sum(matrices.values())
        splits[split] = {
            "images": len(matrices), "scores": dataclasses.asdict(Scores.of(whole)),
            "constant": {"class": "background", "scores": dataclasses.asdict(Scores.of(constant_prediction(whole, 0)))},
            "per_image": [
                {"id": i, "scores": dataclasses.asdict(Scores.of(m)), "confusion": m.tolist()}
                for i, m in matrices.items()
            ],
        }  # fmt: skip
    run.write_metrics({"best_epoch": 2, "epochs": 3, "seconds": 61.0, "test_split": "testB", "splits": splits})
    return run


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
        return self.tables["Results on testB, GlaS (the test part that results are quoted on)"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A workspace with two finished runs and an unfinished one of an untrained model, and its report."""
    workspace = tmp_path_factory.mktemp("work")
    store = write_store(workspace / "glas-mini.zarr", trained=False)
    write_run(workspace, "near", store, shift=6)
    write_run(workspace, "far <b>", store, shift=40)
    write_run(workspace, "cut short", store, shift=0, scored=False)
    build_report(workspace)
    return workspace


@pytest.fixture(scope="module")
def page(made: Path) -> Page:
    return Page(made / "report" / "index.html")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A workspace with one run of a trained model, without its report."""
    write_run(tmp_path, "one", write_store(tmp_path / "glas.zarr", trained=True), shift=10)
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
    assert tables.count("sortable") >= 6  # results and images of both parts, classes


def test_links_lead_into_the_page_or_to_the_cited_paper(page):
    links = {attrs["href"] for attrs in page.find("a")}
    assert {link for link in links if not link.startswith("#")} == {"https://arxiv.org/abs/2504.06950"}


def test_every_link_into_the_page_has_its_target(page):
    ids = {attrs["id"] for _, attrs in page.tags if attrs.get("id")}
    assert {attrs["href"][1:] for attrs in page.find("a") if attrs["href"].startswith("#")} <= ids


def test_no_two_elements_share_an_id(page):
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))


def test_every_picture_has_a_text_and_can_be_decoded(page):
    for picture in page.find("img"):
        assert picture["alt"]
        with Image.open(io.BytesIO(base64.b64decode(picture["src"].split(",", 1)[1]))) as decoded:
            decoded.load()


def test_the_page_names_its_language_and_title(page):
    assert page.find("html")[0]["lang"] == "en" and "<title>Segmentation report: GlaS</title>" in page.source


def test_header_cells_say_what_they_are_for(page):
    assert all(attrs.get("scope") in ("row", "col") for attrs in page.find("th"))


def test_our_runs_stand_before_the_constant(page):
    assert [row[0] for row in page.main_table()] == ["run", "near", "far <b>", "always background"]


def test_our_systems_stand_before_the_cited_ones(page):
    names = [row[0] for row in page.tables[SYSTEMS]]
    assert names[:3] == ["system", "PathSegDiff", "HIPT"] and names[-1] == "PathSegDiff"


@pytest.mark.parametrize("name", ["near", "far <b>"])
def test_numbers_of_the_table_are_those_of_metrics_json(made, page, name):
    part = json.loads((made / "heads" / name / "metrics.json").read_text())["splits"]["testB"]
    scores, constant = part["scores"], part["constant"]["scores"]
    row = next(row for row in page.main_table() if row[0] == name)
    expected = [f"{scores[key]:.3f}" for key in ("accuracy", "dice", "miou", "f1")]
    assert row[-6:] == ["14", *expected, f"{scores['dice'] - constant['dice']:+.3f}".replace("-", "−")]


def test_rows_all_have_the_width_of_the_head(page):
    assert {len(row) for row in page.main_table()} == {16}


def test_cited_rows_are_marked(page):
    cited = page.tables[SYSTEMS][2:]
    assert len(cited) == 8 and all("cited, Table 4" in row for row in cited)


def test_the_other_test_part_has_its_own_table_without_cited_rows(page):
    assert [row[0] for row in page.tables["Results on testA, GlaS"]] == ["run", "near", "far <b>", "always background"]


def test_classes_have_their_own_table(made, page):
    one = json.loads((made / "heads/near/metrics.json").read_text())["splits"]["testB"]["scores"]["classes"][1]
    row = next(row for row in page.tables["Classes on testB, GlaS"] if row[:2] == ["near", "gland"])
    assert row[2:] == [f"{one['pixels']:,}", *(f"{one[key]:.3f}" for key in ("dice", "iou", "precision", "recall"))]


def test_names_are_escaped(page):
    assert "far <b>" not in page.source and "far &lt;b&gt;" in page.source


def test_a_run_that_is_not_finished_is_listed_as_such(page):
    assert "cut short: 2 of 3 epochs" in page.text


def test_an_untrained_model_brings_the_banner(page):
    assert [attrs for attrs in page.find("p") if attrs.get("class") == "banner"]
    assert "random weights: numbers show that the pipeline works, nothing about pathology" in page.text


def test_a_trained_model_brings_no_banner(trained):
    page = Page(build_report(trained).path)
    assert not [attrs for attrs in page.find("p") if attrs.get("class") == "banner"]
    assert "nothing about pathology" not in page.text


def test_the_page_shows_at_most_so_many_images_of_a_run_and_says_how_many_are_left_out(page):
    rows = [attrs for attrs in page.find("figure") if attrs.get("class") == "row"]
    assert len(rows) == 2 * ROWS_PER_RUN
    assert f"{ROWS_PER_RUN} of 14 test images of testB are shown, 2 are left out" in page.text


def test_the_worst_image_is_shown_first(made, page):
    per_image = json.loads((made / "heads/near/metrics.json").read_text())["splits"]["testB"]["per_image"]
    worst = min(per_image, key=lambda one: one["scores"]["dice"])["id"]
    assert next(attrs["alt"] for attrs in page.find("img") if "tissue" in attrs["alt"]) == f"{worst}: tissue"


def test_the_map_of_an_ensemble_is_a_fifth_picture_of_its_row(tmp_path):
    store = write_store(tmp_path / "glas-mini.zarr", trained=True)
    run = write_run(tmp_path, "ensemble", store, shift=2)
    run.write_uncertainty("testB_3", np.full((SIDE, SIDE), 0.5))
    page = Page(build_report(tmp_path).path)
    assert [attrs["alt"] for attrs in page.find("img") if "uncertainty" in attrs["alt"]] == ["testB_3: uncertainty"]
    assert [attrs["class"] for attrs in page.find("div") if "panels" in (attrs.get("class") or "")].count(
        "panels five"
    ) == 1


def test_every_metric_is_defined_in_the_page(page):
    assert len(DEFINITIONS) > 5 and all(text in page.text for text in (DEFINITIONS | OBJECT_DEFINITIONS).values())


def test_the_configuration_is_in_the_page(page):
    rows = dict(page.tables["config.json of near"])
    assert (rows["head.blocks"], rows["data.preprocessing"]) == ("4-6", "resized <to> 256")


def test_commands_of_the_page_are_accepted_by_the_door(page):
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


def test_the_csv_of_a_table_holds_its_rows(made, page):
    with (made / "report" / "table-1-glas-results-testB.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    shown = [[cell.replace("−", "-") for cell in row] for row in page.main_table()[:3]]
    for row in shown[1:]:
        row[6] = row[6].replace(",", "")  # the number of parameters
    assert rows[:3] == shown


@pytest.mark.parametrize("split", ["testA", "testB"])
def test_scores_of_each_image_lie_beside_the_page(made, split):
    part = json.loads((made / "heads/near/metrics.json").read_text())["splits"][split]
    with (made / "report" / f"images-near-{split}.csv").open(encoding="utf-8", newline="") as file:
        found = {row["image"]: float(row["Dice"]) for row in csv.DictReader(file)}
    assert found == {one["id"]: round(one["scores"]["dice"], 3) for one in part["per_image"]}
    assert r"\caption" in (made / "report" / f"images-near-{split}.tex").read_text()


def test_systems_are_shown_side_by_side_in_the_page_and_beside_it(made, page):
    picture = base64.b64encode((made / "report" / "sidebyside-1-glas.png").read_bytes()).decode()
    assert f"data:image/png;base64,{picture}" in {attrs["src"] for attrs in page.find("img")}
    assert "PathSegDiff: run far <b>, mini (untrained)" in page.text  # the first of two that differ in their name only


def test_the_confusion_matrix_is_that_of_metrics_json(made, page):
    per_image = json.loads((made / "heads" / "far <b>" / "metrics.json").read_text())["splits"]["testB"]["per_image"]
    counts = np.sum([one["confusion"] for one in per_image], axis=0)
    row = page.tables["Confusion matrix of far <b> on testB"][2]
    assert row[:3] == ["gland", *(f"{count:,}" for count in counts[1])]
    assert row[3:] == [f"{count / counts[1].sum():.3f}" for count in counts[1]]


def test_runs_have_intervals_and_are_tested_against_the_best(page):
    assert [row[0] for row in page.tables["Confidence intervals on testB, GlaS"]] == ["run", "near", "far <b>"]
    assert [row[0] for row in page.tables["Each run against near on testB, GlaS"]] == ["run", "far <b>"]
    assert [row[0] for row in page.tables["Confidence intervals on testA, GlaS"]] == ["run", "near", "far <b>"]
    assert [row[0] for row in page.tables["Each run against near on testA, GlaS"]] == ["run", "far <b>"]
    assert "Wilcoxon signed-rank test" in page.text and "2,000 resamples" in page.text


def test_figures_lie_beside_the_page(made):
    names = sorted(path.name for path in (made / "report").glob("*.png"))
    assert names == [
        "comparison-1-glas.png", "curves-far__b_.png", "curves-near.png", "images-far__b_.png",
        "images-near.png", "sidebyside-1-glas.png",
    ]  # fmt: skip


def test_the_page_is_small(made):
    assert (made / "report" / "index.html").stat().st_size < 15e6


def test_reporting_again_gives_the_same_bytes(trained):
    def content() -> dict[str, bytes]:
        build_report(trained)
        return {path.name: path.read_bytes() for path in (trained / "report").iterdir()}

    assert content() == content()


def test_figures_of_a_run_that_is_gone_are_removed(trained):
    write_run(trained, "other", FeatureStore.open(trained / "glas.zarr"), shift=3)
    build_report(trained)
    shutil.rmtree(trained / "heads" / "other")
    build_report(trained)
    assert not (trained / "report" / "curves-other.png").exists() and (trained / "report" / "curves-one.png").exists()


def test_without_the_store_all_but_the_pictures_is_there(trained):
    shutil.rmtree(trained / "glas.zarr")
    page = Page(build_report(trained).path)
    assert "No pictures: there is no feature store at" in page.text and page.main_table()[1][0] == "one"
    assert len(page.find("img")) == 2


def test_the_table_for_the_terminal_is_the_quoted_one(trained):
    lines = build_report(trained).table.splitlines()
    assert lines[0].startswith("Systems on testB, GlaS") and any(line.startswith("one ") for line in lines)
    assert any(line.startswith("PathSegDiff ") and "cited, Table 4" in line for line in lines)


def test_a_damaged_run_is_named_and_the_rest_goes_on(trained):
    broken = write_run(trained, "broken", FeatureStore.open(trained / "glas.zarr"), shift=3)
    (broken.path / "metrics.json").write_text("{")
    report = build_report(trained)
    assert len(report.damaged) == 1 and "broken/metrics.json is damaged" in report.damaged[0]
    assert "broken/metrics.json is damaged" in Page(report.path).text


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """A workspace with two timesteps of two seeds each, another block and another rate, and its report."""
    workspace = tmp_path_factory.mktemp("swept")
    store = write_store(workspace / "glas-mini.zarr", trained=False)
    for name, shift, settings in (
        ("t50-s0", 6, {}), ("t50-s1", 10, {"seed": 1}), ("t10-s0", 30, {"t": 10}), ("t10-s1", 40, {"t": 10, "seed": 1}),
        ("b7", 20, {"blocks": [7]}), ("lr3", 15, {"lr": 1e-3}),
    ):  # fmt: skip
        write_run(workspace, name, store, shift=shift, **settings)
    build_report(workspace)
    return workspace


@pytest.fixture(scope="module")
def ablations(swept: Path) -> Page:
    return Page(swept / "report" / "index.html")


def test_without_a_sweep_there_are_no_ablations(page):
    assert "Ablations" not in page.text and "Over seeds" not in page.text


def test_a_single_run_has_no_cost_table(trained):
    assert "Cost" not in Page(build_report(trained).path).text


def test_each_setting_that_was_varied_has_its_table(ablations):
    captions = [caption for caption in ablations.tables if caption.startswith("Scores by")]
    about = ", GlaS (untrained model): mean ± standard deviation over seeds"
    assert captions == [f"Scores by {name}{about}" for name in ("timestep", "blocks", "learning rate")]


def test_the_mean_over_seeds_is_that_of_metrics_json(swept, ablations):
    dice = [
        json.loads((swept / "heads" / name / "metrics.json").read_text())["splits"]["testB"]["scores"]["dice"]
        for name in ("t10-s0", "t10-s1")
    ]
    table = next(rows for caption, rows in ablations.tables.items() if caption.startswith("Scores by timestep"))
    deviation = abs(dice[0] - dice[1]) / 2**0.5  # of two values, divisor n - 1
    assert table[1][0] == "10" and table[1][-1] == f"{sum(dice) / 2:.3f} ± {deviation:.3f}"


def test_sweeps_have_their_figures_in_the_page_and_beside_it(swept, ablations):
    names = sorted(path.name for path in (swept / "report").glob("*.png") if path.name[:5] in ("times", "block"))
    assert names == ["blocks-1-glas-1.png", "timesteps-1-glas-1.png"]
    sources = {attrs["src"].split(",", 1)[1] for attrs in ablations.find("img")}
    assert {base64.b64encode((swept / "report" / name).read_bytes()).decode() for name in names} <= sources


def test_the_caption_of_a_figure_says_n_and_that_the_model_is_untrained(ablations):
    assert "(n = 2 seeds for each value), bars ± one sample standard deviation" in ablations.text
    assert (
        "The model is untrained (random weights): this shows that the pipeline works, nothing more." in ablations.text
    )


def test_seeds_are_one_row_and_costs_one_a_run(ablations):
    seeds = ablations.tables["Mean ± standard deviation over seeds, GlaS"]
    assert [row[:2] for row in seeds] == [["settings", "n (seeds)"], ["t = 50", "2 (0, 1)"], ["t = 10", "2 (0, 1)"]]
    assert len(ablations.tables["Cost of each run, GlaS"]) == 1 + 6


def test_the_contents_lead_to_the_ablations(ablations):
    assert "#data-1-ablations" in {attrs["href"] for attrs in ablations.find("a")}
    assert "data-1-ablations" in {attrs["id"] for attrs in ablations.find("h3") if "id" in attrs}


def test_sweeps_are_written_as_markdown(swept):
    text = (swept / "report" / "tables.md").read_text(encoding="utf-8")
    assert "**Scores by timestep" in text and "\n| 0.0001 | cited, Table 5 | 0.826 | 0.646 | 0.780 |" in text
    assert "**Mean ± standard deviation over seeds" in text and "**Cost of each run" in text


def test_figures_of_a_sweep_that_is_gone_are_removed(trained):
    other = write_run(trained, "other", FeatureStore.open(trained / "glas.zarr"), shift=3, t=10)
    build_report(trained)
    assert (trained / "report" / "timesteps-1-glas-1.png").exists()
    shutil.rmtree(other.path)
    build_report(trained)
    assert not (trained / "report" / "timesteps-1-glas-1.png").exists()


def test_sweeps_beyond_those_shown_are_in_the_markdown(trained):
    store = FeatureStore.open(trained / "glas.zarr")
    for n in range(SWEEPS_SHOWN + 1):
        for lr in (1e-3, 1e-4):
            write_run(trained, f"n{n}-{lr}", store, shift=3 + n, lr=lr, batch_size=2 + n)
    text = Page(build_report(trained).path).text
    assert "1 more sweep over learning rate is in tables.md" in text
    assert (trained / "report" / "tables.md").read_text().count("**Scores by learning rate") == SWEEPS_SHOWN + 1


def test_data_sets_have_their_own_sections(trained):
    store = FeatureStore.open(trained / "glas.zarr")
    other = write_run(trained, "elsewhere", store, shift=3)
    config = other.read_config()
    other.write_config({**config, "data": {**config["data"], "dataset": "folder"}})
    page = Page(build_report(trained).path)
    headings = [attrs["id"] for attrs in page.find("h2")]
    assert headings == ["data-1-title", "data-2-title", "metrics-title"]
    assert "Results on testB, folder (the test part that results are quoted on)" in page.tables


def test_a_run_without_history_has_no_curves_and_says_so(trained):
    (trained / "heads" / "one" / "history.jsonl").unlink()
    assert "no learning curves" in Page(build_report(trained).path).text


def test_a_workspace_without_runs_raises_with_a_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"no finished run under .*heads; run pathseg train-head first"):
        build_report(tmp_path)


def test_only_unfinished_runs_are_no_report(tmp_path):
    write_run(tmp_path, "cut", write_store(tmp_path / "glas.zarr", trained=True), shift=3, scored=False)
    with pytest.raises(ValueError, match=r"no finished run under .*heads \(1 unfinished\)"):
        build_report(tmp_path)


@pytest.mark.parametrize("change", [{"parameters": "many"}, {"data": {"model": {}}}, {"head": [1]}])
def test_a_run_with_an_odd_configuration_is_named_and_the_rest_goes_on(trained, change):
    shutil.copytree(trained / "heads" / "one", trained / "heads" / "odd")
    odd = RunFolder(trained / "heads" / "odd")
    odd.write_config({**odd.read_config(), **change})
    report = build_report(trained)
    assert len(report.damaged) == 1 and str(odd.path / "config.json") in report.damaged[0]
    assert "one" in report.table and report.damaged[0] in "".join(Page(report.path).words)


def test_an_unfinished_run_with_an_odd_configuration_is_listed(trained):
    odd = RunFolder(trained / "heads" / "odd")
    odd.begin({"head": [1]})
    assert "odd: 0 of an unknown number of epochs" in "".join(Page(build_report(trained).path).words)


def test_an_interrupted_report_leaves_the_older_one_whole(trained, monkeypatch):
    folder = build_report(trained).path.parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr("pathseg.train.report.figures.sheet", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_report(trained)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_page_says_what_a_run_does_not_record(page):
    assert "add --root, --limit," in " ".join("".join(page.words).split())


def test_of_many_runs_the_best_alone_have_pictures_and_the_others_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr("pathseg.train.report.build.ROWS_PER_PAGE", 8)
    store = write_store(tmp_path / "glas-mini.zarr", trained=True)
    for shift in (2, 20, 40):
        write_run(tmp_path, f"by{shift}", store, shift=shift)
    source = build_report(tmp_path).path.read_text()
    assert {file.name for file in (tmp_path / "report").glob("images-*.png")} == {"images-by2.png", "images-by20.png"}
    assert source.count("No pictures: they are made for the best runs only") == 1
