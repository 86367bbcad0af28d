"""Nothing twice: traces by what determines them, for the next process that asks for the same.

An entry is a folder: the tables of a trace (``serde``) and a record of its reach.
Its name begins with a hash of what the capture was asked for, apart from sizes, and of what did it:
the tracer's own code and the packages that are installed. It ends with a hash of its record, which
holds the trace's id: what is damaged or half there is no entry. A cache that cannot be read or
written is none.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracer.errors import CutedgeError
from tracer.files import parse_json
from tracer.graph import OpGraph
from tracer.interrupts import uninterrupted
from tracer.reach import Reach, graph_at
from tracer.serde import read_trace, write_trace

KEPT = 256
"""Entries; of more, those that were not used for the longest time go."""

_RECORD = "record.json"
_ENTRY = re.compile(r"[0-9a-f]{32}-[0-9a-f]{16}")
_UNFINISHED = ".new-"


@dataclass(frozen=True, slots=True)
class Found:
    """A trace out of the cache, as a capture would have made it."""

    graph: OpGraph
    warnings: tuple[str, ...]
    reach: Reach


def cache_folder() -> Path | None:
    """Where traces are kept: $CUTEDGE_CACHE, else a folder of the user's cache directory."""
    if given := os.environ.get("CUTEDGE_CACHE"):
        return Path(given)
    if (shared := os.environ.get("XDG_CACHE_HOME")) and os.path.isabs(shared):
        return Path(shared) / "cutedge"
    try:
        return Path.home() / ".cache" / "cutedge"
    except RuntimeError:  # nobody's home
        return None


def key(config: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """A hash of all that decides what a capture gives, at any sizes."""
    asked = json.dumps([config, options, sorted({*_installed()}), sys.version, sys.platform])
    digest = hashlib.sha256(asked.encode())
    code = Path(__file__).parent
    for path in sorted(code.rglob("*.py")):
        digest.update(f"\n{path.relative_to(code).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def _installed() -> Iterator[str]:
    """Every installed package with its version: transformers uses more of them than its own.

    Ours is left out: its code is in the hash, and where it is worked on it is there twice.
    """
    for folder in dict.fromkeys(sys.path):
        with suppress(OSError):
            names = os.listdir(folder or ".")
            yield from (
                name
                for name in names
                if name.endswith((".dist-info", ".egg-info")) and not name.startswith("cutedge")
            )


def find(key: str, asked: Mapping[str, int]) -> Found | None:
    """The trace that a capture would give at these sizes, None when the cache cannot tell.

    Sizes that are left out have the model's defaults.
    """
    for entry in _entries(key):
        try:
            record = _record(entry)
            sizes = {**dict(record.reach.defaults), **asked}
            if not record.reach.covers(sizes):
                continue
            graph, trace_id = read_trace(entry, hashed=False)
            if trace_id != record.trace_id:
                raise ValueError("the trace of another entry")
        except FileNotFoundError:  # another process removed it
            continue
        except (CutedgeError, OSError, ValueError, TypeError, KeyError):
            shutil.rmtree(entry, ignore_errors=True)  # damaged: the next capture makes it anew
            continue
        there = graph_at(graph, record.reach, sizes)
        if there is None:
            continue
        with suppress(OSError):
            os.utime(entry)
        return Found(there, record.reach.warnings(graph.meta.model, sizes), record.reach)
    return None


def keep(key: str, graph: OpGraph, reach: Reach) -> None:
    """Put a trace as it was captured, without costs, into the cache; nothing where that fails."""
    folder = _traces()
    if folder is None:
        return
    with uninterrupted(), suppress(CutedgeError, OSError, ValueError):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))
        try:
            trace_id = write_trace(graph, temporary)
            record = json.dumps({"trace_id": trace_id, "reach": reach.as_json()}).encode()
            (temporary / _RECORD).write_bytes(record)
            temporary.rename(folder / f"{key}-{_digest(record)}")
            _tidy(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _tidy(folder: Path) -> None:
    """Remove what was not used for the longest time, and what a process left unfinished."""
    used = {entry: entry.stat().st_mtime for entry in _entries()}
    old = sorted(used, key=lambda entry: used[entry], reverse=True)[KEPT:]
    an_hour_ago = time.time() - 3600
    old += (e for e in folder.glob(f"{_UNFINISHED}*") if e.stat().st_mtime < an_hour_ago)
    for entry in old:
        shutil.rmtree(entry, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Record:
    trace_id: str
    reach: Reach


def _record(entry: Path) -> _Record:
    text = (entry / _RECORD).read_bytes()
    if not entry.name.endswith(f"-{_digest(text)}"):
        raise ValueError("not the record that was written")
    read = parse_json(text)
    return _Record(read["trace_id"], Reach.from_json(read["reach"]))


def _digest(record: bytes) -> str:
    return hashlib.sha256(record).hexdigest()[:16]


def _traces() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "traces"


def _entries(key: str = "") -> list[Path]:
    """The entries of a key, or all; nothing else that lies there."""
    folder = _traces()
    with suppress(OSError):
        if folder is not None:
            names = sorted(os.listdir(folder))
            return [folder / n for n in names if n.startswith(key) and _ENTRY.fullmatch(n)]
    return []
