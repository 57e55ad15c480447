"""Stores that follow their data set: images added, relabelled, removed and listed again, runs killed at any write."""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from pathseg.extract.changes import find_changes
from pathseg.extract.config import ExtractConfig
from pathseg.extract.datasets.registry import Dataset, Pixels, Sample
from pathseg.extract.pipeline import extract
from pathseg.extract.plan import contents_of, plan_extraction
from pathseg.store.contents import UNLISTED
from pathseg.store.errors import KeyMismatch, StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.format.names import GROWTH
from pathseg.store.key import Preprocessing
from pathseg.store.location.local import LocalFolder
from pathseg.store.verify import verify
from pathseg.store.writer import StoreWriter
from tests.extract.conftest import ToyModel

CONFIG = ExtractConfig(layout="native", t=(10, 50), blocks=(0, 4))


class CountingModel(ToyModel):
    """Counts each (image, t, block) that it computes; the image's number is in its first pixel."""

    def __init__(self):
        self.computed = Counter()

    def prepare(self, images):
        z0, _ = super().prepare(images)
        return z0, int(images[0, 0, 0, 0])

    def denoise(self, z0, context, t, blocks, noise):
        self.computed.update((context, t, block) for block in blocks)
        return super().denoise(z0, context, t, blocks, noise)


class Files:
    """A data set of 256 px images in a folder, whose files say how often an image and its mask were drawn anew."""

    def __init__(self, folder, *, objects=False):
        self.folder, self.objects = folder, objects
        self.classes, self.listed, self.splits = ("dark", "light"), [], {}
        folder.mkdir()

    def draw(self, number, *, image=0, mask=0):
        (self.folder / f"{number}.image").write_text(f"{image}")
        (self.folder / f"{number}.mask").write_text(f"{mask}")

    def add(self, *numbers):
        for number in numbers:
            self.draw(number)
        self.listed += numbers

    def relabel(self, number):
        path = self.folder / f"{number}.mask"
        path.write_text(f"{int(path.read_text()) + 1}")

    def files(self, sample):
        return tuple(self.folder / f"{sample.id.removeprefix('i')}.{kind}" for kind in ("image", "mask"))

    def load(self, sample):
        number = int(sample.id.removeprefix("i"))
        image, mask = (int(path.read_text()) for path in self.files(sample))
        pixels = np.random.default_rng([number, image]).integers(0, 256, (256, 256, 3), np.uint8)
        pixels[0, 0, 0] = number
        codes = np.random.default_rng([number, mask, 9]).integers(0, len(self.classes), (8, 8), np.uint8)
        side = 200 + sample.height % 50
        ids = np.full((sample.height, sample.width), side + mask, np.uint16) if self.objects else None
        return Pixels(pixels, np.kron(codes, np.ones((32, 32), np.uint8)), ids)

    def dataset(self):
        numbers = sorted(self.listed)
        samples = [Sample(f"i{n}", self.splits.get(n, "test" if n == 0 else "train"), 200 + n, 300) for n in numbers]
        return Dataset(
            name="toy",
            samples=tuple(samples),
            load=self.load,
            files=self.files,
            classes=self.classes,
            size=(256, 256),
            test_split="test",
            preprocessing=Preprocessing(settings={"mask_codes": tuple(range(len(self.classes)))}),
            background=0,
            has_instances=self.objects,
        )


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def killed_at_write(monkeypatch, number, *, half_written):
    """Let a process end at its so-many-th write or removal; nothing is written after it."""
    left, create, remove = [number], LocalFolder.create, LocalFolder.remove

    def count(location, name):
        left[0] -= 1
        if left[0] == -1 and half_written:
            path = location.root / f"{name}.{'0' * 32}.partial"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half")
        if left[0] < 0:
            raise Killed

    @contextmanager
    def counted_create(location, name):
        count(location, name)
        with create(location, name) as file:
            yield file

    def counted_remove(location, name):
        count(location, name)
        remove(location, name)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "create", counted_create)
        patch.setattr(LocalFolder, "remove", counted_remove)
        yield


@pytest.fixture
def files(tmp_path):
    files = Files(tmp_path / "data")
    files.add(0, 1, 2)
    return files


