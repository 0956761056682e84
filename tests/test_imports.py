"""The plan of the house: who may import whom, no cycles, and no torch where none is needed."""

from __future__ import annotations

import ast
import importlib.util
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import octavo

ROOT = Path(octavo.__file__).parent

NOUNS = {
    "config",
    "sampling_params",
    "structured_outputs",
    "outputs",
    "cursor",
    "errors",
    "version",
    "lora",
    "large_imports",
}
HARDWARE = {"kernels", "quantization", "layers", "models", "parallel"}
PACKED = {"kernels.packed", "kernels.packed_parts", "kernels.reference.quantized"}
MAY_IMPORT: dict[str, set[str]] = {
    "nouns": set(),
    "core": {"nouns"},
    "ggml": {"nouns"},
    "kernels": {"nouns", "ggml"},
    "quantization": {"nouns", "kernels"},
    "parallel": {"nouns"},
    "layers": {"nouns", "kernels", "quantization", "parallel"},
    "models": {"nouns", "kernels", "quantization", "parallel", "layers"},
    "weights": {"nouns", "ggml", "quantization", *PACKED},
    "text": {"nouns", "weights"},
    "execution": {"nouns", "core.plan", "weights", *HARDWARE},
    "assemble": {"nouns", "core", "text"},
    "intake": {"nouns", "core", "text"},
    "adapters": {"nouns", "core", "execution"},
    "grammar": {"nouns", "core.plan", "text"},
    "engine": {"nouns", "core", "text", "execution", "grammar", "assemble", "intake", "adapters"},
    "build_engine": {"nouns", "text", "weights", "execution", "grammar", "engine"},
    "llm": {"nouns", "core.plan", "text", "intake", "engine", "build_engine"},
    "glass": {"nouns", "core.plan"},
    "client": {"nouns"},
    "engine_process": {
        *("nouns", "core.plan", "client", "engine", "build_engine"),
        *("execution.adapters", "execution.build", "weights"),
    },
    "async_llm": {"nouns", "client", "text", "intake"},
    "openai": {"nouns", "text"},
    "anthropic": {"nouns", "text", "openai"},
    "server": {"nouns", "client", "text", "grammar", "openai", "anthropic"},
}
"""What a room may import besides itself. Rooms not named are nearer to the user: none of these imports them."""

TORCH_FREE = [
    *("core", "ggml", "text", "grammar", "weights", "cli", "glass"),
    *("client", "openai", "anthropic", "server"),
]


def room_of(module: str) -> str:
    """The room that a module is in: ``octavo.core.plan`` is in ``core``."""
    name = module.partition(".")[2].partition(".")[0]
    return "nouns" if name in NOUNS else name


@cache
def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports_of(module: str, *, when_loaded: bool = False) -> Iterator[str]:
    """The octavo modules that a module imports (``when_loaded``: not in functions), not only for types."""
    pending: list[ast.AST] = [ast.parse(modules()[module].read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "octavo")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "octavo":
            yield from (_target(node.module or "", alias.name) for alias in node.names)
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{module} has a relative import"
        if not _is_skipped(node, when_loaded):
            pending.extend(ast.iter_child_nodes(node))


def _is_skipped(node: ast.AST, when_loaded: bool) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.dump(node.test)
    return when_loaded and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def _target(package: str, name: str) -> str:
    """``from octavo.core import plan`` names a module, ``from octavo.core.plan import RowStep`` its home."""
    return f"{package}.{name}" if f"{package}.{name}" in modules() else package


def test_rooms_import_only_whom_they_may() -> None:
    wrong = []
    for module in modules():
        room = room_of(module)
        if room not in MAY_IMPORT:
            continue
        for target in imports_of(module):
            allowed = {room, *MAY_IMPORT[room]}
            if room_of(target) not in allowed and target.removeprefix("octavo.") not in allowed:
                wrong.append(f"{module} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_the_rule_is_not_empty() -> None:
    """The test above sees the imports that are surely there."""
    assert "octavo.core.plan" in set(imports_of("octavo.core.scheduler"))
    assert "octavo.outputs" in set(imports_of("octavo.core.request"))
    assert {"core", "kernels", "execution", "nouns"} <= {room_of(module) for module in modules()}


def _order(graph: dict[str, set[str]]) -> None:
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a cycle: {' <- '.join(error.args[1])}")


def test_no_cycles_between_rooms() -> None:
    graph: dict[str, set[str]] = {}
    for module in modules():
        room = room_of(module)
        graph.setdefault(room, set()).update({room_of(target) for target in imports_of(module)} - {room, ""})
    graph.pop("", None)  # the package itself hands out names of all rooms, lazily
    _order(graph)


def test_no_cycles_between_modules() -> None:
    names = [name for name in modules() if name != "octavo"]
    _order({name: set(imports_of(name, when_loaded=True)) - {name, "octavo"} for name in names})


# ---------------------------------------------------------------- without torch

BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'transformers'):
            raise ImportError(f'{name} was imported')
sys.meta_path.insert(0, Blocker())
"""


def run_without_torch(code: str) -> str:
    """Run ``code`` where importing torch is an error; what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + code],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(ROOT.parent), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_block_works() -> None:
    with pytest.raises(AssertionError, match="torch was imported"):
        run_without_torch("import torch")


