"""Mutated files of every kind that pathseg reads: each works with right values or ends in one line.

The seeds are fixed; `FUZZ_SEED=n` takes others. A few cases run by default, many with `-m soak`, more with `-m slow`.
"""

import dataclasses
import gzip
import json
import os
import random
import runpy
import shutil
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tifffile
import torch
import yaml
import zarr
from fuzzing import (
    Findings,
    copied,
    mutate_folder,
    mutated_bytes,
    mutated_json,
    mutated_lines,
    mutated_values,
    mutated_zip,
    outcome,
    snapshot,
)
from PIL import Image, TiffImagePlugin
from safetensors.torch import load_file, save_file

from pathseg.extract.datasets.image_files import (
    image_size,
    mask_size,
    read_image,
    read_instances,
    read_mask,
    stated_mpp,
)
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.inputs.images import open_input_image
from pathseg.extract.inputs.slides import is_slide
from pathseg.extract.models.checkpoint import read_state_dict
from pathseg.extract.models.dino_vit import build_vit, read_vit
from pathseg.extract.models.ldm.release import _read_config, release_from
from pathseg.store.describe import describe
from pathseg.store.errors import StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.format.manifest import Manifest
from pathseg.store.grid import PatchGrid
from pathseg.store.records import seal
from pathseg.store.sampling import Sampling
from pathseg.store.verify import verify
from pathseg.store.writer import StoreWriter
from pathseg.train.config import HeadConfig
from pathseg.train.predict.config import PredictConfig
from pathseg.train.predict.feature_sources import ModelFeatures
from pathseg.train.predict.ground_truth import GroundTruth
from pathseg.train.predict.predictor import Predictor
from pathseg.train.predict.records import WindowCacheIdentity
from pathseg.train.predict.trained_head import TrainedHead
from pathseg.train.predict.window_cache import WindowCache
from pathseg.train.report.build import build_report
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.loop import train_heads

FIXTURES = Path(__file__).parent / "fixtures"
FILES = runpy.run_path(Path(__file__).parent / "golden/files.py")
SEED = int(os.environ.get("FUZZ_SEED", "0"))


@pytest.fixture(scope="module", autouse=True)
def libtiff_is_silenced(tmp_path_factory):
    """Once in each process a library is opened for this, which is forbidden while a mutated file is read."""
    path = tmp_path_factory.mktemp("image") / "a.png"
    Image.new("RGB", (1, 1)).save(path)
    read_image(path)


def cases(few, many, more):
    """Parametrise the numbers of the cases: `few` by default, the `many` after them as soak, `more` as slow."""
    return pytest.mark.parametrize(
        "numbers",
        [
            range(few),
            pytest.param(range(few, few + many), marks=pytest.mark.soak),
            pytest.param(range(few + many, few + many + more), marks=pytest.mark.slow),
        ],
        ids=["few", "many", "more"],
    )


def random_of(kind, number):
    return random.Random(f"{kind}/{SEED}/{number}")


@pytest.fixture
def outside(tmp_path):
    """A folder that no case may touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    return folder


@pytest.fixture
def workspace(tmp_path, outside):
    """The folder of a case; what lies beside it stays as it is."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    before = snapshot(outside)
    yield folder
    assert snapshot(outside) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"outside", "workspace", "base", "toy.zarr"}


def small_state():
    """Tensors of some kinds and layouts."""
    base = torch.arange(600.0).reshape(20, 30)
    return {
        "weight": base,
        "view": base[1:, ::2],
        "half": torch.linspace(-1, 1, 40).half(),
        "count": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.full((5, 3), 0.25)),
    }


def write_checkpoints(folder):
    """Write the same tensors as a zip file, as a legacy file and as safetensors; return the paths."""
    content = {
        "state_dict": small_state(),
        "epoch": 3,
        "callbacks": {"lr": [0.1, (1, 2, 3)]},
        "size": torch.Size([2, 3]),
    }
    with FILES["absent_class"]("pytorch_lightning.callbacks", "ModelCheckpoint") as callback:
        content["callbacks"][callback] = {"monitor": "loss"}
        torch.save(content, folder / "zip.ckpt")
        torch.save(content, folder / "legacy.ckpt", _use_new_zipfile_serialization=False)
    save_file({name: tensor.detach().contiguous() for name, tensor in small_state().items()}, folder / "a.safetensors")
    return [folder / name for name in ("zip.ckpt", "zip.ckpt", "legacy.ckpt", "a.safetensors")]