def tree(path):
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def create(path, dataset, model, per_unit):
    contents = contents_of(dataset, model, CONFIG)
    StoreWriter(path, dataclasses.replace(contents, images_per_unit=per_unit))


def recorded(path):
    """(image, t, block) of every feature that a store vouches for."""
    store = FeatureStore.open(path)
    return {
        (int(id_.removeprefix("i")), t, block)
        for index, id_ in enumerate(store.ids)
        for t in CONFIG.t
        for block in CONFIG.blocks
        if not store.records.missing(t, (block,), index)
    }


def assert_reads_as_made_at_once(path, files, folder, per_unit=1):
    once, dataset = folder / "once.zarr", files.dataset()
    create(once, dataset, ToyModel(), per_unit)
    whole, grown = extract(dataset, ToyModel(), once, CONFIG).store, FeatureStore.open(path)
    index_of = {id_: index for index, id_ in enumerate(grown.ids)}
    assert {grown.ids[index] for index in grown.listed} == set(whole.ids)
    for index, id_ in enumerate(whole.ids):
        there = index_of[id_]
        assert grown.contents.images[there] == whole.contents.images[index]
        np.testing.assert_array_equal(grown.image(there), whole.image(index))
        np.testing.assert_array_equal(grown.mask(there), whole.mask(index))
        if files.objects:
            np.testing.assert_array_equal(grown.instances(there), whole.instances(index))
        for t in CONFIG.t:
            for block, maps in whole.read(index, t=t).items():
                np.testing.assert_array_equal(grown.read(there, t=t)[block], maps)
    for name in ("key", "classes", "background", "ignore", "test_split"):
        assert getattr(grown.contents, name) == getattr(whole.contents, name)
    shutil.rmtree(once)


def change(files, rng, removed):
    """One random change of the data set."""
    kind = rng.choice(["add", "add", "relabel", "remove", "return", "classes", "split"])
    keeping = [n for n in files.listed if n > 1]
    if kind == "add":
        files.add(*range(max(files.listed + removed) + 1, max(files.listed + removed) + 1 + rng.integers(1, 4)))
    elif kind == "relabel":
        for number in rng.choice(files.listed, min(2, len(files.listed)), replace=False):
            files.relabel(int(number))
    elif kind == "remove" and keeping:
        removed.append(int(rng.choice(keeping)))
        files.listed.remove(removed[-1])
    elif kind == "return" and removed:
        files.listed.append(removed.pop())
    elif kind == "classes":
        files.classes = ("dark", "light", "grey")[: int(rng.integers(2, 4))]
    elif kind == "split" and keeping:
        files.splits[int(rng.choice(keeping))] = str(rng.choice(["train", "val", "test"]))


def in_this_process(monkeypatch):
    """A run that an exception ends at one of its writes; returns whether it did."""

    def attempt(files, path, model, rng):
        with killed_at_write(monkeypatch, int(rng.integers(0, 40)), half_written=rng.random() < 0.5):
            try:
                extract(files.dataset(), model, path, CONFIG)
            except Killed:
                return True
        return False

    return attempt


class LoggingModel(CountingModel):
    """Appends a line to a file for each (image, t, block), before it computes it."""

    def __init__(self, log):
        super().__init__()
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def denoise(self, z0, context, t, blocks, noise):
        os.write(self.log, "".join(f"{context} {t} {block}\n" for block in blocks).encode())
        return super().denoise(z0, context, t, blocks, noise)


def extract_and_log(files, path, log):
    extract(files.dataset(), LoggingModel(log), path, CONFIG)


class KilledProcess:
    """A run in a process of its own, which SIGKILL ends at a random moment; returns whether it did."""

    def __init__(self, log):
        self.log, self.seconds = log, 0.5
        self.context = multiprocessing.get_context("forkserver")  # so that the libraries are imported once
        self.context.set_forkserver_preload([__name__])

    def __call__(self, files, path, model, rng):
        self.log.unlink(missing_ok=True)
        process = self.context.Process(target=extract_and_log, args=(files, path, self.log))
        process.start()
        process.join(self.seconds * rng.random())
        process.kill()  # SIGKILL; of a process that has ended nothing
        process.join()
        for line in self.log.read_text().splitlines() if self.log.exists() else ():
            image, t, block = map(int, line.split())
            model.computed[image, t, block] += 1
        killed = process.exitcode == -signal.SIGKILL
        assert killed or process.exitcode == 0
        self.seconds *= 1.1 if killed else 0.7  # about four of five are killed, however fast the machine is
        return killed


