"""Certificates, looked at before the model is loaded."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

from octavo.errors import UsageError

CERTIFICATE = b"CERTIFICATE-----"
PRIVATE_KEY = b"PRIVATE KEY-----"
"""What a file in PEM form has in it, under any of its names (TRUSTED CERTIFICATE, RSA PRIVATE KEY). Of a file without,
OpenSSL says no more than "PEM lib".
"""


def check_tls(certificate: Path | None, key: Path | None) -> None:
    """Raise ``UsageError`` unless both files are given and belong together, or none is given."""
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise UsageError("TLS needs a certificate and its key; accepted: --ssl-certfile with --ssl-keyfile, or neither")
    _check_pem("--ssl-certfile", certificate, CERTIFICATE, "certificate")
    _check_pem("--ssl-keyfile", key, PRIVATE_KEY, "private key")
    try:
        # A key with a passphrase is refused here: a server that asks for one on start does not come back by itself.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password=_no_passphrase)
    except ssl.SSLError as error:
        raise UsageError(f"{certificate} and {key} are no certificate and its key: {_reason(error)}") from None


def time_trouble(certificate: Path, key: Path) -> str | None:
    """Why clients will not trust the certificate today, as far as its dates say it; None: they do not.

    Nothing in the standard library reads a certificate's dates, but a handshake with ourselves does.
    """
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key, password=_no_passphrase)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whoever has signed it: here it is trusted
    client.load_verify_locations(certificate)
    try:
        _shake_hands(server, client)
    except ssl.SSLError as error:
        when = _DATES.get(getattr(error, "verify_code", 0))
        return None if when is None else f"the certificate {str(certificate)!r} {when}: clients will refuse it"
    return None


_DATES = {9: "is not valid yet", 10: "has expired"}
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """A handshake in memory, as far as the client's judgement. Raises ``ssl.SSLError``."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(up, down, server_side=True)
    theirs = client.wrap_bio(down, up)
    for end in (theirs, ours, theirs):  # hello, certificate, judgement
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()


def _check_pem(option: str, file: Path, mark: bytes, what: str) -> None:
    try:
        has_it = mark in file.read_bytes()
    except OSError as error:
        raise UsageError(f"{option}: cannot read {str(file)!r}: {error.strerror}") from None
    if not has_it:
        raise UsageError(f"{option}: {str(file)!r} has no {what}; accepted: one in PEM form")


def _reason(error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key is another certificate's"
    return str(error.reason or error)


def _no_passphrase() -> str:
    raise UsageError("the TLS key has a passphrase; accepted: one without")
