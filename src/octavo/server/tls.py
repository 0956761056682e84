"""Certificates, looked at before the model is loaded."""

from __future__ import annotations

import ssl
from pathlib import Path

from octavo.errors import UsageError

CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
PRIVATE_KEY = b"PRIVATE KEY-----"
"""What a file in PEM form has in it. Of a file without, OpenSSL says no more than "PEM lib"."""


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
