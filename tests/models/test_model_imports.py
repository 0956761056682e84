"""Rooms import downwards only, and a family's file only when a model of it is asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import octavo

ROOT = Path(octavo.__file__).parent
NOUNS = {"config", "errors"}
ALLOWED = {
    "kernels": NOUNS | {"ggml", "kernels"},
    "layers": NOUNS | {"kernels", "quantization", "layers", "parallel"},
    "models": NOUNS | {"kernels", "quantization", "layers", "models", "parallel"},
    "parallel.py": {"errors"},
}


def imported_rooms(file: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import"
            names = [node.module or ""]
        rooms |= {name.split(".")[1] for name in names if name.startswith("octavo.")}
    return rooms


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_downwards(room):
    path = ROOT / room
    files = [path] if path.is_file() else list(path.rglob("*.py"))
    assert files
    for file in files:
        assert imported_rooms(file) <= ALLOWED[room], file


def test_families_are_imported_when_asked_for():
    code = "import sys, octavo.models.registry; print([m for m in sys.modules if 'octavo.models.' in m])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert "octavo.models.registry" in out.stdout
    assert "llama" not in out.stdout
    assert "qwen" not in out.stdout
