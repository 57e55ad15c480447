"""Online features: features of new patches, computed as those of a store were, and not stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch

from pathseg.extract.config import ExtractConfig, Precision
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.unit import compute_patches
from pathseg.store.blocks import format_blocks
from pathseg.store.format.layout import to_layout
from pathseg.store.format.packing import PACKINGS
from pathseg.store.format.rounding import as_stored
from pathseg.store.grid import PatchGrid
from pathseg.store.key import StoreKey

OnlineFeatures = Callable[[np.ndarray, Sequence[int], str], dict[int, torch.Tensor]]


def online_features(
    model: FeatureModel, key: StoreKey, t: int, blocks: Sequence[int], *, batch_size: int
) -> OnlineFeatures:
    """Return a function that computes the features of patches as the store with this key has them.

    The function takes patches (P, 256, 256, 3) uint8 (as `PatchGrid.cut` cuts them), their P indices and the
    image's id, on which the noise depends, and returns {block: (P, C, h, w)} in the layout of the key. Only for `image`
    with an exact packing they are in native resolution: heads take the same values from both up to rounding
    (`train.heads.stack.to_head_grid`), and native maps are smaller by up to a factor of 1,000. Noise, precision, dtype
    and the rounding of the packing are those of the key: the P patches are those of whole images, one after the other,
    whose scales are their own. Of a scaled packing, float32 is returned.
    batch_size: patches per forward pass; the features equal the stored ones to the bit for the key's batch size and
    the patches of one image at a time. The forward pass ends after the last of `blocks`.

    Raises ValueError, naming both digests, when the model's weights are not those of the store, and for a block that
    the model does not have. The function raises ValueError for features that the key's dtype cannot hold.
    """
    if model.digest != key.model_digest:
        raise ValueError(
            f"the head was trained on features of {key.model} with the weights {key.model_digest}, but "
            f"{model.name} as loaded has {model.digest}; pass the model of the training as --model (and --hipt)"
        )
    if lacking := [block for block in blocks if block not in model.blocks]:
        raise ValueError(f"model {model.name} has blocks {format_blocks(model.blocks)}, not {format_blocks(lacking)}")
    precision = cast(Precision, key.precision)
    wanted = {t: tuple(blocks)}
    config = ExtractConfig(
        t=(t,), blocks=wanted[t], precision=precision, seed=key.seed, surroundings=key.field_patches,
    )  # fmt: skip
    dtype, packing = getattr(torch, key.dtype), PACKINGS[key.packing]
    patches_per_image = PatchGrid.of(*key.size).patches
    # a store rounds values in its layout: of native maps, scales and rounded values are others than of pixels
    layout = "native" if key.layout == "image" and packing.exact else key.layout

    def features(patches: np.ndarray, numbers: Sequence[int], image_id: str) -> dict[int, torch.Tensor]:
        maps = compute_patches(model, patches, numbers, image_id, wanted, config, batch_size=batch_size)[t]
        found = {}
        for block in tuple(maps):  # one after the other, so that only one is held twice
            values = to_layout(torch.cat(maps.pop(block)), layout, dtype)
            if not values.isfinite().all():
                raise ValueError(key.overflow(f"block {block} of {image_id}") + " and train again")
            if not packing.exact:
                values = torch.cat([as_stored(image, packing) for image in values.split(patches_per_image)])
            found[block] = values
        return found

    return features
