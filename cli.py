"""The command line: each command parses its flags, calls one function of the library and prints what it returns."""

from __future__ import annotations

import dataclasses
import dis
import errno
import io
import shlex
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from tqdm import tqdm

from pathseg.extract.config import (
    CONTEXT_HELP,
    HIPT_HELP,
    WEIGHTS_HELP,
    ExtractConfig,
    SlideStoreConfig,
    ViTConfig,
)
from pathseg.extract.datasets.registry import DATASETS, DatasetOptions, check_options, open_dataset
from pathseg.extract.models.registry import DEFAULT_MODEL, MODELS, TIMM, name_of_model
from pathseg.store.errors import StoreError
from pathseg.store.key import MAGNIFICATIONS
from pathseg.store.runtime import workspace as paths
from pathseg.store.runtime.flags import PATH, device_option, flags_of, workspace_option, wrong_flags
from pathseg.store.runtime.printable import printable
from pathseg.train.config import BaselineConfig, HeadConfig, RefineConfig
from pathseg.train.flags import training_flags
from pathseg.train.predict.config import PredictConfig

MODEL_HELP = (
    f"{', '.join(MODELS)}; the folder of a release, of a timm model as on the Hugging Face hub (config.json with "
    "model.safetensors or pytorch_model.bin) or of a diffusers pipeline (model_index.json); or timm:NAME "
    "with --weights."
)
MPP = click.FloatRange(min=0, min_open=True)

DEBUG, NOTED = "pathseg.debug", "pathseg.noted"  # keys of the click context's meta


class Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems send it: ends a command like Ctrl-C, with exit code 143."""


class Interrupted(click.ClickException):
    """The end of a command after Ctrl-C (exit code 1) or SIGTERM (143)."""

    def __init__(self, *, terminated: bool) -> None:
        kind = "terminated" if terminated else "interrupted"
        super().__init__(f"{kind}; what is finished is kept, run the same command to go on")
        self.exit_code = 128 + signal.SIGTERM if terminated else 1  # type: ignore[misc]


class CommandGroup(click.Group):
    """The commands, each with `--debug`; errors of the library end as one line and exit code 1.

    A `ValueError` or `StoreError` that pathseg raises itself is the user's to mend and shown as it is. Any other
    exception is a bug of pathseg: the line says so, names the code that raised it, and asks for `--debug`.
    """

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, with the flag `--debug`."""
        debug = click.Option(
            ["--debug"], is_flag=True, expose_value=False, callback=_set_debug, help="Show tracebacks."
        )
        cmd.params.append(debug)
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exceptions become a ClickException unless `--debug` was given."""
        for stream in (sys.stdout, sys.stderr):  # a terminal without Unicode shows ? instead of ending the command
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            with _sigterm_raises():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click ends the command without a message when the reader of its output has gone
        except KeyboardInterrupt as e:
            raise Interrupted(terminated=isinstance(e, Terminated)) from None
        except Exception as e:
            if ctx.meta.get(DEBUG):
                raise
            raise click.ClickException(printable(error_line(e))) from e


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[DEBUG] = ctx.meta.get(DEBUG, False) or value  # the contexts of a group and its commands share their meta


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into `Terminated` inside, unless the process handles it already."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def terminate(number: int, frame: Any) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def error_line(error: Exception) -> str:
    """Describe an exception for the terminal: the mistake and the way out, or that it is a bug and where."""
    if isinstance(error, StoreError) or (isinstance(error, ValueError | FileNotFoundError) and _is_ours(error)):
        return str(error)
    if isinstance(error, OSError):
        way = "; free space and run again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{error.filename or 'reading or writing failed'}: {error.strerror or error}{way}"
    if _is_out_of_memory(error):
        return f"out of memory ({_first_line(error)}); pass a smaller --batch-size or train fewer heads at once"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _in_package(frame.filename)]
    where = f" in {frames[-1].name} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return (
        f"this is a bug in pathseg: {type(error).__name__}: {_first_line(error)}{where}; "
        f"what is finished is kept; {_traceback_file(error)}"
    )


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python's and numpy's error, and PyTorch's, cuBLAS's and cuDNN's, all RuntimeErrors."""
    texts = "out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED"
    short = isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    return short or isinstance(error, MemoryError)


