import shutil

import numpy as np
import pytest

from pathseg.store.errors import StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.verify import Verification, verify
from pathseg.store.writer import StoreWriter


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def found(folder):
    return {(finding.kind, finding.name) for finding in Verification(folder).run()}


@pytest.fixture
def sharded_store(tmp_path, toy_contents, toy_key, fill_store):
    made = toy_contents(key=toy_key(packing="lossless"), images_per_unit=2)
    return fill_store(StoreWriter(tmp_path / "sharded.zarr", made), blocks=(4, 9))


def test_a_store_as_it_was_written_has_no_findings(toy_store, sharded_store):
    assert found(toy_store.location.root) == set()
    assert found(sharded_store.location.root) == set()


@pytest.mark.parametrize("faults_per_store", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_random_damage_is_all_found_and_none_false(toy_store, sharded_store, faults_per_store):
    """Faults, ten at a time: flipped bits, truncations, deletions, additions, each in a file of its own."""
    rng = np.random.default_rng(0)
    for store in (toy_store, sharded_store):
        folder = store.location.root
        whole = files_of(folder)
        made = 0
        while made < faults_per_store:
            names = rng.choice(list(whole), 10, replace=False).tolist()
            faults = dict(zip(names, rng.choice(["flip", "truncate", "delete", "add"], 10).tolist(), strict=True))
            if {"zarr.json", "_done/metadata.json"} <= faults.keys():
                del faults["zarr.json"]  # the store and its copy at once: a test of its own
            if any(name.startswith("_done/") and fault == "delete" for name, fault in faults.items()):
                # a chunk that goes together with its record leaves nothing to name but the image: other deletions cut
                cut = {name: "truncate" for name, f in faults.items() if f == "delete" and "/c/" in name}
                faults |= cut
            made += len(faults)
            named = apply(folder, whole, faults, rng)
            findings = Verification(folder).run()
            lines = "\n".join(map(str, findings))
            missed = [name for name in named if name not in lines]
            assert not missed, (missed, faults, lines)
            assert {f.name for f in findings if f.kind == "damaged"} <= set(faults) | records_of(folder, faults), (
                faults,
                lines,
            )
            restore(folder, whole)
    assert found(toy_store.location.root) == set()


def apply(folder, whole, faults, rng):
    """Make the faults; what must be named for each."""
    named = []
    for name, fault in faults.items():
        path, data = folder / name, bytearray(whole[name])
        if fault == "flip":
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            path.write_bytes(data)
        elif fault == "truncate":
            path.write_bytes(data[: rng.integers(len(data))])
        elif fault == "delete":
            path.unlink()
        else:
            name = f"{name}.{'partial' if rng.integers(2) else 'orig'}"
            (folder / name).write_bytes(b"added")
        # a record that is gone shows as the image it spoke of; its chunks are then stray
        deleted_record = fault == "delete" and name.startswith("_done/") and name[-6:] not in ("n.json", "a.json")
        named.append(name if not deleted_record else "")
    return named


def records_of(folder, faults):
    return {name for name in faults if name.startswith("_done/")}


def restore(folder, whole):
    shutil.rmtree(folder)
    for name, data in whole.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("t50/block04/c/2/0/0/0/0", "damaged"),
        ("images/c/0/0/0/0", "damaged"),
        ("_done/t50/0,4-5,9/000001.json", "damaged"),
        ("zarr.json", "damaged"),
        ("t50/block09/zarr.json", "damaged"),
        ("_done/metadata.json", "damaged"),
    ],
)
def test_a_flipped_bit_names_its_file(toy_store, name, kind):
    path = toy_store.location.root / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert (kind, name) in found(toy_store.location.root)


def test_damage_names_block_and_image(toy_store):
    (toy_store.location.root / "t50/block04/c/2/0/0/0/0").write_bytes(b"x")
    (finding,) = Verification(toy_store.location.root).run()
    assert "block04" in str(finding) and "train_2" in str(finding)


def test_a_deleted_record_shows_as_a_missing_image(toy_store):
    (toy_store.location.root / "_done/t50/0,4-5,9/000001.json").unlink()
    lines = [str(finding) for finding in Verification(toy_store.location.root).run()]
    assert any("missing" in line and "train_1 lacks blocks [0, 4, 5, 9]" in line for line in lines)
    assert sum("stray" in line for line in lines) == 4


