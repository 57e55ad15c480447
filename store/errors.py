"""Errors of the feature store."""


class StoreError(Exception):
    """The store cannot be used; the message names the store, the reason and the way out."""


class KeyMismatch(StoreError):
    """The store holds features of another model, data set or setting than the requested ones."""


class Incomplete(StoreError):
    """The requested images or blocks are not in the store yet."""


class Damaged(StoreError):
    """The content of the store is not what was written."""