def _traceback_file(error: Exception) -> str:
    """Write the traceback to a temporary file, so that a long command need not be run again; say where it is."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="pathseg-", suffix=".log", delete=False, encoding="utf-8") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return "please report it with the output of the same command and --debug"
    return f"please report it with the traceback in {file.name} (--debug prints it)"


def _is_ours(error: BaseException) -> bool:
    """Whether pathseg raised an error on purpose: the last frame of its traceback is in a `raise` statement of ours.

    An error that a library raised, or a builtin in our code, is a bug: nobody has made it into a message for users.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not _in_package(trace.tb_frame.f_code.co_filename):
        return trace is None
    return dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def _in_package(file: str) -> bool:
    return Path(file).resolve().is_relative_to(Path(__file__).resolve().parent)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110},
)
@click.version_option(package_name="pathseg")
def main() -> None:
    """Segment H&E histology with the frozen features of a pathology diffusion model (PathSegDiff).

    Three steps: `extract` runs the expensive model once per 256 px patch and caches its features; `train-head` trains
    a small head on them, again and again, cheaply; `report` puts the results side by side. `demo` shows all three on
    generated tissue in minutes.
    """


@main.command("extract")
@click.option("--dataset", type=click.Choice(list(DATASETS)), required=True, help="What to read.")
@click.option("--root", type=PATH, help="Folder of the data set.  [default: <user data dir>/pathseg/<dataset>]")
@flags_of(DatasetOptions)
@click.option("--model", default=DEFAULT_MODEL, help=MODEL_HELP)
@click.option("--weights", type=PATH, help=WEIGHTS_HELP)
@click.option("--hipt", type=PATH, help=HIPT_HELP)
@click.option(
    "--magnification",
    type=click.Choice(MAGNIFICATIONS),
    help="Of what ZoomLDM with its condition is shown.  [default: by um/px]",
)
@click.option(
    "--condition",
    type=click.Choice(["ssl", "none"]),
    help="Of a release; none: unconditional.  [default: ssl]",
)
@click.option("--context", type=PATH, help=f"{CONTEXT_HELP}  [default: zeros]")
@click.option(
    "--class-label",
    type=click.IntRange(min=0),
    help="Class that the denoiser of a diffusers pipeline gets.  [default: a zero embedding]",
)
@flags_of(ExtractConfig)
@flags_of(ViTConfig)
@click.option("--store", help="A path or s3://….  [default: <workspace>/<dataset>-<model>.zarr]")
@click.option("--workers", type=click.IntRange(min=1), help="Spread over this many processes, one per GPU.")
@click.option("--scheduler", help="Spread over the workers of a Dask scheduler, tcp://….")
@click.option("--dry-run", is_flag=True, help="Print patches, bytes per block, total and free space; write nothing.")
@workspace_option
@device_option
def extract_command(**flags: Any) -> None:
    """Stage one: run the frozen model once per patch and keep its features.

    Prints the size first and refuses what does not fit. Run it again after an interruption: finished images are
    kept. Later runs with other --t or --blocks add to the same store. It follows the data set: new images join,
    changed masks are written again, features are never computed twice.
    """
    from pathseg.extract.models.load import load_model
    from pathseg.extract.pipeline import extract
    from pathseg.extract.plan import plan_extraction
    from pathseg.store.runtime.device import device

    with wrong_flags():
        config = ExtractConfig(**{name: flags[name] for name in ExtractConfig.__dataclass_fields__})
        options = DatasetOptions(**{name: flags[name] for name in DatasetOptions.__dataclass_fields__})
        check_options(flags["dataset"], options)
        vit = ViTConfig(**{name: flags[name] for name in ViTConfig.__dataclass_fields__})
        if flags["workers"] and flags["scheduler"]:
            raise ValueError("--workers and --scheduler exclude each other; name one")
    opener = partial(open_dataset, flags["dataset"], options)
    dataset = opener()
    loader = partial(
        load_model,
        absolute(flags["model"]),
        hipt=flags["hipt"],
        condition=flags["condition"],
        weights=flags["weights"],
        vit=vit,
        context=flags["context"],
        class_label=flags["class_label"],
        magnification=flags["magnification"],
        mpp=None if dataset.mpp is None else dataset.mpp * config.surroundings,
    )
    on_workers = bool(flags["workers"] or flags["scheduler"])
    model = loader(device="cpu" if on_workers else device(flags["device"]))
    path = flags["store"] or paths.store_path(flags["workspace"], dataset.name, model.name)
    plan = plan_extraction(dataset, model, path, config)
    show(plan, err=not flags["dry_run"])
    if flags["dry_run"]:
        return
    workers = local_workers(flags["workers"], flags["device"]) if flags["workers"] else None
    with tqdm(total=plan.missing_patches, unit="patch", desc="extract", disable=not plan.missing_patches) as bar:
        if on_workers:
            from pathseg.extract.dask_driver import extract_on_workers, worker_client

            with worker_client(workers=workers, scheduler=flags["scheduler"]) as client:
                result = extract_on_workers(
                    dataset,
                    model,
                    path,
                    config,
                    client=client,
                    open_dataset=opener,
                    load_model=loader,
                    device=flags["device"],
                    progress=bar.update,
                )
        else:
            result = extract(dataset, model, path, config, progress=bar.update)
    keep_speed(result, flags, workers)
    show_extracted(result, config.t)
    require_all([f"{failure.id}: {failure.reason}" for failure in result.failures], len(result.store.listed))