def test_repair_leaves_a_store_that_needs_just_the_damaged_work_again(toy_store, toy_contents, fill_store):
    folder = toy_store.location.root
    whole = files_of(folder)
    (folder / "t50/block04/c/2/0/0/0/0").write_bytes(b"x")
    (folder / "t50/block09/zarr.json").write_text("{}")
    (folder / "masks/c/0/0/0.abc.partial").write_bytes(b"half")
    check = Verification(folder)
    check.run()
    check.repair()
    store = FeatureStore.open(folder)
    assert store.unfinished(t=50, blocks=(4,)) == (2,)
    assert {finding.kind for finding in Verification(folder).run()} == {"missing"}
    fill_store(StoreWriter(folder, toy_contents()))
    assert files_of(folder) == whole


@pytest.mark.parametrize("name", ["zarr.json", "_done/metadata.json"])
def test_the_description_is_restored(toy_store, name):
    folder = toy_store.location.root
    whole = files_of(folder)
    (folder / name).write_bytes(b"{")
    check = Verification(folder)
    check.run()
    check.repair()
    assert files_of(folder) == whole


def test_foreign_files_are_named_and_left_alone(toy_store):
    (toy_store.location.root / "notes.txt").write_text("mine")
    check = Verification(toy_store.location.root)
    assert [(f.kind, f.name) for f in check.run()] == [("foreign", "notes.txt")]
    check.repair()
    assert (toy_store.location.root / "notes.txt").exists()


def test_a_store_without_description_and_copy_cannot_be_verified(toy_store):
    for name in ("zarr.json", "_done/metadata.json"):
        (toy_store.location.root / name).write_bytes(b"{")
    with pytest.raises(StoreError, match="lost both"):
        Verification(toy_store.location.root)


def test_a_folder_without_a_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no feature store"):
        Verification(tmp_path)


def test_repair_waits_for_no_running_extraction(toy_store):
    (toy_store.location.root / "t50/block04/c/2/0/0/0/0").write_bytes(b"x")
    whole = files_of(toy_store.location.root)
    check = Verification(toy_store.location.root)
    check.run()
    with toy_store.location.writer_lock(), pytest.raises(StoreError, match="another run is writing"):
        check.repair()
    assert files_of(toy_store.location.root) == whole


def test_repair_looks_again_before_it_drops(toy_store):
    folder = toy_store.location.root
    record = folder / "_done/t50/0,4-5,9/000001.json"
    data = record.read_bytes()
    record.unlink()
    check = Verification(folder)
    assert any(finding.kind == "stray" for finding in check.run())
    record.write_bytes(data)  # a run has committed the unit in the meantime
    check.repair()
    assert found(folder) == set()


def test_repair_spares_chunks_that_a_sound_record_names(toy_store):
    folder = toy_store.location.root
    whole = files_of(folder)
    (folder / "_done/t50/4-5").mkdir()
    shutil.copy(folder / "_done/t50/0,4-5,9/000000.json", folder / "_done/t50/4-5/000000.json")
    check = Verification(folder)
    check.run()
    check.repair()
    assert files_of(folder) == whole


def test_a_flipped_bit_in_the_chunk_of_an_image_that_was_set_aside_is_found(tmp_path, toy_contents):
    writer = StoreWriter(tmp_path / "lacking.zarr", toy_contents(images_per_unit=5))
    writer.add_arrays([50], (4,))
    shape = writer._array("t50/block04").shape[1:]
    writer.write_features(0, t=50, features=[(4, [None, *[np.ones(shape, np.float16)] * 4])])
    folder = writer.store.location.root
    before = found(folder)
    flip(folder / "t50/block04/c/0/0/0/0/0", byte=0)
    assert found(folder) - before == {("damaged", "t50/block04/c/0/0/0/0/0")}


def test_the_library_call_repairs_and_reports_progress(toy_store):
    folder, units = toy_store.location.root, []
    flip(folder / "t50/block04/c/2/0/0/0/0", byte=7)
    findings = verify(folder, repair=True, on_unit=units.append)
    assert [(finding.kind, finding.name) for finding in findings] == [("damaged", "t50/block04/c/2/0/0/0/0")]
    assert units == [10] * 10  # pixels and features of five images
    assert {finding.kind for finding in verify(folder)} == {"missing"}
    assert FeatureStore.open(folder).unfinished(t=50, blocks=(4,)) == (2,)


def test_without_repair_nothing_is_changed(toy_store):
    folder = toy_store.location.root
    flip(folder / "t50/block04/c/2/0/0/0/0", byte=7)
    before = files_of(folder)
    assert verify(folder)
    assert files_of(folder) == before


def flip(path, *, byte):
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
