"""How torch carries out a node: its arguments as plain data, for whoever runs the graph later."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tracer.capture.errors import Untraceable
from tracer.kinds import base_name, data_args
from tracer.program import Invocation


def invocation(
    node: torch.fx.Node, index: Callable[[torch.fx.Node], int], real: Mapping[torch.fx.Node, Any]
) -> Invocation:
    """The arguments of a node that calls an op, as ``Invocation`` spells them.

    ``index`` gives the value of a node that makes a tensor, ``real`` what each node made at the
    sizes to run at. Raises Untraceable for an argument that is no plain data.
    """
    target = str(node.target)
    tensors: list[torch.fx.Node] = []
    torch.fx.map_arg((node.args, node.kwargs), tensors.append)
    tensors = [n for n in tensors if isinstance(n.meta.get("val"), torch.Tensor)]
    read = set(data_args(target, tuple(range(len(tensors)))))
    unread = {n for i, n in enumerate(tensors) if i not in read} - {tensors[i] for i in read}

    def plain(argument: Any) -> Any:
        match argument:
            case torch.fx.Node() if isinstance(argument.meta.get("val"), torch.Tensor):
                return {"like" if argument in unread else "value": index(argument)}
            case torch.fx.Node():
                return number(real.get(argument))
            case list() | tuple():
                return [plain(part) for part in argument]
            case torch.dtype():
                return {"dtype": str(argument).removeprefix("torch.")}
            case torch.device():
                return {"device": None}
            case torch.layout():
                return {"layout": str(argument).removeprefix("torch.")}
            case torch.memory_format():
                return {"memory_format": str(argument).removeprefix("torch.")}
            case None | str():
                return argument
        return number(argument)

    def number(argument: Any) -> Any:
        if isinstance(argument, float) and not math.isfinite(argument):
            return {"float": str(argument)}
        if isinstance(argument, complex):
            return {"complex": str(argument)}
        if isinstance(argument, bool | int | float):
            return argument
        raise Untraceable(
            f"{base_name(target)} is given {type(argument).__name__}, which cannot be handed over"
        )

    if not isinstance(node.target, torch._ops.OpOverload):
        raise Untraceable(f"{node.target} is no op that can be run by itself")
    return Invocation(plain(node.args), {key: plain(value) for key, value in node.kwargs.items()})
