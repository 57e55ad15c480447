"""Many heads from one command: every combination of lists, in as few passes over the store as memory allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from pathseg.store.blocks import BLOCKS
from pathseg.store.features import FeatureStore
from pathseg.store.format.size import format_bytes
from pathseg.train.config import BaselineConfig, Config, HeadConfig
from pathseg.train.data.memory import KEEP_SHARE, free_memory
from pathseg.train.data.reader import image_bytes, keep_capacity, wanted_by
from pathseg.train.data.splits import incomplete_images, lacking_images, require_stored, split_images
from pathseg.train.heads.pixel_ensemble import PixelEnsemble, pool_bytes
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.checkpoint import build_head
from pathseg.train.training.loop import OnEpoch, train_heads

COPIES = 4  # of a head's weights in training: themselves, the gradient, Adam's two moments


def combinations(store: FeatureStore, settings: Mapping[str, Any]) -> list[HeadConfig]:
    """One configuration for each combination of the values that a sweep was given.

    settings: HeadConfig's fields; t, lr and seed hold sequences of values; blocks holds one selection, or `each` for
    every block of the store alone. All blocks means all that the store has. Raises Incomplete when it has no features
    at one of the timesteps.
    """
    for t in settings["t"]:
        require_stored(store, t)
    stored = tuple(b for b in BLOCKS if all(b in store.stored_blocks(t) for t in settings["t"]))
    selections = [settings["blocks"]]
    if settings["blocks"] == "each":
        selections = [(block,) for block in stored]
    elif settings["blocks"] == BLOCKS and stored:
        selections = [stored]
    chosen = product(settings["t"], selections, settings["lr"], settings["seed"])
    return [HeadConfig(**{**settings, "t": t, "blocks": b, "lr": lr, "seed": seed}) for t, b, lr, seed in chosen]


def baseline_combinations(settings: Mapping[str, Any]) -> list[BaselineConfig]:
    """One baseline for each combination of values; lr and seed hold sequences of them."""
    chosen = product(settings["lr"], settings["seed"])
    return [BaselineConfig(**{**settings, "lr": lr, "seed": seed}) for lr, seed in chosen]


def run_folders(store: FeatureStore, configs: Sequence[Config], heads: Path, *, name: str | None = None) -> list[Path]:
    """The folder of each run, named by `name`, or after the store's file and the run's settings.

    Raises ValueError for one name for several.
    """
    if name is not None and len(configs) > 1:
        raise ValueError(f"--name {name} names one run, but {len(configs)} are asked for; leave it out")
    if name is not None and (name in ("", ".", "..") or set(name) & set("/\\")):
        raise ValueError(f"--name {name!r} is no name of one folder; leave out slashes")
    store_name = PurePath(str(store.location)).name.removesuffix(".zarr")
    names = [name or config.run_name(store_name) for config in configs]
    if twice := next((given for given in names if names.count(given) > 1), None):
        raise ValueError(f"two of the runs would be named {twice}; values that differ in six digits are told apart")
    return [heads / given for given in names]


def summary(folders: Sequence[Path]) -> str:
    """Lines for a person: for each finished run its folder, best epoch and scores on every test part."""
    lines = []
    for run in (RunFolder(folder) for folder in folders):
        if not run.finished:
            continue
        metrics = run.read_metrics()
        lines.append(f"{run.path}: best epoch {metrics.best_epoch} of {metrics.epochs}")
        for name, split in metrics.splits.items():
            scores, constant = split.scores, split.constant
            figures = "  ".join(f"{m} {_figure(getattr(scores, m))}" for m in ("accuracy", "dice", "miou", "f1"))
            always = f"always {constant.class_name}: dice {_figure(constant.scores.dice)}"
            lines.append(f"  {name}, {split.images} images: {figures}  ({always})")
            if split.objects is not None:
                figures = "  ".join(f"{m} {_figure(split.objects.pooled[m])}" for m in ("f1", "dice", "hausdorff"))
                lines.append(f"  {name}, objects: {figures} px")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def passes(store: FeatureStore, configs: Sequence[Config], *, device: torch.device) -> list[list[Config]]:
    """The configurations in groups whose heads fit into memory together, in order.

    Heads may take a quarter of what is free; one that alone takes more still gets a pass of its own.
    """
    room = free_memory(device) * KEEP_SHARE / 2
    groups: list[list[Config]] = [[]]
    taken = 0.0
    for config in configs:
        size_bytes = head_bytes(store, config)
        if groups[-1] and taken + size_bytes > room:
            groups.append([])
            taken = 0.0
        groups[-1].append(config)
        taken += size_bytes
    return groups


def head_bytes(store: FeatureStore, config: Config) -> int:
    """Bytes that a head takes while it trains: its weights, their gradient and Adam's moments, float32.

    A pixel ensemble also holds the pixels that it will learn from.
    """
    with torch.device("meta"):
        head = build_head(store, config)
    weights = sum(p.numel() for p in head.parameters()) * 4 * COPIES
    if not isinstance(head, PixelEnsemble):
        return weights
    itemsize, drawn = np.dtype(store.contents.key.dtype).itemsize, config.pixels * config.batch_size
    return weights + pool_bytes(sum(head.channels.values()), itemsize, drawn=drawn)


def unfinished(
    store: FeatureStore, configs: Sequence[Config], folders: Sequence[Path], without: Collection[int] | None = None
) -> Iterator[tuple[Config, RunFolder]]:
    """The runs that are still to be trained, `without` those images, by default what `left_out` gives for them.

    Raises ValueError when a folder holds a finished run of other settings, of another store or of fewer of its images.
    """
    for config, folder in zip(configs, folders, strict=True):
        run = RunFolder(folder)
        if not run.finished:
            yield config, run
            continue
        there = FinishedRun.read(run)
        wanted = {**dataclasses.asdict(config), "data": store.digest()}
        found = {**dataclasses.asdict(there.settings), "data": there.data.digest}
        found["images"] = wanted["images"] = sum(map(len, there.data.images.values()))
        if found["images"] < len(store):  # it may have done without some: which of them are there by now?
            without = left_out(store, configs, allowed=True) if without is None else without
            wanted["images"] = max(found["images"], _images_now(store, config, without))
        differing = [
            f"{name} is {found.get(name)} there, {value} asked for"
            for name, value in wanted.items()
            if found.get(name) != value
        ]
        if differing:
            why = "; ".join(differing)
            raise ValueError(
                f"{folder} holds a finished run of other settings: {why}; pass --name or another --workspace"
            )


def epochs(store: FeatureStore, configs: Sequence[Config], folders: Sequence[Path]) -> dict[str, int]:
    """Epochs of the runs that are still to be trained: `total`, and `initial`, those that are done of them."""
    waiting = list(unfinished(store, configs, folders))
    done = sum(min(len(run.read_history()), config.epochs) for config, run in waiting)
    return {"initial": done, "total": sum(config.epochs for config, _ in waiting)}


def left_out(store: FeatureStore, configs: Sequence[Config], *, allowed: bool) -> frozenset[int]:
    """Indices of the images that lack what any head of a sweep reads: all do without them, so that scores compare.

    Raises Incomplete when there are such images and that is not `allowed`.
    """
    wanted = {(config.t, config.blocks) for config in configs}
    return frozenset(i for t, blocks in wanted for i in incomplete_images(store, t=t, blocks=blocks, allowed=allowed))


def _images_now(store: FeatureStore, config: Config, without: Collection[int]) -> int:
    """How many images a run would train on, validate on and be tested on."""
    splits = split_images(store, val_fraction=config.val_fraction, seed=config.split_seed, without=without)
    return sum(map(len, splits.named().values()))


def announcement(
    store: FeatureStore,
    configs: Sequence[Config],
    folders: Sequence[Path],
    *,
    device: str = "cpu",
    memory_bytes: int | None = None,
    workers: int = 0,
) -> str:
    """What a sweep is about to do, in one line: heads to train, passes over the store, images left out, what is kept.

    workers: of a cluster, 0 for training in this process; what memory they have is not known here.
    """
    waiting = [config for config, _ in unfinished(store, configs, folders)]
    if not waiting:
        return f"all {len(configs)} runs are finished"
    groups = passes(store, waiting, device=torch.device(device))
    count = min(workers, len(waiting)) or len(groups)
    kind = f"worker{'s' * (count > 1)}, each with its own pass" if workers else f"pass{'es' * (count > 1)}"
    lacking = {i for c in waiting for i in lacking_images(store, t=c.t, blocks=c.blocks)}
    heads = f"{len(waiting)} {waiting[0].network}{'s' * (len(waiting) > 1)}"
    heads += f" {'on' if workers else 'in'} {count} {kind} over the store"
    images = len(store) - len(lacking)
    said = f"{heads}, {images} of {len(store)} images complete"
    if workers or not images:
        return said
    largest = max(groups, key=lambda group: image_bytes(store, wanted_by(group)))
    kept = keeping(store, largest, images, device=torch.device(device), memory_bytes=memory_bytes)
    return f"{said}; {'in the largest pass ' if count > 1 else ''}{kept}"


def keeping(
    store: FeatureStore, configs: Sequence[Config], images: int, *, device: torch.device, memory_bytes: int | None
) -> str:
    """How much of what heads read together stays in memory, of so many images, by the FeatureReader's own rule."""
    wanted = wanted_by(configs)
    told, left, one = [], images, image_bytes(store, wanted)
    for place, room in keep_capacity(store, wanted, device=device, memory_bytes=memory_bytes).items():
        kept = min(left, room)
        left -= kept
        if kept:
            stay = "stay in GPU memory" if place.type == "cuda" else "stay in memory"
            told.append(f"{kept} of {images} images ({format_bytes(kept * one)}) {stay}")
    if left:
        why = "more does not fit into half of what is free" if memory_bytes is None else "--memory caps this"
        told.append(f"{left} of {images} images ({format_bytes(left * one)}) are read anew each epoch ({why})")
    return f"{'pixels' if tuple(wanted) == (None,) else 'features'} of " + ", of ".join(told)


