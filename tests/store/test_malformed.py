"""Malformed descriptions and records: one line of StoreError or an object, and nothing else; stores: `test_fuzz.py`."""

import json
import random

from fuzzing import mutated_values

from pathseg.store.contents import Contents
from pathseg.store.errors import StoreError
from pathseg.store.records import ArraySet, CompletionRecord, seal


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
        opens_or_fails_in_one_line(lambda: Contents.from_attributes(mutated_values(attributes, rng), store="a.zarr"))
        for _ in range(400)
    ]
    assert 0 < sum(opened) < 300  # some change a free text only


def test_malformed_records_end_in_one_line():
    record = CompletionRecord(ArraySet(50, (4, 9)), 3, {"t50/block04": (1, None), "t50/block09": (2, None)})
    rng, body = random.Random(1), json.loads(record.to_json())["body"]
    for _ in range(400):
        data = seal(mutated_values(body, rng))
        opens_or_fails_in_one_line(lambda: CompletionRecord.from_json(data, source="000003.json").complete)  # noqa: B023
