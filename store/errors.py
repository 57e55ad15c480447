"""What can be wrong with a store."""


class StoreError(Exception):
    """The store cannot be used as asked; the message says what, why and the way out."""


class KeyMismatch(StoreError):
    """The store holds features made in another way than the ones asked for."""


class Incomplete(StoreError):
    """Something asked for is not (or not wholly) in the store yet."""


class Damaged(StoreError):
    """What is in the store is not what was written."""
