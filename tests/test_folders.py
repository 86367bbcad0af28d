"""What the tests may import: no test another, and only those of the command line ``cli``."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support import ROOT

TESTS = ROOT / "tests"
MAY_RUN_COMMANDS = ("cli", "support")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield f"{node.module}"
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def test_no_test_imports_another_and_only_those_of_the_command_line_import_cli():
    for path in sorted(TESTS.rglob("*.py")):
        for module in imported(path):
            assert not (module.startswith("tests.") and ".test_" in module), (path, module)
            if path.relative_to(TESTS).parts[0] not in MAY_RUN_COMMANDS:
                assert module.partition(".")[0] != "cli", (path, module)


def test_a_module_of_a_general_name_is_there_once():
    """Else "the one in files.py" is a guess. What a package has of its own kind may recur."""
    packages = ("tracer", "costmodels", "partition", "cutedge", "cli")
    stems = [path.stem for package in packages for path in (ROOT / package).rglob("*.py")]
    for name in ("files", "tables", "cache", "program", "machines", "figures"):
        assert stems.count(name) <= 1, name
