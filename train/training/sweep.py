"""Many heads from one call: every combination of settings, in as few passes over the store as memory allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from pathseg.store.blocks import Selection, select_blocks
from pathseg.store.features import FeatureStore
from pathseg.store.format.size import format_bytes
from pathseg.store.runtime.device import device as resolve_device
from pathseg.store.runtime.device import precision_warnings
from pathseg.store.runtime.workspace import heads_path
from pathseg.train.config import IMAGE, BaselineConfig, Config, HeadConfig
from pathseg.train.data.joined import JoinedStores, store_name
from pathseg.train.data.memory import KEEP_SHARE, free_memory
from pathseg.train.data.reader import image_bytes, keep_capacity, required_layers
from pathseg.train.data.splits import incomplete_images, require_stored, run_splits
from pathseg.train.heads.baselines import choose_weights
from pathseg.train.heads.pixel_ensemble import PixelEnsemble, buffer_bytes
from pathseg.train.runs.finished_run import BEST_IS_LAST, FinishedRun, sources_text
from pathseg.train.runs.folder import MAX_NAME_BYTES, RunFolder
from pathseg.train.runs.record import ObjectSplitScores, RunData
from pathseg.train.training.checkpoint import build_head
from pathseg.train.training.initial_weights import require_initial_run
from pathseg.train.training.loop import OnEpoch, reading_settings, train_heads

try:
    import resource
except ImportError:  # Windows, where run folders are not locked
    resource = None  # type: ignore[assignment]

NO_LIMIT = 2**31
COPIES = 4  # of a head's weights in training: themselves, the gradient, Adam's two moments
Runs = Sequence[tuple[Config, RunFolder]]
Stores = FeatureStore | JoinedStores
Blocks = Selection | Literal["each"]


@dataclass(frozen=True)
class TrainResult:
    """The finished runs in the order of their settings, and why others were given up, by run name."""

    runs: tuple[FinishedRun, ...]
    failures: dict[str, str]


@dataclass(frozen=True)
class SweepPlan:
    """The runs of a sweep, and what is left to train.

    runs: settings and folder of each. unfinished: those of them that are not finished. left_out: indices of images
    that lack features of any of the heads; all heads are trained without them, so that their scores compare.
    """

    stores: JoinedStores
    runs: tuple[tuple[Config, RunFolder], ...]
    unfinished: tuple[tuple[Config, RunFolder], ...]
    left_out: frozenset[int]

    @property
    def epochs(self) -> int:
        """Number of epochs of the unfinished runs."""
        return sum(config.epochs for config, _ in self.unfinished)

    @property
    def epochs_done(self) -> int:
        """How many of these epochs an interrupted call has trained already."""
        return sum(min(len(run.read_history()), config.epochs) for config, run in self.unfinished)


def train(
    store: Stores,
    configs: Sequence[Config],
    workspace: Path | str,
    *,
    name: str | None = None,
    device: str = "auto",
    memory_bytes: int | None = None,
    complete_only: bool = False,
    scheduler: str | None = None,
    on_epoch: OnEpoch = lambda run, epoch: None,
) -> TrainResult:
    """Train heads or baselines into `<workspace>/heads` and score them; finished runs are not trained again.

    name: of the run folder, of a single one; by default the store's file name and the settings. device: `auto` or a
    torch device. memory_bytes: limit for features kept in memory, by default half of what is free. complete_only:
    leave out images of which the store lacks features. scheduler: address of a Dask scheduler whose workers train the
    heads. on_epoch: called with each run and each line of its history.jsonl.

    Raises ValueError for settings that cannot be trained together or a folder that holds a run of other settings,
    Incomplete when the store lacks features, ClusterError when the workers cannot train.
    """
    configs = [resolve_weights(config)[0] for config in configs]
    runs = run_folders(store, configs, heads_path(Path(workspace)), name=name)
    plan = plan_sweep(store, runs, complete_only)
    return train_plan(plan, device=device, memory_bytes=memory_bytes, scheduler=scheduler, on_epoch=on_epoch)


def expand_heads(
    store: Stores,
    *,
    t: Sequence[int] | Mapping[str, Sequence[int]] = (50,),
    blocks: Blocks | Mapping[str, Blocks] = "all",
    lr: Sequence[float | None] = (None,),
    seed: Sequence[int] = (0,),
    train_images: Sequence[int | Literal["all"]] = ("all",),
    **settings: Any,
) -> list[HeadConfig]:
    """Return a HeadConfig for every combination of timesteps, blocks, learning rates, seeds and training images.

    blocks: one selection, `all` or `last` of those that the store has, or `each` for every stored block alone. Of
    joined stores t and blocks hold for all, or are given by the name of each: {"A": (50, 200), "B": (50,)}. lr: None is
    the head's default. settings: the other fields of HeadConfig. Raises Incomplete when a store has no features at one
    of the timesteps; ValueError for names of no store and for layers that would be read twice.
    """
    stores = JoinedStores.of(store)
    of_each = stores.of_each(t, flag="--t")
    timesteps = list(product(*of_each) if isinstance(t, Mapping) else zip(*of_each, strict=True))
    wanted: tuple[Blocks, ...] = stores.of_each(blocks, flag="--blocks")
    if blocks == "each" and len(wanted) > 1:
        raise ValueError(f"--blocks each is for one store; name it, as in --blocks {stores.names[0]}:each,…")
    options = [_select(one, steps, own) for one, steps, own in zip(stores.stores, of_each, wanted, strict=True)]
    fields: list[dict[str, Any]] = [
        {**_reads(stores, steps, own), "lr": rate, "seed": s, "train_images": images}
        for images, steps, own, rate, s in product(train_images, timesteps, product(*options), lr, seed)
    ]
    return [HeadConfig(**own, **settings) for own in fields]


def _select(store: FeatureStore, timesteps: Sequence[int], blocks: Blocks) -> list[tuple[int, ...]]:
    """Return the blocks of a store that each head is to read: those of a selection, or each stored one alone."""
    for one in timesteps:
        require_stored(store, one)
    own_blocks = sorted(store.contents.blocks)
    stored = tuple(b for b in own_blocks if all(b in store.stored_blocks(one) for one in timesteps))
    return [(block,) for block in stored] if blocks == "each" else [select_blocks(blocks, stored or own_blocks)]


def _reads(stores: JoinedStores, timesteps: Sequence[int], blocks: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Return the settings t and blocks; of a store that is joined twice, the lower timestep comes first.

    Raises ValueError where one store would give a layer twice.
    """
    if len(stores.stores) == 1:
        return {"t": timesteps[0], "blocks": blocks[0]}
    locations = [str(store.location) for store in stores.stores]
    read = [(locations.index(location), t, own) for location, t, own in zip(locations, timesteps, blocks, strict=True)]
    layers = [(store, t, block) for store, t, own in read for block in own]
    if twice := next((one for one in layers if layers.count(one) > 1), None):
        store, t, block = twice
        names = " and ".join(name for name, at in zip(stores.names, locations, strict=True) if at == locations[store])
        raise ValueError(
            f"the stores {names} are the same, {locations[store]}, and both give block {block} at t {t}; "
            "choose other blocks or another timestep for one of them"
        )
    read.sort()  # stores stay where they are, since equal ones are neighbours
    return {"t": tuple(t for _, t, _ in read), "blocks": tuple(own for _, _, own in read)}