def held_in(content, tensors):
    """Whether a file holds the bytes of every tensor's storage."""
    return all(bytes(tensor.untyped_storage()) in content for tensor in tensors.values() if tensor.numel())


@cases(10, 90, 950)
def test_mutated_checkpoints_hold_what_is_read_from_them_or_are_refused(tmp_path, workspace, numbers):
    (tmp_path / "base").mkdir()
    findings = Findings("checkpoints")
    bases = [(path.suffix, path.name, path.read_bytes()) for path in write_checkpoints(tmp_path / "base")]
    for number in numbers:
        rng = random_of("checkpoints", number)
        suffix, name, content = rng.choice(bases)
        mutate = mutated_zip if name == "zip.ckpt" and rng.random() < 0.7 else mutated_bytes
        content = mutate(content, rng)
        path = workspace / f"case{suffix}"
        path.write_bytes(content)
        with findings.case(number, name):
            tensors, _ = outcome(partial(read_state_dict, path, "state_dict"), workspace)
            assert tensors is None or held_in(content, tensors), "a tensor is not in the file"
            findings.accepted += tensors is not None
    findings.check()


def mutated_state(state, rng):
    """Return a state dict in which one or two tensors are of another shape, type or name, not finite, or gone."""
    state = dict(state)
    for _ in range(rng.randint(1, 2)):
        name, tensor = rng.choice([(name, value) for name, value in state.items() if isinstance(value, torch.Tensor)])
        action = rng.choice(["shape", "shape", "type", "name", "value", "delete", "axis", "object"])
        if action == "shape":
            state[name] = torch.zeros([max(0, side + rng.choice([-1, 0, 0, 1, side])) for side in tensor.shape])
        elif action == "axis":
            state[name] = rng.choice([tensor[None], tensor.flatten(), tensor.mT if tensor.ndim > 1 else tensor])
        elif action == "type":
            state[name] = tensor.to(rng.choice([torch.int64, torch.bool, torch.complex64, torch.float16, torch.uint8]))
        elif action == "value":
            state[name] = torch.full_like(tensor, rng.choice([float("nan"), float("inf"), 1e38, 0.0]))
        elif action == "object":
            state[name] = rng.choice([None, 1.5, "x", [1], {"a": torch.zeros(2)}])
        else:
            del state[name]
            if action == "name":
                state[rng.choice([f"module.{name}", f"x.{name}", name[1:], f"blocks.{name}", "head." + name])] = tensor
    return state


@cases(5, 20, 185)
def test_mutated_weights_of_a_vit_are_taken_whole_or_refused(workspace, numbers):
    findings = Findings("weights of a ViT")
    whole = FILES["weights"]("kl_f8_patch")["vit"]
    for number in numbers:
        path = workspace / "vit.pth"
        state = mutated_state(whole, random_of("vit", number))
        torch.save({"teacher": state}, path)
        with findings.case(number):
            vit, _ = outcome(lambda path=path: build_vit(read_vit(path)), workspace)
            assert vit is None or all(parameter.isfinite().all() for parameter in vit.parameters()), "not finite"
    findings.check()


@cases(10, 10, 240)
def test_a_mutated_config_of_a_release_is_understood_or_refused(workspace, numbers):
    findings = Findings("configs of releases")
    case = FILES["case"]("kl_f8_patch")
    folder = FILES["write_case"]("kl_f8_patch", workspace)
    (config,) = folder.glob("configs/*.yaml")
    state = read_state_dict(folder / "checkpoints/last.ckpt", "state_dict")
    known = {tensor.data_ptr() for tensor in state.values()}
    for number in numbers:
        rng = random_of("config", number)
        text = case["config_yaml"].encode()
        if rng.random() < 0.7:
            text = yaml.safe_dump(mutated_values(yaml.safe_load(text), rng), allow_unicode=rng.random() < 0.5)
            text = text.encode("utf-8", "surrogatepass")
        else:
            text = mutated_lines(text, rng)
        config.write_bytes(text)
        with findings.case(number):
            release, _ = outcome(partial(_release, config, state), workspace)
            parts = (release.unet, release.first_stage, release.conditioning) if release else ()
            assert all(tensor.data_ptr() in known for part in parts for tensor in part.values()), "another tensor"
            findings.accepted += release is not None
    assert findings.accepted
    findings.check()