def follow_at_random(tmp_path, attempt, seed):
    """Change a data set and extract it again and again, killed or not; return how often a run was killed."""
    rng, kills, removed = np.random.default_rng(seed), 0, []
    files, path, per_unit = Files(tmp_path / "data", objects=seed % 3 == 2), tmp_path / "s.zarr", 1 + 2 * (seed % 2)
    files.add(0, 1, 2, 3)
    model = CountingModel()
    create(path, files.dataset(), model, per_unit)
    extract(files.dataset(), model, path, CONFIG)
    for _ in range(int(rng.integers(3, 6))):
        for _ in range(int(rng.integers(1, 3))):
            change(files, rng, removed)
        before, model.computed = recorded(path), Counter()
        if rng.random() < 0.8:
            kills += attempt(files, path, model, rng)
            findings = verify(path, repair=bool(rng.random() < 0.3))
            assert {finding.kind for finding in findings} <= {"missing", "stray"}, findings
        else:
            extract(files.dataset(), model, path, CONFIG)
            assert verify(path) == ()
        assert before <= recorded(path)
        assert not before & model.computed.keys(), "what was stored was computed again"
        assert not model.computed or max(model.computed.values()) == 1
        if rng.random() < 0.3:  # the same command again; else the data set changes first
            extract(files.dataset(), model, path, CONFIG)
            assert verify(path) == ()
    before, model.computed = recorded(path), Counter()
    extract(files.dataset(), model, path, CONFIG)
    assert not before & model.computed.keys()
    assert verify(path) == ()
    assert_reads_as_made_at_once(path, files, tmp_path, per_unit)
    shutil.rmtree(path)
    shutil.rmtree(files.folder)
    return kills


@pytest.mark.parametrize(
    "seeds",
    [
        (1, 2),  # units of three images, and object ids
        pytest.param((0, 3), marks=pytest.mark.soak),
        *(pytest.param(range(n, n + 8), marks=pytest.mark.slow) for n in range(4, 60, 8)),
    ],
)
def test_a_store_that_follows_random_changes_and_kills_ends_as_one_made_at_once(tmp_path, monkeypatch, seeds):
    attempt = in_this_process(monkeypatch)
    assert sum(follow_at_random(tmp_path, attempt, seed) for seed in seeds) >= len(seeds)


@pytest.mark.soak
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_store_whose_runs_are_killed_by_sigkill_ends_as_one_made_at_once(tmp_path):
    attempt = KilledProcess(tmp_path / "computed.log")
    assert sum(follow_at_random(tmp_path, attempt, seed) for seed in range(100, 108)) >= 4


def test_new_images_join_the_store_and_leave_every_byte_of_the_others(files, tmp_path):
    path, model = tmp_path / "s.zarr", CountingModel()
    extract(files.dataset(), model, path, CONFIG)
    before = tree(path)
    files.add(3, 4)
    extract(files.dataset(), model, path, CONFIG)
    assert set(model.computed.values()) == {1}
    after = tree(path)
    changed = {name for name, data in before.items() if after[name] != data}
    assert {name.rsplit("/", 1)[-1] for name in changed} == {"zarr.json", "metadata.json"}
    at_once = tmp_path / "once.zarr"
    extract(files.dataset(), ToyModel(), at_once, CONFIG)
    assert after == tree(at_once)


@pytest.mark.parametrize("per_unit", [2, 3])
def test_images_that_join_a_unit_leave_the_bytes_of_a_store_made_at_once(files, tmp_path, per_unit):
    path, at_once, model = tmp_path / "s.zarr", tmp_path / "once.zarr", CountingModel()
    create(path, files.dataset(), model, per_unit)
    extract(files.dataset(), model, path, CONFIG)
    files.add(3, 4)
    extract(files.dataset(), model, path, CONFIG)
    assert set(model.computed.values()) == {1} and len(model.computed) == 5 * 2 * 2
    create(at_once, files.dataset(), ToyModel(), per_unit)
    extract(files.dataset(), ToyModel(), at_once, CONFIG)
    assert tree(path) == tree(at_once)


