"""How a failure of torch or of a model's own code becomes one line."""

import re
import traceback

_OWN = re.compile(r'File ".*/transformers/models/.*/([^/"]+)", line (\d+), in .*\n *(.*)')
_UNKNOWN = re.compile(r"\bu\d+\b")
"""Torch's name for a number that only data gives."""


def first_line(error: BaseException) -> str:
    """The error in a line, without torch's advice on its own debugging."""
    first, *rest = str(error).strip().splitlines() or [""]
    if first.endswith(":") and rest:  # the reason stands in the second line
        first += f" {rest[0].strip()}"
    line = first.partition(" For more information")[0]
    return f"{type(error).__name__}: {line}".rstrip(".!: ")


def place(trace: str) -> str:
    """Where the model's own code was at the end of a traceback, and that line of it."""
    own = _OWN.findall(trace.replace("\\", "/"))
    return " at {}:{} ({})".format(*own[-1]) if own else ""


class Untraceable(Exception):
    """torch.export, or the lowering of what it gave, cannot carry this model; one line says why."""

    def __init__(self, error: BaseException, condition: str = "") -> None:
        reason = first_line(error)
        if _UNKNOWN.search(reason):
            reason = "its code goes by the values of tensors, not by their shapes alone"
        super().__init__(reason + place("".join(traceback.format_tb(error.__traceback__))))
        self.by_torch = type(error).__module__.startswith("torch")
        self.condition = condition
        """What does not hold of the sizes, where that is the reason."""
