"""What a data set has and its store does not: new images, changed masks, images that are no longer listed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pathseg.extract.datasets.registry import Dataset, Pixels, Sample
from pathseg.store.contents import UNLABELLED, UNLISTED, Contents
from pathseg.store.errors import StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.growth import grow
from pathseg.store.records import PIXELS, checksum, file_states
from pathseg.store.writer import pixel_arrays

MAX_NAMED = 10  # of the changed images in a message


@dataclass(frozen=True)
class Changes:
    """What a store has to follow in its data set.

    contents: the description that it gets. new: ids of the images that it lacks. unlisted: ids of those that the data
    set no longer lists. relisted: ids of those that it lists again. relabelled: index of an image -> its arrays that
    are replaced, masks or object ids. touched: unit -> sizes and times of its files, where these alone have changed.
    """

    contents: Contents
    new: tuple[str, ...]
    unlisted: tuple[str, ...]
    relisted: tuple[str, ...]
    relabelled: Mapping[int, frozenset[str]]
    touched: Mapping[int, tuple[str | None, ...]]
    described: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.relabelled or self.described)

    def __str__(self) -> str:
        """One line for people, empty where nothing changes: `2 new images, masks of 3 changed; other classes`."""
        counts = {
            f"{len(self.new)} new images": self.new,
            f"{len(self.relabelled)} with changed masks": self.relabelled,
            f"{len(self.unlisted)} no longer listed": self.unlisted,
            f"{len(self.relisted)} listed again": self.relisted,
        }
        parts = [text for text, of_images in counts.items() if of_images]
        names = [name for name in self.described if name not in ("images",)]
        return ", ".join(parts + [f"other {' and '.join(names)}"] * bool(names))


def with_kept_splits(dataset: Dataset, store: FeatureStore) -> Dataset:
    """Return a data set in which the images and slides that a store has labels of keep their splits.

    Splits that the data set's files name are left as they are. Raises as opening the data set does.
    """
    if dataset.with_splits is None:
        return dataset
    entries = (store.contents.images[index] for index in store.contents.labelled)
    kept = {entry.slide or entry.group or entry.id: entry.split for entry in entries}
    now = {
        sample.slide or sample.group or sample.id: sample.split
        for sample in dataset.samples
        if sample.split != UNLABELLED
    }
    if all(kept.get(name, split) == split for name, split in now.items()):
        return dataset
    return dataset.with_splits(kept)


def find_changes(dataset: Dataset, store: FeatureStore, wanted: Contents) -> Changes:
    """Compare a data set, described by `wanted`, with its store; nothing is written.

    Files whose size and times are the recorded ones are not read, unless the codes of the classes have changed (windows
    without labels have none). Others are compared by their decoded pixels, so that a touched or copied file is no
    change. Raises KeyMismatch as `Contents.grown`, StoreError, naming them, when images are no longer those that the
    features were computed from.
    """
    here, contents = store.contents, store.contents.grown(wanted, store=str(store.location))
    samples = {sample.id: sample for sample in dataset.samples}
    same_labels = here.same_labels(contents)
    relabelled, touched, changed = dict[int, frozenset[str]](), dict[int, tuple[str | None, ...]](), dict[str, str]()
    for unit in range(here.units):
        record = store.records.known(PIXELS, unit)
        if record is None:
            continue
        indices = here.unit_images(unit)
        known = [*record.sources, *[None] * len(indices)][: len(indices)]
        states = list(known)
        for position, index in enumerate(indices):
            sample = samples.get(here.images[index].id)
            if sample is None or record.checksums["images"][position] is None:
                continue
            states[position] = source_state(dataset, sample)
            listed = here.images[index].split != UNLISTED  # others did not follow the last changes of the classes
            unlabelled = here.images[index].split == sample.split == UNLABELLED and here.ignore == contents.ignore
            if states[position] == known[position] and ((same_labels and listed) or unlabelled):
                continue
            try:
                pixels = load_pixels(dataset, sample, store, index)
            except (ValueError, OSError) as e:
                changed[sample.id] = f"it cannot be read: {e}"
                continue
            differing = differing_arrays(store, index, pixels)
            if "images" in differing:
                changed[sample.id] = "images differ"
            elif differing:
                relabelled[index] = differing
        if states != known and not any(index in relabelled for index in indices):
            touched[unit] = tuple(states)
    if changed:
        raise StoreError(_changed_message(store, changed))
    before = {image.id: image for image in here.images}
    listed_before, listed_now = ({one.images[index].id for index in one.listed} for one in (here, contents))
    unlisted, relisted = listed_before - listed_now, (before.keys() & listed_now) - listed_before
    return Changes(
        contents,
        new=tuple(image.id for image in contents.images if image.id not in before),
        unlisted=tuple(id_ for id_ in store.ids if id_ in unlisted),
        relisted=tuple(id_ for id_ in store.ids if id_ in relisted),
        relabelled=relabelled,
        touched=touched,
        described=_described(here, contents, kept=before.keys() - unlisted - relisted),
    )


def apply_changes(store: FeatureStore, changes: Changes) -> None:
    """Let a store follow its data set; what it lacks then is written by the run. The caller holds the lock alone."""
    record_touched(store, changes)
    if changes:
        grow(store, changes.contents, changes.relabelled)


def record_touched(store: FeatureStore, changes: Changes) -> None:
    """Record the new size and times of files whose pixels have not changed, so that they are not read again."""
    for unit, states in changes.touched.items():
        if (record := store.records.known(PIXELS, unit)) is not None and record.sources != states:
            store.records.write(PIXELS, unit, record.checksums, sources=states)


def source_state(dataset: Dataset, sample: Sample) -> str | None:
    """Return `file_states` of a sample's files, None for a sample without files."""
    try:
        return file_states(dataset.files(sample))
    except OSError as e:
        return f"unreadable: {e.strerror}"


