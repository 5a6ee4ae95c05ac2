"""Downloads published weights once, checks and converts them."""

import os
import re
import tempfile
import zipfile
from pathlib import Path

import pooch
import requests
from absl import logging
from tqdm import tqdm

from retinanet_tf import files
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError, refusing
from retinanet_tf.inference import checkpoint
from retinanet_tf.pretrained.cache import converted_folder, published_file
from retinanet_tf.pretrained.importing import import_weights
from retinanet_tf.pretrained.zoo import Entry

TIMEOUT = 30.0
"""Seconds that a server may be silent."""


def fetch(entry: Entry) -> Path:
    """The published file of a row, downloaded if it isn't there yet; half a file never gets its name.

    Raises:
        InputError: there is no connection, or the file has another digest; where to put it by hand is said.
    """
    path = published_file(entry)
    if path.exists():
        fault = f"{path} is not the file that was published as {entry.name}"
        _check_digest(entry, entry.digest, path, fault, "delete it")
        return path
    files.make_folder(path.parent, "the folder for downloaded weights (RETINANET_TF_HOME chooses another)")
    expected = int(1e6 * (entry.megabytes or 1))  # until the server says
    bar = tqdm(total=expected, desc=entry.name, unit="B", unit_scale=True, mininterval=0.5)
    with files.written_aside(path) as aside, bar:
        try:
            digest = entry.digest or _published_digest(entry)
            pooch.HTTPDownloader(progressbar=bar, chunk_size=2**20, timeout=TIMEOUT)(entry.url, aside, None)
        except OSError as error:
            if error.errno and not isinstance(error, requests.RequestException):
                raise  # the disk's; requests gives its own, such as one of a missing CA bundle, no number
            raise InputError(
                f"{entry.name} can't be downloaded ({_reason(error)}); fetch {entry.url} by other means and put it at "
                f"{path}."
            ) from None
        fault = f"{entry.url} is not the file that was published as {entry.name}"
        _check_digest(entry, digest, aside, fault, "try again")
    return path


def install(entry: Entry) -> Path:
    """The folder of a row's weights in this library's format: downloaded and converted at the first call.

    Raises:
        InputError: the file can't be downloaded, isn't what the row describes, or can't be converted.
    """
    folder = converted_folder(entry)
    if folder.exists():
        return folder
    file = fetch(entry)
    files.make_folder(folder.parent, "the folder for downloaded weights (RETINANET_TF_HOME chooses another)")
    with tempfile.TemporaryDirectory(prefix=".converted-", dir=folder.parent) as aside:
        weights = Path(aside, "weights")
        source = _unpacked(file, entry.member, aside) if entry.member else file
        try:
            import_weights(
                entry.source,
                source,
                weights,
                label_map=LabelMap.from_json(entry.categories()) if entry.detects else None,
                adjust=lambda config: config.replace(**entry.settings),
            )
            _check_tensors(entry, weights)
        except InputError as error:
            raise InputError(
                f"{entry.name} can't be converted from {file}: {error} If the file is damaged, delete it; the next "
                "call downloads it again."
            ) from None
        try:
            weights.rename(folder)
        except OSError as error:
            if not folder.exists():  # else another process was the first
                raise InputError(f"{folder} can't be written: {error.strerror or error}.") from None
    return folder


def _unpacked(file: Path, member: str, folder: str) -> Path:
    with refusing(f"{file} is not a zip file with {member}"), zipfile.ZipFile(file) as archive:
        return Path(archive.extract(member, folder))


def _published_digest(entry: Entry) -> str:
    """The digest that the server says of the weights; '' with a warning where it has none, '' where none is known."""
    algorithm, url = entry.digest_url
    if not url:
        return ""
    answer = requests.get(url, timeout=TIMEOUT)
    if answer.status_code == requests.codes.not_found:
        logging.warning("%s isn't there: the tensors of %s are checked, but no digest.", url, entry.name)
        return ""
    answer.raise_for_status()
    if algorithm == "md5":
        found = re.match(r"\s*([0-9a-fA-F]{32})\b", answer.text)
    else:
        rows = answer.json() if answer.text.startswith("[") else []
        (oid,) = [row.get("lfs", {}).get("oid", "") for row in rows if row.get("path") == entry.filename] or [""]
        found = re.fullmatch(r"([0-9a-f]{64})", oid)
    if not found:
        raise InputError(
            f"{url} gives no {algorithm.upper()}, so {entry.name} can't be checked; try again, or fetch {entry.url} "
            f"by other means and put it at {published_file(entry)}."
        )
    return f"{algorithm}:{found[1].lower()}"


def _check_digest(entry: Entry, digest: str, path: str | os.PathLike, fault: str, remedy: str) -> None:
    algorithm, _, wanted = digest.partition(":")
    if not algorithm:
        return
    found = pooch.file_hash(os.fspath(path), alg=algorithm)[: len(wanted)]
    if found != wanted:
        raise InputError(
            f"{fault}: its {algorithm.upper()} begins with {found[:8]}, not with {wanted[:8]}; {remedy}, or fetch "
            f"{entry.url} by other means and put it at {published_file(entry)}."
        )


def _check_tensors(entry: Entry, folder: Path) -> None:
    found = {"parts": checkpoint.imported(folder)["parts"], **checkpoint.load_config(folder).flat()}
    wanted = {"parts": "detector" if entry.detects else "backbone", "backbone": entry.backbone, **entry.expected}
    differing = [f"{name}={found[name]} instead of {value}" for name, value in wanted.items() if found[name] != value]
    if differing:
        raise InputError(f"its tensors are another network's: {', '.join(differing)}.")


def _reason(error: OSError) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return f"the server is silent for {TIMEOUT:g} seconds"
    return type(error).__name__ if isinstance(error, requests.RequestException) else str(error)
