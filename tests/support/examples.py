"""How many examples a property is tried on: few in ``make test``, ten times as many in test-all."""

from typing import Any

from hypothesis import settings

QUICK, THOROUGH = 20, 200
"""Examples of a property that asks for no number of its own."""

settings.register_profile("quick", deadline=None, max_examples=QUICK)  # machines are noisy
settings.register_profile("thorough", deadline=None, max_examples=THOROUGH)


def examples(count: int, parent: settings | None = None, **options: Any) -> settings:
    """``count`` examples in ``make test``, and as many more in test-all as its profile has."""
    many = count * settings().max_examples // QUICK
    return settings(parent or settings(), max_examples=many, **options)
