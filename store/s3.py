"""A store in S3 or anything that speaks its protocol, through obstore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from zarr.storage import ObjectStore

from pathseg.store.errors import StoreError


class S3Prefix:
    """A `Location` at `s3://bucket/prefix`.

    Endpoint, region and credentials come from the usual places: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, a web identity or the instance's role. A put is whole or not there.
    """

    def __init__(self, url: str) -> None:
        import obstore.store  # only who uses S3 needs it

        parts = urlsplit(url)
        if not parts.netloc or not parts.path.strip("/"):
            raise StoreError(f"{url} names no place for a store; write s3://bucket/prefix")
        self._url = f"s3://{parts.netloc}/{parts.path.strip('/')}"
        plain = urlsplit(_endpoint()).scheme == "http"
        self._store = obstore.store.from_url(self._url, client_options={"allow_http": plain})

    def __str__(self) -> str:
        return self._url

    def zarr(self, *, read_only: bool) -> ObjectStore:
        return ObjectStore(self._store, read_only=read_only)

    def exists(self, name: str) -> bool:
        import obstore

        try:
            obstore.head(self._store, name)
        except FileNotFoundError:
            return False
        except obstore.exceptions.BaseError as e:
            raise self._refused(e) from e
        return True

    def read(self, name: str) -> bytes:
        import obstore

        try:
            return obstore.get(self._store, name).bytes().to_bytes()
        except FileNotFoundError:
            raise
        except obstore.exceptions.BaseError as e:
            raise self._refused(e) from e

    def write(self, name: str, data: bytes) -> None:
        import obstore

        try:
            obstore.put(self._store, name, data)
        except obstore.exceptions.BaseError as e:
            raise self._refused(e) from e

    def remove(self, name: str) -> None:
        import obstore

        if self.exists(name):
            obstore.delete(self._store, name)

    def names(self, folder: str = "") -> Iterator[str]:
        yield from (name for name in self.sizes(folder))

    def sizes(self, folder: str = "") -> dict[str, int]:
        import obstore

        try:
            pages = obstore.list(self._store, prefix=folder or None)
            return {entry["path"]: entry["size"] for page in pages for entry in page}
        except obstore.exceptions.BaseError as e:
            raise self._refused(e) from e

    def free_bytes(self) -> None:
        return None

    @contextmanager
    def writing(self) -> Iterator[bool]:
        """S3 knows no locks and leaves nothing half written; two runs write the same bytes."""
        yield True

    def _refused(self, error: Exception) -> StoreError:
        return StoreError(
            f"{self._url} cannot be used: {str(error).splitlines()[0]}; check AWS_ENDPOINT_URL, AWS_REGION "
            f"and the credentials in the environment"
        )


def _endpoint() -> str:
    import os

    return (
        os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or os.environ.get("AWS_ENDPOINT", "")
    )