def expand_baselines(
    *,
    lr: Sequence[float] = (1e-4,),
    seed: Sequence[int] = (0,),
    train_images: Sequence[int | Literal["all"]] = ("all",),
    **settings: Any,
) -> list[BaselineConfig]:
    """Return a BaselineConfig for every combination of learning rates, seeds and training images.

    settings: its other fields.
    """
    combinations = product(train_images, lr, seed)
    return [BaselineConfig(lr=rate, seed=s, train_images=images, **settings) for images, rate, s in combinations]


def resolve_weights(config: Config) -> tuple[Config, str | None]:
    """Replace the initial weights `auto` of a baseline by those that are available; also return a line that names them.

    A head comes back unchanged, with None.

    Raises FileNotFoundError where ImageNet weights are required and not available.
    """
    if isinstance(config, HeadConfig):
        return config, None
    weights, line = choose_weights(config.network, config.weights)
    return dataclasses.replace(config, weights=weights), line


def run_folders(
    store: Stores, configs: Sequence[Config], heads: Path, *, name: str | None = None
) -> list[tuple[Config, RunFolder]]:
    """Pair each configuration with its run folder in `heads`, named `name` or after stores and settings.

    Raises ValueError when `name` is given for several runs or is not the name of one folder, or when two runs would
    have the same name.
    """
    if name is not None and len(configs) > 1:
        raise ValueError(f"--name {name} names one run, but the settings give {len(configs)}; leave it out")
    if name is not None and (name in ("", ".", "..") or set(name) & set("/\\")):
        raise ValueError(f"--name {name!r} is no name of one folder; leave out slashes")
    stores = "+".join(store_name(one) for one in JoinedStores.of(store).stores)
    names = [name or config.run_name(stores) for config in configs]
    if long := next((one for one in names if len(one.encode()) > MAX_NAME_BYTES), None):
        raise ValueError(
            f"the run name {long} takes {len(long.encode())} bytes, but at most {MAX_NAME_BYTES} leave enough for the "
            f"names of its files; {_shorter(stores, several=len(configs) > 1)}"
        )
    if twice := next((one for one in names if names.count(one) > 1), None):
        raise ValueError(f"two of the runs would be named {twice}; use values that differ in six digits")
    return [(config, RunFolder(heads / one)) for config, one in zip(configs, names, strict=True)]


