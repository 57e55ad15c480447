"""The bundled model `mini`: the architecture of the paper's model with fewer channels, trained on a few free images.

It lets every command run without downloaded weights. `weights/MODEL_CARD.md` describes its training and evaluation;
`benchmarks/mini/train.py` trains it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pathseg.extract.models.checkpoint import read_state_dict
from pathseg.extract.models.dino_vit import read_vit
from pathseg.extract.models.registry import bundled_file
from pathseg.extract.models.weights import Shape

if TYPE_CHECKING:
    from pathseg.extract.models.ldm.release import Release

MINI_VIT = (192, 4)  # width, depth; the paper's is 384, 12

# `model.params` of mini's config, as a release's *-project.yaml has them.
MINI_PARAMS: dict[str, Any] = {
    "linear_start": 0.0015,  # the schedule of the paper's model
    "linear_end": 0.0195,
    "timesteps": 1000,
    "use_ema": False,
    "conditioning_key": "crossattn",
    "unet_config": {
        "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
        "params": {
            "in_channels": 3,
            "out_channels": 3,
            # The paper's is 192. Group norm has 32 groups, so with 32 channels each is normalised by itself, and a
            # signal that is constant over the patch, such as the condition, does not reach the output.
            "model_channels": 64,
            "attention_resolutions": [4],  # at 16x16, and 8x8 in the middle block; the paper's at 32, 16 and 8
            "num_res_blocks": 2,
            "channel_mult": [1, 1, 1, 1],  # the paper's is 1, 2, 3, 5
            "num_heads": 1,
            "use_spatial_transformer": True,
            "context_dim": 128,  # the paper's is 512
        },
    },
    "first_stage_config": {
        "target": "ldm.models.autoencoder.VQModelInterface",
        "params": {
            "embed_dim": 3,
            "n_embed": 1024,  # the paper's is 8192
            "ddconfig": {
                "double_z": False,
                "z_channels": 3,
                "in_channels": 3,
                "ch": 32,  # the paper's is 128
                "ch_mult": [1, 1, 2],  # the paper's is 1, 2, 4
                "num_res_blocks": 1,  # the paper's is 2; half of mini's time would go here
                "attn_resolutions": [],
            },
        },
    },
    "cond_stage_config": {
        "target": "ldm.modules.encoders.modules.SSLEmbedder",
        "params": {"patch_embed_dim": MINI_VIT[0], "region_embed_dim": MINI_VIT[0], "normalize_ssl": True},
    },
}

# Small gains of residual branches keep the spatial detail of the skip path in random features; latents of unit variance
# are not drowned by the noise of a small timestep. Both improved a linear probe for glands over gains of 1.
GAINS = {
    "out_layers.3.weight": 0.1,
    "conv2.weight": 0.1,
    "proj_out.weight": 0.1,
    "encoder.conv_out.weight": 3.0,
}


def random_weights(shapes: Mapping[str, Shape], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Draw random weights that keep signals near unit variance: float32, in the order of `shapes`.

    Matrices and kernels are normal with variance 1 / fan-in, times the gain of GAINS; weights of norms are 1; biases
    are normal with standard deviation 0.1, so that units differ in where they saturate. Trained weights are compared
    with these, and benchmarks use them for models whose weights cannot be shipped.
    """
    return {name: torch.from_numpy(_draw(name, shape, rng)) for name, shape in shapes.items()}


def _draw(name: str, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    if len(shape) > 1:
        gain = next((gain for ending, gain in GAINS.items() if name.endswith(ending)), 1.0)
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(gain / math.sqrt(math.prod(shape[1:])))
    if name.endswith("weight"):
        return np.ones(shape, np.float32)
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.1)


def mini_release() -> Release:
    """Read mini's latent diffusion model, with the same checks as a release folder."""
    # here, because it imports diffusers, which takes seconds and which the ViT alone does not need
    from pathseg.extract.models.ldm.release import release_from

    path = bundled_file("mini", "mini.safetensors")
    return release_from(MINI_PARAMS, read_state_dict(path, "state_dict"), name="mini", source=str(path))


def mini_vit() -> dict[str, torch.Tensor]:
    """Read the weights of mini's ViT, as `read_vit` returns them."""
    return read_vit(bundled_file("mini", "mini-vit.safetensors"))
