"""Everything that the guide shows is what happens, and it builds."""

import pytest

from tests.readme import GUIDE, ROOT, blocks

LONG = ("commands", "grids")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=pytest.mark.slow if page.stem in LONG else ())
        for page in GUIDE
    ],
)
def test_every_command_and_query_prints_what_the_page_shows(tmp_path_factory, page):
    shown = list(blocks(page.read_text(encoding="utf-8"), tmp_path_factory.mktemp("page")))
    assert len(shown) > 1
    for block, now in shown:
        assert block.group(3) == now, f"{block.group(0)}\n--- prints now ---\n{now}"


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
