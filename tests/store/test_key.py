import dataclasses
import json

import pytest

from pathseg.store.errors import KeyMismatch, StoreError
from pathseg.store.key import (
    LATER_FIELDS,
    DiffusersSettings,
    Preprocessing,
    StoreKey,
    Surroundings,
    ViTSettings,
    ZoomSettings,
)

VIT = ViTSettings(
    "vit_small_patch16_224", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 256, "final", {"depth": 2, "init_values": 1e-5}
)

OTHER = {
    "dataset": "glas",
    "preprocessing": Preprocessing(resized=True),
    "size": (512, 512),
    "mpp": None,
    "model": "other",
    "model_digest": "cd" * 32,
    "first_stage": "kl-f8",
    "condition": "none",
    "seed": 1,
    "layout": "grid",
    "dtype": "float32",
    "patch_px": 512,
    "noise": "other rule",
    "precision": "bfloat16",
    "packing": "rounded",
    "batch_size": 3,
    "vit": VIT,
    "surroundings": Surroundings(2, "mirrored"),
    "diffusers": DiffusersSettings("file", 3),
    "zoom": ZoomSettings("10x", VIT),
}
BCSS = Preprocessing(settings={"image_folder": "images", "file_mpp": (0.25,), "patch_px": 800, "views": 3})


def test_every_field_is_in_this_test():
    assert set(OTHER) == {field.name for field in dataclasses.fields(StoreKey)}


@pytest.mark.parametrize("preprocessing", [Preprocessing(), OTHER["preprocessing"], BCSS])
def test_a_key_comes_back_equal_through_json(toy_key, preprocessing):
    key = toy_key(preprocessing=preprocessing)
    assert StoreKey.from_json(json.loads(json.dumps(key.to_json()))) == key


@pytest.mark.parametrize("name", [name for name in OTHER if name not in ("preprocessing", *LATER_FIELDS)])
def test_a_differing_field_is_refused_with_both_values(toy_key, name):
    other = toy_key(**{name: OTHER[name]})
    with pytest.raises(KeyMismatch) as caught:
        toy_key().require(other, store="a.zarr")
    message = str(caught.value)
    for value in (getattr(toy_key(), name), getattr(other, name)):
        assert ("not set" if value is None else repr(value)) in message
    assert name in message and "a.zarr" in message and "--store" in message
    assert toy_key().digest != other.digest


@pytest.mark.parametrize("name", ["vit", "surroundings", "zoom"])
def test_a_field_of_some_models_comes_back_equal_and_other_keys_do_not_mention_it(toy_key, name):
    key = toy_key(**{name: OTHER[name]})
    assert StoreKey.from_json(json.loads(json.dumps(key.to_json()))) == key
    assert name not in toy_key().to_json()
    assert toy_key().digest != key.digest


def test_keys_of_two_magnifications_differ_by_them(toy_key):
    key, other = (toy_key(zoom=ZoomSettings(magnification, VIT)) for magnification in ("20x", "10x"))
    with pytest.raises(KeyMismatch, match=r"zoom\.magnification is '20x' there, '10x' asked for; pass"):
        key.require(other, store="a.zarr")
    assert (key.condition_text, other.condition_text) == ("ssl at 20x", "ssl at 10x")


def test_a_key_of_a_diffusers_pipeline_comes_back_equal_and_differs_by_its_condition(toy_key):
    key, others = toy_key(diffusers=DiffusersSettings("zero")), DiffusersSettings("zero", 3)
    assert StoreKey.from_json(json.loads(json.dumps(key.to_json()))) == key
    assert "diffusers" not in toy_key().to_json()
    with pytest.raises(KeyMismatch, match=r"diffusers\.class_label is not set there, 3 asked for; pass"):
        key.require(toy_key(diffusers=others), store="a.zarr")
    assert (toy_key().condition_text, key.condition_text) == ("ssl", "zero context")
    assert [str(DiffusersSettings(*values)) for values in (("none",), ("none", 1), ("file", 2))] == [
        "unconditional",
        "class 1",
        "stored context, class 2",
    ]
    assert toy_key().digest != key.digest


def test_a_differing_setting_of_a_timm_model_is_named_with_both_values(toy_key):
    with pytest.raises(KeyMismatch, match=r"vit\.norm is 'final' there, 'none' asked for; pass"):
        toy_key(vit=VIT).require(toy_key(vit=dataclasses.replace(VIT, norm="none")), store="a.zarr")


@pytest.mark.parametrize(
    ("preprocessing", "words"),
    [(OTHER["preprocessing"], ["preprocessing.resized", "False", "True"]), (BCSS, ["preprocessing.views", "3"])],
)
def test_a_differing_setting_of_the_preprocessing_is_named(toy_key, preprocessing, words):
    with pytest.raises(KeyMismatch) as caught:
        toy_key().require(toy_key(preprocessing=preprocessing), store="a.zarr")
    assert [word for word in words if word not in str(caught.value)] == []


def test_an_unknown_field_is_refused(toy_key):
    with pytest.raises(StoreError, match="stain"):
        StoreKey.from_json(toy_key().to_json() | {"stain": "macenko"})


def test_a_field_that_an_older_release_did_not_know_takes_its_default(toy_key):
    values = toy_key().to_json()
    del values["packing"]
    assert StoreKey.from_json(values) == toy_key(packing="none")


@pytest.mark.parametrize(
    ("sentence", "preprocessing"),
    [
        ("none", Preprocessing()),
        ("resized to 768x768 px (images bicubic, masks nearest), aspect ratio not kept", Preprocessing(resized=True)),
        ("generated with seed 5", Preprocessing(settings={"generator_seed": 5})),
        ("mask codes 0, 255 are classes 0..1", Preprocessing(settings={"mask_codes": (0, 255)})),
        ("painted by hand", Preprocessing(settings={"note": "painted by hand"})),
    ],
)
def test_the_sentences_of_format_1_become_fields(toy_key, sentence, preprocessing):
    assert StoreKey.from_json(toy_key().to_json() | {"preprocessing": sentence}).preprocessing == preprocessing