def _release(config, state):
    return release_from(_read_config(config), state, name="a", source="last.ckpt")


def small_store(folder, contents, fill_store, *, key, **changes):
    """Write a store of a few images with block 4 at t 50."""
    made = contents(key=key, **changes)
    return fill_store(StoreWriter(folder, made), blocks=(4,))


@pytest.fixture
def base_stores(tmp_path, toy_contents, toy_key, fill_store):
    """Small stores: unsharded, sharded with packing, and one of release 0.1.0."""
    base = tmp_path / "base"
    small_store(base / "plain", toy_contents, fill_store, key=toy_key(), splits=("train", "test"))
    packed = toy_key(packing="lossless")
    splits = ("train", "train", "test")
    small_store(
        base / "shards", toy_contents, fill_store, key=packed, splits=splits, has_instances=False, images_per_unit=2
    )
    shutil.copytree(FIXTURES / "store-v1", base / "v1")
    return [base / name for name in ("plain", "shards", "v1")]


def values_of(store):
    """Read all of a store: (name, t, image id) -> an array, or the text of the error for users."""
    found = {}
    for index, image_id in enumerate(store.ids):
        reads = {("images", None): store.image, ("masks", None): store.mask}
        if store.contents.has_instances:
            reads["instances", None] = store.instances
        for t in store.timesteps():
            for block in store.stored_blocks(t):
                reads[f"block{block}", t] = lambda i, t=t, block=block: store.read(i, t=t, blocks=(block,))[block]
        for (name, t), read in reads.items():
            try:
                found[name, t, image_id] = read(index)
            except StoreError as e:
                found[name, t, image_id] = str(e)
    return found


def use(folder):
    """Open a store, describe it, read all of it and verify it; return its values and findings."""
    try:
        store = FeatureStore.open(folder)
        describe(store), store.digest()
        values = values_of(store)
    except StoreError:  # what cannot be opened can still be verified
        values = {}
    return values, verify(folder)


def differing(values, whole):
    """Return the names of arrays that are not those that were written."""
    return [
        name for name, value in values.items()
        if not isinstance(value, str) and not (name in whole and np.array_equal(value, whole[name]))
    ]  # fmt: skip


def add_foreign(folder):
    """Put a file and an array that pathseg did not write into a store; return their contents by name."""
    (folder / "notes").mkdir()
    (folder / "notes/mine.txt").write_text("mine")
    mine = zarr.create_array(folder / "my_labels", shape=(4, 8), chunks=(1, 8), dtype="uint8", zarr_format=3)
    mine[:] = 7
    return foreign_of(folder)


def foreign_of(folder):
    return {name: data for name, data in snapshot(folder).items() if name.startswith(("notes", "my_labels"))}


@cases(2, 10, 168)
def test_a_mutated_store_is_read_right_or_refused_and_repair_touches_nothing_else(
    base_stores, workspace, outside, numbers
):
    """One to three files are changed on disk, so that a checksum somewhere no longer fits: no wrong value is read."""
    findings = Findings("stores")
    wholes = {base: use(base)[0] for base in base_stores}
    for number in numbers:
        rng = random_of("stores", number)
        base = rng.choice(base_stores)
        folder = copied(base, workspace / "a.zarr")
        what = [mutate_folder(folder, rng, outside, _mutated_store_file) for _ in range(rng.randint(1, 3))]
        foreign = add_foreign(folder)
        with findings.case(number, f"{base.name}: {', '.join(what)}"):
            before = snapshot(folder)
            read, _ = outcome(partial(use, folder), workspace)
            assert snapshot(folder) == before, "reading and verifying changed the store"
            assert read is None or not differing(read[0], wholes[base]), "wrong values are read"
            repaired, _ = outcome(partial(verify, folder, repair=True), workspace)
            assert foreign_of(folder) == foreign, "repair changed foreign files"
            if repaired is None:
                continue
            after = snapshot(folder)
            read, _ = outcome(partial(use, folder), workspace)
            assert read is None or not differing(read[0], wholes[base]), "wrong values are read after repair"
            if number % 5 == 0:
                outcome(partial(verify, folder, repair=True), workspace)
                assert snapshot(folder) == after, "a second repair changed the store"
    findings.check()


