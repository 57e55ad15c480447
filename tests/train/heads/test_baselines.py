import pytest
import torch
import torch.nn.functional as F
import torchvision

from pathseg.store.grid import PatchGrid
from pathseg.train.config import IMAGE, BaselineConfig
from pathseg.train.heads.baselines import VGG16FCN8, ResUNet, choose_weights, network_input, start_from_imagenet
from pathseg.train.heads.registry import BASELINES
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.training.loop import train_heads


def images(patches=2):
    generator = torch.Generator().manual_seed(0)
    return {IMAGE: torch.randint(0, 256, (1, patches, 3, 256, 256), generator=generator).float()}


@pytest.mark.parametrize("name", list(BASELINES))
@pytest.mark.parametrize("grid", [(1, 2), (2, 1)])
def test_scores_are_at_the_size_of_the_image(name, grid):
    with torch.device("meta"):
        net = BASELINES[name]({IMAGE: 3}, 5)
        scores = net({IMAGE: torch.empty(1, 2, 3, 256, 256)}, grid)
    assert scores.shape == (1, 5, 256 * grid[0], 256 * grid[1])


def test_vgg16_fcn8_has_the_parameters_of_the_paper():
    # VGG-16 without its classifier, fc6 and fc7 as convolutions, three score layers, three upsamplings: by hand
    vgg, k = 14_714_688, 21
    fc = 512 * 4096 * 49 + 4096 + 4096 * 4096 + 4096
    tail = (4096 + 512 + 256) * k + 3 * k + k * k * (16 + 16 + 256)
    with torch.device("meta"):
        assert sum(p.numel() for p in VGG16FCN8({IMAGE: 3}, k).parameters()) == vgg + fc + tail


def test_res_unet_has_the_parameters_of_its_library():
    # resnet18 without its last layer 11,176,512; the decoder of segmentation_models_pytorch 3,151,552; head 16*K*9 + K
    with torch.device("meta"):
        parameters = sum(p.numel() for p in ResUNet({IMAGE: 3}, 2).parameters())
    encoder = sum(p.numel() for p in torchvision.models.resnet18().parameters()) - 512 * 1000 - 1000
    assert encoder == 11_176_512
    assert parameters == encoder + 3_151_552 + 16 * 2 * 9 + 2


def test_upsampling_starts_as_bilinear_interpolation():
    scores = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    net = VGG16FCN8({IMAGE: 3}, 2, width=4)
    for layer, times in ((net.up4, 2), (net.up3, 8)):
        inner = slice(times, -times)  # at the border one pads with zeros, the other repeats
        expected = F.interpolate(scores, scale_factor=times, mode="bilinear", align_corners=False)
        assert torch.allclose(layer(scores)[..., inner, inner], expected[..., inner, inner], atol=1e-6)


def test_images_are_scaled_as_imagenet_weights_expect_them():
    (patches,) = images().values()
    whole = torch.cat([patches[0, 0], patches[0, 1]], dim=2)  # side by side
    preset = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    expected = torchvision.transforms.functional.normalize(whole / 255, preset.mean, preset.std)
    assert torch.allclose(network_input(images(), {IMAGE: 3}, PatchGrid(1, 2))[0], expected, atol=1e-6)


def test_imagenet_weights_give_the_encoder_of_torchvision():
    torch.manual_seed(1)
    theirs = torchvision.models.resnet18().eval()
    net = ResUNet({IMAGE: 3}, 2).eval()
    net.load_imagenet(theirs.state_dict())
    x = torch.rand(1, 3, 64, 64)
    expected = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x)))))
    assert torch.allclose(net.net.encoder(x)[2], expected, atol=1e-6)


