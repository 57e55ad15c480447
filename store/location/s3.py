"""A store in S3 or a compatible service, through obstore."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from pathseg.store.errors import StoreError

if TYPE_CHECKING:  # obstore has these for type checkers only
    from obstore import PutMode
    from obstore.store import ClientConfig, RetryConfig

# retries, seconds in which a retry may start, timeout of one request
FIRST_REQUEST = (2, 5, "15s")  # fails fast where nothing answers
LATER_REQUESTS = (10, 60, "5m")  # waits a minute for a server that went away, and on slow lines for a whole chunk
UPDATE_ATTEMPTS = 20  # to change an object that others change at the same time; one of them succeeds each time


class S3Prefix:
    """A `Location` at `s3://bucket/prefix`.

    Endpoint, region and credentials are found as by other S3 clients: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_SKIP_SIGNATURE, a web identity, the container's or instance's role.
    A put is atomic. Refused requests raise StoreError; the first request fails within seconds. A run that is killed
    during a multipart upload leaves parts that no listing shows: set a lifecycle rule that expires them.
    """

    concurrency, min_concurrent_bytes = 16, 0  # requests wait for the network, whatever their size

    def __init__(self, url: str) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")  # `#` and `?` are characters of a key as any other
        if not bucket or not prefix.strip("/"):
            raise StoreError(f"{url} has no prefix for a store; write s3://bucket/prefix")
        self._bucket, self._prefix = bucket, prefix.strip("/")
        self._url = f"s3://{self._bucket}/{self._prefix}"
        self._conditional_puts = True  # until the server says otherwise, after seconds of retries

    def __str__(self) -> str:
        return self._url

    def zarr(self, *, read_only: bool) -> ObjectStore:
        return _CheckedObjectStore(self._client, read_only=read_only)

    def exists(self, name: str) -> bool:
        try:
            with _store_errors(self._url):
                obstore.head(self._client, name)
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> bytes:
        try:
            with _store_errors(self._url):
                return obstore.get(self._client, name).bytes().to_bytes()
        except FileNotFoundError as e:
            raise FileNotFoundError(f"{self._url}/{name} is not there") from e

    def write(self, name: str, data: bytes) -> None:
        with _store_errors(self._url, writing=True):
            obstore.put(self._client, name, data)

    def update(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Put on condition that the object is unchanged since it was read; otherwise read it again."""
        for _ in range(UPDATE_ATTEMPTS):
            try:
                with _store_errors(self._url):
                    answer = obstore.get(self._client, name)
                    tag, before = answer.meta["e_tag"], answer.bytes().to_bytes()
            except FileNotFoundError:
                tag, before = None, None
            data = change(before)
            if data is None or self._put_unless_changed(name, data, tag):
                return
        raise StoreError(f"{self._url}/{name} was changed by others {UPDATE_ATTEMPTS} times in a row; run again")

    def _put_unless_changed(self, name: str, data: bytes, tag: str | None) -> bool:
        """Replace the object if it still has this e-tag (None: if it does not exist); return whether it did."""
        mode: PutMode = "create" if tag is None else {"e_tag": tag}
        with _store_errors(self._url, writing=True):
            if not self._conditional_puts:
                obstore.put(self._client, name, data)
                return True
            try:
                obstore.put(self._client, name, data, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            except BaseError as e:
                if "status code: 501" not in str(e):
                    raise
                self._conditional_puts = False
                obstore.put(self._client, name, data)  # a server without conditional puts: the last writer wins there
        return True

    def open(self, name: str, start: int = 0, size_bytes: int | None = None) -> BytesIO:
        if size_bytes is None and start >= 0:
            return BytesIO(self.read(name))
        with _store_errors(self._url):
            try:
                if start < 0:
                    end = obstore.get(self._client, name, options={"range": {"suffix": -start}})
                    return BytesIO(end.bytes().to_bytes())
                return BytesIO(obstore.get_range(self._client, name, start=start, length=size_bytes).to_bytes())
            except BaseError as e:
                if "status code: 416" not in str(e):  # the object ends before `start`
                    raise
                return BytesIO()

    @contextmanager
    def create(self, name: str) -> Iterator[BytesIO]:
        """Keep the file in memory until it is complete, then put it."""
        file = BytesIO()
        yield file
        self.write(name, file.getvalue())

    def obstacle(self, name: str) -> None:
        return None

    def flush(self, names: Iterable[str]) -> None:
        """Do nothing: a put has ended once the object is stored."""

    def remove(self, name: str) -> None:
        with _store_errors(self._url):
            obstore.delete(self._client, name)

    def names(self, folder: str = "") -> Iterator[str]:
        yield from (name for name, _ in self._entries(folder))

    def sizes(self) -> dict[str, int]:
        return dict(self._entries())

    def free_bytes(self) -> None:
        return None

    @contextmanager
    def metadata_lock(self) -> Iterator[None]:
        """Do nothing: S3 has no locks; concurrent changes go through `update`."""
        yield

    @contextmanager
    def writer_lock(self, *, exclusive: bool = False) -> Iterator[bool]:
        """Do nothing: S3 has no locks and no half-written objects; two runs write the same bytes."""
        yield True

    def _entries(self, folder: str = "") -> Iterator[tuple[str, int]]:
        with _store_errors(self._url):
            for page in obstore.list(self._client, prefix=folder or None):
                yield from ((entry["path"], entry["size"]) for entry in page)

    @cached_property
    def _client(self) -> S3Store:
        """The client, after a first listing has shown that endpoint, bucket and credentials work."""
        with _store_errors(self._url, writing=True):
            obstore.list_with_delimiter(_connect(self._bucket, self._prefix, *FIRST_REQUEST))
        return _connect(self._bucket, self._prefix, *LATER_REQUESTS)


class _CheckedObjectStore(ObjectStore):
    """Zarr's store over obstore, with refused requests as StoreError."""

    @property
    def _url(self) -> str:
        return f"s3://{self.store.config['bucket']}/{self.store.prefix}"

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        with _store_errors(self._url):
            return await super().get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        with _store_errors(self._url):
            return await super().get_partial_values(prototype, key_ranges)

    async def exists(self, key: str) -> bool:
        with _store_errors(self._url):
            return await super().exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        with _store_errors(self._url, writing=True):
            await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        with _store_errors(self._url, writing=True):
            await super().set_if_not_exists(key, value)

    async def delete(self, key: str) -> None:
        with _store_errors(self._url):
            await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        with _store_errors(self._url):
            await super().delete_dir(prefix)

    async def getsize(self, key: str) -> int:
        with _store_errors(self._url):
            return await super().getsize(key)

    async def getsize_prefix(self, prefix: str) -> int:
        with _store_errors(self._url):
            return await super().getsize_prefix(prefix)

    def list_prefix(self, prefix: str) -> AsyncGenerator[str, None]:
        return self._listed(super().list_prefix(prefix))

    def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        return self._listed(super().list_dir(prefix))

    def list(self) -> AsyncGenerator[str, None]:
        return self._listed(super().list())

    async def _listed(self, names: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        with _store_errors(self._url):
            async for name in names:
                yield name


def _connect(bucket: str, prefix: str, retries: int, retry_seconds: int, timeout: str) -> S3Store:
    """Connect; obstore finds everything else in the environment. Plain http only for an http:// endpoint."""
    endpoint = _endpoint()
    if endpoint and not re.match(r"https?://[\w\[]", endpoint):
        raise StoreError(f"AWS_ENDPOINT_URL is {endpoint!r}, but must be an address such as https://s3.example.org")
    options: ClientConfig = {"connect_timeout": "5s", "timeout": timeout}
    if endpoint.startswith("http:"):
        options["allow_http"] = True
    retry: RetryConfig = {
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=retry_seconds),
        "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=10), "base": 2},
    }
    try:
        return S3Store(bucket, prefix=prefix, client_options=options, retry_config=retry)
    except (BaseError, ValueError) as e:
        raise StoreError(
            f"s3://{bucket}/{prefix} cannot be used: {_first_line(e)}; check the address and the AWS_ variables"
        ) from e


def _endpoint() -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


@contextmanager
def _store_errors(url: str, *, writing: bool = False) -> Iterator[None]:
    """Turn obstore's errors into StoreError; when writing also FileNotFoundError, which then means the bucket."""
    try:
        yield
    except BaseError as e:
        raise StoreError(f"{url} cannot be used: {_reason(e, url)}") from e
    except FileNotFoundError as e:
        if not writing:
            raise
        raise StoreError(f"{url} cannot be used: {_reason(e, url)}") from e


def _reason(error: Exception, url: str) -> str:
    """Return the reason and the way out in one line."""
    text, line, endpoint = str(error), _first_line(error), _endpoint() or "AWS"
    code = (re.findall(r"<Code>(\w+)</Code>", text) or re.findall(r"status code: (\d+ [\w ]+)", line) or [""])[0]
    if code == "NoSuchBucket" or isinstance(error, FileNotFoundError):
        bucket = url.removeprefix("s3://").partition("/")[0]
        return f"there is no bucket {bucket} at {endpoint}; make it, or check AWS_ENDPOINT_URL"
    if "/latest/" in line:  # the address where an instance finds its role: no credentials were set
        return (
            "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_SKIP_SIGNATURE=true for a public bucket"
        )
    if re.search(r"status code: 40[13]\b", line):
        return f"{endpoint} denies access ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their rights"
    if "error sending request" in line:
        return f"{endpoint} does not answer; check AWS_ENDPOINT_URL and the network, then run again"
    return f"{endpoint} answers {code or line.rsplit(' - ', 1)[-1].strip()}; check AWS_REGION and AWS_ENDPOINT_URL"


def _first_line(error: Exception) -> str:
    """Return the first line of an error of obstore, without its internals."""
    return str(error).split("\n", 1)[0].strip()