def keep_speed(result: Any, flags: dict[str, Any], workers: int | None = None) -> None:
    """Keep how fast an extraction was in the workspace, for the report."""
    from pathseg.store.runtime.device import device, device_label
    from pathseg.store.runtime.extraction_speed import ExtractionSpeed, record_speed

    key = result.store.contents.key
    label = "a Dask cluster" if flags.get("scheduler") else device_label(device(flags["device"]))
    speed = ExtractionSpeed(key.model, result.passes, result.seconds, label, workers or 1)
    record_speed(flags["workspace"], key, speed)


def show_extracted(result: Any, t: Sequence[int]) -> None:
    """Print how complete a store is."""
    store = result.store
    show(f"{store.location}: {result.complete} of {len(store.listed)} images at t {','.join(map(str, t))}")


def local_workers(workers: int, device_name: str) -> int:
    """The number of local processes, on a CPU as many as it can keep busy; says so where these are fewer."""
    from pathseg.extract.dask_driver import usable_workers
    from pathseg.store.runtime.device import device

    count = usable_workers(workers, device=device(device_name))
    if count < workers:
        show(f"--workers {count}: more forward passes than that would take turns on this machine", err=True)
    return count


@main.command("train-head")
@training_flags(HeadConfig, joined=True)
@click.option("--from", "initial_weights", help="Start from the weights of a run; classes are matched by their names.")
def train_command(**flags: Any) -> None:
    """Stage two: train heads on cached features and score them on the test images.

    Comma lists of --t, --lr, --seed and --train-images and --blocks each train every combination. Each image is read
    once an epoch for all heads that are trained on the same images. A finished run is not trained again; one that was
    cut off goes on after its last epoch. Results lie in <workspace>/heads/<run>/.

    Stores of the same images can be joined: --store A.zarr --store B.zarr --blocks A:4-6,B:last --t A:50,B:200.
    """
    from pathseg.train.data.joined import open_joined
    from pathseg.train.training import sweep
    from pathseg.train.training.initial_weights import initial_weights

    given = flags["store"] or [str(paths.only_store(flags["workspace"]).absolute())]  # a path, never NAME=PATH
    stores = open_joined(given, open_store=partial(open_store, flags))
    if (start := flags["initial_weights"]) is not None:
        flags["initial_weights"] = initial_weights(paths.run_path(flags["workspace"], start, flag="--from"))
    with wrong_flags():
        configs = sweep.expand_heads(stores, **{name: flags[name] for name in HeadConfig.__dataclass_fields__})
    train(stores, configs, flags)


@main.command("train-baseline")
@training_flags(BaselineConfig)
def baseline_command(**flags: Any) -> None:
    """Train a network on the images and masks of a store, for comparison: the features are not read.

    Validation, test images, scores and the run folder are those of train-head. Comma lists of --lr, --seed
    and --train-images train every combination. Without ImageNet weights at hand it starts from random ones and says so.
    """
    from pathseg.train.training import sweep

    store = open_store(
        flags, flags["store"] or paths.only_store(flags["workspace"])
    )  # first: what is wrong with it should not wait for a download of weights
    with wrong_flags():
        configs = sweep.expand_baselines(
            **{field.name: flags[field.name] for field in dataclasses.fields(BaselineConfig)}
        )
    settled = [sweep.resolve_weights(config) for config in configs]
    for line in dict.fromkeys(line for _, line in settled):
        show(line, err=True)
    train(store, [config for config, _ in settled], flags)


