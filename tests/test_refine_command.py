"""`refine`: from changed outlines to new predictions in one call or command, without computing a feature again."""

import json
import re
import shlex

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner

from pathseg.cli import main
from pathseg.extract.config import ExtractConfig, SlideStoreConfig
from pathseg.extract.datasets.registry import DatasetOptions
from pathseg.extract.inputs.images import list_input_images, open_input_image
from pathseg.extract.models import load as load_module
from pathseg.extract.models.ldm_features import DiffusionFeatures
from pathseg.extract.models.mini import mini_vit
from pathseg.extract.slide_store import SlideStore, slides_root
from pathseg.store.errors import StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.runtime.extraction_speed import read_speed
from pathseg.store.verify import verify
from pathseg.train.config import HeadConfig, RefineConfig
from pathseg.train.predict.config import PredictConfig
from pathseg.train.refine import refine
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder

RED, BLUE = (190, 60, 120), (90, 60, 160)


def box(left, top, right, bottom, name):
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}


def outline(root, *features):
    (root / "slide.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))


def write_tiff(path, pixels):
    tifffile.imwrite(
        path, pixels, tile=(256, 256), photometric="rgb", resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
        metadata=None,
    )  # fmt: skip


def slide_store_of(folder, root):
    return SlideStore.open(str(folder / "slides-mini.zarr"), root, SlideStoreConfig(model="mini"))


def refine_slides(slide_store, folder, config=None, **more):
    slides, store = list_input_images([slide_store.options.root]), FeatureStore.open(slide_store.location)
    return refine(slides, store, folder, config, t=slide_store.t, blocks=(4, 5, 6), open_image=open_input_image, **more)


@pytest.fixture(scope="module")
def refined(tmp_path_factory):
    """The outputs of a command, a call and a command on a slide of 1024x512 px, each with changed outlines; the folder.

    Of the call its result, the lines it gave and the progress of each step.
    """
    folder = tmp_path_factory.mktemp("refine")
    root, noise = folder / "slides", np.random.default_rng(0).normal(0, 12, (512, 1024, 3))
    root.mkdir()
    pixels = np.where((np.arange(1024) < 500)[None, :, None], RED, BLUE) + noise  # two tissues side by side
    write_tiff(root / "slide.tif", pixels.clip(0, 255).astype(np.uint8))
    outputs, called = [], {"steps": [], "notes": [], "progress": []}
    command = ["refine", str(root / "slide.tif"), "--model", "mini", "--blocks", "4-6", "--workspace", str(folder)]
    computed, features, loaded, load = [], DiffusionFeatures.denoise, [], load_module.load_model

    def counted(self, z0, *arguments, **more):
        computed.append(len(z0))
        return features(self, z0, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionFeatures, "denoise", counted)
        patch.setattr(load_module, "load_model", lambda *a, **k: loaded.append(a) or load(*a, **k))
        for number, boxes in enumerate((
            [box(10, 10, 80, 80, "left"), box(900, 10, 1000, 80, "right")],
            [box(10, 10, 80, 80, "left"), box(900, 10, 1000, 80, "right"), box(560, 300, 640, 400, "right")],
            [box(10, 10, 80, 80, "left"), box(900, 10, 1000, 80, "right"), box(480, 100, 520, 200, "border")],
        )):  # fmt: skip
            outline(root, *boxes)
            if number == 1:
                slide_store = slide_store_of(folder, root)
                tell = {"on_note": called["notes"].append, "on_progress": lambda *step: called["progress"].append(step)}
                called["slides"], called["extraction"] = slide_store, slide_store.follow(**tell)
                called["result"] = refine_slides(slide_store, folder, on_step=called["steps"].append, **tell)
                outputs.append((None, sum(computed), len(loaded)))
                continue
            result = CliRunner().invoke(main, command)
            assert result.exit_code == 0, result.output
            outputs.append((result.output, sum(computed), len(loaded)))
    return folder, outputs, called


def test_features_are_computed_once_however_often_outlines_change(refined):
    _, outputs, _ = refined
    assert [patches for _, patches, _ in outputs] == [8, 8, 8]  # two windows of four patches
    assert [models for _, _, models in outputs] == [1, 1, 1]  # the model is loaded the first time alone


def test_the_speed_of_the_one_extraction_is_kept(refined):
    folder, _, _ = refined
    speed = read_speed(folder, FeatureStore.open(folder / "slides-mini.zarr").contents.key)
    assert speed is not None and speed.passes == 8 and speed.seconds > 0


def test_each_call_trains_a_run_of_its_own_from_the_one_before(refined):
    folder, _, _ = refined
    runs = [FinishedRun.read(RunFolder(folder / "heads" / f"slides-mini-refine-linear-{n}")) for n in (1, 2, 3)]
    starts = [run.settings.initial_weights for run in runs]
    assert starts[0] is None
    assert [start.run for start in starts[1:]] == [str(run.folder.path) for run in runs[:2]]
    assert [run.data.classes for run in runs] == [("left", "right")] * 2 + [("border", "left", "right")]


def test_the_slide_is_segmented_into_the_outlined_tissues(refined):
    folder, _, _ = refined
    geojson = folder / "refined" / "slides-mini-refine-linear-2" / "geojson" / "slide.geojson"
    objects = json.loads(geojson.read_text())["features"]
    largest = {
        name: max((o for o in objects if o["properties"]["classification"]["name"] == name), key=span)
        for name in ("left", "right")
    }
    left, right = (np.array(largest[name]["geometry"]["coordinates"][0])[:, 0] for name in ("left", "right"))
    assert abs(left.max() - 500) < 40 and abs(right.min() - 500) < 40


def span(one):
    xs = np.array(one["geometry"]["coordinates"][0])[:, 0]
    return xs.max() - xs.min()


def test_it_prints_the_commands_it_stands_for_and_their_seconds(refined):
    _, outputs, _ = refined
    for output, *_ in (outputs[0], outputs[2]):
        commands = [line.split()[2] for line in output.splitlines() if line.startswith("$ pathseg")]
        assert commands == ["extract", "train-head", "predict"]
        assert re.search(
            r"s: extract \d+\.\d s, train-head \d+\.\d s, predict \d+\.\d s", output.strip().splitlines()[-1]
        )


def test_the_store_is_whole_after_all_changes(refined):
    folder, _, _ = refined
    assert verify(folder / "slides-mini.zarr") == ()
    assert FeatureStore.open(folder / "slides-mini.zarr").classes == ("border", "left", "right")


def test_a_mistake_in_a_step_ends_the_command_with_its_one_line(refined, tmp_path):
    folder, _, _ = refined
    result = CliRunner().invoke(
        main, ["refine", str(folder / "slides" / "other.tif"), "--workspace", str(folder), "--model", "mini"]
    )
    assert result.exit_code != 0 and "other.tif" in result.output and "Traceback" not in result.output


def test_a_start_that_does_not_fit_is_named_and_left_out(refined):
    folder, _, _ = refined
    result = CliRunner().invoke(
        main,
        ["refine", str(folder / "slides"), "--model", "mini", "--blocks", "5", "--workspace", str(folder), "--format",
         "overlay", "--epochs", "1"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "starts from random weights" in result.output and "block 4" in result.output
    run = FinishedRun.read(RunFolder(folder / "heads" / "slides-mini-refine-linear-4"))
    assert run.settings.initial_weights is None and run.settings.blocks == (5,)


def test_a_slide_beside_the_folder_of_outlines_is_refused_before_anything_runs(refined, tmp_path):
    folder, _, _ = refined
    (tmp_path / "slides").mkdir()
    with pytest.raises(ValueError, match=r"slide\.tif is not in .*--root"):
        slides_root([folder / "slides" / "slide.tif"], tmp_path / "slides")
    result = CliRunner().invoke(
        main,
        [
            "refine",
            str(folder / "slides" / "slide.tif"),
            "--root",
            str(tmp_path / "slides"),
            "--workspace",
            str(folder),
        ],
    )
    assert result.exit_code == 2 and "slide.tif" in result.output and "--root" in result.output


def test_the_calls_return_store_run_and_prediction_and_tells_how_far_it_is(refined):
    folder, _, called = refined
    result = called["result"]
    assert result.run.folder.path == folder / "heads" / "slides-mini-refine-linear-2"
    assert (called["extraction"].complete, called["extraction"].failures) == (2, ())
    assert [image.id for image in result.prediction.images] == ["slide"]
    assert result.prediction.out == folder / "refined" / "slides-mini-refine-linear-2"
    assert list(result.seconds) == ["train-head", "predict"]
    assert tuple(called["steps"]) == result.commands
    assert "with changed masks" in called["notes"][0]
    totals = list(dict.fromkeys(total for _, total in called["progress"]))
    assert totals[-2:] == [10, 2]  # epochs, windows
    assert {(10, 10), (2, 2)} <= set(called["progress"])


def parsed(line):
    """The values that the command line makes of the flags of a printed command."""
    _, command, *words = shlex.split(line)
    return main.commands[command].make_context(command, words).params


def test_the_printed_commands_have_the_settings_of_the_steps(refined):
    folder, _, called = refined
    words = shlex.join(["pathseg", *called["slides"].words])
    extract, train, predict = map(parsed, [words, *called["result"].commands])
    store = str(folder / "slides-mini.zarr")
    options = DatasetOptions(**{name: extract[name] for name in DatasetOptions.__dataclass_fields__})
    assert options == DatasetOptions(
        root=folder / "slides", windows="tissue", target_mpp=0.5, brush_um=10.0, region_class="Region*", window_px=512
    )
    config = ExtractConfig(**{name: extract[name] for name in ExtractConfig.__dataclass_fields__})
    assert config == ExtractConfig(layout="native", blocks=(4, 5, 6))
    assert (extract["dataset"], extract["model"], extract["store"]) == ("slides", "mini", store)
    assert (train["head_type"], train["lr"], train["epochs"]) == ("linear", (0.01,), 10)
    assert (train["blocks"], train["t"], train["store"]) == ((4, 5, 6), (50,), (store,))
    assert train["initial_weights"] == str(folder / "heads" / "slides-mini-refine-linear-1")
    settings = PredictConfig(**{name: predict[name] for name in PredictConfig.__dataclass_fields__})
    assert settings == PredictConfig(formats=("geojson", "review", "overlay"), objects_as="detections")
    assert predict["images"] == (str(folder / "slides" / "slide.tif"),)
    assert (predict["run"], predict["store"]) == (train["name"], (store,))


def test_windows_that_cannot_be_read_end_the_call_with_their_ids(refined, tmp_path):
    folder, _, _ = refined
    root = tmp_path / "slides"
    root.mkdir()
    whole = (folder / "slides" / "slide.tif").read_bytes()
    (root / "slide.tif").write_bytes(whole[:300_000])  # the header is whole, tiles are missing
    outline(root, box(10, 10, 80, 80, "left"), box(900, 10, 1000, 80, "right"))
    with pytest.raises((StoreError, ValueError), match=r"slide"):
        slide_store_of(tmp_path / "work", root).follow()


def test_settings_out_of_range_are_named():
    for config, settings, words in (
        (SlideStoreConfig, {"brush_um": 0.0}, "--brush-um"),
        (SlideStoreConfig, {"t": -1}, "t must be 0 or more"),
        (RefineConfig, {"lr": 0.0}, "lr must be above 0"),
        (RefineConfig, {"epochs": 0}, "epochs"),
        (RefineConfig, {"formats": ("svg",)}, "svg"),
    ):
        with pytest.raises(ValueError, match=words):
            config(**settings)


def test_a_fresh_head_starts_from_random_weights(refined):
    folder, _, _ = refined
    config = RefineConfig(fresh=True, epochs=1, formats=("overlay",))
    run = refine_slides(slide_store_of(folder, folder / "slides"), folder, config).run
    assert run.settings == HeadConfig(blocks=(4, 5, 6), head_type="linear", lr=1e-2, epochs=1)


def invoke(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def pale(tmp_path):
    """A slide of 1024x512 px whose right half is too pale for the tissue rule, its folder, and flags of `refine`."""
    root, noise = tmp_path / "slides", np.random.default_rng(0).normal(0, 4, (512, 1024, 3))
    root.mkdir()
    across = np.arange(1024)[None, :, None]
    pixels = np.where(across < 200, RED, np.where(across < 400, BLUE, (238, 237, 236))) + noise
    pixels[:, 400:] = pixels[:, 400:, :1]  # gray
    write_tiff(root / "slide.tif", pixels.clip(0, 255).astype(np.uint8))
    outline(root, box(10, 10, 80, 80, "left"), box(300, 10, 390, 80, "right"))
    return root, ["refine", root, "--model", "mini", "--blocks", 5, "--epochs", 1, "--format", "mask",
                  "--workspace", tmp_path]  # fmt: skip


def splits_of(root):
    contents = FeatureStore.open(root.parent / "slides-mini.zarr").contents
    return {image.corner: image.split for image in contents.images}


def predicted(root, number):
    """Which of the two windows were predicted by this run."""
    mask = tifffile.imread(root.parent / f"refined/slides-mini-refine-linear-{number}/mask/slide.tif")
    return tuple(bool((half != 255).any()) for half in (mask[:, :512], mask[:, 600:]))


def test_windows_that_a_store_was_made_with_are_kept(pale):
    root, command = pale
    made = ("--dataset", "slides", "--root", root, "--model", "mini", "--blocks", 5, "--layout", "native")
    invoke("extract", *made, "--windows", "all", "--workspace", root.parent)
    output = invoke(*command).output
    assert splits_of(root) == {(0, 0): "train", (0, 512): "unlabelled"}
    assert predicted(root, 1) == (True, True)
    extract, _, predict = (parsed(line[2:]) for line in output.splitlines() if line.startswith("$ pathseg"))
    assert (extract["windows"], predict["tissue"]) == ("all", "all")
    invoke(*command, "--tissue", "otsu")
    assert (splits_of(root)[0, 512], predicted(root, 2)) == ("unlabelled", (True, False))


def test_windows_are_chosen_for_a_new_store_and_changed_in_an_old_one(pale):
    root, command = pale
    invoke(*command)
    assert splits_of(root) == {(0, 0): "train"}
    refused = CliRunner().invoke(main, [*map(str, command), "--tissue", "all"])
    assert refused.exit_code == 2 and "--windows all" in refused.output and "slides-mini.zarr" in refused.output
    invoke(*command, "--windows", "all")
    assert (splits_of(root)[0, 512], predicted(root, 2)) == ("unlabelled", (True, True))
    invoke(*command, "--windows", "tissue")
    assert (splits_of(root)[0, 512], predicted(root, 3)) == ("unlisted", (True, False))
    invoke(*command)
    assert splits_of(root)[0, 512] == "unlisted"  # as it was asked for last


def test_a_slide_that_is_all_tissue_does_not_say_that_all_windows_are_wanted(refined):
    folder, _, _ = refined
    assert slide_store_of(folder, folder / "slides").options.windows == "tissue"


def test_the_vit_of_a_model_may_lie_elsewhere(pale):
    root, command = pale
    vit = root.parent / "elsewhere" / "vit256.pth"
    vit.parent.mkdir()
    torch.save({name: tensor + 0.01 for name, tensor in mini_vit().items()}, vit)
    invoke(*command, "--hipt", vit)
    refused = CliRunner().invoke(main, [*map(str, command), "--windows", "all"])  # a new window, and mini's own ViT
    assert refused.exit_code == 1 and "model_digest" in refused.output
    output = invoke(*command, "--windows", "all", "--hipt", vit).output
    assert splits_of(root)[0, 512] == "unlabelled" and f"--hipt {vit}" in output
