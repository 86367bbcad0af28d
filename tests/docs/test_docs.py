"""Everything that README.md and the guide show is what happens, and the guide builds."""

import doctest
import re

import pytest

from tests.support.inprocess import command_names
from tools.readme import GUIDE, README, ROOT, blocks

PYTHON = ROOT / "docs" / "guide" / "python.md"

LONG = ("commands", "grids", "tour", "seconds", "cookbook", "sweep")
"""Pages whose commands take long; `make test-all` runs them."""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=pytest.mark.slow if page.stem in LONG else ())
        for page in (README, *GUIDE)
        if page != PYTHON
    ],
)
def test_every_command_and_query_prints_what_the_page_shows(tmp_path_factory, page):
    shown = list(blocks(page.read_text(encoding="utf-8"), tmp_path_factory.mktemp("page")))
    assert shown
    for block, now in shown:
        assert block.group(3) == now, f"{block.group(0)}\n--- prints now ---\n{now}"


@pytest.mark.parametrize("page", [README, PYTHON], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page):
    text = page.read_text(encoding="utf-8")
    examples = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    test = doctest.DocTestParser().get_doctest(examples, {}, page.name, str(page), 0)
    assert len(test.examples) >= 4
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


@pytest.mark.filterwarnings("ignore:'myst_parser")  # of Sphinx, about its own extension
def test_the_guide_builds_without_a_warning(tmp_path):
    from sphinx.application import Sphinx

    docs = ROOT / "docs"
    app = Sphinx(docs, docs, tmp_path / "html", tmp_path / "trees", "html", status=None,
                 warningiserror=True)  # fmt: skip
    app.build()
    assert app.statuscode == 0
    for name in ("cookbook", "grids"):
        page = (tmp_path / "html" / "guide" / f"{name}.html").read_text(encoding="utf-8")
        assert page.count("<h2>") == 15


def test_each_place_that_the_developers_page_names_is_there():
    """Of its ten questions: the files, and what is named in them."""
    text = (ROOT / "docs" / "developers.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in text.split("## Ten questions")[1].splitlines()
            if line.startswith("| ")][1:]  # fmt: skip
    assert len(rows) == 10
    for question, here, _ in rows:
        named = re.findall(r"`([^`]+)`", here)
        files = [ROOT / name.replace("NAME", "min-cut") for name in named if "/" in name]
        assert files, question
        assert all(path.is_file() for path in files), question
        code = "".join(path.read_text(encoding="utf-8") for path in files)
        for name in named:
            assert "/" in name or name in code, (question, name)
