"""Split a data set at random by shares: stratified by class, pictures whole, and those that belong together too."""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import replace

import numpy as np

from retinanet_tf.data.sources.annotations import Annotations
from retinanet_tf.data.sources.image_files import BadImage, find_image
from retinanet_tf.errors import InputError

_AUGMENTED = re.compile(r"^(.+)\.rf\.\w+(\.\w+)?$")  # Roboflow's name of a version of a picture


def random_split(
    annotations: Annotations,
    images: str | os.PathLike,
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    group: str | None = None,
) -> dict[str, Annotations]:
    """Divides pictures among splits so that each has about its share of the pictures of every class.

    Pictures of the same bytes, those that Roboflow derived from one (`NAME.rf.HASH.jpg`) and those that `group` joins
    come into one split. The rarest class is divided first: each picture goes where most whole pictures of it are
    missing, and at a tie where most of the share of all pictures is.

    >>> from retinanet_tf.data import Annotations, ImageAnnotations, LabelMap
    >>> pictures = [ImageAnnotations(i, f"day{i // 5}/{i}.jpg") for i in range(20)]
    >>> annotations = Annotations("days", pictures, LabelMap([1], ["cup"]))
    >>> splits = random_split(annotations, "days", {"train": 0.75, "val": 0.25}, group=r"day\\d+")
    >>> {name: len(split.images) for name, split in splits.items()}
    {'train': 15, 'val': 5}

    Args:
        annotations: of any source.
        images: the folder that their file names are relative to, for copies; files that aren't there have none.
        shares: of the pictures by the splits' names; they add up to 1.
        seed: of the order in which pictures are dealt out; file names and seed determine the result.
        group: a regular expression searched in file names: pictures with the same match (of its groups, if it has
            any) stay together; an empty match is none.

    Returns:
        The splits, each with the pictures in the order of the source. Warnings of the source come with the first.

    Raises:
        InputError: wrong shares, a wrong expression or one that no file name has, a split that would get no picture.
    """
    if not shares or not min(shares.values()) > 0 or not abs(sum(shares.values()) - 1) <= 1e-6:
        text = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise InputError(f"the shares of the splits are {text}; they must be above 0 and add up to 1.")
    units = _units(annotations, os.fspath(images), group)
    chosen = _deal(units, annotations, np.array([*shares.values()]), seed)
    by_split: list[set[int]] = [set() for _ in shares]
    for unit, split in zip(units, chosen, strict=True):
        by_split[split].update(unit)
    result: dict[str, Annotations] = {}
    for (name, share), numbers in zip(shares.items(), by_split, strict=True):
        if not numbers:
            raise InputError(
                f"no picture is left for {name} (a share of {share:g}): {annotations.source} has "
                f"{len(annotations.images)} pictures in {len(units)} groups that stay together."
            )
        pictures = [image for number, image in enumerate(annotations.images) if number in numbers]
        source = f"{annotations.source} ({name} {share:g}, seed {seed})"
        warnings = [] if result else annotations.warnings
        result[name] = replace(annotations, images=pictures, source=source, warnings=warnings)
    return result


def _units(annotations: Annotations, folder: str, group: str | None) -> list[list[int]]:
    """The pictures (their indices) that stay together, in an order that depends on the file names alone."""
    names = [image.file_name for image in annotations.images]
    parent = list(range(len(names)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    first: dict[Hashable, int] = {}
    matches = [_AUGMENTED.match(os.path.basename(name)) for name in names]
    augmented = [(number, ("augmented", match[1])) for number, match in enumerate(matches) if match]
    keys = [*_group_keys(annotations.source, names, group), *augmented, *_copy_keys(folder, names)]
    for number, key in keys:
        parent[root(number)] = root(first.setdefault(key, number))
    units: dict[int, list[int]] = defaultdict(list)
    for number in sorted(range(len(names)), key=names.__getitem__):
        units[root(number)].append(number)
    return sorted(units.values(), key=lambda unit: names[unit[0]])


def _group_keys(source: str, names: list[str], group: str | None) -> list[tuple[int, Hashable]]:
    if not group:
        return []
    try:
        found = [re.search(group, name) for name in names]
    except re.error as error:
        raise InputError(f"group={group} isn't a regular expression: {error}.") from None
    texts = [(match.groups() or (match[0],)) if match else () for match in found]
    keys: list[tuple[int, Hashable]] = [(number, ("group", text)) for number, text in enumerate(texts) if any(text)]
    if not keys:
        raise InputError(f"group={group} matches no file name of {source}, such as {names[0] if names else ''}.")
    return keys


def _copy_keys(folder: str, names: list[str]) -> list[tuple[int, Hashable]]:
    """The content's hash for files whose size another one has."""
    by_size: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for number, name in enumerate(names):
        try:
            path = find_image(folder, name, allow_outside=True)
            by_size[os.path.getsize(path)].append((number, path))
        except (BadImage, OSError):
            continue
    keys: list[tuple[int, Hashable]] = []
    for files in by_size.values():
        for number, path in files if len(files) > 1 else []:
            with open(path, "rb") as file:
                keys.append((number, ("copy", hashlib.sha256(file.read()).digest())))
    return keys


def _deal(units: list[list[int]], annotations: Annotations, shares: np.ndarray, seed: int) -> np.ndarray:
    """The split of each unit, by iterative stratification (Sechidis et al., 2011)."""
    counts = np.zeros((len(units), annotations.label_map.num_classes + 1))  # pictures with each class, and pictures
    for row, unit in enumerate(units):
        for number in unit:
            image = annotations.images[number]
            classes = np.searchsorted(annotations.label_map.ids, image.category_ids[~image.iscrowd])
            counts[row, np.unique(classes)] += 1
        counts[row, -1] = len(unit)
    wanted = shares[:, None] * counts.sum(axis=0)  # that each split still lacks
    order = np.random.default_rng(seed).permutation(len(units))
    order = order[np.argsort(-counts[order, -1], kind="stable")]  # large units first, while there is room
    chosen = np.full(len(units), -1)
    left = (counts > 0).sum(axis=0)  # units with each class that have no split yet
    while (chosen < 0).any():
        rarest = int(np.argmin(np.where(left[:-1] > 0, left[:-1], np.inf))) if left[:-1].any() else -1
        dealt = order[(chosen[order] < 0) & (counts[order, rarest] > 0)]
        left = left - (counts[dealt] > 0).sum(axis=0)
        for unit in dealt:
            whole = np.floor(np.maximum(wanted[:, rarest], 0) + 1e-9)  # else the largest would get all fractions
            split = max(range(len(shares)), key=lambda i: (whole[i], wanted[i, -1] / shares[i]))
            chosen[unit] = split
            wanted[split] -= counts[unit]
    return chosen