def _mutated_store_file(path, rng):
    mutate = mutated_json if path.suffix == ".json" else mutated_bytes
    return mutate(path.read_bytes(), rng)


@cases(2, 10, 168)
def test_a_forged_store_is_opened_or_refused_and_nothing_around_it_changes(base_stores, workspace, numbers):
    """Descriptions, the manifest and records are mutated and sealed again, as by somebody who wants to be believed."""
    findings = Findings("forged stores")
    for number in numbers:
        rng = random_of("forged", number)
        folder = copied(rng.choice(base_stores), workspace / "a.zarr")
        names = _forge(folder, rng)
        foreign = add_foreign(folder)
        with findings.case(number, names):
            outcome(partial(use, folder), workspace)
            outcome(partial(verify, folder, repair=True), workspace)
            assert foreign_of(folder) == foreign, "repair changed foreign files"
            outcome(partial(use, folder), workspace)
    findings.check()


def _forge(folder, rng):
    manifest = folder / "_done/metadata.json"
    texts = dict(Manifest.from_json(manifest.read_bytes(), source="m").texts)
    for _ in range(rng.randint(1, 2)):
        kind = rng.choice(["root", "root", "array", "record", "record name", "manifest"])
        records = sorted(folder.glob("_done/*/**/*.json"))
        if kind in ("root", "array"):
            name = "zarr.json" if kind == "root" else rng.choice(list(texts))
            texts[name] = json.dumps(mutated_values(json.loads(texts[name]), rng))
            (folder / name).write_text(texts[name], errors="surrogatepass")
        elif kind == "record":
            path = rng.choice(records)
            path.write_bytes(seal(mutated_values(json.loads(path.read_bytes())["body"], rng)))
        elif kind == "record name":
            path = rng.choice(records)
            name = rng.choice(["000007.json", "999999999999.json", "000000.lacking.json", "1.json", "a.json"])
            path.rename(path.with_name(name))
        else:
            texts = {str(name)[:200]: str(text) for name, text in mutated_values(texts, rng).items()} or texts
    manifest.write_bytes(Manifest(texts).to_json())
    return kind


