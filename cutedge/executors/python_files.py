"""What is said in Python files: read as data, never run."""

import ast

from tracer.errors import InputError


def assigned(text: str, name: str) -> dict[object, object] | None:
    """The dictionary that a name is set to at the top of a file; None where it is set to nothing.

    Raises InputError for what is no Python, and for a name that is set to what has to be computed.

    >>> assigned('affinities = {"model": "GPU"}', "affinities")
    {'model': 'GPU'}
    """
    try:
        lines = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{name}: the file is no Python: {error}") from error
    for line in lines:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            if line.targets[0].id == name:
                try:
                    value = ast.literal_eval(line.value)
                except (ValueError, TypeError, RecursionError, MemoryError):
                    value = None
                if not isinstance(value, dict):
                    raise InputError(f"{name} is no dictionary of plain values")
                return value
    return None