def test_the_package_and_its_nouns_need_no_torch() -> None:
    names = ", ".join(f"octavo.{noun}" for noun in sorted(NOUNS))
    assert run_without_torch(f"import octavo, {names}; print(octavo.__version__)").strip()
    run_without_torch("from octavo import SamplingParams, EngineConfig, RequestOutput, OctavoError")


@pytest.mark.parametrize("room", TORCH_FREE)
def test_rooms_without_torch(room: str) -> None:
    if importlib.util.find_spec(f"octavo.{room}") is None:
        pytest.skip(f"there is no octavo.{room}")
    found = [m for m in modules() if m == f"octavo.{room}" or m.startswith(f"octavo.{room}.")]
    assert found
    run_without_torch("\n".join(f"import {module}" for module in found))


def test_the_core_runs_without_torch() -> None:
    """Not only its imports: a request goes all the way through."""
    run_without_torch(
        "from octavo.core.blocks import BlockPool\n"
        "from octavo.core.plan import StepResult\n"
        "from octavo.core.request import Request, token_array\n"
        "from octavo.core.scheduler import Scheduler\n"
        "from octavo.sampling_params import SamplingParams\n"
        "s = Scheduler(BlockPool(8, 4), max_model_len=20, max_num_seqs=2)\n"
        "s.add(Request('a', token_array([1, 2, 3]), SamplingParams(), 2))\n"
        "for _ in range(2):\n"
        "    s.apply(StepResult(s.plan().step, (5,)))\n"
        "assert not s.has_work()\n"
    )


@pytest.mark.parametrize("flags", [["--help"], ["--version"]])
def test_the_command_line_speaks_without_torch(flags: list[str]) -> None:
    if importlib.util.find_spec("octavo.cli") is None or "octavo.cli.main" not in modules():
        pytest.skip("there is no command line")
    out = run_without_torch(f"sys.argv = ['octavo', *{flags!r}]\nfrom octavo.cli.main import main\nmain()\n")
    assert "octavo" in out.lower()


NOT_AT_START = ("jinja2", "transformers", "huggingface_hub", "sympy", "triton", "fastapi", "gguf")


def test_an_engine_imports_nothing_large_but_torch() -> None:
    """Until the first token somebody waits."""
    code = (
        "import sys\n"
        "from octavo.large_imports import large_imports\n"
        "with large_imports():\n"
        "    import octavo.llm, octavo.execution.build, octavo.cli.run, octavo.kernels.cpu.ops\n"
        f"print([name for name in {NOT_AT_START!r} if name in sys.modules])\n"
        "import gc\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 100_000)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.splitlines() == ["[]", "True True"], done.stderr


def test_every_module_is_reachable() -> None:
    """No folder of modules without an ``__init__.py``, which an installed package would lose."""
    walked = {info.name for info in pkgutil.walk_packages([str(ROOT)], "octavo.", onerror=lambda _: None)}
    assert set(modules()) - {"octavo"} <= walked