def open_store(flags: dict[str, Any], store: str | Path) -> Any:
    """Open a store that a command is to train from; what is read from S3 is cached unless --no-cache."""
    from pathseg.store.features import FeatureStore
    from pathseg.store.location.cache import cache_for
    from pathseg.store.location.location import open_location

    location = str(open_location(store))
    cache = None if flags["no_cache"] else cache_for(location, flags["cache_dir"], on_note=note_once)
    return FeatureStore.open(location, cache=cache)


def train(stores: Any, configs: Any, flags: dict[str, Any]) -> None:
    """Train what is not finished yet and print the scores; ends in an error if a run was given up."""
    from pathseg.train.training import sweep

    with wrong_flags():
        runs = sweep.run_folders(stores, configs, paths.heads_path(flags["workspace"]), name=flags["name"])
    plan = sweep.plan_sweep(stores, runs, flags["complete_only"])
    options = {name: flags[name] for name in ("device", "memory_bytes", "scheduler")}
    show(sweep.describe_plan(plan, **options), err=True)
    with tqdm(initial=plan.epochs_done, total=plan.epochs, unit="epoch") as bar:
        result = sweep.train_plan(plan, on_epoch=partial(show_epoch, bar), **options)
    show(sweep.summary(result.runs))
    if result.failures:
        raise click.ClickException(printable("\n".join(f"{name}: {why}" for name, why in result.failures.items())))


@main.command("report")
@workspace_option
def report_command(workspace: Path) -> None:
    """Collect the runs of the workspace into one page, tables and figures."""
    from pathseg.train.report.build import build_report

    report = build_report(workspace)
    show(f"{report.table}\n\n{report.path}")
    if report.damaged:
        lines = "\n".join(f"  {line}" for line in report.damaged)
        raise click.ClickException(f"{len(report.damaged)} runs could not be read:\n{printable(lines)}")


@main.command("predict")
@click.argument("images", nargs=-1, required=True)
@click.option("--run", required=True, help="A run of the workspace, or the folder of one.")
@click.option("--out", type=PATH, required=True, help="Folder of the results: <format>/<image>.<suffix>.")
@flags_of(PredictConfig)
@click.option("--truth", type=PATH, help="Folder of ground truth masks named after the images: score by them.")
@click.option("--mpp", type=MPP, help="um/px of the images, in place of what slides say.")
@click.option("--trained-mpp", type=MPP, help="um/px the head was trained at, if its run does not say.")
@click.option(
    "--model",
    multiple=True,
    help="Folder of the model the head was trained with; of several models NAME=PATH each.  [default: by its name]",
)
@click.option(
    "--weights",
    multiple=True,
    help="File of weights, if it is a timm model without a folder; of several models NAME=PATH each.",
)
@click.option("--context", multiple=True, help=f"{CONTEXT_HELP} Of several models NAME=PATH each.")
@click.option("--hipt", multiple=True, help=f"{HIPT_HELP} Of several models that need different ones NAME=PATH each.")
@click.option(
    "--store",
    multiple=True,
    help="Read the features of slides from the store that the head was trained from, after extract --windows tissue; "
    "no model is loaded. Of joined stores all, each as in train-head.",
)
@workspace_option
@device_option
def predict_command(images: tuple[str, ...], **flags: Any) -> None:
    """Segment new images or whole slides with a trained head: files, folders or globs.

    Slides are read by region at the head's um/px; images are resized as those it was trained on were, or by --mpp.
    Memory grows with the width of a slide, not with its area. Run it again after an interruption: finished windows
    are kept.

    With --store, slides of a store are segmented from its features, without a model.
    """
    from pathseg.extract.inputs.images import ground_truth_reader, list_input_images, open_input_image
    from pathseg.store.features import FeatureStore
    from pathseg.store.runtime.device import device
    from pathseg.train.data.joined import open_joined
    from pathseg.train.predict.feature_sources import computed_features, store_file_mpp, stored_features
    from pathseg.train.predict.ground_truth import GroundTruth
    from pathseg.train.predict.predictor import predict, summary
    from pathseg.train.predict.progress import Progress

    with wrong_flags():
        config = PredictConfig(**{name: flags[name] for name in PredictConfig.__dataclass_fields__})
        if flags["store"]:
            require_unset(OF_A_MODEL, "--store, which reads the features of the windows that extract took")
    files, run = list_input_images(images), paths.run_path(flags["workspace"], flags["run"])
    masks, device_name, file_mpp = flags["truth"], device(flags["device"]), flags["mpp"]
    if flags["store"]:
        stores = open_joined(flags["store"], open_store=FeatureStore.open)
        features, file_mpp = stored_features(stores), store_file_mpp(stores)
    else:
        features = computed_features(model_loader(run, flags, device_name))
    with Progress(len(files)) as progress:
        result = predict(
            files,
            run,
            flags["out"],
            config,
            features=features,
            open_image=partial(open_input_image, file_mpp=file_mpp),
            ground_truth=GroundTruth(str(masks), ground_truth_reader(masks)) if masks else None,
            trained_mpp=flags["trained_mpp"],
            device=device_name,
            on_window=progress,
            on_note=progress.note,
        )
    show(summary(result))
    require_all([str(failure) for failure in result.failures], len(files))


