"""How many outlines are enough: Dice over the number of outlined objects of each class on a cohort of slides.

    python -m benchmarks.train.outlines [--workspace DIR] [--outlines 5,10,20,50] [--slides 10] [--side 1536]
                                     [--heads linear,fcn] [--out FILE]

Draws a cohort of slides (pyramidal TIFF, 0.5 um/px, generated tissue), half of them to train on, one to validate on and
the others to test on, these with exact outlines of all glands and all stroma as GeoJSON. Features of every window with
tissue are computed once with `mini`. Then, for each number n, n glands and n discs of stroma, drawn from all training
slides, are written as outlines; `pathseg extract` follows them without computing a feature, and heads are trained with
each seed. Prints a table, writes it to FILE, and draws it into the workspace as outlines.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import shapely
import tifffile
from rasterio.features import shapes

from benchmarks.machine import RESULTS, describe_machine, save_rows
from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.datasets.synthetic.painting import draw_tissue
from pathseg.extract.models import load_model
from pathseg.extract.pipeline import extract
from pathseg.extract.plan import plan_extraction
from pathseg.store.features import FeatureStore
from pathseg.train.training.sweep import expand_heads, train

MPP, TILE_PX = 0.5, 256
DISC_PX = 24  # radius of an outlined piece of stroma
HEADS: dict[str, dict[str, object]] = {
    "linear": {"lr": (1e-2,), "epochs": 20},
    "fcn": {"lr": (1e-3,), "epochs": 10, "blocks": (4, 5, 6)},
}
Outline = tuple[str, str, shapely.Geometry]  # slide, class, area in px


def write_slide(path: Path, image: np.ndarray) -> None:
    """Write (S, S, 3) uint8 as a pyramidal tiled TIFF of two levels."""
    with tifffile.TiffWriter(path) as file:
        for downsample in (1, 4):
            px_per_cm = 1e4 / MPP / downsample
            file.write(
                np.ascontiguousarray(image[::downsample, ::downsample]), tile=(TILE_PX, TILE_PX), photometric="rgb",
                compression="zlib", subfiletype=int(downsample > 1), resolution=(px_per_cm, px_per_cm),
                resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip


def areas(mask: np.ndarray) -> list[shapely.Geometry]:
    """Return the polygons of equal values above 0 of (S, S) int32."""
    return [shapely.geometry.shape(area) for area, _ in shapes(mask, mask=mask > 0)]


def write_outlines(root: Path, outlines: Sequence[Outline], slides: Sequence[str]) -> None:
    """Write one GeoJSON for each of the slides, as QuPath exports annotations; a slide without any has none."""
    for slide in slides:
        features = [
            {"type": "Feature", "geometry": shapely.geometry.mapping(area),
             "properties": {"objectType": "annotation", "classification": {"name": name}}}
            for where, name, area in outlines if where == slide
        ]  # fmt: skip
        path = root / f"{slide}.geojson"
        path.unlink(missing_ok=True)
        if features:
            path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def draw_cohort(root: Path, count: int, side: int) -> tuple[dict[str, str], list[Outline]]:
    """Draw the slides and splits.csv; return the split of each slide and exact outlines of all of them."""
    splits, outlines = {}, []
    for number in range(count):
        name = f"slide{number:02d}"
        splits[name] = "train" if number < count // 2 else "val" if number == count // 2 else "test"
        tissue = draw_tissue(np.random.default_rng([7, number]), side)
        write_slide(root / f"{name}.tif", tissue.image)
        glands = tissue.glands.astype(np.int32)
        outlines += [(name, "gland", area) for area in areas(glands)]
        outlines += [(name, "stroma", area) for area in areas((glands == 0).astype(np.int32))]
    (root / "splits.csv").write_text("id,split\n" + "".join(f"{name},{split}\n" for name, split in splits.items()))
    return splits, outlines


def candidates(outlines: Sequence[Outline], splits: Mapping[str, str]) -> dict[str, list[Outline]]:
    """Return what may be outlined of each class on the training slides, in random order: glands, discs of stroma."""
    rng, found = np.random.default_rng(0), {"gland": [], "stroma": []}  # type: ignore[var-annotated]
    for where, name, area in outlines:
        if splits[where] != "train":
            continue
        if name == "gland":
            found["gland"].append((where, name, area))
            continue
        left, top, right, bottom = area.bounds
        for _ in range(60 if area.area > 50_000 else 0):
            centre = shapely.Point(rng.uniform(left, right), rng.uniform(top, bottom))
            disc = centre.buffer(DISC_PX).intersection(area)
            if area.contains(centre) and disc.geom_type == "Polygon":
                found["stroma"].append((where, name, disc))
    return {name: [own[i] for i in rng.permutation(len(own))] for name, own in found.items()}


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Return a row for each head and number of outlines."""
    root = arguments.workspace / "slides"
    root.mkdir(parents=True, exist_ok=True)
    splits, exact = draw_cohort(root, arguments.slides, arguments.side)
    model, store, rows = load_model("mini"), arguments.workspace / "slides-mini.zarr", []
    config, options = ExtractConfig(layout="native"), DatasetOptions(root=root, windows="tissue")
    offered = candidates(exact, splits)
    evaluated = [outline for outline in exact if splits[outline[0]] != "train"]
    for count in map(int, arguments.outlines.split(",")):
        drawn = [outline for own in offered.values() for outline in own[:count]]
        write_outlines(root, [*drawn, *evaluated], list(splits))
        dataset = open_dataset("slides", options)
        patches = max(plan_extraction(dataset, model, store, config).missing_maps.values(), default=0)
        started = time.perf_counter()
        extract(dataset, model, store, config)
        extraction = time.perf_counter() - started
        print(f"{count} outlines of each class: {patches} patches computed in {extraction:.1f} s", flush=True)
        for head in arguments.heads.split(","):
            settings = HEADS[head]
            opened = FeatureStore.open(store)
            heads = expand_heads(opened, head_type=head, seed=range(arguments.seeds), **settings)  # type: ignore[arg-type]
            result = train(opened, heads, arguments.workspace / f"outlines-{count}", device=arguments.device)
            dice = [run.test_scores.scores.dice or 0.0 for run in result.runs]
            rows.append({
                "head": head, "outlines_per_class": count, "dice": round(statistics.fmean(dice), 4),
                "dice_sd": round(statistics.stdev(dice), 4), "seeds": len(dice), "patches_computed": patches,
                "test_slides": sum(split == "test" for split in splits.values()),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def draw_figure(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Draw Dice over the number of outlines, one line for each head with its deviation over the seeds."""
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for head in HEADS:
        if not (own := [row for row in rows if row["head"] == head]):
            continue
        x, y, error = ([row[name] for row in own] for name in ("outlines_per_class", "dice", "dice_sd"))
        axes.errorbar(x, y, yerr=error, marker="o", capsize=3, label=head)
    axes.set(xscale="log", xlabel="outlines of each class", ylabel="Dice on the test slides")
    axes.set_xticks([row["outlines_per_class"] for row in rows], [str(row["outlines_per_class"]) for row in rows])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, save the rows and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("pathseg-outlines"))
    parser.add_argument("--outlines", default="5,10,20,50")
    parser.add_argument("--slides", type=int, default=10)
    parser.add_argument("--side", type=int, default=1536, help="of a slide, px")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--heads", default=",".join(HEADS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS / "outlines.json")
    arguments = parser.parse_args()
    rows = measure(arguments)
    save_rows(arguments.out, "outlines", rows, machine=describe_machine(arguments.workspace))
    draw_figure(rows, arguments.workspace / "outlines.png")


if __name__ == "__main__":
    main()
