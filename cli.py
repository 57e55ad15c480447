"""The door: one command each, no work of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from pathseg.extract.catalogue import MODELS
from pathseg.extract.config import DEFAULT_MODEL, ExtractConfig
from pathseg.extract.datasets import DATASETS, DatasetOptions, open_dataset
from pathseg.store import workspace as places
from pathseg.store.blocks import parse_blocks
from pathseg.store.errors import StoreError
from pathseg.store.key import DTYPES, LAYOUTS
from pathseg.train.config import CLASS_WEIGHTS, HEAD_KINDS, HeadConfig

PATH = click.Path(path_type=Path)


class Parsed(click.ParamType):
    """A flag read by a function of ours; what it refuses is a wrong flag."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name, self._read = name, read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._read(value) if isinstance(value, str) else value
        except ValueError as e:
            self.fail(str(e), param, ctx)


def numbers(text: str, *, kind: type) -> tuple:
    """`10,50` -> (10, 50). Raises ValueError."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not a number or a comma list of numbers") from None


BLOCKS = Parsed("blocks", parse_blocks)
TIMESTEPS = Parsed("t[,t…]", partial(numbers, kind=int))
NAMES = Parsed("name[,name…]", lambda text: tuple(part.strip() for part in text.split(",")))


class Door(click.Group):
    """Turns what the library refuses into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (StoreError, ValueError, FileNotFoundError, NotADirectoryError, PermissionError) as e:
            raise click.ClickException(str(e)) from e
        except OSError as e:
            raise click.ClickException(
                f"{e.strerror or e}: {e.filename or 'writing failed'}; free space, run again"
            ) from e
        except KeyboardInterrupt:
            raise click.ClickException("interrupted; what is finished is kept, run the same command to go on") from None


@click.group(
    cls=Door, context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110}
)
@click.version_option(package_name="pathseg")
def main() -> None:
    """Segment H&E histology with the frozen features of a pathology diffusion model (PathSegDiff).

    Three steps: `extract` runs the expensive model once per 256 px patch and caches its features; `train-head` trains
    a small head on them, again and again, cheaply; `report` puts the results side by side. `demo` shows all three on
    generated tissue in minutes.
    """


workspace_option = click.option(
    "--workspace", type=PATH, default=places.DEFAULT, help="Folder of stores, heads and the report."
)
device_option = click.option("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps.")


@main.command("extract")
@click.option("--dataset", type=click.Choice(list(DATASETS)), required=True, help="What to read.")
@click.option("--root", type=PATH, help="Folder of the data set.  [default: <user data dir>/pathseg/<dataset>]")
@click.option("--t", type=TIMESTEPS, default=ExtractConfig.t, help="Timestep of the noise, 0-based; or a comma list.")
@click.option("--model", default=DEFAULT_MODEL, help=f"{', '.join(MODELS)}, or the folder of a release.")
@click.option("--hipt", type=PATH, help="HIPT's vit256_small_dino.pth, if it does not lie beside the model.")
@click.option(
    "--condition",
    type=click.Choice(["ssl", "none"]),
    default="ssl",
    help="ssl: HIPT's embedding of the patch; none: unconditional.",
)
@click.option("--blocks", type=BLOCKS, default="all", help="4-6, 0,4-6 or all; 0 = middle, 1-12 = upsampling.")
@click.option(
    "--layout",
    type=click.Choice(list(LAYOUTS)),
    default=ExtractConfig.layout,
    help="; ".join(f"{k}: {v}" for k, v in LAYOUTS.items()) + ".",
)
@click.option("--dtype", type=click.Choice(DTYPES), default=ExtractConfig.dtype, help="Stored type.")
@click.option("--store", type=PATH, help="Where the features go.  [default: <workspace>/<dataset>-<model>.zarr]")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=ExtractConfig.batch_size, help="Patches per forward pass."
)
@click.option("--seed", type=int, default=ExtractConfig.seed, help="Of the noise, of generated tissue and of splits.")
@click.option("--limit", type=click.IntRange(min=1), help="Take this many images, spread over the splits.")
@click.option("--resize", type=click.IntRange(min=1), help="Side in px that images are brought to, a multiple of 256.")
@click.option("--classes", type=NAMES, default=(), help="Class names in code order, for --dataset folder.")
@click.option("--mpp", type=float, help="um/px of the files, where the data set does not say.")
@click.option("--dry-run", is_flag=True, help="Print patches, bytes per block, total and free space; write nothing.")
@workspace_option
@device_option
def extract_command(**flags: Any) -> None:
    """Stage one: run the frozen model once per patch and keep its features.

    Prints the size first and refuses what does not fit. Run it again after an interruption: finished images are
    kept. Later runs with other --t or --blocks add to the same store.
    """
    from pathseg.extract import pipeline
    from pathseg.extract.models import load_model

    config = ExtractConfig(**{name: flags[name] for name in ExtractConfig.__dataclass_fields__})
    options = DatasetOptions(**{name: flags[name] for name in DatasetOptions.__dataclass_fields__})
    dataset = open_dataset(flags["dataset"], options)
    model = load_model(flags["model"], hipt=flags["hipt"], condition=flags["condition"], device=device(flags["device"]))
    path = flags["store"] or places.store_path(flags["workspace"], dataset.name, model.name)
    click.echo(pipeline.size_table(dataset, model, config, path), err=not flags["dry_run"])
    if flags["dry_run"]:
        return
    writer = pipeline.prepare_store(path, dataset, model, config)
    store, patches = writer.store, writer.store.contents.grid.patches
    left = pipeline.unfinished_images(writer, pipeline.wanted_blocks(model, config), config)
    with tqdm(total=left * patches, unit="patch", desc="extract", disable=not left) as bar:
        failures = pipeline.extract(writer, dataset, model, config, lambda images: bar.update(images * patches))
    click.echo(f"{store.location}: {len(store) - len(failures)} of {len(store)} images at t {format_list(config.t)}")
    if failures:
        lines = "\n".join(f"  {failure.id}: {failure.reason}" for failure in failures)
        raise click.ClickException(f"{len(failures)} of {len(store)} images were set aside:\n{lines}")


