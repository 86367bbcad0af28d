"""The example of every docstring gives what stands under it."""

import doctest
from importlib import import_module
from pkgutil import walk_packages

import pytest


def examples(package: str) -> list[doctest.DocTest]:
    """Those of all modules of a package, but of those that run as they are imported."""
    names = [each.name for each in walk_packages(import_module(package).__path__, f"{package}.")]
    modules = [import_module(name) for name in names if not name.endswith("__main__")]
    found = [test for module in modules for test in doctest.DocTestFinder().find(module)]
    return [test for test in found if test.examples]


@pytest.mark.parametrize(
    "package",
    [
        "costmodels",
        "cli",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("tracer", "partition", "cutedge")
        ),
    ],
)
def test_examples_of_docstrings(package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = examples(package)
    assert found
    wrong = [test.name for test in found if _failures(test)]
    assert not wrong


def _failures(test: doctest.DocTest) -> int:
    return doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(test).failed
