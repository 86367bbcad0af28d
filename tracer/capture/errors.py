"""How a failure of torch or of a model's own code becomes one line."""

import traceback
from pathlib import Path


def first_line(error: BaseException) -> str:
    """The error in a line, without torch's advice on its own debugging."""
    first, *rest = str(error).strip().splitlines() or [""]
    if first.endswith(":") and rest:  # the reason stands in the second line
        first += f" {rest[0].strip()}"
    line = first.partition(" For more information")[0]
    return f"{type(error).__name__}: {line}".rstrip(".!: ")


class Untraceable(Exception):
    """torch.export, or the lowering of what it gave, cannot carry this model; one line says why."""

    def __init__(self, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "/transformers/models/" in f.filename.replace("\\", "/")]
        place = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
        super().__init__(first_line(error) + place)
        self.by_torch = type(error).__module__.startswith("torch")
