"""Where results go, and which trace was the last."""

import os
from pathlib import Path
from urllib.parse import unquote

from partition.split import PARTITIONS, in_a_path
from tracer.errors import CutedgeError, InputError
from tracer.files import DamagedError, check_bytes, read_bounded, write_files
from tracer.graph import OpGraph
from tracer.summary import variant_of

OUT = Path("cutedge-out")
"""The default place of all results, in the current directory."""

_LAST = OUT / "last-trace"

MAKERS = {
    **dict.fromkeys(("ops", "tensors", "edges"), "trace"),
    **dict.fromkeys(("placement", "transfers", "calls", "summary"), "partition"),
    "schedule": "partition --schedule overlap",
    "masks": "partition --policy slalom",
    "frontier": "partition --frontier",
    "costs": "cost",
    "measured_calls": "verify",
    "sweep": "sweep",
    "designs": "design",
}
"""Every table that may be there, and the command that makes it."""


def default_folder(graph: OpGraph) -> Path:
    """A trace's place under ``OUT``, in the hive style that DuckDB reads as columns."""
    meta = graph.meta
    levels = {
        "model": meta.model,
        "variant": variant_of(graph),
        "phase": meta.phase,
        "batch": meta.batch,
        "past": meta.past,
        "seq": meta.seq,
    }
    return OUT.joinpath(*(f"{name}={in_a_path(str(value))}" for name, value in levels.items()))


def remember(folder: Path) -> None:
    """Make ``folder`` the trace that the next command takes."""
    try:
        OUT.mkdir(exist_ok=True)
        write_files(OUT, {_LAST.name: os.fsencode(f"{os.path.relpath(folder, OUT)}\n")})
    except OSError as error:
        raise CutedgeError(
            f"cannot write {_LAST}: {error.strerror or error}. The trace itself is written: name "
            f"its directory, {folder}, to the next command."
        ) from error


def trace_folder(given: Path | None) -> Path:
    """The trace directory that the user named, or else the last one."""
    if given is not None:
        return given
    try:
        data = read_bounded(_LAST, 2**16)
        check_bytes(_LAST, data)
    except DamagedError as error:
        raise CutedgeError(
            f"{_LAST} is damaged: {error}. Run trace again, or name a trace directory"
        ) from error
    except OSError as error:
        raise InputError(
            "there is no last trace here: run e.g. `trace llama-3.2-1b --seq 1024` first, "
            "or name a trace directory"
        ) from error
    return Path(os.path.normpath(OUT / os.fsdecode(data).removesuffix("\n")))


def find_partition(
    folder: Path, policy: str | None, *, last: bool = False
) -> tuple[Path, Path | None]:
    """(trace directory, partition directory or None where it has none) of either of the two.

    A trace directory with several partitions needs the ``policy`` of one, or the ``last`` that was
    written is taken. Raises InputError naming those that there are.
    """
    if (folder / "summary.parquet").exists():
        trace, found = Path(os.path.normpath(folder / "../../../..")), [folder]
    else:
        trace = folder
        found = sorted(path.parent for path in folder.glob(f"{PARTITIONS}/summary.parquet"))
    names = {path: unquote(path.absolute().parts[-4].removeprefix("policy=")) for path in found}
    if policy is not None and policy not in names.values():
        made = ", ".join(dict.fromkeys(names.values())) or "none"
        raise InputError(
            f"{folder} has no partition by {policy}, but by {made}: run partition --policy {policy}"
        )
    chosen = [path for path in found if policy in (None, names[path])]
    if len(chosen) > 1 and last:
        chosen = [max(chosen, key=lambda path: (path / "summary.parquet").stat().st_mtime_ns)]
    if len(chosen) > 1:
        same = len({names[path] for path in chosen}) == 1
        raise InputError(
            f"{folder} has {len(chosen)} partitions: name "
            + ("the directory of one, such as " if same else "one with --policy: ")
            + (str(chosen[0]) if same else ", ".join(dict.fromkeys(names.values())))
        )
    return trace, chosen[0] if chosen else None