OF_A_MODEL = ("model", "weights", "context", "hipt", "overlap", "batch_size", "mpp", "trained_mpp")  # flags of predict


def require_unset(names: Sequence[str], reason: str) -> None:
    """Raise ValueError for a flag that was passed though it has no effect beside another one."""
    ctx = click.get_current_context()
    if given := [name for name in names if ctx.get_parameter_source(name) != ParameterSource.DEFAULT]:
        raise ValueError(f"--{given[0].replace('_', '-')} has no effect with {reason}; leave it out")


def model_loader(run: Path, flags: dict[str, Any], device_name: str) -> Any:
    """Return a function that loads the models of a run for `computed_features`, by the flags of predict."""
    from pathseg.extract.models.load import load_model
    from pathseg.extract.online_features import online_features
    from pathseg.train.runs.folder import RunFolder

    keys = [source.key for source in RunFolder(run).read_config().data.sources]
    names = list(dict.fromkeys(key.model for key in keys))
    folders = of_each_model(flags["model"], names, flag="--model")
    hipt_models = list(dict.fromkeys(key.model for key in keys if _takes_hipt(key))) or names
    hipt = flags["hipt"]
    if len(hipt) == 1 and hipt[0].partition("=")[0] not in hipt_models:
        hipt = [f"{name}={hipt[0]}" for name in hipt_models]  # one for all
    given = {"weights": (flags["weights"], names), "context": (flags["context"], names), "hipt": (hipt, hipt_models)}
    weights, contexts, hipts = (
        {name: PATH.convert(path, None, None) for name, path in of_each_model(*values, flag=f"--{flag}").items()}
        for flag, values in given.items()
    )
    with wrong_flags():
        if flags["hipt"]:
            require_taken("--hipt", names, keys, _takes_hipt)
        for name in weights:
            require_taken("--weights", [name], keys, lambda key: key.model_kind == "timm")
        for name in contexts:
            require_taken("--context", [name], keys, _has_context)
    loaded: dict[tuple[str, str, int | None], Any] = {}  # a model at several timesteps is loaded once

    def load_features(key: Any, t: int, blocks: Sequence[int], *, batch_size: int) -> Any:
        made_by = key.model_digest, key.condition, None if key.diffusers is None else key.diffusers.class_label
        if made_by not in loaded:
            named = folders.get(key.model) or (f"{TIMM}{key.model}" if key.model in weights else key.model)
            if _has_context(key) and key.model not in contexts:
                raise ValueError(
                    f"the head was trained on features of {key.model} with a stored context; pass it as --context FILE"
                )
            loaded[made_by] = load_model(
                absolute(named),
                hipts.get(key.model) if _takes_hipt(key) else None,
                key.condition if key.model_kind == "latent-diffusion" else None,
                device=device_name,
                weights=weights.get(key.model),
                vit=None if key.vit is None else ViTConfig.from_settings(key.vit),
                context=contexts.get(key.model) if _has_context(key) else None,
                class_label=made_by[-1],
                magnification=None if key.zoom is None else key.zoom.magnification,
            )
        return online_features(loaded[made_by], key, t, blocks, batch_size=batch_size)

    return load_features


def _has_context(key: Any) -> bool:
    """Whether features with this key were made with a stored context."""
    return key.diffusers is not None and key.diffusers.context == "file"


def _takes_hipt(key: Any) -> bool:
    """Whether features with this key were made with HIPT's ViT or, of ZoomLDM, with UNI."""
    return key.condition == "ssl" or key.model_kind == "vit"


