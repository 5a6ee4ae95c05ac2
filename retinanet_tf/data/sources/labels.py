"""Label map: category ids of a dataset (sparse, any order) to labels 0..K-1 and back; labels.json."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from reprlib import repr as shown

import numpy as np

from retinanet_tf.errors import InputError
from retinanet_tf.files import read_json, write_json

ONE_MAP = (
    "splits in one folder share the categories of its labels.json: choose another output folder, or prepare the split "
    "with all of them first"
)
"""What to do about a category that a label map lacks."""
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # what no file name and no UTF-8 holds


def is_id(value: object) -> bool:
    """Whether a value is an integer of 64 bits."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_name(value: object) -> bool:
    """Whether a value is a text of at least one character, without NUL and lone surrogates."""
    return isinstance(value, str) and value != "" and not _NO_TEXT.search(value)


@dataclass(init=False, repr=False, unsafe_hash=True)
class LabelMap:
    """The K categories of a dataset, sorted by id; a category's index in that order is its label.

    COCO numbers its 80 categories 1..90 with gaps, so an id is never used as a label: `ids[label]` and
    `to_index(id)` translate. Stored as `labels.json`: a list of {"id": int, "name": str}.

    >>> label_map = LabelMap([90, 1, 17], ["toothbrush", "person", "cat"])
    >>> label_map.names
    ('person', 'cat', 'toothbrush')
    >>> label_map.to_index(17), label_map.ids[1]
    (1, 17)
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]

    def __init__(self, ids: Sequence[int], names: Sequence[str]):
        """ids: K different integers; names: K strings, in the same order. Raises InputError for anything else."""
        if len(ids) != len(names):
            raise InputError(f"a label map of {len(ids)} ids and {len(names)} names; each category has one of both.")
        for category, name in zip(ids, names, strict=True):
            if not is_id(category.item() if isinstance(category, np.integer) else category) or not is_name(name):
                raise InputError(
                    f"a category has id {shown(category)} and name {shown(name)}; give an integer and a text."
                )
        pairs = sorted(zip(map(int, ids), names, strict=True))
        for (first, _), (second, name) in zip(pairs, pairs[1:], strict=False):
            if first == second:
                raise InputError(f"category id {first} is defined twice (again as {name!r}); give each its own id.")
        if not pairs:
            raise InputError("the dataset defines no categories; a detector needs at least one.")
        self.ids = tuple(i for i, _ in pairs)
        self.names = tuple(n for _, n in pairs)

    @property
    def num_classes(self) -> int:
        """K, the number of categories."""
        return len(self.ids)

    @property
    def unique_names(self) -> tuple[str, ...]:
        """K different names, to tell categories apart by: "NAME (ID)" where a name repeats."""
        count = Counter(self.names)
        names = [f"{n} ({i})" if count[n] > 1 else n for i, n in zip(self.ids, self.names, strict=True)]
        if len(set(names)) < len(names):  # a name looks like another one with its id
            names = [f"{n} ({i})" for i, n in zip(self.ids, self.names, strict=True)]
        return tuple(names)

    def to_index(self, category_id: int | np.ndarray) -> int | np.ndarray:
        """Labels 0..K-1 (int, or int64 array of the same shape) of a category id or an array; InputError if unknown."""
        ids, wanted = np.array(self.ids), np.asarray(category_id)
        if not np.isin(wanted, ids).all():
            unknown = wanted[~np.isin(wanted, ids)].flat[0]
            raise InputError(f"category id {unknown} isn't one of the dataset's {self.num_classes} categories.")
        labels = np.searchsorted(ids, wanted)
        return labels if labels.ndim else int(labels)

    def to_json(self) -> list[dict]:
        """The list of {"id", "name"} that `save` writes and COCO calls `categories`."""
        return [{"id": i, "name": n} for i, n in zip(self.ids, self.names, strict=True)]

    @classmethod
    def from_json(cls, entries: Iterable[dict], source: str = "labels") -> "LabelMap":
        """The map of a list of {"id", "name"}; `source` names the file in an InputError."""
        try:
            pairs = [(entry["id"], entry.get("name", str(entry["id"]))) for entry in entries]
        except (TypeError, KeyError, AttributeError):
            raise InputError(f'{source} must hold a list of {{"id": integer, "name": text}}.') from None
        try:
            return cls([category for category, _ in pairs], [name for _, name in pairs])
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    def save(self, path: str | os.PathLike) -> None:
        """Writes labels.json, aside first and then renamed, so that it is whole or absent."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "LabelMap":
        """Reads labels.json; raises InputError if it is missing or isn't one."""
        return cls.from_json(read_json(path, "the label map"), os.fspath(path))

    def __repr__(self) -> str:
        return f"LabelMap({self.num_classes} categories, ids {self.ids[0]}..{self.ids[-1]})"
