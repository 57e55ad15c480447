"""Which runs stand for which system of the paper."""

import numpy as np
import pytest

from pathseg.train.report.systems import find_systems, system_name

VIT = {"architecture": "vit_large_patch16_224", "mean": [0.5] * 3, "std": [0.5] * 3, "input_px": 224, "norm": "final"}
ZOOM = {"magnification": "20x", "vit": VIT}
TOKENS = {"first_stage": "none", "condition": "none"}  # of a model without latents
GOOD, FAIR = np.array([[50, 10], [20, 20]]), np.array([[40, 20], [20, 20]])


@pytest.mark.parametrize(
    ("key", "settings", "name"),
    [
        ({}, {}, "PathSegDiff"),
        ({"condition": "none"}, {}, "PathSegDiff-uncond"),
        ({"model": "brca-hipt-20x", "condition": "none"}, {}, "PathSegDiff-uncond"),
        ({"model": "my-brca"}, {}, "PathSegDiff"),  # conditioned as the paper's: on a ViT of HIPT's kind
        ({"model": "zoomldm", "condition": "none"}, {}, "zoomldm, condition none"),
        ({"model": "my-kl", "first_stage": "kl-f8", "condition": "none"}, {}, "my-kl, condition none"),
        ({"model": "zoomldm", "condition": "none"}, {"head_type": "linear"}, "linear probe on zoomldm, condition none"),
        ({**TOKENS, "model": "hipt"}, {}, "HIPT"),
        ({**TOKENS, "model": "mini-hipt"}, {}, "HIPT"),
        ({"model": "hipt", "condition": "none"}, {}, "hipt, condition none"),  # a release in a folder of that name
        ({**TOKENS, "model": "hipt", "vit": VIT}, {}, "hipt"),  # of timm, in a folder of that name
        ({**TOKENS, "model": "zoomldm-brca", "vit": VIT}, {}, "zoomldm-brca"),
        ({"model": "zoomldm-brca", "condition": "none"}, {}, "ZoomLDM-uncond"),
        ({"model": "zoomldm-brca", "zoom": ZOOM}, {}, "ZoomLDM"),
        ({"model": "my-zoom", "zoom": ZOOM}, {"head_type": "linear"}, "linear probe on ZoomLDM"),
        ({"model": "uni", "first_stage": "none", "condition": "none"}, {}, "uni"),
        ({"model": "tissue-sd", "condition": "none", "diffusers": {"context": "zero"}}, {}, "tissue-sd"),
        ({"model": "uni", "first_stage": "none", "condition": "none"}, {"head_type": "linear"}, "linear probe on uni"),
        ({}, {"head_type": "linear"}, "linear probe"),
        ({**TOKENS, "model": "hipt"}, {"head_type": "linear"}, "linear probe on HIPT"),
        ({}, {"head_type": "pixel-ensemble"}, "DDPMSeg (pixel ensemble)"),
        ({}, {"network": "res-unet"}, "Res-UNet"),
        ({"condition": "none"}, {"network": "vgg16-fcn8"}, "VGG16-FCN8"),
    ],
)
def test_a_run_has_the_papers_name(make_run, key, settings, name):
    assert system_name(make_run(key=key, **settings)) == name


def test_seeds_are_one_system(make_run):
    (one,) = find_systems([make_run(seed=0), make_run(seed=1, val=0.7)])
    assert (one.repeats.seeds, one.run.settings.seed, one.settings_tried) == ((0, 1), 1, 1)


def test_settings_are_chosen_by_validation_not_by_test(make_run):
    better_on_test = make_run(lr=1e-3, val=0.4, matrix=GOOD)
    (one,) = find_systems([better_on_test, make_run(lr=1e-4, val=0.6, matrix=FAIR)])
    assert (one.run.settings.lr, one.settings_tried) == (1e-4, 2)


