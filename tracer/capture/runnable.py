"""A captured model that can be run: op by op, or whole as its own code runs it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tracer.capture.inputs import shape
from tracer.capture.phases import Task
from tracer.captured import Capture
from tracer.errors import CutedgeError
from tracer.graph import Role


class Runnable:
    """An op graph, how each op is carried out, and the numbers that are no parameters.

    Raises CutedgeError for a model that holds a tensor whose numbers are nowhere.
    """

    def __init__(self, capture: Capture, task: Task, twin: torch.nn.Module) -> None:
        """``task`` is what was captured, ``twin`` the same module with its buffers computed."""
        self.graph, self.invocations = capture.graph, capture.invocations
        self._task, self._twin, self._returned = task, twin, capture.returned
        buffers = dict(twin.named_buffers(remove_duplicate=False))
        self.data: dict[int, torch.Tensor] = {}
        """By id of a buffer or a constant without an op: its numbers."""
        for tensor in self.graph.tensors:
            if tensor.op is None and tensor.role is not Role.PARAMETER:
                found = buffers.get(tensor.name, capture.data.get(tensor.name))
                if not tensor.bytes:  # where a cache begins: there are no numbers to know
                    found = torch.empty(tensor.shape)
                if found is None or found.is_meta:
                    raise CutedgeError(
                        f"{task.model} cannot be run: it holds {tensor.name} as a plain attribute "
                        "of a module; register it as a buffer"
                    )
                self.data[tensor.id] = found.detach().to(getattr(torch, tensor.dtype))

    @property
    def spread(self) -> float:
        """The standard deviation that the model's random parameters are to have."""
        return float(getattr(self._task.settings, "initializer_range", None) or 0.02)

    def unsplit(
        self, given: Mapping[str, torch.Tensor], parameter: Callable[[str], torch.Tensor]
    ) -> dict[int, torch.Tensor]:
        """What the model's own code makes of inputs and cached state, which are given by name.

        By tensor of the graph: its results, and the state afterwards. ``parameter`` gives each parameter's numbers, by the name that the op graph has for it. The
        model keeps them until this object is dropped.
        """
        self._fill(parameter)
        unread = {
            one.name: torch.zeros(shape(one.axes, self._task.sizes), dtype=one.dtype)
            for one in self._task.reading.inputs if one.name not in given
        }  # fmt: skip
        arguments = self._task.sorted({**unread, **given})
        with torch.no_grad():
            made, kept = self._task.exported(**arguments)
        return dict(zip(self._returned, (*made, *kept), strict=True))

    def _fill(self, parameter: Callable[[str], torch.Tensor]) -> None:
        """Put numbers into the module in the place of shapes; what is shared stays so."""
        filled: dict[Any, torch.nn.Parameter] = {}
        twins = dict(self._twin.named_modules())
        for path, part in self._task.module.named_modules():
            for key, tensor in part.named_parameters(recurse=False):
                if tensor.is_meta:
                    if tensor not in filled:
                        numbers = parameter(f"{path}.{key}" if path else key)
                        filled[tensor] = torch.nn.Parameter(numbers, requires_grad=False)
                    part.register_parameter(key, filled[tensor])
            for table in (part._buffers, vars(part)):
                for key, tensor in table.items():
                    if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                        twin = twins[path]
                        table[key] = twin._buffers.get(key, vars(twin).get(key))