def _shorter(stores: str, *, several: bool) -> str:
    """Return the way out where a run's name is too long; --name names a single run."""
    return f"give the folders of the stores {stores} shorter names" if several else "pass a shorter --name"


def plan_sweep(store: Stores, runs: Runs, complete_only: bool = False) -> SweepPlan:
    """Find out which runs are not finished, and which images they do without.

    Raises ValueError when a folder holds a finished run of other settings, of other stores or of fewer of their images,
    when the images cannot be split as a run needs, and for initial weights that do not fit;
    Incomplete when a store lacks features of some images and complete_only is False.
    """
    configs, stores = [config for config, _ in runs], JoinedStores.of(store)
    lacking = cache(lambda: incomplete_images_of(stores, configs, allowed=True))
    unfinished = tuple((config, run) for config, run in runs if not is_finished(stores, config, run, without=lacking))
    for _, run in runs:
        if run.path.is_dir():
            run.remove_leftovers()
    left_out = incomplete_images_of(stores, configs, allowed=complete_only) if unfinished else frozenset()
    for config, _ in unfinished:
        splits, _ = run_splits(stores.images, config, without=left_out)  # raises before anything is trained
        require_initial_run(stores, config, splits)
    return SweepPlan(stores, tuple(runs), unfinished, left_out)


def require_start(store: Stores, config: HeadConfig) -> None:
    """Raise ValueError as `plan_sweep` does for initial weights that do not fit, images without features left out."""
    stores = JoinedStores.of(store)
    splits, _ = run_splits(stores.images, config, without=incomplete_images_of(stores, [config], allowed=True))
    require_initial_run(stores, config, splits)