def write_images(folder):
    """Write images and masks in the formats that pathseg reads; return the paths."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)
    mask = rng.integers(0, 4, (48, 40), dtype=np.uint8)
    rgb, grey = Image.fromarray(image), Image.fromarray(mask)
    palette = grey.convert("P")
    palette.putpalette(bytes(range(0, 250, 10)) * 30)
    deep = Image.fromarray(mask.astype(np.uint16) * 300)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274] = 1
    for name, picture, options in (
        ("rgb.png", rgb, {}), ("rgb.bmp", rgb, {}), ("rgb.jpg", rgb, {}), ("rgb.jp2", rgb, {}), ("rgb.ppm", rgb, {}),
        ("rgb.webp", rgb, {"lossless": True}), ("rgb.tif", rgb, {"dpi": (50800, 50800), "tiffinfo": tags}),
        ("rgb-lzw.tif", rgb, {"compression": "tiff_lzw"}), ("rgb-deflate.tif", rgb, {"compression": "tiff_deflate"}),
        ("rgb-jpeg.tif", rgb, {"compression": "jpeg"}), ("grey.png", grey, {}), ("grey.bmp", grey, {}),
        ("palette.png", palette, {}), ("palette.tif", palette, {}), ("bits.png", grey.convert("1"), {}),
        ("bits.tif", grey.convert("1"), {"compression": "group4"}), ("deep.png", deep, {}), ("deep.tif", deep, {}),
        ("grey.pgm", grey, {}), ("grey-lzw.tif", grey, {"compression": "tiff_lzw"}),
        ("rgba.png", rgb.convert("RGBA"), {}), ("cmyk.tif", rgb.convert("CMYK"), {}), ("grey.jp2", grey, {}),
        ("float.tif", grey.convert("F"), {}),
    ):  # fmt: skip
        picture.save(folder / name, **options)
    large = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    tifffile.imwrite(folder / "tiled.tif", large, tile=(128, 128), resolution=(2e4, 2e4), resolutionunit="CENTIMETER")
    return sorted(folder.iterdir())


READS = (read_image, read_mask, read_instances, image_size, mask_size, stated_mpp)
CHECKED = ("grey.png", "palette.png", "bits.png", "deep.png", "rgb.png")  # formats with checksums


@cases(15, 135, 750)
def test_mutated_images_and_masks_are_decoded_right_or_refused(tmp_path, workspace, numbers):
    findings = Findings("images")
    (tmp_path / "base").mkdir()
    paths = write_images(tmp_path / "base")
    wholes = {path.name: _decoded(path, workspace) for path in paths}
    for number in numbers:
        rng = random_of("images", number)
        source = rng.choice(paths)
        path = workspace / (source.name if rng.random() < 0.9 else f"{source.stem}{rng.choice(paths).suffix}")
        path.write_bytes(mutated_bytes(source.read_bytes(), rng))
        with findings.case(number, source.name):
            values = _decoded(path, workspace)
            if source.name in CHECKED:
                for read, value in values.items():
                    assert value is None or np.array_equal(value, wholes[source.name][read]), f"{read} is wrong"
        path.unlink()
    findings.check()


def _decoded(path, workspace):
    return {read.__name__: outcome(partial(read, path), workspace)[0] for read in READS}


@cases(4, 36, 150)
def test_mutated_slides_and_images_are_opened_for_predict_or_refused(tmp_path, workspace, numbers):
    findings = Findings("inputs of predict")
    (tmp_path / "base").mkdir()
    paths = [path for path in write_images(tmp_path / "base") if path.stem.startswith(("rgb", "tiled"))]
    paths += [tmp_path / "base/tiled.tif"] * len(paths)
    assert is_slide(tmp_path / "base/tiled.tif")
    sampling = Sampling(size=(256, 256), mpp=0.5, resized=False, original_px=(256, 256))
    for number in numbers:
        rng = random_of("inputs", number)
        source = rng.choice(paths)
        path = workspace / source.name
        path.write_bytes(mutated_bytes(source.read_bytes(), rng))
        with findings.case(number, source.name):
            outcome(partial(_read_input, path, sampling), workspace)
        path.unlink()
    findings.check()


def _read_input(path, sampling):
    with closing(open_input_image(path, sampling)) as image:
        assert image.read(0, 0, 256, 256).shape == (256, 256, 3)
        image.tissue(), image.overview(64)


def write_folder_dataset(root):
    """Write a data set of `folder`: five images with masks and a splits.csv."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(root / f"images/a{number}.png")
        Image.fromarray(rng.integers(0, 2, (40, 50), dtype=np.uint8)).save(root / f"masks/a{number}.png")
    rows = [f"a{number},{split},s{number}" for number, split in enumerate(["train", "train", "val", "test", "testB"])]
    (root / "splits.csv").write_text("\n".join(["id,split,source", *rows]) + "\n")


def write_glas_dataset(root):
    """Write a data set of `glas`: three images with masks of numbered glands and a Grade.csv."""
    rng = np.random.default_rng(0)
    root.mkdir()
    names = ("train_1", "train_2", "testA_1")
    for name in names:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(root / f"{name}.bmp")
        Image.fromarray(rng.integers(0, 5, (40, 50), dtype=np.uint8)).save(root / f"{name}_anno.bmp")
    rows = [f"{name}, {number}, benign, adenoma" for number, name in enumerate(names, 1)]
    header = "name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"
    (root / "Grade.csv").write_text("\n".join([header, *rows]) + "\n")


