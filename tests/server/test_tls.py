"""Certificates are looked at before anything else."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from helpers_http import make
from helpers_live import live
from octavo.errors import UsageError
from octavo.server.patient_http import patient_http
from octavo.server.tls import check_tls, time_trouble

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="needs openssl to make certificates")


def make_pair(folder: Path, name: str, *options: str) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    arguments = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=localhost"]
    files = ["-keyout", str(key), "-out", str(certificate), "-days", "1"]
    subprocess.run([str(OPENSSL), *arguments, *files, *(options or ["-nodes"])], check=True, capture_output=True)
    return certificate, key


def test_a_pair_that_belongs_together(tmp_path: Path) -> None:
    check_tls(*make_pair(tmp_path, "a"))
    check_tls(None, None)


@pytest.mark.parametrize("name", ["X509 CERTIFICATE", "TRUSTED CERTIFICATE"])
def test_a_certificate_under_openssls_other_names(tmp_path: Path, name: str) -> None:
    certificate, key = make_pair(tmp_path, "a")
    certificate.write_text(certificate.read_text().replace("CERTIFICATE-----", f"{name}-----"))
    check_tls(certificate, key)
    assert time_trouble(certificate, key) is None


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path, "a")
    _, other = make_pair(tmp_path, "b")
    _, locked = make_pair(tmp_path, "c", "-passout", "pass:secret")
    rubbish = tmp_path / "rubbish"
    rubbish.write_text("rubbish")
    damaged = tmp_path / "damaged"
    damaged.write_text("".join(certificate.read_text().splitlines(keepends=True)[:3]))
    for pair, message in (
        ((certificate, None), "accepted: --ssl-certfile with --ssl-keyfile"),
        ((None, key), "accepted: --ssl-certfile with --ssl-keyfile"),
        ((certificate, other), "are no certificate and its key: the key is another certificate's"),
        ((rubbish, key), "--ssl-certfile: '.*/rubbish' has no certificate; accepted: one in PEM form"),
        ((key, key), "--ssl-certfile: '.*/a.key' has no certificate"),
        ((certificate, certificate), "--ssl-keyfile: '.*/a.pem' has no private key; accepted: one in PEM form"),
        ((damaged, key), "are no certificate and its key: .*PEM"),
        ((certificate, tmp_path / "none"), "--ssl-keyfile: cannot read '.*/none': No such file"),
        ((tmp_path, key), "--ssl-certfile: cannot read '.*': Is a directory"),
        ((certificate, locked), "has a passphrase"),
    ):
        with pytest.raises(UsageError, match=message):
            check_tls(*pair)


def make_dated(folder: Path, start: str, end: str) -> tuple[Path, Path]:
    """A certificate of these dates, which ``openssl ca`` can make."""
    lines = ["[ca]", "default_ca=d", "[d]", "database=index", "serial=serial", "new_certs_dir=.", "policy=p"]
    (folder / "ca.cnf").write_text("\n".join([*lines, "default_md=sha256", "[p]", "commonName=supplied", ""]))
    (folder / "index").write_text("")
    (folder / "serial").write_text("01\n")
    asked = ["req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", "d.key", "-out", "d.csr"]
    given = ["ca", "-batch", "-selfsign", "-config", "ca.cnf", "-in", "d.csr", "-keyfile", "d.key", "-out", "d.pem"]
    for arguments in (asked, [*given, "-startdate", start, "-enddate", end]):
        subprocess.run([str(OPENSSL), *arguments], check=True, capture_output=True, cwd=folder)
    return folder / "d.pem", folder / "d.key"


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("20200101000000Z", "20200201000000Z", "d.pem' has expired: clients will refuse it"),
        ("21000101000000Z", "21000201000000Z", "d.pem' is not valid yet: clients will refuse it"),
        ("20200101000000Z", "21000101000000Z", None),
    ],
)
def test_dates_are_told(tmp_path: Path, start: str, end: str, expected: str | None) -> None:
    found = time_trouble(*make_dated(tmp_path, start, end))
    assert found is None if expected is None else found is not None and found.endswith(expected)


def test_a_certificate_of_today_is_none_to_tell_of(tmp_path: Path) -> None:
    """It is of another name than any client would ask for, and nobody has signed it."""
    assert time_trouble(*make_pair(tmp_path, "a")) is None


def test_a_server_speaks_it_and_does_not_wait_for_ever(tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path, "a")
    app, _ = make()
    files = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
    with live(app, http=patient_http(0.5, 60), **files) as port:
        answer = httpx.get(f"https://127.0.0.1:{port}/v1/models", verify=False)
        assert answer.status_code == 200
        with socket.create_connection(("127.0.0.1", port), timeout=20) as secure:
            wrapped, came = ssl._create_unverified_context().wrap_socket(secure), b""
            with suppress(ConnectionResetError, ssl.SSLError):
                came = wrapped.recv(100)  # a shaken hand is no request
            assert came == b""