def train_sweep(
    store: FeatureStore,
    configs: Sequence[Config],
    folders: Sequence[Path],
    *,
    device: str = "cpu",
    memory_bytes: int | None = None,
    complete_only: bool = False,
    on_epoch: OnEpoch = lambda run, line: None,
) -> dict[str, str]:
    """Train all runs that are not finished yet; run name -> why, for those that were given up.

    complete_only leaves out images of which the store lacks features. Raises Incomplete when it lacks some otherwise.
    """
    if not any(True for _ in unfinished(store, configs, folders)):
        return {}
    without = left_out(store, configs, allowed=complete_only)
    place: dict[str, Any] = {"device": device, "memory_bytes": memory_bytes}
    return train_share(store, configs, folders, without=without, on_epoch=on_epoch, **place)


def train_share(
    store: FeatureStore,
    configs: Sequence[HeadConfig],
    folders: Sequence[Path],
    *,
    device: str,
    memory_bytes: int | None,
    without: Collection[int],
    on_epoch: OnEpoch,
) -> dict[str, str]:
    """The heads that one process trains, pass by pass, without those images; run name -> why, where given up.

    Raises ValueError when another process is at one of the runs.
    """
    waiting = dict(unfinished(store, configs, folders, without))
    failures: dict[str, str] = {}
    for group in passes(store, list(waiting), device=torch.device(device)):
        runs = [(config, waiting[config]) for config in group]
        with ExitStack() as stack:
            for _, run in runs:
                stack.enter_context(run.held())
            paths = [run.path for _, run in runs]
            runs = list(unfinished(store, group, paths, without))  # others may have ended some by now
            place: dict[str, Any] = {"device": device, "memory_bytes": memory_bytes}
            failures |= _train_pass(store, runs, without=without, on_epoch=on_epoch, **place) if runs else {}
    return failures


def _train_pass(store: FeatureStore, runs: Sequence[tuple[Config, RunFolder]], **options: Any) -> dict[str, str]:
    """`train_heads`, of which only why heads were given up remains: the next pass needs the memory of this one's."""
    trained = train_heads(store, runs, **options)
    return {state.run.name: state.failure for state in trained if state.failure}