def test_a_single_run_is_not_chosen_over_several_seeds(make_run):
    series = [make_run(lr=1e-4, seed=seed, val=val) for seed, val in ((0, 0.5), (1, 0.6))]
    single = make_run(lr=1e-3, val=0.9)
    (one,) = find_systems([*series, single, make_run(lr=1e-5, seed=0), make_run(lr=1e-5, seed=1)])
    assert (one.run.settings.lr, one.repeats.seeds) == (1e-4, (0, 1))
    assert (one.settings_tried, one.settings_aside) == (2, 1)


def test_more_test_images_count_before_more_seeds(make_run):
    few = [make_run(lr=1e-3, seed=seed, val=0.9) for seed in (0, 1)]
    (one,) = find_systems([*few, make_run(lr=1e-4, val=0.1, ids=("d", "e", "f"))])
    assert (one.run.settings.lr, one.settings_tried, one.settings_aside) == (1e-4, 1, 1)


def test_a_run_with_other_object_rules_is_no_other_setting(make_run):
    (one,) = find_systems([make_run(), make_run(connectivity="4", val=0.9)])
    assert (one.repeats.seeds, one.settings_tried, one.settings_aside) == ((0,), 1, 0)


def test_the_papers_own_system_comes_first(make_run):
    runs = [make_run(network="res-unet"), make_run(key={**TOKENS, "model": "hipt"}),
            make_run(key={"condition": "none"}), make_run()]  # fmt: skip
    assert [one.name for one in find_systems(runs)] == ["PathSegDiff", "PathSegDiff-uncond", "HIPT", "Res-UNet"]


def test_a_baseline_names_its_first_weights(make_run):
    (one,) = find_systems([make_run(network="res-unet", weights="none", trained=False)])
    assert one.weights == "trained on the images, from random weights" and one.settings[0] == "network res-unet"


def test_a_head_on_unconditional_features_names_their_condition(make_run):
    (one,) = find_systems([make_run(key={"condition": "none"})])
    assert one.weights == "mini, condition none"
    (one,) = find_systems([make_run(key={"model": "zoomldm", "condition": "none"})])
    assert one.name == one.weights == "zoomldm, condition none"


def test_a_head_names_the_model_of_its_features(make_run):
    (one,) = find_systems([make_run(trained=False)])
    assert one.weights == "mini (untrained)"


def test_joined_stores_are_a_system_named_after_what_it_reads(make_joined_run):
    parts = ({"blocks": (4, 5, 6)}, {"blocks": (11,), "key": {"model": "uni", "first_stage": None}})
    assert system_name(make_joined_run(*parts)) == "mini 4-6 + uni 11"
    assert system_name(make_joined_run(*parts, head_type="linear")) == "linear probe on mini 4-6 + uni 11"


def test_the_same_head_on_features_of_several_models_is_a_system_for_each(make_run):
    runs = [make_run(f"{model}{head}", key={"model": model}, head_type=head, lr=1e-3, epochs=9)
            for model in ("mini", "brca-hipt-20x") for head in ("fcn", "linear")]  # fmt: skip
    assert [one.name for one in find_systems(runs)] == [
        "PathSegDiff on brca-hipt-20x", "PathSegDiff on mini", "linear probe on brca-hipt-20x", "linear probe on mini",
    ]  # fmt: skip
    wide = {"surroundings": {"times": 2, "beyond": "mirrored"}}
    both = find_systems([make_run(), make_run("wide", key=wide)])
    assert [one.name for one in both] == ["PathSegDiff on mini", "PathSegDiff on mini (2x surroundings)"]


def test_joined_stores_of_one_model_are_told_apart_by_condition_and_seed(make_joined_run):
    def name(**other):
        return system_name(make_joined_run({"blocks": (4,)}, {"blocks": (4,), "key": other}))

    assert name(seed=1) == "mini (seed 0) 4 + mini (seed 1) 4"
    assert name(condition="none") == "mini (condition ssl) 4 + mini (condition none) 4"
    assert name(model="uni") == "mini 4 + uni 4"
