import os
import shutil

import numpy as np
import pytest
import zarr

from pathseg.store.errors import Damaged, StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.format.manifest import Manifest
from pathseg.store.location import local
from pathseg.store.runtime.regular_files import read_file
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


@pytest.fixture
def uncompressed_shards(tmp_path, toy_contents, toy_key, fill_store):
    made = toy_contents(key=toy_key(), images_per_unit=2)
    return fill_store(StoreWriter(tmp_path / "uncompressed.zarr", made), blocks=(4, 9))


@pytest.fixture
def scaled_store(tmp_path, toy_contents, toy_key, fill_store):
    made = toy_contents(key=toy_key(packing="int8"))
    return fill_store(StoreWriter(tmp_path / "scaled.zarr", made), blocks=(4, 9))


def test_a_store_as_it_was_written_has_no_findings(toy_store, sharded_store, uncompressed_shards, scaled_store):
    for store in (toy_store, sharded_store, uncompressed_shards, scaled_store):
        assert found(store.location.root) == set()


def test_features_of_a_whole_store_are_read_once_and_without_zarr(
    toy_store, sharded_store, uncompressed_shards, scaled_store, monkeypatch
):
    examined = []
    monkeypatch.setattr(Verification, "_check_array", lambda self, name, *rest: examined.append(name))
    for store in (toy_store, sharded_store, uncompressed_shards, scaled_store):
        found(store.location.root)
    assert set(examined) == {"images", "masks", "instances"}


@pytest.mark.parametrize(
    "faults_per_store", [30, pytest.param(100, marks=pytest.mark.soak), pytest.param(500, marks=pytest.mark.slow)]
)
def test_random_damage_is_all_found_and_none_false(
    toy_store, sharded_store, uncompressed_shards, scaled_store, faults_per_store
):
    """Faults, ten at a time: flipped bits, truncations, deletions, additions, each in a file of its own."""
    rng = np.random.default_rng(0)
    for store in (toy_store, sharded_store, uncompressed_shards, scaled_store):
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


@pytest.mark.parametrize("images_per_unit", [1, 5])
def test_an_empty_mask_is_written_and_not_missed_in_stores_that_left_it_out(tmp_path, toy_contents, images_per_unit):
    writer = StoreWriter(tmp_path / "a.zarr", toy_contents(images_per_unit=images_per_unit, has_instances=False))
    pixels = (np.ones((256, 512, 3), np.uint8), np.zeros((256, 512), np.uint8), None)
    for unit in range(writer.store.contents.units):
        writer.write_pixels(unit, [pixels for _ in writer.images(unit)])
    assert found(tmp_path / "a.zarr") == set()
    (tmp_path / "a.zarr/masks/c/0/0/0").unlink()
    assert found(tmp_path / "a.zarr") == set()
    assert not FeatureStore.open(tmp_path / "a.zarr").mask(0).any()
    (tmp_path / "a.zarr/images/c/0/0/0/0").unlink()
    assert found(tmp_path / "a.zarr") == {("missing", "images/c/0/0/0/0")}


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
    (folder / f"masks/c/0/0/0.{'ab' * 16}.partial").write_bytes(b"half")
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


def seal_manifest(folder, change):
    path = folder / "_done/metadata.json"
    texts = dict(Manifest.from_json(path.read_bytes(), source="m").texts)
    change(texts)
    path.write_bytes(Manifest(texts).to_json())


