"""Everything that README.md and the guide show is what happens, and the guide builds."""

import doctest
import re
import shlex
from contextlib import chdir
from pathlib import Path

import pytest

from tests.support import warm
from tests.support.inprocess import command_names, invoke
from tools import pictures
from tools.readme import GUIDE, README, ROOT, blocks, in_a_shell

PYTHON = ROOT / "docs" / "guide" / "python.md"
GENERATE = ROOT / "docs" / "guide" / "generate.md"

QUICK = ("README", "accounting")
"""Pages that `make test` runs, in its own process; `make test-all` runs all as a user does."""
WORD = r"""(?:"[^"]*"|'[^']*'|[^\s"'|<>;&$`*]+)"""
PLAIN = re.compile(rf"((?:cutedge|trace|partition)(?: {WORD})*)( (?:\||>|2>).*)?")
"""A command of ours, and where what it prints goes."""


def in_this_process(line: str, folder: Path) -> str:
    """What a line of a page prints, without a process for a command of ours."""
    plain = PLAIN.fullmatch(line)
    if plain is None:
        return in_a_shell(line, folder)
    with chdir(folder):
        done = invoke(*shlex.split(plain[1]))
    if plain[2] is None:
        return done.stdout + done.stderr
    out, err = folder.parent / "out", folder.parent / "err"
    out.write_text(done.stdout)
    err.write_text(done.stderr)
    return in_a_shell(f"(cat '{out}'; cat '{err}' >&2){plain[2]}", folder)


@pytest.mark.parametrize(
    ("page", "run"),
    [
        *(
            pytest.param(page, in_this_process, id=page.stem)
            for page in (README, *GUIDE)
            if page.stem in QUICK
        ),
        *(
            pytest.param(page, in_a_shell, id=f"{page.stem} in a shell", marks=pytest.mark.slow)
            for page in (README, *GUIDE)
            if page != PYTHON
        ),
    ],
)
def test_every_command_and_query_prints_what_the_page_shows(tmp_path, page, run):
    folder = tmp_path / "page"
    folder.mkdir()
    shown = list(blocks(page.read_text(encoding="utf-8"), folder, run))
    assert shown
    for block, now in shown:
        assert block.group(3) == now, f"{block.group(0)}\n--- prints now ---\n{now}"


@pytest.mark.parametrize(
    "page",
    [README, pytest.param(PYTHON, marks=pytest.mark.slow), GENERATE],
    ids=lambda page: page.stem,
)
def test_the_python_of_a_page_runs(page):
    text = page.read_text(encoding="utf-8")
    examples = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    test = doctest.DocTestParser().get_doctest(examples, {}, page.name, str(page), 0)
    assert len(test.examples) >= 4
    with warm.workers():
        assert doctest.DocTestRunner().run(test).failed == 0


def test_the_readme_is_a_page():
    assert len(README.read_bytes()) <= 8 * 1024


def test_the_policies_and_commands_are_all_in_the_guide():
    from partition.policy import policy_names

    text = "\n".join(page.read_text(encoding="utf-8") for page in (README, *GUIDE))
    for name in command_names():
        assert f"cutedge {name}" in text or f"`{name}`" in text
    for policy in policy_names():
        assert f"`{policy}`" in text


def test_the_pages_ask_what_analysts_ask():
    text = (ROOT / "docs" / "guide" / "tables.md").read_text(encoding="utf-8")
    for wanted in ("LIMIT", "GROUP BY tensor_group", "GROUP BY layer", "attention_scores"):
        assert wanted in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'myst_parser")  # of Sphinx, about its own extension
def test_the_guide_builds_without_a_warning(tmp_path):
    from sphinx.application import Sphinx

    docs = ROOT / "docs"
    app = Sphinx(
        docs, docs, tmp_path / "html", tmp_path / "trees", "html", status=None, warningiserror=True
    )
    app.build()
    assert app.statuscode == 0
    for name in ("cookbook", "grids"):
        page = (tmp_path / "html" / "guide" / f"{name}.html").read_text(encoding="utf-8")
        assert page.count("<h2>") == 15


def test_pictures_are_those_that_pages_name():
    """Each one that is named is there, each one that is there is named, and one target takes it."""
    folder = ROOT / "docs" / "pictures"
    named = {
        path.name
        for page in (README, *(ROOT / "docs").rglob("*.md"))
        for given in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
        if (path := (page.parent / given).resolve()).parent == folder
    }
    assert named == {path.name for path in folder.iterdir()}
    taken = {f"{shot.name}.png" for shot in pictures.SHOTS} | {"live.png"}
    assert taken == {name for name in named if name.endswith(".png")}


def test_each_place_that_the_developers_page_names_is_there():
    """Of its eleven questions: the files, and what is named in them."""
    text = (ROOT / "docs" / "developers.md").read_text(encoding="utf-8")
    rows = [
        line.split("|")[1:-1]
        for line in text.split("## Eleven questions")[1].splitlines()
        if line.startswith("| ")
    ][1:]
    assert len(rows) == 11
    for question, here, _ in rows:
        named = re.findall(r"`([^`]+)`", here)
        files = [ROOT / name.replace("NAME", "min-cut") for name in named if "/" in name]
        assert files, question
        assert all(path.is_file() for path in files), question
        code = "".join(path.read_text(encoding="utf-8") for path in files)
        for name in named:
            assert "/" in name or name in code, (question, name)
