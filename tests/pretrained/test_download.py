"""Published files: downloaded once from a server of this machine, checked, kept in one folder."""

import concurrent.futures
import hashlib
import json
import socket

import pytest
from weights_server import CONTENT, SHA256, leftovers, row

import retinanet_tf as rn
from retinanet_tf.pretrained import cache, download

MD5 = hashlib.md5(CONTENT).hexdigest()


def test_a_file_is_downloaded_once(server):
    file = download.fetch(row(server.url()))
    assert file.read_bytes() == CONTENT and leftovers() == [file]
    assert file == cache.published_file(row(server.url())) == cache.home() / "tests/tiny/weights.pkl"
    assert download.fetch(row(server.url())) == file and server.asked == ["/weights.pkl"]


@pytest.mark.parametrize("kind", ["/moved", "/slow"])
def test_redirected_and_slow_but_steady(server, kind, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 1.0)  # less than the slow answer takes as a whole
    assert download.fetch(row(server.url(f"{kind}/weights.pkl"))).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "digest",
    [f"sha256:{SHA256}", f"md5:{MD5}", ""],
    ids=["whole SHA-256", "MD5", "none published"],
)
def test_digests(server, digest):
    assert download.fetch(row(server.url(), digest)).read_bytes() == CONTENT


@pytest.mark.parametrize("text", [MD5, f"{MD5.upper()}  weights.pkl\n"], ids=["digits alone", "as md5sum prints it"])
def test_a_digest_in_a_file_of_its_own(server, monkeypatch, text):
    """Detectron's: at the URL with .md5sum at the end, asked for once."""
    monkeypatch.setitem(server.files, "/weights.pkl.md5sum", text.encode())
    entry = row(server.url(), "", has_md5sum=True)
    assert download.fetch(entry).read_bytes() == CONTENT
    assert download.fetch(entry).exists() and server.asked == ["/weights.pkl.md5sum", "/weights.pkl"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0" * 32, f"MD5 begins with {MD5[:8]}, not with 00000000"),
        ("<html>moved</html>", "weights.pkl.md5sum gives no MD5"),
        (f"{MD5}00", "weights.pkl.md5sum gives no MD5"),
    ],
)
def test_a_digest_in_a_file_of_its_own_that_differs(server, monkeypatch, text, sentence):
    monkeypatch.setitem(server.files, "/weights.pkl.md5sum", text.encode())
    with pytest.raises(rn.InputError, match=sentence):
        download.fetch(row(server.url(), "", has_md5sum=True))
    assert not leftovers()


def test_a_digest_by_hugging_faces_api(server, monkeypatch, caplog):
    """Its answer to /api/models/OWNER/NAME/tree/BRANCH; a file of Git itself, of another digest, has no "lfs"."""
    entry = row(server.url("/owner/name/resolve/main/weights.pkl"), "")
    assert download.fetch(entry).read_bytes() == CONTENT and "tree/main isn't there" in caplog.text
    cache.published_file(entry).unlink()
    config = {"type": "file", "oid": "1" * 40, "size": 5, "path": "config.json"}
    large = {**config, "path": "weights.pkl", "lfs": {"oid": SHA256, "size": len(CONTENT), "pointerSize": 133}}
    monkeypatch.setitem(server.files, "/main", json.dumps([config, large]).encode())
    server.asked.clear()
    assert download.fetch(entry).read_bytes() == CONTENT
    assert server.asked == ["/api/models/owner/name/tree/main", "/owner/name/resolve/main/weights.pkl"]
    cache.published_file(entry).unlink()
    for rows, sentence in (
        ([config], "tree/main gives no SHA256"),
        ([{**large, "lfs": {"oid": "0" * 64}}], f"SHA256 begins with {SHA256[:8]}, not with 00000000"),
    ):
        monkeypatch.setitem(server.files, "/main", json.dumps(rows).encode())
        with pytest.raises(rn.InputError, match=sentence):
            download.fetch(entry)
    assert not leftovers()


def test_certificates_that_are_missing_are_not_the_disks_fault(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent.pem")
    entry = row("https://weights.invalid/weights.pkl")
    sentence = r"can't be downloaded \(.*CA certificate bundle.*nonexistent.pem\); fetch https://weights.invalid"
    with pytest.raises(rn.InputError, match=sentence):
        download.fetch(entry)


def test_a_digest_that_its_publisher_no_longer_has(server, caplog):
    """The weights can still be had; that they weren't compared is said."""
    assert download.fetch(row(server.url(), "", has_md5sum=True)).read_bytes() == CONTENT
    assert "weights.pkl.md5sum isn't there: the tensors of tests/tiny are checked, but no digest" in caplog.text


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/half/weights.pkl", "tests/tiny can't be downloaded"),
        ("/silent/weights.pkl", "tests/tiny can't be downloaded"),
        ("/missing.pkl", "tests/tiny can't be downloaded .the server answers 404"),
    ],
)
def test_a_failed_download_leaves_nothing(server, path, sentence, monkeypatch):
    entry = row(server.url(path))
    with monkeypatch.context() as patch, pytest.raises(rn.InputError, match=sentence) as error:
        if path.startswith("/silent"):
            patch.setattr(download, "TIMEOUT", 0.2)
        download.fetch(entry)
    assert entry.url in str(error.value) and str(cache.published_file(entry)) in str(error.value)
    assert not leftovers()
    # The next call begins anew.
    assert download.fetch(row(server.url())).read_bytes() == CONTENT


def test_another_file_than_the_published_one_is_refused(server):
    with pytest.raises(rn.InputError, match=f"SHA256 begins with {SHA256[:8]}, not with 00000000"):
        download.fetch(row(server.url(), "sha256:00000000"))
    assert not leftovers()


def test_without_a_network_a_file_put_by_hand_is_taken(server):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        entry = row(f"http://127.0.0.1:{unused.getsockname()[1]}/weights.pkl")
        with pytest.raises(rn.InputError, match=r"can't be downloaded \(ConnectionError\); fetch .* by other means"):
            download.fetch(entry)
        place = cache.published_file(entry)
        place.write_bytes(CONTENT[:-1])
        with pytest.raises(rn.InputError, match=r"weights.pkl is not the file that was published .* delete it"):
            download.fetch(entry)
        place.write_bytes(CONTENT)
        assert download.fetch(entry) == place


def test_a_proxy_of_the_environment_is_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url(""))
    assert download.fetch(row("http://weights.invalid/weights.pkl")).read_bytes() == CONTENT
    assert server.asked == ["http://weights.invalid/weights.pkl"]


def test_two_downloads_at_once(server):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        files = list(pool.map(download.fetch, [row(server.url("/slow/weights.pkl"))] * 2))
    assert files[0] == files[1] and files[0].read_bytes() == CONTENT and leftovers() == [files[0]]


def test_a_folder_that_cannot_be_written(server, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RETINANET_TF_HOME", str(tmp_path / "file"))
    with pytest.raises(rn.InputError, match=r"RETINANET_TF_HOME chooses another\) .*file/tests/tiny can't be created"):
        download.fetch(row(server.url()))
    assert not server.asked
