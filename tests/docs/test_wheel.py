"""What README.md shows is what a wheel does that is installed in a new environment."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tools.readme import README, ROOT, blocks, in_a_shell

pytestmark = pytest.mark.slow


def ran(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment with a wheel of this checkout and what it needs."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ran("git", "clone", "--quiet", ROOT, source, cwd=folder)
    changed = ran("git", "diff", "HEAD", cwd=ROOT)
    if changed:  # what is not committed yet is tried too
        (folder / "changed").write_text(changed, encoding="utf-8")
        ran("git", "apply", folder / "changed", cwd=source)
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    ran(sys.executable, *pip, "wheel", "--no-deps", "--wheel-dir", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    ran(sys.executable, "-m", "venv", folder / "new", cwd=folder)
    python = folder / "new" / "bin" / "python"
    ran(python, *pip, "install", "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    return python.parent


def test_its_commands_print_what_the_page_shows(installed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    text = README.read_text(encoding="utf-8")
    shown = list(blocks(text, folder, partial(in_a_shell, commands=installed)))
    assert shown
    for block, now in shown:
        assert block.group(3) == now, f"{block.group(0)}\n--- prints now ---\n{now}"


def test_its_python_does_what_the_page_shows(installed: Path, tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    examples = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    where = ">>> import cutedge\n>>> print(cutedge.__file__)\n"
    where += f"{installed.parent}/lib/python3.{sys.version_info.minor}"
    where += "/site-packages/cutedge/__init__.py\n\n"
    assert examples.count(">>> ") >= 4
    (tmp_path / "examples.txt").write_text(where + examples, encoding="utf-8")
    said = ran(installed / "python", "-m", "doctest", "examples.txt", cwd=tmp_path)
    assert said == ""
