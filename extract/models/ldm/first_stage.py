"""The image encoder of a release: pixels to latents."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

import torch
from diffusers.models.autoencoders.vae import Encoder
from torch import nn

from pathseg.extract.models.arithmetic import skip_divisions_by_one
from pathseg.extract.models.ldm.compvis import encoder_name
from pathseg.extract.models.ldm.config import FirstStageDesign
from pathseg.extract.models.weights import Shape, load_frozen, shapes_of


class FirstStage(nn.Module):
    """Encoder and quant_conv of CompVis' autoencoders (equation 2 of the paper), without their decoders."""

    def __init__(self, design: FirstStageDesign) -> None:
        super().__init__()
        doubled = 2 if design.kind == "kl" else 1
        self.kind = design.kind
        self.encoder = Encoder(
            out_channels=design.z_channels,
            down_block_types=("DownEncoderBlock2D",) * len(design.channels),
            block_out_channels=design.channels,
            layers_per_block=design.num_res_blocks,
            double_z=design.kind == "kl",
        )
        self.quant_conv = nn.Conv2d(doubled * design.z_channels, doubled * design.embed_dim, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, 256, 256) in [-1, 1] -> (N, z, h, w), before the scale factor.

        VQ: not quantised. KL: the posterior's mean, which is the first half of the channels.
        """
        # Channels last, as the reference implementation's images lie. torch's group norm over 256 x 256 pixels rounds
        # in this layout by up to 4e-5 of the latents, depending on the number of CPU threads; the same layout and
        # number as the reference's (two) agree with it to 2e-6, any other choice to 2e-5.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        z = self.quant_conv(self.encoder(pixels))
        return z.chunk(2, dim=1)[0] if self.kind == "kl" else z


@lru_cache(maxsize=8)
def encoder_shapes(design: FirstStageDesign) -> Mapping[str, Shape]:
    """Return the shapes of a design's tensors under CompVis' names, as below `first_stage_model.`; read-only."""
    with torch.device("meta"):
        shapes = {encoder_name(name): shape for name, shape in shapes_of(FirstStage(design)).items()}
    # CompVis' attention projects by convolutions, diffusers' by matrices.
    return MappingProxyType({n: (*s, 1, 1) if ".attn_1." in n and len(s) == 2 else s for n, s in shapes.items()})


def build_first_stage(design: FirstStageDesign, tensors: Mapping[str, torch.Tensor]) -> FirstStage:
    """Build the image encoder of a design with weights under CompVis' names: float32, CPU, frozen, ready to run."""
    with torch.device("meta"):
        stage = FirstStage(design)
    state = {name: tensors[encoder_name(name)].reshape(shape) for name, shape in shapes_of(stage).items()}
    return skip_divisions_by_one(load_frozen(stage, state))
