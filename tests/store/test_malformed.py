"""Malformed descriptions, manifests and records: one line of StoreError or a store that opens, and nothing else."""

import copy
import json
import random

import pytest

from pathseg.store.contents import Contents
from pathseg.store.errors import StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.format.manifest import Manifest
from pathseg.store.records import ArraySet, CompletionRecord, seal
from pathseg.store.verify import verify

DEEP = json.loads("[" * 300 + "]" * 300)
NUMBERS = (None, True, -1, 0, 1, 7, 10**12, 10**30, 1.5, float("inf"))
TEXTS = ("", "x", "../x", "/etc/x", "\n\x1b[31m", "9" * 5000)
VALUES = (*NUMBERS, *TEXTS, [], {}, [[]], [1, 2], {"a": 1}, DEEP, ["a"] * 300)


def mutated(value, rng):
    """Return a copy of JSON values in which one to three of them are replaced, deleted, added or renamed."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        node = value
        while True:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            if not keys:
                break
            key = rng.choice(list(keys))
            if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.6:
                node = node[key]
                continue
            action = rng.choice(["replace", "replace", "replace", "delete", "rename"])
            if action == "replace":
                node[key] = rng.choice(VALUES)
            elif action == "delete":
                del node[key]
            elif isinstance(node, dict):
                node[str(rng.choice(VALUES))[:300]] = node.pop(key)
            break
    return value


def opens_or_fails_in_one_line(call):
    try:
        call()
    except StoreError as e:
        assert "\n" not in str(e) and len(str(e)) < 2000
        return False
    return True


def test_malformed_attributes_end_in_one_line(toy_contents):
    rng, attributes = random.Random(0), toy_contents().to_attributes()
    opened = [
        opens_or_fails_in_one_line(lambda: Contents.from_attributes(mutated(attributes, rng), store="a.zarr"))
        for _ in range(400)
    ]
    assert 0 < sum(opened) < 300  # some change a free text only


def test_malformed_records_end_in_one_line():
    record = CompletionRecord(ArraySet(50, (4, 9)), 3, {"t50/block04": (1, None), "t50/block09": (2, None)})
    rng, body = random.Random(1), json.loads(record.to_json())["body"]
    for _ in range(400):
        data = seal(mutated(body, rng))
        opens_or_fails_in_one_line(lambda: CompletionRecord.from_json(data, source="000003.json").complete)  # noqa: B023


@pytest.mark.parametrize("stores", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_a_malformed_store_is_opened_or_named_and_nothing_around_it_changes(toy_store, stores):
    rng, folder = random.Random(2), toy_store.location.root
    manifest = folder / "_done/metadata.json"
    around = sorted(path.name for path in folder.parent.iterdir())
    for _ in range(stores):
        texts = dict(toy_store.manifest.texts)
        name = rng.choice(["zarr.json", "zarr.json", *texts])
        texts[name] = json.dumps(mutated(json.loads(texts[name]), rng))
        (folder / name).write_text(texts[name])
        manifest.write_bytes(Manifest(texts).to_json())
        opens_or_fails_in_one_line(lambda: FeatureStore.open(folder).read(0, t=50))
        opens_or_fails_in_one_line(lambda: verify(folder))
        for file, text in toy_store.manifest.texts.items():
            (folder / file).write_text(text)
        manifest.write_bytes(toy_store.manifest.to_json())
    assert verify(folder) == ()
    assert sorted(path.name for path in folder.parent.iterdir()) == around
