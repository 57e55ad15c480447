"""Stores in S3, against a real server process of the protocol on 127.0.0.1."""

import itertools
import logging
import os
import random
import re
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread, Timer
from urllib.parse import unquote

import numpy as np
import obstore
import pytest
import zarr
from click.testing import CliRunner
from moto.server import ThreadedMotoServer
from obstore.store import from_url

from pathseg.cli import main
from pathseg.store.describe import describe
from pathseg.store.errors import Damaged, KeyMismatch, StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.growth import grow
from pathseg.store.location.cache import ReadCache
from pathseg.store.location.location import open_location
from pathseg.store.location.s3 import S3Prefix
from pathseg.store.verify import Verification
from pathseg.store.writer import StoreWriter

REQUEST = re.compile(r"(GET|HEAD|PUT|POST|DELETE) /bucket/([^ ?]+)(\?\S*)? HTTP")
RECORD = re.compile(r"/_done/(pixels|t50)/(?:.*/)?(\d{6})\.json$")
CHUNK = re.compile(r"/(images|masks|instances|t50)/(?:block\d\d/)?c/(\d+)/[\d/]+$")

WRITER = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
import obstore.store, zarr.storage
from conftest import SHAPES, contents, features_of, pixels_of
from pathseg.store.records import PIXELS
from pathseg.store.writer import StoreWriter

def go_on(url):
    writer = StoreWriter(url, contents())
    writer.add_arrays([50], SHAPES)
    for unit in range(writer.store.contents.units):
        pixels = pixels_of(writer.store, unit, 0)
        if not writer.store.records.done(PIXELS, unit):
            writer.write_pixels(unit, [pixels])
        if writer.store.records.missing(50, tuple(SHAPES), unit):
            writer.write_features(unit, t=50, features=features_of(writer.store, [pixels[1]], tuple(SHAPES), 0))

def start(url):
    if child := os.fork():
        return child
    try:
        go_on(url)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)

for line in sys.stdin:
    url, writers, seconds = line.split()
    children = [start(url) for _ in range(int(writers))]
    if float(seconds):
        time.sleep(float(seconds))
        for child in children:
            os.kill(child, signal.SIGKILL)
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)
"""


class Requests(logging.Handler):
    """The requests that the server got, in order: (method, object)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def emit(self, record):
        if match := REQUEST.search(record.getMessage()):
            self.seen.append((match[1], unquote(match[2])))


class Writers:
    """A process that starts writers of the toy store and kills them after a given time."""

    def __init__(self, environment):
        command = [sys.executable, "-c", WRITER, str(Path(__file__).parents[2])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, url, *, writers=1, seconds=0.0):
        """Exit codes of the writers; -9 for a killed one."""
        self._process.stdin.write(f"{url} {writers} {seconds}\n")
        self._process.stdin.flush()
        return [int(code) for code in self._process.stdout.readline().split()]

    def close(self):
        self._process.communicate()


@pytest.fixture(scope="module")
def server():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    log, requests = logging.getLogger("werkzeug"), Requests()
    log.setLevel(logging.INFO)
    log.addHandler(requests)
    log.propagate = False
    server.start()
    server.url = "http://{}:{}".format(*server.get_host_and_port())
    server.requests = requests
    ask(server.url, "/bucket", method="PUT")
    yield server
    server.stop()
    log.removeHandler(requests)


def ask(url, path, *, method, data=None):
    request = urllib.request.Request(url + path, data, {"Content-Type": "text/plain"}, method=method)
    with urllib.request.urlopen(request) as answer:
        return answer.read()


FOREIGN = ("AWS_SESSION_TOKEN", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_SKIP_SIGNATURE", "AWS_PROFILE")


def settings(server):
    """The environment variables by which a client finds the server and may use it."""
    return {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }


@pytest.fixture(autouse=True)
def environment(server, monkeypatch):
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings(server).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def url(request):
    return f"s3://bucket/{request.node.name}/toy.zarr"


def put(url, files):
    """Put the files of a store as objects, which takes less time than to write the store; returns it."""
    location = S3Prefix(url)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(location.write, files, files.values()))
    return FeatureStore.open(url)


@pytest.fixture
def s3_store(url, written_stores):
    return put(url, files(written_stores / "toy.zarr"))


