"""Coverage-guided fuzzing of one parser: ``python tests/fuzz/fuzz.py PARSER [libFuzzer's options]``.

Needs atheris (``pip install atheris``; Python 3.11 to 3.13). Begins with ``tests/fuzz/corpus/PARSER``; what is new in
coverage goes to ``/tmp/octavo-fuzz/PARSER``, an input that fails to ``crash-*`` in the current folder. Ten minutes:

    python tests/fuzz/fuzz.py gguf -dict=tests/fuzz/json.dict -max_total_time=600 -rss_limit_mb=3000 -timeout=20
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    name, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["octavo", "msgspec", "json"]):
        from fuzz_targets import TARGETS

        if name not in TARGETS:
            sys.exit(f"no parser {name!r}; accepted: {', '.join(TARGETS)}")
        _import_parsers()
    new = Path("/tmp/octavo-fuzz") / name
    new.mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], str(new), str(HERE / "corpus" / name), *options], TARGETS[name])
    atheris.Fuzz()


def _import_parsers() -> None:
    """All of them now, so that they are instrumented: targets import them when they run."""
    import pkgutil

    import octavo.text
    import octavo.weights

    for package in (octavo.text, octavo.weights):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "template_worker" not in module.name:
                __import__(module.name)


if __name__ == "__main__":
    main()