def test_changed_masks_are_written_again_and_nothing_else(files, tmp_path):
    path, model = tmp_path / "s.zarr", CountingModel()
    extract(files.dataset(), model, path, CONFIG)
    before, masks = tree(path), FeatureStore.open(path).mask(1)
    files.relabel(1)
    assert "1 with changed masks" in str(plan_extraction(files.dataset(), model, path, CONFIG))
    model.computed.clear()
    extract(files.dataset(), model, path, CONFIG)
    after = tree(path)
    changed = {name for name in after if before.get(name) != after[name]}
    assert {name for name in changed if "replaced" not in name} == {"masks/c/1/0/0", "_done/pixels/000001.json"}
    assert not model.computed
    assert (FeatureStore.open(path).mask(1) != masks).any()


def test_the_plan_says_what_is_new_changed_and_gone(files, tmp_path):
    path = tmp_path / "s.zarr"
    extract(files.dataset(), ToyModel(), path, CONFIG)
    files.add(5, 6)
    files.relabel(0)
    files.listed.remove(2)
    plan = plan_extraction(files.dataset(), ToyModel(), path, CONFIG)
    assert "2 new images, 1 with changed masks, 1 no longer listed" in str(plan)
    assert (plan.missing_images, plan.missing_pixels) == (3, 3)
    assert (plan.missing_patches, plan.rewritten_masks) == (2, 1)
    assert "in 3 of 4 images: 2 patches to compute, 1 masks to rewrite" in str(plan)
    patches = []
    extract(files.dataset(), ToyModel(), path, CONFIG, progress=patches.append)
    assert sorted(patches) == [0, 1, 1]
    assert "changes" not in str(plan_extraction(files.dataset(), ToyModel(), path, CONFIG))


def test_images_that_are_no_longer_listed_count_nowhere_and_come_back_with_their_features(files, tmp_path):
    path, model = tmp_path / "s.zarr", CountingModel()
    extract(files.dataset(), model, path, CONFIG)
    files.listed.remove(1)
    result = extract(files.dataset(), model, path, CONFIG)
    assert result.complete == 2
    assert result.store.splits == ("test", UNLISTED, "train") and result.store.listed == (0, 2)
    assert verify(path) == ()
    files.listed.append(1)
    result = extract(files.dataset(), model, path, CONFIG)
    assert result.store.splits == ("test", "train", "train")
    assert set(model.computed.values()) == {1}


def test_a_data_set_of_other_images_is_refused(files, tmp_path):
    path = tmp_path / "s.zarr"
    extract(files.dataset(), ToyModel(), path, CONFIG)
    files.listed = []
    files.add(7, 8)
    before = tree(path)
    with pytest.raises(KeyMismatch, match=r"s\.zarr holds none of the images.*i0.*i7.*--store"):
        extract(files.dataset(), ToyModel(), path, CONFIG)
    assert tree(path) == before


def test_a_changed_image_is_refused_and_nothing_is_added(files, tmp_path):
    path = tmp_path / "s.zarr"
    extract(files.dataset(), ToyModel(), path, CONFIG)
    before = tree(path)
    files.draw(1, image=1)
    files.add(3)
    with pytest.raises(StoreError, match=r"i1 .*images differ.*--store"):
        extract(files.dataset(), ToyModel(), path, CONFIG)
    assert tree(path) == before


def test_a_reader_keeps_the_description_and_masks_of_the_store_that_it_opened(files, tmp_path):
    path = tmp_path / "s.zarr"
    extract(files.dataset(), ToyModel(), path, CONFIG)
    reader = FeatureStore.open(path)
    digest, masks = reader.digest(), [FeatureStore.open(path).mask(index) for index in range(3)]
    files.add(3)
    files.relabel(1)
    files.classes = ("dark", "grey", "light")
    extract(files.dataset(), ToyModel(), path, CONFIG)
    assert (len(reader), reader.classes, reader.digest()) == (3, ("dark", "light"), digest)
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(reader.mask(index), mask)
        np.testing.assert_array_equal(reader.read(index, t=10)[4], FeatureStore.open(path).read(index, t=10)[4])
    for _ in range(2):  # copies are kept until masks are replaced again
        files.relabel(1)
        extract(files.dataset(), ToyModel(), path, CONFIG)
    with pytest.raises(StoreError, match=r"mask of i1 .* has changed since .*run the command again"):
        reader.mask(1)


