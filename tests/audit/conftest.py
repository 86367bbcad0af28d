"""Says at the end how many figures the audit has compared."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line, of what the tests of this folder recorded."""
    compared = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "figures compared"
    ]
    if compared:
        terminalreporter.write_line(f"audit: {sum(compared):,} figures compared")
