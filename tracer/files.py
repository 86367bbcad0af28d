"""How files are written whole or not at all, and how a reader knows that they are as written.

A folder of data files has a manifest beside them: a line a file, the SHA-256 of all its bytes and
its name, which ``sha256sum -c`` reads too. Our own readers hold every data file against it, since
neither Parquet nor its readers notice each bit that has changed.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from tracer.interrupts import uninterrupted, wrote

MANIFEST = "_manifest.sha256"
"""Its name begins as that of a file which Arrow and Spark pass over in a folder of tables."""

_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
_CHUNK = 2**20

Data = bytes | memoryview


class DamagedError(OSError):
    """A data file is not as it was written; the message says how that is known."""


def open_file(path: Path, *, pipes: bool = False) -> BinaryIO:
    """A regular file to read from, or with ``pipes`` also a pipe. Raises OSError.

    A device may have no end, and a pipe that nobody writes to would be waited for: that one is
    empty here. A name that no file can have is that of no file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a zero, or a half of a surrogate pair
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
    kind = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(kind) or (pipes and stat.S_ISFIFO(kind))):
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        raise OSError("it is a device or a pipe, no file")
    os.set_blocking(descriptor, True)
    return open(descriptor, "rb")


def read_bounded(path: Path, most: int) -> bytes:
    """All of a file or a pipe that has at most so many bytes. Raises OSError."""
    with open_file(path, pipes=True) as source:
        data = b"" if (size := os.fstat(source.fileno()).st_size) > most else source.read(most + 1)
    if max(size, len(data)) > most:
        raise OSError(f"it has more than {most:,} bytes, as no such file has")
    return data


def parse_json(
    text: bytes | str,
    *,
    strict: bool = True,
    pairs: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None,
) -> Any:
    """What JSON says, if not ``strict`` with control characters in its texts.

    ``pairs`` makes a table of keys and values.

    Raises ValueError for all that is none, also for what nests too deep.
    """
    try:
        return json.loads(text, strict=strict, object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error


def write_whole(path: Path, data: Data) -> None:
    """Put ``data`` into a file under a temporary name, then rename it. Raises OSError.

    No reader ever sees half of it, and a failed write leaves what was there before. A symbolic link
    stays one, and what it points to is written. What is no regular file (a device, a pipe) is
    written to as it is.
    """
    if path.exists() and not path.is_file():  # a pipe may wait for its reader for ever
        _Staged(path, data).commit()
        return
    with uninterrupted():
        staged = _Staged(path, data)
        try:
            staged.commit()
        finally:
            staged.discard()


def write_files(folder: Path, files: Mapping[str, Data]) -> None:
    """Write data files into a folder that is there, each whole, and note them in its manifest.

    A process that ends in the middle leaves some files as they were and others as they are to be:
    the manifest knows both then. Raises OSError; what can be found out before is found out before
    any file is replaced.
    """
    staged: list[_Staged] = []
    with _alone(folder), uninterrupted():
        try:
            for name, data in files.items():
                staged.append(_Staged(folder / name, data))
            kept = _kept(folder)
            after = kept | {one.path.name: {one.digest} for one in staged}
            both = {name: kept.get(name, set()) | known for name, known in after.items()}
            if both != after:
                write_whole(folder / MANIFEST, _text(both))
            for one in staged:
                one.commit()
            write_whole(folder / MANIFEST, _text(after))
        finally:
            for one in staged:
                one.discard()


def check_file(path: Path) -> None:
    """Raise DamagedError where a data file is not as it was written, OSError as reading does."""
    digest = hashlib.sha256()
    with open_file(path) as source:
        while read := source.read(_CHUNK):
            digest.update(read)
    _check(path, digest.hexdigest())


def check_bytes(path: Path, data: Data) -> None:
    """Raise DamagedError where ``data``, all that was read of a file, is not what was written."""
    _check(path, hashlib.sha256(data).hexdigest())


def remove_files(folder: Path, *names: str) -> None:
    """Remove data files where they are there; with the last one the manifest. Raises OSError."""
    with _alone(folder):
        for name in names:
            (folder / name).unlink(missing_ok=True)
        if left := _kept(folder):
            write_whole(folder / MANIFEST, _text(left))
        else:
            (folder / MANIFEST).unlink(missing_ok=True)


class _Staged:
    """Data that is written under a temporary name beside the file that it is to be."""

    def __init__(self, path: Path, data: Data) -> None:
        self.path, self.digest = path, hashlib.sha256(data).hexdigest()
        self._data = data
        self._final = Path(os.path.realpath(path)) if path.is_symlink() else path
        self._temporary: Path | None = None
        there = path.stat() if path.exists() else None
        if there is not None and stat.S_ISDIR(there.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if there is not None and not stat.S_ISREG(there.st_mode):
            return
        self._temporary = self._final.with_name(f".{self._final.name}.{os.getpid()}.tmp")
        self.discard()  # of a process that was killed and had our number
        try:
            with self._temporary.open("xb") as sink:  # no link that somebody put there is followed
                sink.write(data)
            if there is not None:
                shutil.copymode(self._final, self._temporary)
        except BaseException:
            self.discard()
            raise

    def commit(self) -> None:
        """Give the data its name, or send it to what is no regular file."""
        wrote()
        if self._temporary is not None:
            self._temporary.replace(self._final)
            return
        with self.path.open("wb") as sink:
            sink.write(self._data)

    def discard(self) -> None:
        """Remove what is under the temporary name still."""
        if self._temporary is not None:
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)


def _check(path: Path, digest: str) -> None:
    known = _listed(path.parent).get(path.name)
    if known is None and not (path.parent / MANIFEST).exists():
        raise DamagedError(f"there is no {MANIFEST} beside it, to tell whether it is as written")
    if known is None:
        raise DamagedError(f"{path.parent / MANIFEST} does not list it")
    if digest not in known:
        raise DamagedError(f"its SHA-256 is not the one in {path.parent / MANIFEST}")


def _listed(folder: Path) -> dict[str, set[str]]:
    """File -> what its SHA-256 may be, by the manifest; nothing where there is no manifest."""
    manifest = folder / MANIFEST
    try:
        with open_file(manifest) as source:
            text = source.read().decode("ascii", "surrogateescape")
    except FileNotFoundError:
        return {}
    found: dict[str, set[str]] = defaultdict(set)
    for line in text.splitlines():
        if not (match := _LINE.fullmatch(line)):
            raise DamagedError(f"{manifest} is damaged")
        found[match[2]].add(match[1])
    return dict(found)


def _kept(folder: Path) -> dict[str, set[str]]:
    """What a manifest lists and is still there. Of what a damaged one lists nothing is known."""
    try:
        listed = _listed(folder)
    except DamagedError:
        return {}
    return {name: known for name, known in listed.items() if (folder / name).exists()}


def _text(listed: Mapping[str, set[str]]) -> bytes:
    lines = [f"{digest}  {name}\n" for name in sorted(listed) for digest in sorted(listed[name])]
    return "".join(lines).encode("ascii", "surrogateescape")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time changes a manifest, where the file system can lock a folder."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