@cases(8, 72, 240)
def test_a_mutated_data_set_is_listed_and_loaded_or_refused(tmp_path, workspace, outside, numbers):
    findings = Findings("data sets")
    write_folder_dataset(tmp_path / "base/folder")
    write_glas_dataset(tmp_path / "base/glas")
    for number in numbers:
        rng = random_of("data sets", number)
        name = rng.choice(["folder", "folder", "glas"])
        root = copied(tmp_path / "base" / name, workspace / name)
        if rng.random() < 0.7:
            (table,) = root.glob("*.csv")
            table.write_bytes(mutated_lines(table.read_bytes(), rng))
            what = "csv"
        else:
            what = mutate_folder(root, rng, outside)
        instances = name == "folder" and rng.random() < 0.2
        options = DatasetOptions(root=root, resize=256, instances=instances)
        with findings.case(number, f"{name} {what}"):
            outcome(partial(_load_dataset, name, options), workspace)
    findings.check()


def annotation(kind, coordinates, classification, **geometry):
    """An annotation as QuPath exports it."""
    shape = {"type": kind, "coordinates": coordinates} if coordinates else {"type": kind, **geometry}
    properties = {"objectType": "annotation", "name": "mine", "classification": classification, "isLocked": False}
    return {"type": "Feature", "id": "0b1", "geometry": shape, "properties": properties}


