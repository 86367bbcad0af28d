"""Everything that README.md shows is what happens."""

import pytest

from tests.readme import README, blocks


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    return list(blocks(README.read_text(encoding="utf-8"), folder))


def test_every_command_and_query_prints_what_the_readme_shows(shown):
    assert len(shown) > 10
    for block, now in shown:
        assert block.group(3) == now, f"{block.group(0)}\n--- prints now ---\n{now}"


def test_the_readme_asks_what_analysts_ask(shown):
    queries = "\n".join(block.group(3) for block, _ in shown if block.group(1) == "sql")
    for wanted in ("LIMIT", "GROUP BY label", "GROUP BY layer", "attention_scores"):
        assert wanted in queries


def test_the_policies_and_commands_are_all_in_the_readme():
    from cli.main import app
    from partition.policy import policy_names

    security = README.parent / "docs" / "guide" / "security.md"  # has those with secrets
    text = README.read_text(encoding="utf-8") + security.read_text(encoding="utf-8")
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    for name in (*names, *(group.name for group in app.registered_groups)):
        assert f"cutedge {name}" in text or f"`{name}`" in text
    for policy in policy_names():
        assert f"`{policy}`" in text
