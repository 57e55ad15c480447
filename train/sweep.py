"""Many heads from one command: every combination of lists, in as few passes over the store as memory allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from pathseg.store.blocks import BLOCKS
from pathseg.store.features import FeatureStore
from pathseg.train.batches import KEEP_SHARE, free_memory
from pathseg.train.config import HeadConfig
from pathseg.train.heads import HEADS
from pathseg.train.loop import OnEpoch, train_heads
from pathseg.train.runs import FinishedRun, RunFolder

COPIES = 4  # of a head's weights in training: themselves, the gradient, Adam's two moments


def combinations(store: FeatureStore, settings: Mapping[str, Any]) -> list[HeadConfig]:
    """One configuration for each combination of the values that a sweep was given.

    settings: HeadConfig's fields; t, lr and seed hold sequences of values; blocks holds one selection, or `each` for
    every block of the store alone. All blocks means all that the store has.
    """
    stored = tuple(b for b in BLOCKS if all(b in store.stored_blocks(t) for t in settings["t"]))
    selections = [settings["blocks"]]
    if settings["blocks"] == "each":
        selections = [(block,) for block in stored]
    elif settings["blocks"] == BLOCKS and stored:
        selections = [stored]
    chosen = product(settings["t"], selections, settings["lr"], settings["seed"])
    return [HeadConfig(**{**settings, "t": t, "blocks": b, "lr": lr, "seed": seed}) for t, b, lr, seed in chosen]


def run_folders(
    store: FeatureStore, configs: Sequence[HeadConfig], heads: Path, *, name: str | None = None
) -> list[Path]:
    """The folder of each run, named after its settings, or by `name`. Raises ValueError for one name for several."""
    if name is not None and len(configs) > 1:
        raise ValueError(f"--name {name} names one run, but {len(configs)} are asked for; leave it out")
    if name is not None and (name in ("", ".", "..") or set(name) & set("/\\")):
        raise ValueError(f"--name {name!r} is no name of one folder; leave out slashes")
    return [heads / (name or config.run_name(store.contents.key)) for config in configs]


def summary(folders: Sequence[Path]) -> str:
    """Lines for a person: for each finished run its folder, best epoch and scores on every test part."""
    lines = []
    for run in (RunFolder(folder) for folder in folders):
        if not run.finished:
            continue
        metrics = run.read_metrics()
        lines.append(f"{run.path}: best epoch {metrics['best_epoch']} of {metrics['epochs']}")
        for name, part in metrics["splits"].items():
            figures = "  ".join(f"{m} {_figure(part['scores'][m])}" for m in ("accuracy", "dice", "miou", "f1"))
            constant = part["constant"]
            always = f"always {constant['class']}: dice {_figure(constant['scores']['dice'])}"
            lines.append(f"  {name}, {part['images']} images: {figures}  ({always})")
            if objects := part.get("objects", {}).get("pooled"):
                figures = "  ".join(f"{m} {_figure(objects[m])}" for m in ("f1", "dice", "hausdorff"))
                lines.append(f"  {name}, objects: {figures} px")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def passes(store: FeatureStore, configs: Sequence[HeadConfig], *, device: torch.device) -> list[list[HeadConfig]]:
    """The configurations in groups whose heads fit into memory together, in order.

    Heads may take a quarter of what is free; one that alone takes more still gets a pass of its own.
    """
    room = free_memory(device) * KEEP_SHARE / 2
    groups: list[list[HeadConfig]] = [[]]
    taken = 0.0
    for config in configs:
        size_bytes = head_bytes(store, config)
        if groups[-1] and taken + size_bytes > room:
            groups.append([])
            taken = 0.0
        groups[-1].append(config)
        taken += size_bytes
    return groups


def head_bytes(store: FeatureStore, config: HeadConfig) -> int:
    """Bytes that a head takes while it trains: its weights, their gradient and Adam's moments, float32."""
    with torch.device("meta"):
        head = HEADS[config.head]({b: store.contents.blocks[b].channels for b in config.blocks}, len(store.classes))
    return sum(p.numel() for p in head.parameters()) * 4 * COPIES


def unfinished(
    store: FeatureStore, configs: Sequence[HeadConfig], folders: Sequence[Path]
) -> Iterator[tuple[HeadConfig, RunFolder]]:
    """The runs that are still to be trained.

    Raises ValueError when a folder holds a finished run of other settings or of another store.
    """
    for config, folder in zip(configs, folders, strict=True):
        run = RunFolder(folder)
        if not run.finished:
            yield config, run
            continue
        there = FinishedRun.read(run)
        wanted = {**dataclasses.asdict(config), "data": store.digest()}
        found = {**dataclasses.asdict(HeadConfig.from_dict(there.head)), "data": there.data.get("digest")}
        differing = [
            f"{name} is {found[name]} there, {value} asked for"
            for name, value in wanted.items()
            if found[name] != value
        ]
        if differing:
            why = "; ".join(differing)
            raise ValueError(
                f"{folder} holds a finished run of other settings: {why}; pass --name or another --workspace"
            )


def announcement(store: FeatureStore, configs: Sequence[HeadConfig], folders: Sequence[Path], *, device: str) -> str:
    """What a sweep is about to do, in one line: heads to train, passes over the store, images left out."""
    waiting = [config for config, _ in unfinished(store, configs, folders)]
    if not waiting:
        return f"all {len(configs)} runs are finished"
    count = len(passes(store, waiting, device=torch.device(device)))
    lacking = {i for c in waiting for i in store.unfinished(t=c.t, blocks=c.blocks)}
    heads = f"{len(waiting)} head{'s' * (len(waiting) > 1)} in {count} pass{'es' * (count > 1)} over the store"
    return f"{heads}, {len(store) - len(lacking)} of {len(store)} images complete"


def train_sweep(
    store: FeatureStore,
    configs: Sequence[HeadConfig],
    folders: Sequence[Path],
    *,
    device: str = "cpu",
    memory_bytes: int | None = None,
    complete_only: bool = False,
    on_epoch: OnEpoch = lambda run, line: None,
) -> dict[str, str]:
    """Train all runs that are not finished yet, pass by pass; run name -> why, for those that were given up."""
    waiting = dict(unfinished(store, configs, folders))
    failures = {}
    for group in passes(store, list(waiting), device=torch.device(device)):
        runs = [(config, waiting[config]) for config in group]
        if runs:
            place = {"device": device, "memory_bytes": memory_bytes, "complete_only": complete_only}
            trained = train_heads(store, runs, on_epoch=on_epoch, **place)
            failures |= {trainee.run.name: trainee.failure for trainee in trained if trainee.failure}
    return failures
