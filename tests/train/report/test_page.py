"""The page in a real browser: every picture is drawn, a click sorts, the console stays empty."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

from pathseg.store.writer import StoreWriter
from pathseg.train.config import HeadConfig
from pathseg.train.report.build import build_report
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.loop import train_heads

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium (chromium, google-chrome) on the path")

# clicks on Dice in the results, twice, and says the order of the runs before and after; counts pictures not drawn
PROBE = """
<script>
const table = [...document.querySelectorAll("table.sortable")].find((t) => t.caption.textContent.startsWith("Results"));
const names = () => [...table.querySelector("tbody.run").rows].map((row) => row.cells[0].textContent);
const head = [...table.tHead.rows[0].cells].find((cell) => cell.textContent === "Dice");
const seen = { first: names() };
head.querySelector("button").click();
seen.up = [names(), head.getAttribute("aria-sort")];
head.querySelector("button").click();
seen.down = [names(), head.getAttribute("aria-sort")];
for (const details of document.querySelectorAll("details")) details.open = true;
window.addEventListener("load", () => {
  const drawn = [...document.images].filter((image) => image.complete && image.naturalWidth > 0);
  seen.pictures = [document.images.length, document.images.length - drawn.length];
  const said = document.createElement("pre");
  said.id = "probe";
  said.textContent = JSON.stringify(seen);
  document.body.append(said);
});
</script>
"""


def browse(page, folder):
    """The document after its scripts have run, and what was said on the console."""
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage",
        f"--user-data-dir={folder}", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=20000", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run([BROWSER, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.fixture(scope="module")
def index(tmp_path_factory, toy_contents, fill_store):
    """The report of two quick heads on a store with objects."""
    workspace = tmp_path_factory.mktemp("work")
    splits = ("train", "train", "train", "test", "test")
    store = fill_store(StoreWriter(workspace / "toy.zarr", toy_contents(splits=splits)))
    configs = [HeadConfig(blocks=(4,), head_type="linear", lr=lr, epochs=2) for lr in (1e-2, 1e-4)]
    train_heads(store, [(config, RunFolder(workspace / "heads" / f"lr{config.lr:g}")) for config in configs])
    return build_report(workspace).path


@pytest.fixture(scope="module")
def seen(index, tmp_path_factory):
    """What a script that is added to the page finds there, and the console's lines."""
    page = tmp_path_factory.mktemp("probed") / "index.html"
    text, replaced = re.subn(r"script-src 'sha256-[^']+'", "script-src 'unsafe-inline'", index.read_text("utf-8"))
    assert replaced == 1
    page.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    document, console = browse(page, tmp_path_factory.mktemp("profile"))
    (said,) = re.findall(r'<pre id="probe">(.*?)</pre>', document, re.DOTALL)
    return json.loads(unescape(said)), console


def test_the_page_as_it_is_runs_its_script_and_nothing_is_said_on_the_console(index, tmp_path):
    document, console = browse(index, tmp_path / "profile")
    assert console == [] and '<button type="button">Dice</button>' in document


def test_a_click_on_a_column_sorts_our_runs_and_another_turns_them_round(seen):
    found, _ = seen
    assert len(found["first"]) == 2 and found["down"] == [found["first"], "descending"]
    assert found["up"] == [found["first"][::-1], "ascending"]


def test_every_picture_is_drawn(seen):
    pictures, lost = seen[0]["pictures"]
    assert pictures >= 2 * 2 * 4 + 3 and lost == 0  # four panels of two images of two runs, curves, comparison


def test_sorting_complains_of_nothing(seen):
    assert seen[1] == []