def load_pixels(dataset: Dataset, sample: Sample, store: FeatureStore, index: int) -> Pixels:
    """Decode a sample; where its image's file has not changed, a data set that can reads the mask alone.

    Raises as `Dataset.load`.
    """
    if dataset.load_mask is not None and (state := source_state(dataset, sample)) is not None:
        unit, position = divmod(index, store.contents.images_per_unit)
        record = store.records.known(PIXELS, unit)
        known = None if record is None or position >= len(record.sources) else record.sources[position]
        if known is not None and known.split()[0] == state.split()[0]:
            image = store.stored("images", index, PIXELS)[1]
            if image is not None:
                return Pixels(image, dataset.load_mask(sample))
    return dataset.load(sample)


def differing_arrays(store: FeatureStore, index: int, pixels: Pixels) -> frozenset[str]:
    """Return the arrays of an image that are stored with other values than these."""
    values = pixel_arrays((pixels.image, pixels.mask, pixels.instances), store.contents)
    recorded = {name: store.records.recorded_checksum(PIXELS, name, index) for name in values}
    return frozenset(
        name for name, crc in recorded.items() if crc is not None and crc != checksum(values[name])
    )  # fmt: skip


def require_same_image(store: FeatureStore, index: int, pixels: Pixels) -> None:
    """Raise StoreError when arrays of an image are stored with other values than these."""
    if differing := differing_arrays(store, index, pixels):
        what = f"{' and '.join(sorted(differing))} differ"
        raise StoreError(_changed_message(store, {store.ids[index]: what}))


def _described(here: Contents, contents: Contents, *, kept: set[str]) -> tuple[str, ...]:
    """Name what changes in the description; splits and sources are those of images listed before and after."""
    before, after = ({image.id: image for image in one.images} for one in (here, contents))
    differing = {
        "images": here.images != contents.images,
        "splits": any(before[id_].split != after[id_].split for id_ in kept),
        "sources": any(
            (before[id_].source, before[id_].group) != (after[id_].source, after[id_].group) for id_ in kept
        ),
        "classes": (here.classes, here.background, here.ignore)
        != (contents.classes, contents.background, contents.ignore),
        "class colours": here.colours != contents.colours,
        "test split": here.test_split != contents.test_split,
        "settings of masks": here.key != contents.key,
    }
    return tuple(name for name, differs in differing.items() if differs)


def _changed_message(store: FeatureStore, changed: Mapping[str, str]) -> str:
    (id_, arrays), *others = changed.items()
    more = f", nor are {', '.join(id_ for id_, _ in others[:MAX_NAMED])}" if others else ""
    more += f" and {len(others) - MAX_NAMED} more" if len(others) > MAX_NAMED else ""
    return (
        f"{id_} is not the same in the data set as in {store.location} ({arrays}){more}; "
        f"bring the old files back, or pass --store for a new store"
    )