def require_taken(flag: str, models: Sequence[str], keys: Sequence[Any], takes: Callable[[Any], bool]) -> None:
    """Raise ValueError unless at least one of the models that a flag is given for takes it."""
    if not any(takes(key) for key in keys if key.model in models):
        raise ValueError(f"{flag} does not apply: the head's features of {', '.join(models)} need none; leave it out")


def of_each_model(values: Sequence[str], models: Sequence[str], *, flag: str) -> dict[str, str]:
    """Return the values of a flag by model: each `NAME=VALUE`, or a single `VALUE` where there is one model."""
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or name not in models:
            if len(models) > 1:
                raise click.UsageError(f"{flag} {text!r} names none of the head's models {', '.join(models)}; write "
                                       f"{flag} {models[0]}=…")  # fmt: skip
            name, value = models[0], text
        if name in found:
            raise click.UsageError(
                f"{flag} is given twice for the model {name}: {found[name]} and {value}; leave one out"
            )
        found[name] = value
    return found


@main.command("info")
@click.argument("store")
def info_command(store: str) -> None:
    """Say what is in a feature store: images, classes, model, blocks, how complete, how large."""
    from pathseg.store.describe import describe
    from pathseg.store.features import FeatureStore

    show(describe(FeatureStore.open(store)))


@main.command("verify")
@click.argument("store")
@click.option("--repair", is_flag=True, help="Drop what is damaged or stray, so that extract makes just that again.")
def verify_command(store: str, repair: bool) -> None:
    """Read every byte of a store again: what is damaged, missing, stray or foreign, with block and image.

    Exits 1 when anything is.
    """
    from pathseg.store.features import FeatureStore
    from pathseg.store.verify import verify

    with tqdm(unit="record", desc="verify") as bar:

        def on_unit(total: int) -> None:
            bar.total = total
            bar.update()

        findings = verify(store, repair=repair, on_unit=on_unit)
    for finding in findings:
        show(finding)
    if not findings:
        show(f"{store}: {len(FeatureStore.open(store))} images, every byte as it was written")
        return
    if repair:
        show("repaired: run pathseg extract again for what is missing now; foreign files were left alone")
    raise click.ClickException(f"{len(findings)} findings in {printable(store)}")


@main.command("refine")
@click.argument("slides", nargs=-1, required=True)
@click.option("--out", type=PATH, help="Folder of the results.  [default: <workspace>/refined]")
@click.option("--root", type=PATH, help="Folder of the slides and outlines.  [default: that of the first slide]")
@click.option("--store", help="A path or s3://….  [default: <workspace>/slides-<model>.zarr]")
@flags_of(SlideStoreConfig)
@flags_of(RefineConfig)
@workspace_option
@device_option
def refine_command(slides: tuple[str, ...], **flags: Any) -> None:
    """Segment slides again after their outlines have changed: extract, train-head and predict in one go.

    Features of every window with tissue, or of all windows, are computed once. After that the model is not even loaded:
    changed outlines are read, a head is trained on them from where the last one ended, and the slides are segmented
    from the store. Objects are written as detections, so that QuPath does not export them as outlines. Each step is
    printed as the command that it stands for. Results lie in <out>/<run>/.

    Give the same flags again each time: how a store's features were made is taken from it, but not --classes and
    --min-labelled-px, and the files of its model only where features are to be computed: --model with what extract
    took of --weights, --hipt and --context.
    """
    with wrong_flags():
        features = SlideStoreConfig(**{name: flags[name] for name in SlideStoreConfig.__dataclass_fields__})
        features = dataclasses.replace(features, model=absolute(features.model))
        config = RefineConfig(**{name: flags[name] for name in RefineConfig.__dataclass_fields__})
    from pathseg.extract.inputs.images import list_input_images, open_input_image
    from pathseg.extract.slide_store import SlideStore, slides_root
    from pathseg.store.features import FeatureStore
    from pathseg.store.location.cache import cache_for
    from pathseg.train.data.joined import JoinedStores
    from pathseg.train.predict.feature_sources import store_file_mpp
    from pathseg.train.predict.predictor import summary
    from pathseg.train.refine import refine
    from pathseg.train.training import sweep

    with wrong_flags():
        root = slides_root(slides, flags["root"])
    workspace, on_device = flags["workspace"], flags["device"]
    location = flags["store"] or str(paths.store_path(workspace, "slides", name_of_model(features.model)))
    slide_store, note = SlideStore.open(location, root, features), partial(show, err=True)
    config = dataclasses.replace(config, tissue=config.tissue or slide_store.tissue)
    with wrong_flags():
        if config.tissue == "all" and slide_store.tissue != "all":
            raise ValueError(
                f"--tissue all needs every window, but {location} has those with tissue; pass --windows all"
            )
    with StepBar() as bar:
        words = [*slide_store.words, "--workspace", str(workspace), "--device", on_device]
        bar.start(f"pathseg {shlex.join(words)}")
        started = time.perf_counter()
        extraction = slide_store.follow(device=on_device, on_note=note, on_progress=bar.advance)
        seconds = {"extract": time.perf_counter() - started}
        keep_speed(extraction, flags)
        store = FeatureStore.open(location, cache=cache_for(location, on_note=note))
        result = refine(
            list_input_images(slides),
            store,
            workspace,
            config,
            t=slide_store.t,
            blocks=features.blocks,
            open_image=partial(open_input_image, file_mpp=store_file_mpp(JoinedStores.of(store))),
            out=flags["out"],
            device=on_device,
            on_step=bar.start,
            on_note=note,
            on_progress=bar.advance,
        )
    seconds |= result.seconds
    show_extracted(extraction, [selection.t for selection in result.run.settings.selections])
    show(f"{sweep.summary([result.run])}\n{summary(result.prediction)}")
    steps = ", ".join(f"{step} {taken:.1f} s" for step, taken in seconds.items())
    show(f"{sum(seconds.values()):.1f} s: {steps}")
    prediction = result.prediction
    require_all([str(failure) for failure in prediction.failures], len(prediction.images) + len(prediction.failures))