def test_imagenet_weights_give_fc6_and_fc7_of_torchvision():
    theirs = torchvision.models.VGG(torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"]))
    theirs.classifier = torch.nn.Sequential(
        torch.nn.Linear(25088, 8), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(8, 8)
    )
    net = VGG16FCN8({IMAGE: 3}, 2, width=8).eval()
    net.load_imagenet(theirs.state_dict())
    x = torch.rand(1, 512, 7, 7)
    inner = net.fc7(net.fc6(x).relu())[0, :, 3, 3]  # the one position where the 7x7 kernel covers no padding
    assert torch.allclose(inner, theirs.eval().classifier(x.flatten(1))[0], atol=1e-5)


def test_auto_starts_from_random_weights_where_there_are_none_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights, message = choose_weights("res-unet", "auto")
    assert weights == "none"
    assert "res-unet: random first weights" in message and "resnet18-f37072fd.pth" in message


def test_imagenet_that_cannot_be_had_is_an_error_that_names_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"resnet18-f37072fd.pth .* --weights none"):
        choose_weights("res-unet", "imagenet")


def train(store, folder, config):
    (state,) = train_heads(store, [(config, RunFolder(folder))])
    assert state.failure is None
    return FinishedRun.read(state.run)


def test_a_baseline_starts_from_the_file_in_torchvisions_cache_reads_no_features_and_leaves_the_files_of_a_head(
    one_patch_store, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    theirs = torchvision.models.resnet18().state_dict()
    torch.save(theirs, cache / "resnet18-f37072fd.pth")
    weights, message = choose_weights("res-unet", "auto")
    assert (weights, str(cache) in message) == ("imagenet", True)
    monkeypatch.setattr(one_patch_store, "read_stored", lambda *a, **kw: pytest.fail("features were read"))
    folder, config = RunFolder(tmp_path / "heads" / "run"), BaselineConfig(weights=weights, epochs=1, lr=1e-12)
    (state,) = train_heads(one_patch_store, [(config, folder)], without=(1,))
    assert torch.allclose(state.head.net.encoder.conv1.weight, theirs["conv1.weight"], atol=1e-9)
    run = FinishedRun.read(state.run)
    assert {path.name for path in run.folder.path.iterdir()} == {
        "config.json", "head.safetensors", "head-last.safetensors", "history.jsonl", "checksums.json", "metrics.json",
        "predictions",
    }  # fmt: skip
    assert (run.is_baseline, run.settings.network, run.settings.weights) == (True, "res-unet", "imagenet")
    assert run.folder.read_prediction("test_3").shape == (256, 256)


@pytest.mark.slow
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(one_patch_store, tmp_path):
    config = BaselineConfig(weights="none", epochs=2)

    def cut(run, line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_heads(one_patch_store, [(config, RunFolder(tmp_path / "cut"))], on_epoch=cut)
    again, whole = (train(one_patch_store, tmp_path / name, config) for name in ("cut", "whole"))
    assert again.folder.weights.read_bytes() == whole.folder.weights.read_bytes()


def test_a_damaged_file_in_the_cache_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half a download")
    with pytest.raises(ValueError, match=r"resnet18-f37072fd\.pth is damaged .*delete it"):
        start_from_imagenet(ResUNet({IMAGE: 3}, 2), "res-unet")


def test_a_download_with_another_checksum_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "resnet18-f37072fd.pth").write_bytes(b"not these weights")
    url = (tmp_path / "resnet18-f37072fd.pth").as_uri()
    monkeypatch.setattr(type(torchvision.models.ResNet18_Weights.IMAGENET1K_V1), "url", url)
    with pytest.raises(FileNotFoundError, match=r"invalid hash value.*--weights none"):
        choose_weights("res-unet", "imagenet")
    assert choose_weights("res-unet", "auto")[0] == "none"


@pytest.mark.slow
def test_vgg16_fcn8_is_trained_end_to_end(toy_store, tmp_path):
    config = BaselineConfig(network="vgg16-fcn8", weights="none", epochs=1)
    assert train(toy_store, tmp_path / "run", config).metrics.epochs == 1