@pytest.fixture(scope="module")
def small_files(tmp_path_factory, toy_contents, fill_store):
    folder = tmp_path_factory.mktemp("small") / "toy.zarr"
    fill_store(StoreWriter(folder, toy_contents(splits=("train", "train", "test"))), blocks=(4, 9))
    return files(folder)


@pytest.fixture
def small_store(url, small_files):
    return put(url, small_files)


@pytest.fixture
def denied(server):
    """A switch: from then on the server wants to see rights that nobody has."""
    yield lambda: ask(server.url, "/moto-api/reset-auth", method="POST", data=b"0")
    ask(server.url, "/moto-api/reset-auth", method="POST", data=b"inf")


@pytest.fixture
def between(server):
    """Put something between clients and server: what it gives for (method, object) is answered, unless None."""
    app = server._server.app

    def put(look):
        def looked(environ, start):
            if status := look(environ["REQUEST_METHOD"], unquote(environ["PATH_INFO"]), environ):
                start(status, [("Content-Length", "0")])
                return [b""]
            return app(environ, start)

        server._server.app = looked

    yield put
    server._server.app = app


@pytest.fixture
def meeting(between):
    """`meeting(n, method, part)`: no such request is answered before n of them are there."""

    def meet(number, method, part):
        barrier = Barrier(number, timeout=20)

        def look(asked, name, environ):
            if asked == method and part in name:
                barrier.wait()

        between(look)

    return meet


@pytest.fixture(scope="module")
def writers(server):
    usual = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    writers = Writers(usual | settings(server))
    yield writers
    writers.close()


def objects(url):
    location = S3Prefix(url)
    return {name: location.read(name) for name in location.names()}


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(call, *words):
    """The message of the StoreError, which has one line, these words, and comes soon."""
    started = time.monotonic()
    with pytest.raises(StoreError) as caught:
        call()
    assert time.monotonic() - started < 10
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def test_the_same_bytes_lie_in_s3_as_in_a_folder(url, toy_contents, fill_store, toy_store):
    fill_store(StoreWriter(url, toy_contents()))
    assert objects(url) == files(toy_store.location.root)


@pytest.mark.parametrize("packing", ["lossless", "int8"])
def test_units_of_several_images_are_the_same_bytes_too(tmp_path, url, toy_contents, toy_key, fill_store, packing):
    made = toy_contents(key=toy_key(packing=packing), images_per_unit=2)
    for location in (url, tmp_path / "a.zarr"):
        fill_store(StoreWriter(location, made))
    assert objects(url) == files(tmp_path / "a.zarr")
    for block, maps in FeatureStore.open(tmp_path / "a.zarr").read(3).items():
        assert np.array_equal(FeatureStore.open(url).read(3)[block], maps)


def test_images_read_from_s3_as_they_were_written(s3_store, toy_store, url):
    store = FeatureStore.open(url)
    for index in range(5):
        assert np.array_equal(store.image(index), toy_store.image(index))
        assert np.array_equal(store.mask(index), toy_store.mask(index))
        assert np.array_equal(store.instances(index), toy_store.instances(index))
        for block, maps in toy_store.read(index, t=50).items():
            assert np.array_equal(store.read(index, t=50, blocks=(block,))[block], maps)


def test_a_store_in_s3_is_described_with_its_address_and_size(s3_store, toy_store, url):
    described, there = describe(FeatureStore.open(url)), describe(toy_store)
    assert described == there.replace(str(toy_store.location), url)


def test_a_grown_store_in_s3_reads_new_masks_and_finds_its_features_in_the_cache(small_store, server, url, tmp_path):
    old = FeatureStore.open(url, cache=ReadCache(tmp_path / "cache"))
    masks, maps = [old.mask(index) for index in range(3)], old.read(1, t=50)
    pixels = old.image(1), 1 - masks[1], old.instances(1)
    contents = old.contents
    added = replace(contents.images[0], id="new")
    grow(FeatureStore.open(url), replace(contents, images=(*contents.images, added)), {1: ["masks"]})
    writer = StoreWriter(url, FeatureStore.open(url).contents)
    writer.write_pixels(1, [pixels])
    store = FeatureStore.open(url, cache=ReadCache(tmp_path / "cache"))
    assert store.ids[-1] == "new" and not np.array_equal(store.mask(1), masks[1])
    assert np.array_equal(store.mask(0), masks[0]) and np.array_equal(old.mask(1), masks[1])
    server.requests.seen.clear()
    assert all(np.array_equal(values, maps[block]) for block, values in store.read(1, t=50).items())
    assert not [name for _, name in server.requests.seen if "block" in name and "/c/" in name]
    assert {finding.kind for finding in Verification(url).run()} == {"missing"}  # the new image