@main.command("train-head")
@click.option("--store", type=PATH, help="Feature store.  [default: the one in the workspace]")
@click.option("--t", type=int, default=HeadConfig.t, help="Timestep of the features.")
@click.option("--blocks", type=BLOCKS, default="all", help="4-6, 0,4-6 or all.")
@click.option(
    "--head", type=click.Choice(HEAD_KINDS), default=HeadConfig.head, help="fcn: the paper's; linear: a probe."
)
@click.option("--lr", type=float, default=HeadConfig.lr, help="Learning rate of Adam.")
@click.option("--epochs", type=int, default=HeadConfig.epochs, help="Passes over the training images.")
@click.option("--batch-size", type=int, default=HeadConfig.batch_size, help="Images per step.")
@click.option(
    "--val-fraction",
    type=float,
    default=HeadConfig.val_fraction,
    help="Share of the training images held out to choose the best epoch, where the store has no val split.",
)
@click.option(
    "--class-weights", type=click.Choice(CLASS_WEIGHTS), default=HeadConfig.class_weights, help="balanced: 1 - N_c / N."
)
@click.option(
    "--seed", type=int, default=HeadConfig.seed, help="Of the head, the order of images and the held-out ones."
)
@click.option("--name", help="Name of the run.  [default: made of the settings]")
@workspace_option
@device_option
def train_command(**flags: Any) -> None:
    """Stage two: train a head on cached features and score it on the test images.

    A finished run is not trained again. Results lie in <workspace>/heads/<run>/.
    """
    from pathseg.store.features import FeatureStore
    from pathseg.train.loop import train_or_keep

    store = FeatureStore.open(flags["store"] or places.only_store(flags["workspace"]))
    config = HeadConfig(**{name: flags[name] for name in HeadConfig.__dataclass_fields__})
    folder = places.heads_path(flags["workspace"]) / (flags["name"] or config.run_name(store.contents.key))
    with tqdm(total=config.epochs, unit="epoch", desc=folder.name) as bar:
        metrics = train_or_keep(
            store, config, folder, device=device(flags["device"]), on_epoch=partial(show_epoch, bar)
        )
    click.echo(f"{folder}: best epoch {metrics['best_epoch']} of {metrics['epochs']}")
    for name, part in metrics["splits"].items():
        scores, constant = part["scores"], part["constant"]["scores"]
        figures = "  ".join(f"{measure} {scores[measure]:.3f}" for measure in ("accuracy", "dice", "miou", "f1"))
        always = f"always {part['constant']['class']}: dice {constant['dice']:.3f}"
        click.echo(f"{name}, {part['images']} images: {figures}  ({always})")


@main.command("report")
@workspace_option
def report_command(workspace: Path) -> None:
    """Collect the runs of the workspace into one page, tables and figures."""
    from pathseg.train.report import build_report

    report = build_report(workspace)
    click.echo(f"{report.table}\n\n{report.path}")
    if report.damaged:
        lines = "\n".join(f"  {line}" for line in report.damaged)
        raise click.ClickException(f"{len(report.damaged)} runs could not be read:\n{lines}")


@main.command("info")
@click.argument("store", type=PATH)
def info_command(store: Path) -> None:
    """Say what is in a feature store: images, classes, model, blocks, how complete, how large."""
    from pathseg.store.describe import describe
    from pathseg.store.features import FeatureStore

    click.echo(describe(FeatureStore.open(store)))


@main.command("demo")
@workspace_option
@click.pass_context
def demo_command(ctx: click.Context, workspace: Path) -> None:
    """Run the three stages on generated tissue with the bundled model, printing each command it stands for."""
    place = ["--workspace", str(workspace)]
    for arguments in (
        ["extract", "--dataset", "synthetic", "--model", "mini", "--t", "50", *place],
        [
            "train-head",
            "--store",
            str(places.store_path(workspace, "synthetic", "mini")),
            "--blocks",
            "4-6",
            "--lr",
            "1e-3",
            "--epochs",
            "8",
            *place,
        ],
        ["report", *place],
    ):
        click.secho(f"$ pathseg {' '.join(arguments)}", bold=True)
        main.main(arguments, prog_name="pathseg", standalone_mode=False)


def device(name: str) -> str:
    """`auto` -> cuda, mps or cpu, whichever is at hand in this order. Raises ValueError for one that is not."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"device {name} is not there ({str(e).splitlines()[0]}); pass --device auto") from e
    return name


def show_epoch(bar: tqdm, line: dict[str, Any]) -> None:
    """Advance the bar by an epoch, with its losses and validation Dice."""
    bar.set_postfix(
        loss=f"{line['train_loss']:.3f}", val_loss=f"{line['val_loss']:.3f}", val_dice=f"{line['val_dice']:.3f}"
    )
    bar.update()


def format_list(values: tuple[Any, ...]) -> str:
    return ", ".join(map(str, values))


if __name__ == "__main__":
    sys.exit(main())
