"""The article of one run: its facts, curves, worst images, scores, settings and commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pathseg.train.report import figures
from pathseg.train.report.gallery import Lost, Picture, Stores, pictures, spread, worst_first
from pathseg.train.report.image_encoding import jpeg, uri
from pathseg.train.report.staged_folder import Edition
from pathseg.train.report.summary import commands, flat, run_facts
from pathseg.train.report.tables import per_image
from pathseg.train.runs.finished import FinishedRun

SHEET_ROWS = 4  # rows of the picture file of a run: worst to best; a run with fewer has none, the best come first


def article_of(run: FinishedRun, edition: Edition, stores: Stores, *, rows: int, workspace: Path) -> dict[str, Any]:
    """What the template shows of a run, its pictures added to the edition; rows: how many images are shown."""
    view: dict[str, Any] = {
        "name": run.name, "facts": run_facts(run), "settings": flat(run.config), "commands": commands(run, workspace),
        "trained": run.data["model"]["trained"], "store": run.data["store"], "curves": None,
        "per_image": [
            (split, per_image(part, f"Images of {split}, worst first")) for split, part in run.parts.items()
        ],
    }  # fmt: skip
    if run.history:
        curves = figures.learning_curves(run.history, run.best_epoch, f"{run.name}: learning curves")
        edition.add(f"curves-{run.name}.png", curves)
        alt = f"Learning curves of {run.name} over {run.epochs} epochs; the best is epoch {run.best_epoch}"
        view["curves"] = {"uri": uri(curves, "png"), "alt": alt}
    return {**view, **_gallery(run, edition, stores, rows)}


def _gallery(run: FinishedRun, edition: Edition, stores: Stores, rows: int) -> dict[str, Any]:
    split, ids = run.test_split, worst_first(run, run.test_split)
    view: dict[str, Any] = {"split": split, "images": len(ids), "rows": [], "lost": [], "no_store": ""}
    store = stores.get(run.data["store"]) if rows else "they are made for the best runs only"
    if isinstance(store, str):
        return {**view, "no_store": store}
    shown, filed = ids[:rows], spread(ids, SHEET_ROWS)
    wanted = list(dict.fromkeys([*shown, *filed]))
    made: dict[str, Picture] = {}
    for one in pictures(run, split, wanted, store):
        if isinstance(one, Lost):
            view["lost"].append(one)
            continue
        made[one.id] = one
        if one.id in shown:
            view["rows"].append(_row(one))
    for_file = [(f"{name}\n{made[name].caption}", made[name].panels) for name in filed if name in made]
    if for_file:
        colours = figures.legend(run.data["classes"], run.data["ignore"])
        title = f"{run.name}: images of {split}, from the worst to the best"
        edition.add(f"images-{run.name}.png", figures.sheet(for_file, colours, title))
    return view


def _row(picture: Picture) -> dict[str, Any]:
    shown = list(zip(figures.PANELS, picture.panels, strict=True))
    shown += [] if picture.unsure is None else [("uncertainty", picture.unsure)]
    images = [
        {
            "name": name,
            "uri": uri(jpeg(panel), "jpeg"),
            "alt": f"{picture.id}: {name}" + (f", {picture.errors}" if name == "errors" else ""),
        }
        for name, panel in shown
    ]
    return {"id": picture.id, "caption": picture.caption, "errors": picture.errors, "images": images}
