"""API keys: who may ask, and what goes with his name."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from octavo.errors import UsageError

log = logging.getLogger(__name__)

KEY = "[!-~]{1,512}"
"""What a key consists of."""

LINE = "name:key [priority=N] [max_requests=N]"
LOOK_EVERY = 1.0
"""Seconds between two looks at whether the file has changed."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that is accepted.

    Attributes:
        name: stands for the key in logs and metrics, and shares the engine fairly with other names.
        digest: SHA-256 of the key, which itself is not kept.
        priority: added to that of each request, which may be 0 or more where there are keys; smaller comes first.
        max_requests: HTTP requests at once; None: as many as the server takes.
    """

    name: str
    digest: bytes
    priority: int = 0
    max_requests: int | None = None


def check_key(key: str, source: str) -> str:
    """Raise ``UsageError`` for what no header can carry, such as nothing. The message never has the key."""
    if not re.fullmatch(KEY, key):
        raise UsageError(f"{source} has a key that is empty or no word; accepted: 1 to 512 visible ASCII characters")
    return key


def make_key(name: str, key: str, priority: int = 0, max_requests: int | None = None) -> ApiKey:
    return ApiKey(name, _digest(key), priority, max_requests)


def parse_keys(text: str, source: str) -> tuple[ApiKey, ...]:
    """The keys of a file: one a line, ``name:key [priority=N] [max_requests=N]``; ``#`` begins a comment.

    Raises:
        UsageError: a line is something else, or a name or key comes twice. The message never has the key.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            keys.append(_parse_line(line.strip(), f"{source}, line {number}"))
    for what, values in (("name", [k.name for k in keys]), ("key", [k.digest for k in keys])):
        if len(set(values)) != len(values):
            raise UsageError(f"{source} has a {what} twice; each is accepted once")
    return tuple(keys)


def _parse_line(line: str, place: str) -> ApiKey:
    head, *options = line.split()
    found = re.fullmatch(rf"([\w.@-]{{1,64}}):({KEY})", head)
    if found is None:
        raise UsageError(f"{place}: accepted: {LINE}, the key without spaces")
    given: dict[str, int] = {}
    for option in options:
        match = re.fullmatch(r"(priority)=(-?\d{1,9})|(max_requests)=([1-9]\d{0,8})", option)
        if match is None:
            raise UsageError(f"{place}: option {option!r:.60}; accepted: {LINE}")
        given[match[1] or match[3]] = int(match[2] or match[4])
    return make_key(found[1], found[2], **given)


@dataclass(slots=True)
class KeyRing:
    """The keys of the command line, and those of a file, which is read again when it changes.

    A file that cannot be read any more, or is wrong, or of 0 bytes, which an editor leaves half-way, changes nothing: a
    slip of the operator locks nobody out. A file of comments or blank lines revokes all of its keys.

    Raises:
        UsageError: the file is wrong from the start, or there is no key at all, which would lock everybody out.
    """

    fixed: Sequence[ApiKey] = ()
    file: Path | None = None
    clock: Callable[[], float] = time.monotonic
    _from_file: tuple[ApiKey, ...] = field(init=False, default=())
    _seen: tuple[int, ...] | None = field(init=False, default=None)
    _looked_at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        if self.file is not None:
            self._seen, self._looked_at = _version(self.file), self.clock()
            self._from_file = parse_keys(_text_of(self.file), str(self.file))
            if not self.fixed and not self._from_file:
                raise UsageError(f"{self.file} has no API key; accepted: a line {LINE} for each, at least one")

    @property
    def wanted(self) -> bool:
        """Whether a request needs a key at all."""
        return bool(self.fixed) or self.file is not None

    @property
    def ranked(self) -> bool:
        """Whether some of them come before others."""
        return len({key.priority for key in self._all()}) > 1

    def find(self, key: str) -> ApiKey | None:
        """The key that was given, if it is accepted. Takes equally long for all keys: each is compared to its end."""
        self._refresh()
        given, found = _digest(key), None
        for known in self._all():
            if hmac.compare_digest(known.digest, given):
                found = known
        return found

    def _all(self) -> Iterable[ApiKey]:
        yield from self.fixed
        yield from self._from_file

    def _refresh(self) -> None:
        now = self.clock()
        if self.file is None or now - self._looked_at < LOOK_EVERY:
            return
        self._looked_at = now
        version = _version(self.file)
        if version != self._seen:
            self._seen = version
            try:
                self._from_file = _read_again(self.file)
                log.info("API keys: %d read from %s", len(self._from_file), self.file)
            except UsageError as error:
                log.error("API keys stay as they were: %s", error)


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UsageError(f"cannot read the API keys in {str(file)!r}: {reason}") from None


def _read_again(file: Path) -> tuple[ApiKey, ...]:
    text = _text_of(file)
    if not text:
        raise UsageError(f"{file} is empty; a comment alone revokes all of its keys")
    return parse_keys(text, str(file))


def _version(file: Path) -> tuple[int, ...] | None:
    """Something that changes when the file does; None if there is none."""
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