@pytest.mark.soak
def test_a_store_cut_off_while_its_descriptions_change_opens_and_is_finished_by_repair_and_by_extract(
    files, tmp_path, monkeypatch
):
    whole = tmp_path / "whole.zarr"
    extract(files.dataset(), ToyModel(), whole, CONFIG)
    files.add(3)
    cut = []
    for number in range(12):
        path = Path(shutil.copytree(whole, tmp_path / f"{number}.zarr"))
        with killed_at_write(monkeypatch, number, half_written=False), suppress(Killed):
            extract(files.dataset(), ToyModel(), path, CONFIG)
        if (path / GROWTH).exists():
            cut.append(number)
            assert len(FeatureStore.open(path)) in (3, 4)
            np.testing.assert_array_equal(FeatureStore.open(path).read(2, t=50)[4], FeatureStore.open(whole).read(2)[4])
            assert {finding.kind for finding in verify(path, repair=number % 2 == 0)} == {"missing"}
            assert (path / GROWTH).exists() == (number % 2 != 0)
        extract(files.dataset(), ToyModel(), path, CONFIG)
        assert verify(path) == ()
        assert FeatureStore.open(path).ids == ("i0", "i1", "i2", "i3")
    assert len(cut) > 6  # images, masks, two blocks at two timesteps, the root, the manifest


def test_larger_objects_enlarge_their_array(tmp_path):
    files, path, model = Files(tmp_path / "data", objects=True), tmp_path / "s.zarr", CountingModel()
    files.add(0, 1)
    extract(files.dataset(), model, path, CONFIG)
    files.add(40)
    extract(files.dataset(), model, path, CONFIG)
    assert set(model.computed.values()) == {1}
    assert verify(path) == ()
    assert_reads_as_made_at_once(path, files, tmp_path)


def test_while_another_run_writes_a_store_does_not_grow(files, tmp_path):
    path = tmp_path / "s.zarr"
    writing = extract(files.dataset(), ToyModel(), path, CONFIG).store
    files.add(3)
    with (
        writing.location.writer_lock(),
        pytest.raises(StoreError, match=r"another run is writing to .*s\.zarr.*1 new images.*run again"),
    ):
        extract(files.dataset(), ToyModel(), path, CONFIG)
    assert extract(files.dataset(), ToyModel(), path, CONFIG).complete == 4


@pytest.mark.soak
def test_the_time_to_find_a_store_complete_grows_with_its_images_and_not_with_their_square(tmp_path):
    seconds = []
    for images in (4_000, 16_000):
        samples = tuple(Sample(f"i{number}", "train", 256, 256) for number in range(images))
        black = Pixels(np.zeros((256, 256, 3), np.uint8), np.zeros((256, 256), np.uint8))
        dataset = Dataset(
            name="black", samples=samples, load=lambda sample, black=black: black, classes=("all",), size=(256, 256),
            test_split="test", preprocessing=Preprocessing(),
        )  # fmt: skip
        model, path = ToyModel(), tmp_path / f"{images}.zarr"
        StoreWriter(path, dataclasses.replace(contents_of(dataset, model, CONFIG), images_per_unit=64))
        store = FeatureStore.open(path)
        changes = []
        for _ in range(3):
            started = time.process_time()
            changes.append(find_changes(dataset, store, contents_of(dataset, model, CONFIG)))
            assert all(store.ids[index] == sample.id for index, sample in enumerate(samples))
            seconds.append((time.process_time() - started, images))
        assert not any(changes)
    fastest = {images: min(taken for taken, of in seconds if of == images) for _, images in seconds}
    assert fastest[16_000] < 8 * fastest[4_000]  # four times, sixteen times by the square