def test_another_key_is_refused_in_s3(small_store, url, toy_key):
    with pytest.raises(KeyMismatch, match="seed is 0 there, 1 asked for"):
        StoreWriter(url, replace(small_store.contents, key=toy_key(seed=1)))


def test_later_timesteps_join_a_store_in_s3(small_store, url, fill_store):
    fill_store(StoreWriter(url, small_store.contents), t=200, blocks=(4,))
    assert FeatureStore.open(url).timesteps() == (50, 200)
    assert Verification(url).run() == []


def test_arrays_that_another_run_drove_out_of_the_manifest_come_back_when_a_run_asks_for_them(
    small_store, url, fill_store
):
    manifest = S3Prefix(url).read("_done/metadata.json")
    fill_store(StoreWriter(url, small_store.contents), t=200, blocks=(4,))
    S3Prefix(url).write("_done/metadata.json", manifest)  # by a run that had read it before
    StoreWriter(url, small_store.contents).add_arrays([200], [4])
    assert FeatureStore.open(url).unfinished(t=200, blocks=(4,)) == ()
    assert Verification(url).run() == []


@pytest.mark.parametrize("before", [None, b"1"])
def test_what_another_wrote_during_an_update_is_kept(url, before):
    location = S3Prefix(url)
    if before:
        location.write("a", before)

    def change(data):
        if data == before:
            location.write("a", b"12")
        return (data or b"") + b"x"

    location.update("a", change)
    assert location.read("a") == b"12x"


def test_an_update_that_changes_nothing_writes_nothing(server, url):
    S3Prefix(url).write("a", b"1")
    asked = len(server.requests.seen)
    S3Prefix(url).update("a", lambda data: None)
    assert "PUT" not in [method for method, _ in server.requests.seen[asked:]]


def test_an_object_that_never_rests_is_named(url):
    location, count = S3Prefix(url), itertools.count()

    def change(data):
        location.write("a", str(next(count)).encode())
        return b"mine"

    fails(lambda: location.update("a", change), f"{url}/a was changed by others", "run again")


