"""Runs the tool, so that the audit reads nothing but the tables that a user gets."""

from pathlib import Path

from tests.support.inprocess import invoke


def trace(model: str | Path, out: Path, *options: str) -> Path:
    """Trace a model into a directory."""
    done = invoke("trace", model, *options, "--out", out, "--quiet")
    if done.returncode:
        raise RuntimeError(f"trace {model} {' '.join(options)}: {done.stderr.strip()}")
    return out


def partition(directory: Path, *options: str | Path) -> Path:
    """Split a trace; the directory of the split's tables."""
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("summary.parquet")}
    done = invoke("partition", directory, *options, "--quiet")
    if done.returncode:
        raise RuntimeError(f"partition {' '.join(map(str, options))}: {done.stderr.strip()}")
    (written,) = (
        path
        for path in directory.rglob("summary.parquet")
        if before.get(path) != path.stat().st_mtime_ns
    )
    return written.parent
