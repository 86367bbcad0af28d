"""Captures that tests share: the same model at the same sizes is captured once in a process."""

import json
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

import tracer.capture


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which makes one thing once; configs and options are plain data."""
    results: dict[str, Any] = {}

    @wraps(function)
    def asked(*args: Any, **options: Any) -> Any:
        bound = signature(function).bind(*args, **options)
        bound.apply_defaults()
        key = json.dumps(bound.arguments, sort_keys=True)
        if key not in results:
            results[key] = function(*args, **options)
        return results[key]

    return asked


captured = _once(tracer.capture.capture)
"""What ``capture`` gives, for tests of what comes after it."""

made_runnable = _once(tracer.capture.runnable)
"""What ``runnable`` gives; a run leaves nothing in it but parameters, which the next one fills."""