def test_runs_that_add_timesteps_at_once_all_find_them_in_the_store(small_store, url):
    timesteps = (10, 100, 200, 300)
    runs = [StoreWriter(url, small_store.contents) for _ in timesteps]
    threads = [Thread(target=run.add_arrays, args=([t], [4])) for run, t in zip(runs, timesteps, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = FeatureStore.open(url)
    assert [again.stored_blocks(t) for t in timesteps] == [(4,)] * 4


def test_a_server_without_conditions_takes_arrays_too(between, small_store, url):
    conditions = ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH")
    refused = []

    def look(method, name, environ):
        if any(condition in environ for condition in conditions):
            refused.append(name)
            return "501 Not Implemented"

    between(look)
    writer = StoreWriter(url, small_store.contents)
    writer.add_arrays([200], [4])
    assert FeatureStore.open(url).stored_blocks(200) == (4,)
    refused.clear()  # after some attempts in vain
    writer.add_arrays([300], [4])
    assert refused == [] and FeatureStore.open(url).stored_blocks(300) == (4,)


def test_all_blocks_of_an_image_are_asked_for_at_once(meeting, s3_store, toy_store, url):
    store = FeatureStore.open(url)
    meeting(4, "GET", "/c/1/")
    for block, maps in store.read(1, t=50).items():
        assert np.array_equal(maps, toy_store.read(1, t=50)[block])


def test_all_blocks_of_an_image_are_put_at_once(meeting, url, toy_contents, toy_store):
    writer = StoreWriter(url, toy_contents())
    writer.add_arrays([50], (0, 4, 5, 9))
    meeting(4, "PUT", "/c/")
    writer.write_features(0, t=50, features=((block, [maps]) for block, maps in toy_store.read(0, t=50).items()))
    for block, maps in toy_store.read(0, t=50).items():
        assert np.array_equal(FeatureStore.open(url).read(0, t=50)[block], maps)


def test_verify_asks_for_several_chunks_at_once(meeting, s3_store, url):
    check = Verification(url)
    meeting(4, "GET", "/t50/block")
    assert check.run() == []


def test_an_image_in_a_shard_is_fetched_alone(between, url, toy_contents, fill_store, toy_store):
    fill_store(StoreWriter(url, toy_contents(images_per_unit=3)), blocks=(4,))
    store, ranges = FeatureStore.open(url), []
    between(lambda method, name, environ: ranges.append(environ.get("HTTP_RANGE")) if "/c/" in name else None)
    assert np.array_equal(store.read(4, t=50)[4], toy_store.read(4, t=50)[4])
    size = 2 * 6 * 16 * 16 * 2 + 4  # patches, channels, cells, bytes of a value; a checksum
    assert ranges == [f"bytes={size}-{2 * size - 1}"]  # the second of its unit


@pytest.mark.parametrize("left", [0, 7000])  # of 18,504 bytes for three images
def test_a_shard_cut_short_in_s3_is_damage(url, toy_contents, fill_store, left):
    fill_store(StoreWriter(url, toy_contents(images_per_unit=3)), blocks=(4,))
    location, name = S3Prefix(url), "t50/block04/c/0/0/0/0/0"
    location.write(name, location.read(name)[:left])
    for index in (1, 2):
        with pytest.raises(Damaged, match="t50/block04 of train_"):
            FeatureStore.open(url).read(index, t=50)


def test_something_else_in_a_prefix_is_not_touched(url, toy_contents):
    S3Prefix(url).write("thesis.txt", b"dear reader")
    with pytest.raises(StoreError, match="no pathseg store"):
        StoreWriter(url, toy_contents())
    assert objects(url) == {"thesis.txt": b"dear reader"}


def test_a_prefix_does_not_take_in_its_neighbour(url):
    S3Prefix(url).write("a", b"1")
    S3Prefix(f"{url}-more").write("b", b"2")
    assert objects(url) == {"a": b"1"}


@pytest.mark.parametrize("end", ["#1", "?3", "a b", "%20"])
def test_any_character_of_a_prefix_is_part_of_it(url, end):
    open_location(f"{url}{end}").write("a", b"1")
    open_location(f"{url}x").write("a", b"2")
    assert list(open_location(url).names()) == []
    assert (open_location(f"{url}{end}").read("a"), str(open_location(f"{url}{end}"))) == (b"1", f"{url}{end}")


def test_small_files_are_there_or_not(url):
    location = open_location(url)
    assert not location.exists("a/b.json")
    with pytest.raises(FileNotFoundError, match=r"b\.json is not there"):
        location.read("a/b.json")
    location.write("a/b.json", b"12345")
    assert location.exists("a/b.json")
    assert location.sizes() == {"a/b.json": 5}
    location.remove("a/b.json")
    location.remove("a/b.json")
    assert list(location.names()) == []


def test_a_file_written_piece_by_piece_is_there_only_when_it_is_whole(url):
    location = S3Prefix(url)
    with pytest.raises(InterruptedError), location.create("a") as file:
        file.write(b"half")
        raise InterruptedError
    assert not location.exists("a")
    with location.create("a") as file:
        file.write(b"half and ")
        file.write(b"half")
    with location.open("a") as file:
        assert file.read() == b"half and half"


def test_what_is_put_in_several_parts_comes_back_whole(url):
    data = np.random.default_rng(0).bytes(12 * 2**20)  # from 5 MiB on a put has parts
    S3Prefix(url).write("large", data)
    assert S3Prefix(url).read("large") == data


def test_more_objects_than_one_page_are_all_listed(url, monkeypatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")  # objects a page
    location = S3Prefix(url)
    for i in range(25):
        location.write(f"c/{i}", b"")
    assert set(location.names("c")) == {f"c/{i}" for i in range(25)}


def test_verify_finds_what_is_wrong_in_s3_and_repair_drops_it(small_store, url, fill_store):
    whole, location = objects(url), S3Prefix(url)
    flipped, missing = "t50/block04/c/1/0/0/0/0", "t50/block09/c/2/0/0/0/0"
    stray, foreign = f"t50/block04/c/0/0/0/0/0.{32 * '0'}.partial", "t50/block04/c/9/0/0/0/0"  # of three images
    data = bytearray(whole[flipped])
    data[100] ^= 4
    location.write(flipped, bytes(data))
    location.remove(missing)
    location.write(stray, b"left over")
    location.write(foreign, b"mine")
    location.write("notes.txt", b"mine")
    location.write("t50/zarr.json", whole["t50/zarr.json"][:-1])
    verification = Verification(url)
    assert {(finding.kind, finding.name) for finding in verification.run()} == {
        ("damaged", flipped),
        ("missing", missing),
        ("stray", stray),
        ("foreign", foreign),
        ("foreign", "notes.txt"),
        ("damaged", "t50/zarr.json"),
    }
    verification.repair()
    assert FeatureStore.open(url).unfinished(t=50, blocks=(4,)) == (1, 2)
    fill_store(StoreWriter(url, small_store.contents), blocks=(4, 9))
    assert objects(url) == whole | {foreign: b"mine", "notes.txt": b"mine"}


def test_a_missing_bucket_is_named():
    fails(lambda: FeatureStore.open("s3://nowhere/a.zarr"), "s3://nowhere/a.zarr", "no bucket nowhere", "make it")


def test_a_missing_store_is_named(url):
    fails(lambda: FeatureStore.open(url), f"no feature store at {url}")


def test_an_address_without_a_prefix_is_refused():
    fails(lambda: open_location("s3://bucket"), "s3://bucket", "write s3://bucket/prefix")


def test_an_endpoint_that_does_not_answer_is_named_soon(monkeypatch, url):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fails(lambda: FeatureStore.open(url), url, "http://127.0.0.1:9 does not answer", "AWS_ENDPOINT_URL")


def test_an_endpoint_that_is_no_address_is_refused(monkeypatch, url):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "my-server:9000")
    fails(lambda: FeatureStore.open(url), "'my-server:9000'", "such as https://")


def test_an_impossible_setting_is_named(monkeypatch, url):
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "maybe")
    fails(lambda: FeatureStore.open(url), url, '"maybe" as boolean', "check the address and the AWS_ variables")


def test_missing_credentials_are_named_soon(monkeypatch, url):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # no instance, no role
    fails(lambda: FeatureStore.open(url), "no credentials", "set AWS_ACCESS_KEY_ID")


def test_a_public_store_needs_no_credentials(monkeypatch, small_store, url):
    options = {"allow_http": True, "default_headers": {"x-amz-acl": "public-read"}}
    for name, data in objects(url).items():
        obstore.put(from_url(url, client_options=options), name, data)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert len(FeatureStore.open(url)) == 3


def test_denied_access_is_named(denied, small_store, url):
    denied()
    fails(lambda: FeatureStore.open(url), url, "denies access (InvalidAccessKeyId)", "AWS_ACCESS_KEY_ID")


def test_rights_lost_while_reading_are_no_damage(denied, small_store, url):
    store = FeatureStore.open(url)
    store.read(0, t=50)
    denied()
    for call in (lambda: store.read(1, t=50), lambda: store.image(1), lambda: store.array("masks")[1]):
        fails(call, url, "denies access")


def test_rights_lost_while_writing_are_named(denied, url, toy_contents, fill_store):
    writer = StoreWriter(url, toy_contents())
    denied()
    fails(lambda: fill_store(writer), url, "denies access")


def test_what_zarr_itself_asks_for_is_named_when_it_is_refused(denied, small_store, url):
    group = zarr.open_group(S3Prefix(url).zarr(read_only=False), mode="r+")
    masks = group["masks"]
    denied()
    calls = {
        "read": lambda: masks[0],
        "write": lambda: masks.__setitem__(0, 1),
        "list": lambda: list(group.members()),
        "delete": lambda: group.__delitem__("masks"),
        "size": lambda: masks.nbytes_stored(),
        "open": lambda: group["images"],
    }
    for call in calls.values():
        fails(call, url, "denies access")


def test_a_server_that_goes_away_for_a_while_is_waited_for(server, small_store, url):
    store = FeatureStore.open(url)
    port = server.get_host_and_port()[1]
    server.stop()
    again = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    Timer(0.5, again.start).start()
    assert store.read(1, t=50).keys() == {4, 9}
    server._server, server._thread = again._server, again._thread


def test_a_second_epoch_with_a_cache_asks_the_server_for_nothing(server, small_store, url, tmp_path):
    store = FeatureStore.open(url, cache=ReadCache(tmp_path / "cache"))
    epochs = []
    for _ in range(2):
        before = len(server.requests.seen)
        epochs.append([(store.read(i, t=50), store.mask(i)) for i in range(3)])
        asked = server.requests.seen[before:]
    assert asked == []
    for (maps, mask), (again, same_mask) in zip(*epochs, strict=True):
        assert all(np.array_equal(maps[block], again[block]) for block in maps)
        assert np.array_equal(mask, same_mask)


def test_a_later_run_with_the_cache_fetches_no_chunk(server, small_store, url, tmp_path):
    for _ in range(2):
        store, before = FeatureStore.open(url, cache=ReadCache(tmp_path / "cache")), len(server.requests.seen)
        for index in range(3):
            store.read(index, t=50)
        chunks = [name for method, name in server.requests.seen[before:] if method == "GET" and "/c/" in name]
    assert chunks == []


def kill_writers(writers, url, server, *, kills, whole, seed):
    """Kill writers at random moments until this many were killed at work; each store must end as `whole`."""
    moments, done = random.Random(seed), 0
    for round_ in itertools.count():
        location, first, finished = f"{url}/{round_}", len(server.requests.seen), False
        while not finished:
            seconds = moments.uniform(0.02, 0.5) if done < kills else 0
            (code,) = writers.run(location, seconds=seconds)
            assert code in (0, -9)
            done, finished = done + (code == -9), code == 0
            time.sleep(0.05)  # the server ends what a killed writer had sent
        assert objects(location) == whole
        assert written_again(server.requests.seen[first:]) == []
        if done >= kills:
            return done


def written_again(requests):
    """Objects that were put after the record of their unit."""
    recorded, again = set(), []
    for name in [name for method, name in requests if method == "PUT"]:
        record, chunk = RECORD.search(name), CHUNK.search(name)
        if record or chunk:
            part, unit = (record or chunk).groups()
            unit = ("t50" if part == "t50" else "pixels", int(unit))
            again += [name] if unit in recorded else []
            recorded |= {unit} if record else set()
    return again


def test_what_is_written_again_after_its_record_is_noticed():
    requests = ["images/c/1/0/0/0", "_done/pixels/000001.json", "t50/block04/c/1/0/0/0/0", "masks/c/1/0/0"]
    assert written_again([("PUT", f"a/toy.zarr/0/{name}") for name in requests]) == ["a/toy.zarr/0/masks/c/1/0/0"]


def test_writers_killed_at_random_moments_leave_the_same_bytes(writers, url, server, toy_store):
    whole = files(toy_store.location.root)
    assert kill_writers(writers, url, server, kills=5, whole=whole, seed=0) >= 5


@pytest.mark.slow
def test_a_hundred_killed_writers_leave_the_same_bytes(writers, url, server, toy_store):
    whole = files(toy_store.location.root)
    assert kill_writers(writers, url, server, kills=100, whole=whole, seed=1) >= 100


def test_two_writers_at_once_leave_the_same_bytes(writers, url, toy_store):
    assert writers.run(url, writers=2) == [0, 0]
    assert objects(url) == files(toy_store.location.root)


@pytest.mark.soak
def test_one_of_two_writers_that_is_killed_does_no_harm(writers, url, toy_store):
    assert writers.run(url, writers=2, seconds=0.2) == [-9, -9]
    assert writers.run(url, writers=2) == [0, 0]
    assert objects(url) == files(toy_store.location.root)


def test_training_goes_on_without_a_cache_folder_and_says_so_once(small_files, url, tmp_path):
    stores = [put(f"{url}/{name}", small_files).location for name in ("a.zarr", "b.zarr")]
    (tmp_path / "file").write_bytes(b"")
    result = CliRunner().invoke(
        main,
        ["train-head", "--store", str(stores[0]), "--store", str(stores[1]), "--cache-dir", str(tmp_path / "file"),
         "--blocks", "a:4,b:9", "--t", "50", "--epochs", "1", "--lr", "1e-3", "--device", "cpu",
         "--workspace", str(tmp_path)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    said = [line for line in result.output.splitlines() if "--cache-dir" in line]
    assert len(said) == 1 and "is not kept" in said[0] and str(tmp_path / "file") in said[0]