def write_slides_dataset(root):
    """Write a data set of `slides`: two tiled TIFF files with outlines of every kind of geometry, one gzipped."""
    root.mkdir(parents=True)
    square = [[20, 20], [120, 20], [120, 90], [20, 90], [20, 20]]
    crossed = [[200, 200], [280, 280], [280, 200], [200, 280], [200, 200]]
    gland = {"name": "gland", "color": [200, 0, 0]}
    outlines = [
        annotation("Polygon", [square, [[40, 40], [60, 40], [60, 60], [40, 40]]], gland),
        annotation("Polygon", [crossed], {"names": ["gland", "Positive"], "color": [1, 2, 3]}),
        annotation("MultiPolygon", [[square], [crossed]], {"name": "stroma"}),
        annotation("LineString", [[10, 150], [90, 180.5]], {"name": "stroma"}),
        annotation("MultiPoint", [[150, 40], [160, 50]], gland),
        annotation("GeometryCollection", None, gland, geometries=[{"type": "Point", "coordinates": [5, 5]}]),
        annotation("Polygon", [[[0, 0], [300, 0], [300, 300], [0, 300], [0, 0]]], {"name": "Region*"}),
        annotation("Polygon", [square], None),
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for name in ("a", "b"):
        tifffile.imwrite(root / f"{name}.tif", pixels, tile=(256, 256), resolution=(2e4, 2e4), resolutionunit=3)
    (root / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": outlines}))
    (root / "b.geojson.gz").write_bytes(gzip.compress(json.dumps(outlines).encode()))
    (root / "splits.csv").write_text("id,split,source\na,train,p\nb,test,q\n")


@cases(25, 225, 800)
def test_mutated_outlines_are_drawn_or_refused(tmp_path, workspace, outside, numbers):
    findings, base = Findings("outlines"), tmp_path / "base/slides"
    write_slides_dataset(base)
    _load_dataset("slides", DatasetOptions(root=base, window_px=256))  # once, for the libraries that it opens
    for number in numbers:
        rng = random_of("outlines", number)
        root, draw = copied(base, workspace / "slides"), rng.random()
        if draw < 0.7:
            path = root / "a.geojson"
            path.write_bytes(mutated_json(path.read_bytes(), rng))
            what = "GeoJSON"
        elif draw < 0.8:
            path = root / "b.geojson.gz"
            path.write_bytes(mutated_bytes(path.read_bytes(), rng))
            what = "gzip"
        else:
            what = mutate_folder(root, rng, outside)
        options = DatasetOptions(root=root, window_px=256, min_labelled_px=rng.choice([1, 1024]))
        with findings.case(number, what):
            outcome(partial(_load_dataset, "slides", options), workspace)
    findings.check()


def _load_dataset(name, options):
    dataset = open_dataset(name, options)
    assert len({sample.id for sample in dataset.samples}) == len(dataset.samples)
    assert dataset.test_split in {sample.split for sample in dataset.samples} or name == "slides"
    for sample in dataset.samples:
        pixels = dataset.load(sample)
        counted = pixels.mask if dataset.ignore is None else pixels.mask[pixels.mask != dataset.ignore]
        assert pixels.image.shape == (256, 256, 3) and counted.max() < len(dataset.classes)


RUNS = (
    "glas-ramp-t50-b4-5-linear-lr0.01-epochs2-s0",
    "glas-ramp-t50-b4,9-pixel-ensemble-lr0.001-epochs1-pixels256-s0",
    "glas-ramp-res-unet-none-lr0.0001-epochs1-s0",
    "bcss-ramp-t50-b4-linear-lr0.01-epochs1-classweightsbalanced-s0",
)


def write_runs(folder, names=RUNS):
    """Copy runs of release 0.1.0 into `heads` of a folder, each also as this release would write it."""
    for name in names:
        old = RunFolder(shutil.copytree(FIXTURES / "workspace-v1/heads" / name, folder / "heads" / f"old-{name}"))
        run, new = FinishedRun.read(old), RunFolder(shutil.copytree(old.path, folder / "heads" / name))
        store = str(folder / f"{run.name.split('-t50')[0].split('-res')[0]}.zarr")
        sources = tuple(dataclasses.replace(source, store=store) for source in run.data.sources)
        data = dataclasses.replace(run.data, sources=sources)
        new.begin(dataclasses.replace(run.config, data=data))
        for epoch in run.history:
            new.append_history(epoch)
        for image_id in {image.id for split in run.metrics.splits.values() for image in split.per_image}:
            shutil.copy(old.prediction_path(image_id), new.prediction_path(image_id))
        new.write_metrics(msgspec.structs.replace(run.metrics, sha256=new.weights_digests()))


@cases(5, 45, 350)
def test_a_mutated_run_predicts_as_before_or_is_refused(tmp_path, workspace, outside, numbers):
    findings = Findings("runs")
    write_runs(tmp_path / "base")
    runs = sorted((tmp_path / "base/heads").iterdir())
    for number in numbers:
        rng = random_of("runs", number)
        run = rng.choice(runs)
        folder = copied(run, workspace / run.name)
        what = mutate_folder(folder, rng, outside, _mutated_run_file)
        with findings.case(number, f"{run.name} {what}"):
            before = snapshot(folder)
            outcome(partial(FinishedRun.read, RunFolder(folder)), workspace)
            outcome(partial(_predict_with, folder), workspace)
            assert snapshot(folder) == before, "reading changed the run"
        shutil.rmtree(folder)
    findings.check()


def _mutated_run_file(path, rng):
    mutate = {".json": mutated_json, ".jsonl": mutated_lines}.get(path.suffix, mutated_bytes)
    return mutate(path.read_bytes(), rng)


def _predict_with(folder):
    """Predict one image from random features; read what else a run holds."""
    head = TrainedHead.load(folder)
    run = RunFolder(folder)
    config = run.read_config()
    generator = torch.Generator().manual_seed(0)
    channels = {layer: config.data.channels(layer) for layer in config.settings.layers}
    features = {layer: torch.randn(1, 1, count, 8, 8, generator=generator) for layer, count in channels.items()}
    if not head.gives_uncertainty:  # an ensemble takes seconds
        predicted = head.predict(features, PatchGrid(1, 1))
        assert predicted.isfinite().all() and predicted.shape[1] == len(head.classes)
    for image_id in FinishedRun.read(run).test_scores.by_image:
        run.read_prediction(image_id), run.read_uncertainty(image_id)


@cases(1, 4, 18)
def test_a_report_of_mutated_runs_shows_them_or_names_them(tmp_path, workspace, outside, numbers):
    findings = Findings("reports")
    base = tmp_path / "base"
    write_runs(base, RUNS[:2])
    shutil.copytree(FIXTURES / "workspace-v1/glas-ramp.zarr", base / "glas-ramp.zarr")
    build_report(copied(base, workspace / "work"))  # the caches of fonts are written
    for number in numbers:
        rng = random_of("reports", number)
        work = copied(base, workspace / "work")
        what = mutate_folder(work / "heads", rng, outside, _mutated_run_file)
        with findings.case(number, what):
            before = snapshot(work)
            outcome(partial(build_report, work), workspace)
            after = {name: data for name, data in snapshot(work).items() if not name.startswith("report")}
            assert after == before, "the report changed a run or a store"
    findings.check()


@cases(4, 36, 100)
def test_mutated_results_of_predict_are_kept_made_again_or_named(
    tmp_path, workspace, outside, numbers, colour_head, colour_features
):
    findings = Findings("results of predict")
    image = np.random.default_rng(0).integers(0, 256, (256, 300, 3), dtype=np.uint8)
    path = tmp_path / "base/image.png"
    path.parent.mkdir()
    Image.fromarray(image).save(path)
    config = PredictConfig(formats=("mask", "geojson"), tissue="all")
    truth = GroundTruth("masks", lambda name: np.zeros((256, 300), np.uint8))
    out = tmp_path / "base/out"

    def predict_into(out):
        source = ModelFeatures(colour_head(), (colour_features,), config)
        return Predictor(source.head, source, out, config, truth).predict_all([path], open_input_image)

    expected = predict_into(out).images[0]
    whole = snapshot(out)
    for number in numbers:
        rng = random_of("predict", number)
        folder = copied(out, workspace / "out")
        what = mutate_folder(folder, rng, outside, _mutated_run_file)
        with findings.case(number, what):
            result, _ = outcome(partial(predict_into, folder), workspace)
            assert "folder" not in what or _notes(folder) == ["mine"], "foreign files are gone"
            if result and result.images and "_done/image.json" not in what:
                assert result.images[0] == expected, "another record"
    assert whole["mask/image.png"]
    findings.check()


@cases(4, 36, 100)
def test_a_mutated_window_cache_is_used_right_or_refused(tmp_path, workspace, outside, numbers):
    findings = Findings("window caches")
    values = np.random.default_rng(0).random((4, 2, 16, 16), np.float32)
    identity = WindowCacheIdentity(
        file="a.tif", size_bytes=9, content_digest="ab", size=(20, 50), mpp=0.5, run="a", weights_digest="cd",
        model_digest="ef", overlap=4, tissue="otsu", batch_size=1, windows=(0, 1, 2, 5),
    )  # fmt: skip
    WindowCache.on_disk(tmp_path / "base", identity, shape=(2, 16, 16)).write([0, 2], values[[0, 2]])

    def read(folder):
        cache = WindowCache.on_disk(folder, identity, shape=(2, 16, 16))
        kept = [index for index in range(4) if cache.complete([index])]
        found = {index: cache.read(index) for index in kept}
        cache.write([1], values[1:2])
        return found

    for number in numbers:
        rng = random_of("windows", number)
        folder = copied(tmp_path / "base", workspace / "cache")
        what = mutate_folder(folder, rng, outside, _mutated_run_file)
        with findings.case(number, what):
            found, _ = outcome(partial(read, folder), workspace)
            for index, maps in (found or {}).items():
                assert np.array_equal(maps, values[index].astype(np.float16)), "wrong values"
    findings.check()


@cases(1, 5, 66)
def test_mutated_training_states_are_resumed_right_or_named(tmp_path, workspace, outside, numbers, toy_store):
    """A run that was cut off after its first epoch goes on to the weights of an undisturbed one, or is named."""
    findings = Findings("training states")
    config = HeadConfig(blocks=(4,), head_type="linear", lr=1e-2, epochs=2)
    whole, base = RunFolder(tmp_path / "base/whole"), RunFolder(tmp_path / "base/run")
    train_heads(toy_store, [(config, whole)])

    def stop(run, epoch):
        raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        train_heads(toy_store, [(config, base)], on_epoch=stop)
    expected = load_file(whole.weights)
    for number in numbers:
        rng = random_of("training", number)
        run = RunFolder(copied(base.path, workspace / "run"))
        what = mutate_folder(run.path, rng, outside, _mutated_run_file)
        with findings.case(number, what):
            states, _ = outcome(partial(train_heads, toy_store, [(config, run)]), workspace)
            assert "folder" not in what or _notes(run.path) == ["mine"], "foreign files are gone"
            if states and states[0].failure is None:
                found = load_file(run.weights)
                assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), "other weights"
    findings.check()


def _notes(folder):
    return [path.read_text() for path in folder.rglob("notes.txt")]
