"""The page of an evaluation: one HTML file with its tables, curves, confusion matrix and pictures."""

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from retinanet_tf.data.sources.image_headers import quiet_pillow
from retinanet_tf.evaluation.analysis import MEANINGS, Analysis, rounded, threshold_numbers
from retinanet_tf.evaluation.coco import METRICS
from retinanet_tf.evaluation.matching import KINDS
from retinanet_tf.evaluation.plots import mean_precision
from retinanet_tf.text import printable
from retinanet_tf.visualize import jpeg_url

THUMBNAILS, LISTED_PICTURES, LISTED_CLASSES = 100, 1000, 100
"""What the page has at most: pictures, names of pictures, rows of the confusion matrix."""
_SIDE, _QUALITY, _NAME = 440, 72, 80


def html_page(analysis: Analysis, encoded: Callable[[], Iterator[bytes]] | None = None) -> str:
    """The page as text, without outside references.

    Args:
        analysis: what it shows.
        encoded: yields the images as encoded bytes in the ground truth's order; None for a page without pictures.
    """
    content = page_data(analysis)
    if encoded is not None:
        wanted = {content["pictures"][place]["index"]: place for place in content["drawn"]}
        for index, image in enumerate(encoded() if wanted else ()):
            if index in wanted:
                picture = content["pictures"][wanted.pop(index)]
                picture["thumbnail"], size = thumbnail(image)
                picture["size"] = [given or real for given, real in zip(picture["size"], size, strict=True)]
            if not wanted:
                break
    content["about"] = _about(content, analysis, encoded is not None)
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":  # nothing ends the script's element
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    page = resources.files("retinanet_tf.evaluation").joinpath("page.html").read_text(encoding="utf-8")
    return page.replace("__DATA__", text)


def page_data(analysis: Analysis) -> dict[str, Any]:
    """The page's numbers: all that its script shows, for every least score of `analysis.levels`.

    A matrix entry is [true, predicted, level, change, …]: the sum of the changes at a level and above it is the count
    there. A picture's cell is [true, predicted, levels where one comes, levels where one goes].
    """
    matching, outcomes = analysis.matching, analysis.outcomes
    names, totals = [printable(name, _NAME) for name in analysis.names], matching.objects_per_class.tolist()
    errors = outcomes.errors_per_image(analysis.level, matching.num_images)
    cells = _cells(analysis)
    by_errors, of_mistakes = np.argsort(-errors, kind="stable").tolist(), _of_mistakes(cells, analysis.level)
    drawn = _first(THUMBNAILS, of_mistakes, by_errors)
    by_errors = sorted(_first(LISTED_PICTURES, of_mistakes, by_errors), key=lambda image: (-errors[image], image))
    pictures = [_picture(analysis, index, cells[index]) for index in by_errors]
    _add_boxes(analysis, {index: pictures[by_errors.index(index)] for index in drawn})
    wrong = analysis.confusion * ~np.eye(len(names) + 1, dtype=bool)
    mistakes = wrong.sum(axis=0) + wrong.sum(axis=1) + analysis.confusion.diagonal() / 1e6
    listed = np.sort(np.argsort(-mistakes[:-1], kind="stable")[:LISTED_CLASSES]).tolist()
    mean = mean_precision(analysis.scores, 0)
    return {
        "source": printable(analysis.truth.name, 200),
        "names": [*names, "background"],
        "metrics": [[name, None if analysis.metrics[name] < 0 else analysis.metrics[name]] for name in METRICS],
        "notes": _notes(analysis),
        "levels": analysis.levels.tolist(),
        "start": analysis.level,
        "has_best": analysis.best is not None,
        "classes": [
            [totals[k], analysis.ap[k], analysis.ap50[k], *threshold_numbers(best, totals[k])[:2]]
            for k, best in enumerate(analysis.thresholds)
        ],
        "errors": [
            {"kind": kind, "meaning": MEANINGS[kind], "counts": counts.tolist(), "total": analysis.errors.counts[kind]}
            | {"cost": analysis.errors.costs[kind]}
            for kind, counts in zip(KINDS, analysis.error_counts, strict=True)
        ],
        "curves": {
            "recalls": rounded(analysis.scores.recalls, 3),
            "precision": [rounded(curve, 3) for curve in analysis.precision],
            "mean": rounded(mean, 3) if any(totals) else None,
            "f1": {
                "all": rounded(analysis.f1["all"], 3),
                "classes": [rounded(one, 3) for one in analysis.f1["classes"]],
            },
        },
        "matrix": _matrix(outcomes.events),
        "listed": listed,
        "left_out": f"The {len(listed)} of {len(names)} classes with the most mistakes; metrics.json has all."
        if len(listed) < len(names)
        else "",
        "pictures": pictures,
        "drawn": [by_errors.index(index) for index in drawn],
    }


