"""A captured model that can be run: op by op, or whole as its own code runs it."""

from collections.abc import Callable, Mapping

import torch

from tracer.capture.memory import held, plain_tensors
from tracer.capture.phases import Task
from tracer.capture.senses import shape
from tracer.captured import Capture
from tracer.errors import CutedgeError
from tracer.graph import Role


class Runnable:
    """An op graph, how each op is carried out, and the numbers that are no parameters.

    Raises CutedgeError for a model that holds a tensor whose numbers are nowhere.
    """

    def __init__(self, capture: Capture, task: Task, twin: torch.nn.Module) -> None:
        """``task`` is what was captured, ``twin`` the same module as its own code makes it.

        Nothing that was done to the one for the capture has been done to the other: what it makes
        tells whether the capture is right.
        """
        self.graph, self.invocations = capture.graph, capture.invocations
        self.draws = capture.draws
        self._task, self._twin, self._returned = task, twin, capture.returned
        buffers = {one.name: one.tensor for one in held(twin) if not one.is_parameter}
        plain, own = plain_tensors(twin), plain_tensors(task.module)
        paths = {id(tensor): path for path, tensor in own.items()}
        self.data: dict[int, torch.Tensor] = {}
        """By id of a buffer or a constant without an op: its numbers."""
        for tensor in self.graph.tensors:
            if tensor.op is None and tensor.role is not Role.PARAMETER:
                lifted = capture.data.get(tensor.name)
                path = paths.get(id(lifted), tensor.name)
                found = buffers.get(tensor.name, plain.get(path, lifted))
                if not tensor.bytes:  # where a cache begins: there are no numbers to know
                    found = torch.empty(tensor.shape)
                if found is None or found.is_meta:
                    raise CutedgeError(
                        f"{task.model} cannot be run: nothing says what numbers {tensor.name} has; "
                        "make it where its module is made, as a buffer and not on the meta device"
                    )
                self.data[tensor.id] = found.detach().to(getattr(torch, tensor.dtype)).clone()

    @property
    def spread(self) -> float:
        """The standard deviation that the model's random parameters are to have."""
        return float(getattr(self._task.settings, "initializer_range", None) or 0.02)

    def unsplit(
        self, given: Mapping[str, torch.Tensor], parameter: Callable[[str], torch.Tensor]
    ) -> dict[int, torch.Tensor]:
        """What the model's own code makes of inputs and cached state, which are given by name.

        By tensor of the graph: its results, and the state afterwards.
        ``parameter`` gives each parameter's numbers, by its name in the model. The model keeps them
        until this object is dropped. Inputs that the op graph does not read are zeros.
        """
        self._fill(parameter)
        task = self._task
        zeros = {
            one.name: torch.zeros(shape(one.axes, task.sizes), dtype=one.dtype)
            for one in task.reading.inputs
        }
        with torch.no_grad():
            made, kept = task.over(self._twin)(**task.sorted({**zeros, **given}))
        return dict(zip(self._returned, (*made, *kept), strict=True))

    def _fill(self, parameter: Callable[[str], torch.Tensor]) -> None:
        """Put numbers into the parameters, each memory once; buffers get theirs back."""
        numbers = {self.graph.tensors[n].name: tensor for n, tensor in self.data.items()}
        with torch.no_grad():
            for one in held(self._twin):
                if one.owner != one.name:
                    continue
                if one.is_parameter:
                    one.tensor.copy_(parameter(one.name))
                elif one.name in numbers:
                    one.tensor.copy_(numbers[one.name])