class StepBar:
    """A progress bar of one step after another, each below the command that it stands for."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._step = ""

    def start(self, command: str) -> None:
        """Print the command of the next step."""
        self._close()
        self._step = command.split()[1]
        show_command(command)

    def advance(self, done: int, total: int) -> None:
        """Show how much of the step is done."""
        if not total:  # no patch to compute
            return
        if self._bar is None:
            self._bar = tqdm(total=total, desc=self._step)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> StepBar:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            sys.stderr.flush()  # before the next command is printed
            self._bar = None


def show_command(line: str) -> None:
    """Print a command line that pathseg runs itself."""
    click.secho(f"$ {printable(line)}", bold=True)


@main.command("demo")
@workspace_option
@click.pass_context
def demo_command(ctx: click.Context, workspace: Path) -> None:
    """Run the three stages on generated tissue with the bundled model, printing each command it stands for."""
    at, store = ["--workspace", str(workspace)], str(paths.store_path(workspace, "synthetic", "mini"))
    for arguments in (
        ["extract", "--dataset", "synthetic", "--model", "mini", "--t", "50", *at],
        ["train-head", "--store", store, "--blocks", "4-6", "--lr", "1e-3", "--epochs", "8", *at],
        ["report", *at],
    ):
        show_command(f"pathseg {shlex.join(arguments)}")
        main.main(arguments, prog_name="pathseg", standalone_mode=False)


def show(text: object, *, err: bool = False) -> None:
    """Print a text without letters that a terminal would obey."""
    click.echo(printable(str(text)), err=err)


def note_once(text: str) -> None:
    """Print a line on standard error, in one command no more than once."""
    noted = click.get_current_context().meta.setdefault(NOTED, set())
    if text not in noted:
        noted.add(text)
        show(text, err=True)


def require_all(failures: Sequence[str], images: int) -> None:
    """Raise a ClickException with a line for each image that was set aside."""
    if failures:
        raise click.ClickException(
            "\n  ".join([f"{len(failures)} of {images} images were set aside:", *map(printable, failures)])
        )


def absolute(model: str) -> str:
    """A folder by its full path, so that another process finds it; a name as it is."""
    return model if model in MODELS or model.startswith(TIMM) else str(paths.expand_home(model).absolute())


def show_epoch(bar: tqdm, run: Any, epoch: Any) -> None:
    """Advance the bar by an epoch of a run, with its losses and validation Dice."""
    figures = {name: getattr(epoch, name) for name in ("train_loss", "val_loss", "val_dice")}
    shown = {name: f"{value:.3f}" for name, value in figures.items() if value is not None}
    bar.set_postfix({"run": printable(run.name), **shown})
    bar.update()


if __name__ == "__main__":
    sys.exit(main())