def thumbnail(encoded: bytes) -> tuple[str, tuple[int, int]]:
    """A small JPEG of an encoded image as a data URL, and the image's (width, height)."""
    with quiet_pillow(), Image.open(io.BytesIO(encoded)) as image:
        small = image.convert("RGB")
    size = small.size
    small.thumbnail((_SIDE, _SIDE))
    return jpeg_url(small, _QUALITY), size


def _notes(analysis: Analysis) -> list[str]:
    matching, best = analysis.matching, analysis.best
    counts = f"{matching.num_images} images, {matching.objects_per_class.sum()} objects"
    crowds = int(matching.ignored_objects.sum())
    notes = [f"{counts}{f' and {crowds} crowds' if crowds else ''}, {len(matching.scores)} detections."]
    if best is None:
        notes.append(
            f"No detection finds an object, so there is no best score; the page starts at {analysis.threshold:g}."
        )
    else:
        notes.append(
            f"The best F1 of all classes together is {100 * best.f1:.1f}, for scores of {best.score:.3f} or more."
        )
    return notes + [analysis.limit_note()] * (analysis.errors.beyond_limit > 0)


def _about(content: dict[str, Any], analysis: Analysis, has_images: bool) -> str:
    total, listed = analysis.matching.num_images, len(content["pictures"])
    if not has_images:
        shown = "The images weren't given, so this page has no pictures, only their names."
    elif len(content["drawn"]) < total:
        shown = (
            f"The {len(content['drawn'])} of {total} pictures with the most errors, and some of the most "
            "frequent mistakes, at the score of the best F1."
        )
    else:
        shown = f"All {total} pictures."
    return shown + (f" The {listed} pictures with the most errors are listed by name." if listed < total else "")


def _cells(analysis: Analysis) -> dict[int, dict[tuple[int, int], tuple[list[int], list[int]]]]:
    """The levels at which each cell of each image's confusion matrix gains one and loses one."""
    found: dict[int, dict] = defaultdict(lambda: defaultdict(lambda: ([], [])))
    for image, true, predicted, level, sign in analysis.outcomes.events.tolist():
        found[image][true, predicted][sign < 0].append(level)
    return found


def _of_mistakes(cells: dict, level: int) -> list[int]:
    """For every cell off the diagonal the image with most of it at a level, the most frequent mistakes first."""
    best: dict[tuple[int, int], tuple[int, int]] = {}
    totals: dict[tuple[int, int], int] = defaultdict(int)
    for image, of_image in sorted(cells.items()):
        for cell, (gains, losses) in of_image.items():
            count = sum(one >= level for one in gains) - sum(one >= level for one in losses)
            totals[cell] += count
            if cell[0] != cell[1] and count > best.get(cell, (-1, 0))[0]:
                best[cell] = (count, image)
    return [best[cell][1] for cell in sorted(best, key=lambda cell: -totals[cell])]


def _first(limit: int, of_mistakes: list[int], by_errors: list[int]) -> list[int]:
    """At most so many images: half of them for as many kinds of mistakes, then the worst."""
    return list(dict.fromkeys([*of_mistakes[: limit // 2], *by_errors]))[:limit]


def _picture(analysis: Analysis, index: int, cells: dict) -> dict[str, Any]:
    image = analysis.truth.instances["images"][index]
    return {
        "index": index,
        "name": printable(str(image.get("file_name") or image["id"]), _NAME),
        "size": [image.get("width"), image.get("height")],
        "thumbnail": None,
        "cells": [[*cell, *levels] for cell, levels in cells.items()],
        "objects": [],
        "detections": [],
    }


def _add_boxes(analysis: Analysis, pictures: dict[int, dict[str, Any]]) -> None:
    """Boxes with their classes and what became of them, in classes, for the pictures by image."""
    matching, outcomes, background = analysis.matching, analysis.outcomes, analysis.matching.num_classes

    def history(changes: list[tuple[int, int]], classes: np.ndarray) -> list[list[int]]:
        return [[level, int(classes[partner]) if partner >= 0 else background] for level, partner in changes]

    for number, row in enumerate(analysis.truth.instances["annotations"]):
        image = int(matching.object_images[number])
        if image in pictures:
            changes = outcomes.objects.get(number)
            told = None if changes is None else history(changes, matching.classes)
            pictures[image]["objects"].append([_box(row), int(matching.object_classes[number]), told])
    for number in matching.order[::-1].tolist():  # the best last, on top
        image = int(matching.images[number])
        if image in pictures and number in outcomes.detections:
            row = analysis.results[number]
            told = history(outcomes.detections[number], matching.object_classes)
            pictures[image]["detections"].append([_box(row), int(matching.classes[number]), float(row["score"]), told])


def _box(row: dict[str, Any]) -> list[float]:
    return np.round(np.asarray(row["bbox"], float), 1).tolist()


def _matrix(events: np.ndarray) -> list[list[int]]:
    changes: dict[tuple[int, int], dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for _, true, predicted, level, sign in events.tolist():
        changes[true, predicted][level] += sign
    return [
        [*cell, *(value for item in sorted(levels.items(), reverse=True) if item[1] for value in item)]
        for cell, levels in sorted(changes.items())
    ]
