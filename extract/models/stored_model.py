"""The model that made a store, as the store describes it: changed labels can be followed without loading it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NoReturn, cast

import torch

from pathseg.store.features import FeatureStore

if TYPE_CHECKING:
    from pathseg.extract.models.feature_model import Images

NO_WEIGHTS = "this model is known from a store's description alone and computes nothing; load it with load_model"


class StoredModel:
    """A FeatureModel with the names and shapes of the model that made a store, but without weights.

    An extraction with it writes what needs no forward pass: new masks, splits and classes. Every method raises
    ValueError. Whether the files of the model are still the same is not checked.

    Raises ValueError for a store of wider fields, whose description holds the centres of the model's maps alone.
    """

    def __init__(self, store: FeatureStore) -> None:
        key, blocks = store.contents.key, store.contents.blocks
        if key.surroundings is not None:
            raise ValueError(f"{store.location} does not describe the whole maps of its model; load the model")
        self.name, self.trained, self.digest = key.model, store.contents.model_trained, key.model_digest
        self.first_stage = key.first_stage or "none"
        self.condition = cast(Literal["ssl", "none"], key.condition)
        self.blocks = {block: (shape.channels, shape.side) for block, shape in blocks.items()}
        self.default_blocks = tuple(sorted(blocks))
        self.vit, self.diffusers, self.zoom = key.vit, key.diffusers, key.zoom
        self.notes: tuple[str, ...] = ()
        self.device = torch.device("cpu")
        self.latent_shape = None
        self.timesteps = None

    def embed(self, images: Images) -> NoReturn:
        """Raise ValueError."""
        raise ValueError(NO_WEIGHTS)

    def encode(self, images: Images) -> NoReturn:
        """Raise ValueError."""
        raise ValueError(NO_WEIGHTS)

    def prepare(self, images: Images) -> NoReturn:
        """Raise ValueError."""
        raise ValueError(NO_WEIGHTS)

    def denoise(
        self, z0: torch.Tensor, context: torch.Tensor, t: int, blocks: Iterable[int], noise: Images | None
    ) -> NoReturn:
        """Raise ValueError."""
        raise ValueError(NO_WEIGHTS)

    def features(
        self, images: Images, t: int = 50, blocks: Iterable[int] | None = None, noise: Images | None = None
    ) -> NoReturn:
        """Raise ValueError."""
        raise ValueError(NO_WEIGHTS)