def is_finished(
    stores: JoinedStores, config: Config, run: RunFolder, *, without: Callable[[], Collection[int]]
) -> bool:
    """Whether a folder holds a finished run of these settings on all images of the stores but those of `without`.

    A run whose weights are damaged is not finished: it is trained again. Raises ValueError, naming what differs, when
    its run was finished with other settings, data or fewer images.
    """
    if not run.finished:
        return False
    finished = FinishedRun.read(run)
    store = stores.images
    wanted, found = _values(config), _values(finished.settings)
    if wanted == found and finished.data.digest != stores.digest:
        what = _changed_data(stores, config, finished.data, without=without())
        raise ValueError(
            f"{run.path} holds a finished run of other data than {store.location} has now ({what}); "
            "pass --name for a new run, or another --workspace"
        )
    found["images"] = wanted["images"] = sum(map(len, finished.data.images.values()))
    if found["images"] < len(store.labelled):  # it did without some, which may be complete by now
        splits, _ = run_splits(store, config, without=without())
        wanted["images"] = max(found["images"], sum(map(len, splits.named().values())))
        if config.train_images != "all":  # complete images change what is drawn, at equal numbers too
            found["drawn images"] = finished.data.images
            wanted["drawn images"] = {name: tuple(store.ids[i] for i in own) for name, own in splits.named().items()}
    differing = [
        f"{key} is {found.get(key)}, not {value}" if key != "drawn images" else "other images were drawn"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if differing:
        raise ValueError(
            f"{run.path} holds a finished run of other settings: {'; '.join(differing)}; "
            "pass --name or another --workspace"
        )
    return run.has_intact_weights(finished.metrics)


def _values(config: Config) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _changed_data(stores: JoinedStores, config: Config, before: RunData, *, without: Collection[int]) -> str:
    """Say how the data that a run would get now differ from those of a finished run."""
    store = stores.images
    if [source.key.of_features for source in before.sources] != [s.contents.key.of_features for s in stores.stores]:
        return "the features were made in another way"
    splits, _ = run_splits(store, config, without=without)
    now = {store.ids[index]: name for name, indices in splits.named().items() for index in indices}
    then = {id_: name for name, ids in before.images.items() for id_ in ids}
    counts = {
        "images were added": len(now.keys() - then.keys()),
        "are no longer there": len(then.keys() - now.keys()),
        "are in another split": sum(now[id_] != then[id_] for id_ in now.keys() & then.keys()),
    }
    parts = [f"{count} {what}" for what, count in counts.items() if count]
    if (before.classes, before.background, before.ignore) != (store.classes, store.contents.background, store.ignore):
        parts.append("the classes are others")
    return ", ".join(parts) or "masks or sources are others"


def incomplete_images_of(stores: JoinedStores, configs: Sequence[Config], *, allowed: bool) -> frozenset[int]:
    """Return the indices of images that lack features of any of these heads.

    Raises Incomplete when there are such images and `allowed` is False.
    """
    lacking = set(incomplete_images(stores.images, t=None, blocks=(), allowed=allowed))
    for config in configs:
        for store, t, blocks in stores.arrays(config.layers):
            lacking |= set(incomplete_images(store, t=t, blocks=blocks, allowed=allowed))
    return frozenset(lacking)


def train_plan(
    plan: SweepPlan,
    *,
    device: str = "auto",
    memory_bytes: int | None = None,
    scheduler: str | None = None,
    on_epoch: OnEpoch = lambda run, epoch: None,
) -> TrainResult:
    """Train the unfinished runs of a plan, in this process or on the workers of a Dask scheduler; see `train`."""
    failures: dict[str, str] = {}
    if plan.unfinished and scheduler:
        from pathseg.store.runtime.dask_client import scheduler_client
        from pathseg.train.training.dask_sweep import device_of_worker, train_on_cluster

        open_stores = plan.stores.opener()
        choose = partial(device_of_worker, device)  # each worker resolves `auto` for itself
        with scheduler_client(scheduler) as client:
            failures = train_on_cluster(
                client, plan, open_stores=open_stores, device=choose, memory_bytes=memory_bytes, on_epoch=on_epoch
            )
    elif plan.unfinished:
        failures = train_in_passes(
            plan.stores, plan.unfinished, device=resolve_device(device), memory_bytes=memory_bytes,
            without=plan.left_out, on_epoch=on_epoch,
        )  # fmt: skip
    return TrainResult(tuple(FinishedRun.read(run) for _, run in plan.runs if run.finished), failures)


def train_in_passes(
    stores: JoinedStores,
    runs: Runs,
    *,
    device: str,
    memory_bytes: int | None,
    without: Collection[int],
    on_epoch: OnEpoch,
) -> dict[str, str]:
    """Train runs in this process, in passes of as many heads as fit into memory; run name -> why it was given up.

    Raises ValueError when another process is training one of the runs.
    """
    failures: dict[str, str] = {}
    for group in passes(stores, runs, device=torch.device(device)):
        with ExitStack() as locks:
            for _, run in group:
                locks.enter_context(run.lock())
            # another process may have finished some of them before they were locked
            left = [(c, run) for c, run in group if not is_finished(stores, c, run, without=lambda: without)]
            if left:
                states = train_heads(
                    stores, left, device=device, memory_bytes=memory_bytes, without=without, on_epoch=on_epoch
                )
                failures |= {state.run.name: state.failure for state in states if state.failure}
                del states  # the next pass needs their memory
    return failures


def passes(store: Stores, runs: Runs, *, device: torch.device) -> list[list[tuple[Config, RunFolder]]]:
    """Group runs that read the same images in the same order, so that the heads of each group fit into memory together.

    Heads may take a quarter of the free memory; one that alone takes more still gets a pass of its own. Each locked run
    folder is an open file, so a group has at most half as many heads as the process may open files.
    """
    stores = JoinedStores.of(store)
    most = max_open_files() // 2
    limit = free_memory(device) * KEEP_SHARE / 2
    alike: dict[Any, list[tuple[Config, RunFolder]]] = {}
    for config, run in runs:
        alike.setdefault(tuple(reading_settings(config).items()), []).append((config, run))
    groups: list[list[tuple[Config, RunFolder]]] = []
    for members in alike.values():
        groups.append([])
        taken = 0
        for config, run in members:
            size_bytes = head_bytes(stores, config)
            if groups[-1] and (taken + size_bytes > limit or len(groups[-1]) >= most):
                groups.append([])
                taken = 0
            groups[-1].append((config, run))
            taken += size_bytes
    return groups


def max_open_files() -> int:
    """Return how many files this process may open, a large number where there is no limit."""
    if resource is None:
        return NO_LIMIT
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return NO_LIMIT if soft == resource.RLIM_INFINITY else max(2, soft)


def head_bytes(store: Stores, config: Config) -> int:
    """Return the bytes that a head takes in training: weights, their gradient and Adam's moments, float32.

    A pixel ensemble also holds the pixels that it will be trained on.
    """
    stores = JoinedStores.of(store)
    with torch.device("meta"):
        head = build_head(stores, config)
    weights = sum(p.numel() for p in head.parameters()) * 4 * COPIES
    if not isinstance(head, PixelEnsemble) or isinstance(config, BaselineConfig):
        return weights
    itemsize, drawn = stores.dtype(config.layers).itemsize, config.pixels * config.batch_size
    return weights + buffer_bytes(sum(head.channels.values()), itemsize, drawn=drawn)


def describe_plan(
    plan: SweepPlan, *, device: str = "auto", memory_bytes: int | None = None, scheduler: str | None = None
) -> str:
    """Say in one line what a plan will do: heads to train, passes over the store, images left out, what is kept.

    With a Dask scheduler, the number of passes and the memory of the workers are not known here.
    """
    stores, runs = plan.stores, plan.unfinished
    if not runs:
        return f"all {len(plan.runs)} runs are finished"
    heads = f"{len(runs)} {runs[0][0].network}{'s' * (len(runs) > 1)}"
    total = len(stores.images.labelled)
    images = total - len(plan.left_out)
    complete = f"{images} of {total} images complete"
    over = "the store" if len(stores.stores) == 1 else f"{len(stores.stores)} joined stores"
    if scheduler:
        on_workers = f"{heads} on the workers of {scheduler}, each with its own pass over {over}, {complete}"
        return on_workers + _without_images(plan)
    target = torch.device(resolve_device(device))
    groups = passes(stores, runs, device=target)
    line = f"{heads} in {len(groups)} pass{'es' * (len(groups) > 1)} over {over}, {complete}"
    warnings = _without_images(plan)
    for precision in sorted({config.precision for config, _ in runs}):
        warnings += "".join(f"\nwarning: {text}" for text in precision_warnings(target.type, precision))
    if not images:
        return line + warnings
    configs = [[config for config, _ in group] for group in groups]
    largest = max(configs, key=lambda own: image_bytes(stores, required_layers(own)))
    kept = describe_kept(stores, largest, images, device=target, memory_bytes=memory_bytes)
    return f"{line}; {'in the largest pass ' if len(groups) > 1 else ''}{kept}{warnings}"


def _without_images(plan: SweepPlan) -> str:
    """Warn where there are no images to choose the epoch on, or to score on."""
    config, _ = plan.unfinished[0]
    splits, _ = run_splits(plan.stores.images, config, without=plan.left_out)
    lines = []
    if not splits.val:
        lines.append("no validation images, as all training images are of one source: the last epoch is kept")
    if not splits.tests:
        lines.append("no test images: heads are not scored")
    return "".join(f"\nwarning: {line}" for line in lines)


def describe_kept(
    store: Stores, configs: Sequence[Config], images: int, *, device: torch.device, memory_bytes: int | None
) -> str:
    """Say how much of what heads read together stays in memory, of so many images, by the FeatureReader's own rule."""
    stores, wanted = JoinedStores.of(store), required_layers(configs)
    phrases, left, one = [], images, image_bytes(stores, wanted)
    for memory, capacity in keep_capacity(stores, wanted, device=device, memory_bytes=memory_bytes).items():
        kept = min(left, capacity)
        left -= kept
        if kept:
            stay = "stay in GPU memory" if memory.type == "cuda" else "stay in memory"
            phrases.append(f"{kept} of {images} images ({format_bytes(kept * one)}) {stay}")
    if left:
        why = "more does not fit into half of what is free" if memory_bytes is None else "--memory caps this"
        phrases.append(f"{left} of {images} images ({format_bytes(left * one)}) are read anew each epoch ({why})")
    return f"{'pixels' if wanted == (IMAGE,) else 'features'} of " + ", of ".join(phrases)


def summary(runs: Sequence[FinishedRun]) -> str:
    """Return lines for people: folder, best epoch and the scores on every test split of each run."""
    lines = []
    for run in runs:
        metrics = run.metrics
        lines.append(f"{run.folder.path}: best epoch {metrics.best_epoch} of {metrics.epochs}")
        if run.still_improving:
            lines.append(f"  {BEST_IS_LAST}")
        for name, split in metrics.splits.items():
            scores, constant = split.scores, split.constant
            figures = "  ".join(f"{m} {_figure(getattr(scores, m))}" for m in ("accuracy", "dice", "miou", "f1"))
            always = f"always {constant.class_name}: dice {_figure(constant.scores.dice)}"
            lines.append(f"  {name}, {split.images} images: {figures}  ({always})")
            if count := run.data.shared_sources.get(name):
                lines.append(f"  {name}: {sources_text(count)} in the training or validation images too")
            if split.objects is not None:
                lines.append(f"  {name}, objects of {split.objects.rule}: {_object_figures(split.objects)}")
            if split.tuned_objects is not None:
                how = f"{split.tuned_objects.rule} (chosen on validation images)"
                lines.append(f"  {name}, objects of {how}: {_object_figures(split.tuned_objects)}")
        if (reason := run.why_objects_untuned) is not None:
            lines.append(f"  no least size of objects was chosen: {reason}")
    return "\n".join(lines)


def _object_figures(objects: ObjectSplitScores) -> str:
    figures = "  ".join(f"{m} {_figure(objects.pooled[m])}" for m in ("f1", "dice", "hausdorff"))
    return f"{figures} px  ({objects.pooled['fp']:.0f} false positives)"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
