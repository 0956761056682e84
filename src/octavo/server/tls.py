"""Certificates, looked at before the model is loaded."""

from __future__ import annotations

import ssl
from pathlib import Path

from octavo.errors import UsageError


def check_tls(certificate: Path | None, key: Path | None) -> None:
    """Raise ``UsageError`` unless both files are given and belong together, or none is given."""
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise UsageError("TLS needs a certificate and its key; accepted: --ssl-certfile with --ssl-keyfile, or neither")
    try:
        # A key with a passphrase is refused here: a server that asks for one on start does not come back by itself.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password=_no_passphrase)
    except ssl.SSLError as error:
        raise UsageError(f"{certificate} and {key} are no certificate and its key: {error.reason or error}") from None
    except OSError as error:
        raise UsageError(f"cannot read {certificate} or {key}: {error.strerror}") from None


def _no_passphrase() -> str:
    raise UsageError("the TLS key has a passphrase; accepted: one without")
