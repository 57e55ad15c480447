"""Describe a store in a few lines: its images, classes, model, blocks, completeness and size."""

from __future__ import annotations

from collections import Counter

from pathseg.store.blocks import format_blocks
from pathseg.store.features import FeatureStore
from pathseg.store.format.size import format_bytes, patch_bytes
from pathseg.store.sampling import Sampling


def describe(store: FeatureStore) -> str:
    """Return a summary of a store as text, one line per field, timestep and block."""
    contents, key = store.contents, store.contents.key
    splits = ", ".join(f"{name} {count}" for name, count in Counter(store.splits).items())
    rows = {
        "store": f"{store.location} ({format_bytes(sum(store.location.sizes().values()))}, key {key.digest[:12]})",
        "images": f"{len(store.labelled)} of {key.dataset} ({splits}), {key.size[1]}x{key.size[0]} px, "
        f"{contents.grid.rows}x{contents.grid.cols} patches, {Sampling.of(contents).mpp_text()}",
        "pixels": str(key.preprocessing),
        "classes": ", ".join(contents.classes)
        + (f" (ignored code {contents.ignore})" if contents.ignore is not None else ""),
        "model": f"{key.model}{'' if contents.model_trained else ' (UNTRAINED: random weights)'}, "
        f"weights {key.model_digest[:12]}, first stage {key.first_stage or 'none'}, condition {key.condition_text}",
        "features": f"layout {key.layout}, {key.dtype}, noise seed {key.seed}",
        "packing": f"{key.packing}: {contents.packing.summary}",
        "made by": ", ".join(f"{name} {version}" for name, version in contents.made_by.items()),
    }
    lines = [f"{name:>8}  {text}" for name, text in rows.items()]
    return "\n".join(lines + _completeness(store))


def _completeness(store: FeatureStore) -> list[str]:
    key, blocks = store.contents.key, store.contents.blocks
    lines = []
    for t in store.timesteps():
        stored = store.stored_blocks(t)
        unfinished = store.unfinished(t=t, blocks=stored)
        state = "complete" if not unfinished else f"{len(store.listed) - len(unfinished)} of {len(store.listed)} images"
        lines.append(f"{f't {t}':>8}  blocks {format_blocks(stored)}: {state}")
    all_stored = sorted({block for t in store.timesteps() for block in store.stored_blocks(t)})
    patches = store.contents.grid.patches
    per_block = patch_bytes(
        {b: blocks[b] for b in all_stored},
        layout=key.layout, dtype=key.dtype, packing=key.packing, patches_per_image=patches,
    )  # fmt: skip
    for block, size_bytes in per_block.items():
        c, h, w = blocks[block].stored(key.layout)
        per_image = format_bytes(size_bytes * patches, packing=key.packing)
        lines.append(f"{f'block {block}':>8}  {c} channels, {h}x{w} cells a patch, {per_image} an image and timestep")
    return lines or [f"{'features':>8}  none yet"]
