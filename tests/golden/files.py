"""The golden cases as a user has them: run with `runpy.run_path`, which gives the names below.

NAME.json: seed, config and tensor shapes of a small model in the public layout. NAME.png: a patch. NAME.npz: what the
reference implementations computed from them (hipt, context, z0, eps, zt, t, unet_out, block00..12; of the blocks above
16 cells a side every fourth cell, and the norm of the whole).

zoom_context: the conditioning stage of ZoomLDM alone. Its NPZ holds magM_features, the embeddings at magnification M
(0 = 20x) as given, and magM_context.
"""

import argparse
import json
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

GOLDEN = Path(__file__).parent
CASES = ("vq_f4_ssl", "kl_f8_patch")


def case(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def patch(name):
    """(1, 256, 256, 3) uint8."""
    return np.asarray(Image.open(GOLDEN / f"{name}.png"))[None]


def expected(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def weights(name):
    """The weights of a case, drawn part by part from its seed."""
    described = case(name)
    rng = np.random.default_rng(described["seed"])
    return {
        part: {tensor: drawn(tensor, shape, rng) for tensor, shape in described["shapes"][part].items()}
        for part in ("unet", "first_stage", "cond_stage", "vit")
        if part in described["shapes"]
    }


def drawn(tensor, shape, rng):
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        return torch.from_numpy(values * (1.0 / np.sqrt(np.prod(shape[1:]))).astype(np.float32))
    return torch.from_numpy(values * np.float32(0.05) + np.float32(tensor.endswith("weight")))


def state_dict(name):
    """As CompVis names it; with EMA the live weights are other ones."""
    return compvis_state(weights(name), use_ema=case(name)["use_ema"])


def compvis_state(parts, *, use_ema):
    """A state dict as CompVis names it, of the weights by part; with EMA the live weights are other ones."""
    state = {f"model.diffusion_model.{k}": v for k, v in parts["unet"].items()}
    if use_ema:
        state = {k: v + 0.1 for k, v in state.items()}
        state |= {"model_ema.diffusion_model" + k.replace(".", ""): v for k, v in parts["unet"].items()}
        state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(9)}
    state |= {f"first_stage_model.{k}": v for k, v in parts["first_stage"].items()}
    return state | {f"cond_stage_model.{k}": v for k, v in parts["cond_stage"].items()}


def zoom_release():
    """State dict and config of a small ZoomLDM model: networks of `vq_f4_ssl`, conditioning stage of `zoom_context`.

    The last layers of the stage are drawn anew, for context tokens of the denoiser's width. It uses EMA weights.
    """
    config, stage = (yaml.safe_load(case(name)["config_yaml"]) for name in ("vq_f4_ssl", "zoom_context"))
    params = config["model"]["params"]
    params |= {"use_ema": True, "cond_stage_config": stage["cond_stage_config"]}
    width = params["unet_config"]["params"]["context_dim"]
    hidden = params["cond_stage_config"]["params"]["hidden_channels"]
    params["cond_stage_config"]["params"]["output_channels"] = width
    rng, parts = np.random.default_rng(3), weights("vq_f4_ssl") | weights("zoom_context")
    shapes = {"final_proj.weight": (width, hidden)}
    shapes |= dict.fromkeys(("final_proj.bias", "layer_norm.weight", "layer_norm.bias"), (width,))
    parts["cond_stage"] |= {name: drawn(name, shape, rng) for name, shape in shapes.items()}
    return compvis_state(parts, use_ema=True), yaml.safe_dump(config)


def diffusers_zoom(state):
    """The UNet and the VQ encoder of `zoom_release` as diffusers converts them from its state dict."""
    # imported here, as it takes seconds
    from diffusers import UNet2DConditionModel, VQModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    unet = UNet2DConditionModel(
        in_channels=3, out_channels=3, block_out_channels=(32, 32, 64, 64), cross_attention_dim=512,
        attention_head_dim=1,  # the number of heads
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
        up_block_types=(*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
    ).eval()  # fmt: skip
    unet.load_state_dict(convert_ldm_unet_checkpoint(dict(state), {"layers_per_block": 2}, extract_ema=True))
    shape = {
        "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (32, 32, 64), "layers_per_block": 2, "latent_channels": 3, "num_vq_embeddings": 64,
    }  # fmt: skip
    vq = VQModel(**shape).eval()
    weights = convert_ldm_vae_checkpoint({k: v for k, v in state.items() if k.startswith("first_stage")}, shape)
    vq.load_state_dict(weights | {"quantize.embedding.weight": state["first_stage_model.quantize.embedding.weight"]})
    return unet, vq


def hooked(unet, zt, t, context):
    """The block outputs of diffusers' UNet, by hooks on the layers that CompVis' output blocks end with."""
    layers = [unet.mid_block]
    for block in unet.up_blocks:
        ends = list(getattr(block, "attentions", block.resnets))
        layers += [*ends[:-1], block.upsamplers[0] if block.upsamplers else ends[-1]]
    outputs = []
    for layer in layers:
        layer.register_forward_hook(lambda _module, _inputs, out: outputs.append(out[0] if type(out) is tuple else out))
    with torch.inference_mode():
        unet(zt, t, context)
    return outputs


def write_release(folder, state, config):
    """A release folder with a Lightning checkpoint, whose callbacks are of a class that is not installed."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "configs/2023-09-01T00-00-00-project.yaml").write_text(config)
    with absent_class("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint") as callback:
        content = {
            "epoch": 3,
            "state_dict": state,
            "callbacks": {callback: {"monitor": "val/loss"}},
            "lr_schedulers": [],
        }
        torch.save(content, folder / "checkpoints/last.ckpt")
    return folder


def write_zoom(folder, state, config):
    """A folder as ZoomLDM's authors publish it: the checkpoint is a plain state dict."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config)
    torch.save(state, folder / "weights.ckpt")
    return folder


def write_vit(path, tensors):
    """A DINO training checkpoint: teacher, student, head, arguments."""
    teacher = {f"backbone.{k}": v for k, v in tensors.items()} | {"head.mlp.0.weight": torch.zeros(4, 4)}
    student = {f"module.{k}": v + 1 for k, v in teacher.items()}
    torch.save({"student": student, "teacher": teacher, "args": argparse.Namespace(patch_size=16)}, path)
    return path


def write_case(name, folder):
    """The release folder of a case, with its ViT beside it as `folder/vit256.pth`."""
    release = write_release(folder / "ldm", state_dict(name), case(name)["config_yaml"])
    write_vit(folder / "vit256.pth", weights(name)["vit"])
    return release


@contextmanager
def absent_class(module, name):
    """Within this context a class can be pickled by reference that cannot be imported afterwards."""
    parts = module.split(".")
    added = {".".join(parts[: i + 1]): types.ModuleType(module) for i in range(len(parts))}
    made = type(name, (), {"__module__": module})
    setattr(added[module], name, made)
    sys.modules.update(added)
    try:
        yield made
    finally:
        for path in added:
            del sys.modules[path]


@contextmanager
def reference_threads():
    """The number of CPU threads that the reference ran with.

    torch's group norm on channels-last images sums per thread in float32, so the reference's latents carry a rounding
    of 2e-5 (against float64) that only the same number of threads repeats.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def relative_error(values, reference):
    """Norm of the difference / norm of the reference, in float64."""
    values, reference = np.asarray(values, np.float64), np.asarray(reference, np.float64)
    assert values.shape == reference.shape
    return np.linalg.norm(values - reference) / np.linalg.norm(reference)


def block_errors(features, reference):
    """Of every block: the error of the kept cells, or of the norm of the whole where that is worse."""
    errors = {}
    for block, values in features.items():
        name = f"block{block:02d}"
        whole = np.asarray(values, np.float64)
        kept = whole[..., ::4, ::4] if f"{name}_norm" in reference else whole
        norm = reference.get(f"{name}_norm", np.linalg.norm(reference[name].astype(np.float64)))
        errors[block] = max(relative_error(kept, reference[name]), abs(np.linalg.norm(whole) / norm - 1))
    return errors
