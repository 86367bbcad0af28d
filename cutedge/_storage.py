"""How weights and cached state are stored, as users name it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from costmodels.checkpoints import storage_of
from costmodels.weight_files import SUFFIXES, stored_as
from costmodels.weights import cache_encoding, cache_in, load_weights, stored
from tracer.errors import InputError
from tracer.graph import OpGraph


def check_storage(weights: str | Path | None, kv_dtype: str | None) -> None:
    """Raise InputError for formats that are not known."""
    if weights is not None and not str(weights).endswith(SUFFIXES):
        load_weights(str(weights))
    if kv_dtype is not None:
        cache_encoding(kv_dtype)


def in_storage(graph: OpGraph, weights: str | Path | None, kv_dtype: str | None) -> OpGraph:
    """A graph with weights and cached state in formats: ``Trace.stored``; costs are of before."""
    if weights is not None and str(weights).endswith(SUFFIXES):
        graph = stored_as(graph, Path(weights))
    elif weights is not None:
        graph = stored(graph, load_weights(str(weights)))
    return graph if kv_dtype is None else cache_in(graph, kv_dtype)


def as_in_file(graph: OpGraph, file: Path) -> tuple[OpGraph, tuple[str, ...]]:
    """(a graph with weights as a model's own file has them, why they are not used)."""
    try:
        return stored_as(graph, file), ()
    except InputError as error:
        return graph, (f"the weights beside the config are not used: {error}",)


def as_published(graph: OpGraph, config: Mapping[str, Any]) -> tuple[OpGraph, tuple[str, ...]]:
    """(a graph with weights as its config's checkpoint has them, what of that is not known)"""
    found, unknown = storage_of(config)
    return graph if found is None else stored(graph, found), (unknown,) if unknown else ()
