"""Runs what README.md and the guide show: commands in ``console``, queries in ``sql`` blocks.

``python -m tools.readme`` rewrites the shown output from a real run (`make readme`), or that of the
pages it is given; the test suite runs the same and compares. The commands of a page run in one
directory, in the order of the page.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
Run = Callable[[str, Path], str]
BLOCK = re.compile(
    r"^```(console|sql|toml|json|text|python)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


def in_a_shell(line: str, folder: Path, commands: Path = Path(sys.executable).parent) -> str:
    """What a line prints, carried out as a user does; ours are among the ``commands``."""
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "NO_COLOR": "1",
        "TERM": "dumb",
        "COLUMNS": "120",
        "CUTEDGE_CACHE": os.environ.get("CUTEDGE_CACHE") or f"{folder.parent}/cache-of-pages",
    }
    ran = subprocess.run(
        line,
        shell=True,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return ran.stdout + ran.stderr


def run_commands(block: str, folder: Path, run: Run) -> str:
    """A console block with what its ``$`` lines print now."""
    lines = []
    for line in block.splitlines():
        if line.startswith("$ "):
            printed = run(line[2:], folder).rstrip().splitlines()
            lines += [line, *(text.rstrip() for text in printed)]
    return "\n".join(lines) + "\n"


def run_query(sql: str, folder: Path) -> str:
    """What DuckDB prints for a query over the files in ``folder``."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        return f"{duckdb.connect().sql(sql)}".rstrip() + "\n"
    finally:
        os.chdir(here)


def blocks(text: str, folder: Path, run: Run = in_a_shell) -> Iterator[tuple[re.Match[str], str]]:
    """Every block of the page with what stands in it after a real run, in ``folder``, of its lines.

    A ``toml``, ``json`` or ``python`` block that names a file is written there; a ``text`` block is
    the result of the ``sql`` block before it.
    """
    result = ""
    for block in BLOCK.finditer(text):
        kind, name, content = block.groups()
        match kind:
            case "console":
                yield block, run_commands(content, folder, run)
            case "sql":
                result = run_query(content, folder)
                yield block, content
            case "text":
                yield block, result
            case "python" if not name.strip():
                yield block, content
            case "toml" | "json" | "python":
                (folder / name.strip()).write_text(content, encoding="utf-8")
                yield block, content


def main() -> None:
    for page in map(Path, sys.argv[1:] or [README, *GUIDE]):
        text = page.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder) / "page"
            here.mkdir()
            for block, now in reversed(list(blocks(text, here))):
                text = text[: block.start(3)] + now + text[block.end(3) :]
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