def test_repair_removes_nothing_that_pathseg_did_not_write(toy_store):
    folder = toy_store.location.root
    mine = zarr.open_group(folder, mode="r+").create_array("my_labels", shape=(4, 8), chunks=(1, 8), dtype="uint8")
    mine[:] = 7
    shutil.copytree(folder / "my_labels", folder / "t77/block04")  # a name of pathseg's, but another array
    for name in (
        "notes/c/2024/thesis.tex",
        "slides.partial",
        "images/c/0/0.partial",
        "masks/c/99/0/0",
        "t9/zarr.json",
        "t50/block05/c/0/0/0/0/0.orig",
        "_done/pixels/1.json",
        "_done/t50/6-4/000000.json",
        "t50/block04/c/7",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    before = files_of(folder)
    assert {finding.kind for finding in verify(folder, repair=True)} == {"foreign"}
    assert files_of(folder) == before


@pytest.mark.parametrize("name", ["../outside.txt", "/ABSOLUTE", "t50/../../outside.txt", "images/c/0/0/0/0", "a.txt"])
def test_a_manifest_that_names_another_file_is_damaged_and_repair_writes_no_such_file(toy_store, name):
    folder = toy_store.location.root
    name = name.replace("/ABSOLUTE", str(folder.parent / "absolute.txt"))
    around, whole = files_of(folder.parent), files_of(folder)
    seal_manifest(folder, lambda texts: texts.update({name: "evil"}))
    with pytest.raises(Damaged, match=r"metadata\.json.*--repair"):
        FeatureStore.open(folder)
    assert found(folder) == {("damaged", "_done/metadata.json")}
    verify(folder, repair=True)
    assert (files_of(folder), files_of(folder.parent)) == (whole, around)


def test_a_manifest_that_describes_other_arrays_is_damaged(toy_store):
    folder = toy_store.location.root
    whole = files_of(folder)
    huge = (folder / "images/zarr.json").read_text().replace("256", "1000000000000")
    seal_manifest(folder, lambda texts: texts.update({"images/zarr.json": huge}))
    assert ("damaged", "_done/metadata.json") in found(folder)
    verify(folder, repair=True)
    assert files_of(folder) == whole


@pytest.mark.parametrize(
    "name", ["t50/block04/c/2/0/0/0/0", "masks/zarr.json", "zarr.json", "_done/pixels/000001.json"]
)
def test_a_folder_where_a_file_should_be_is_named_and_left_alone(toy_store, name):
    folder = toy_store.location.root
    (folder / name).unlink()
    (folder / name).mkdir()
    (folder / name / "notes.txt").write_text("mine")
    lines = [str(finding) for finding in verify(folder, repair=True)]
    assert any(line.startswith("foreign") and f"{name}/notes.txt" in line for line in lines)
    assert any("missing" in line for line in lines)
    assert (folder / name / "notes.txt").read_text() == "mine"


def test_an_unreadable_chunk_and_a_dead_link_are_named_and_the_rest_is_checked(toy_store, monkeypatch):
    folder = toy_store.location.root
    (folder / "t50/block04/c/1/0/0/0/0").unlink()
    (folder / "t50/block04/c/1/0/0/0/0").symlink_to("/nowhere")
    flip(folder / "t50/block09/c/3/0/0/0/0", byte=7)

    def on_a_bad_disk(path):
        if path.match("images/c/2/0/0/0"):
            raise OSError(5, "Input/output error")
        return read_file(path)

    monkeypatch.setattr(local, "read_file", on_a_bad_disk)
    damaged = {"images/c/2/0/0/0", "t50/block04/c/1/0/0/0/0", "t50/block09/c/3/0/0/0/0"}
    assert found(folder) == {("damaged", name) for name in damaged}
    verify(folder, repair=True)
    assert {finding.kind for finding in verify(folder)} == {"missing"}


@pytest.mark.parametrize("what", ["pipe", "device"])
def test_what_cannot_be_read_to_its_end_is_named_in_place_of_any_file(toy_store, sharded_store, what):
    plain = ["t50/block04/c/2/0/0/0/0", "masks/c/1/0/0", "masks/zarr.json", "_done/pixels/000001.json"]
    sharded = ["images/c/1/0/0/0", "t50/block09/c/0/0/0/0/0"]
    for store, names in ((toy_store, plain), (sharded_store, sharded)):
        for name in names:
            path = store.location.root / name
            path.unlink()
            os.mkfifo(path) if what == "pipe" else path.symlink_to("/dev/zero")
        assert found(store.location.root) == {("damaged", name) for name in names}
    for read in (lambda: FeatureStore.open(toy_store.location.root).mask(1), lambda: sharded_store.image(2)):
        with pytest.raises(Damaged, match="named pipe or a device"):
            read()


def test_a_part_that_was_moved_and_linked_back_is_read_but_nothing_is_changed_there(toy_store, tmp_path):
    folder, there = toy_store.location.root, tmp_path / "disk2"
    maps = toy_store.read(2, t=50)
    shutil.move(folder / "t50", there)
    (folder / "t50").symlink_to(there)
    assert found(folder) == set()
    assert all(np.array_equal(FeatureStore.open(folder).read(2, t=50)[block], maps[block]) for block in maps)
    flip(there / "block04/c/2/0/0/0/0", byte=7)
    flip(folder / "masks/c/1/0/0", byte=7)
    (there / f"block04/c/3/0/0/0/0.{'ab' * 16}.partial").write_bytes(b"half")
    before = files_of(there)
    lines = [str(finding) for finding in verify(folder, repair=True)]
    assert any("block04/c/2/0/0/0/0: train_2" in line and str(there) in line for line in lines)
    assert files_of(there) == before
    left = {(finding.kind, finding.name) for finding in verify(folder)}
    assert ("damaged", "t50/block04/c/2/0/0/0/0") in left and ("damaged", "masks/c/1/0/0") not in left
    with pytest.raises(StoreError, match="disk2"):
        StoreWriter(folder, toy_store.contents).store.location.write("t50/block04/c/2/0/0/0/0", b"")


def test_links_in_a_circle_end(toy_store):
    folder = toy_store.location.root
    (folder / "images/c/9").symlink_to(folder)
    (folder / "t7").symlink_to("t7")
    (folder / "more").symlink_to("/")
    assert {(f.kind, f.name) for f in verify(folder)} >= {("foreign", "more"), ("foreign", "t7")}
