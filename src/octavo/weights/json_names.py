"""A name that a JSON file has twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from octavo.errors import ModelError


def refuse_repeated_names(path: Path, text: bytes) -> None:
    """JSON allows a name twice and readers differ in which one they take, so that one file would be two models.

    Raises ``ModelError`` if an object of the sound JSON ``text``, which is (of) the file ``path``, has one.
    """

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
            raise ModelError(f"{path} has {name!r:.200} twice; accepted: each name once")
        return found

    json.loads(text, object_pairs_hook=once)
