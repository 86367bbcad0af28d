"""Links between devices: what a message and a tensor cost beside their payload."""

from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from tracer.errors import InputError, suggest
from tracer.toml_files import check_keys, read_text, read_toml


@dataclass(frozen=True, slots=True)
class Link:
    """Framing of a link, in bytes, by direction as seen from home."""

    name: str
    description: str
    sent_message_framing_bytes: int
    """Bytes a message from home (or from one accelerator to another) adds to its tensors."""
    sent_tensor_framing_bytes: int
    """Bytes each tensor in such a message adds."""
    received_message_framing_bytes: int
    """Bytes a message to home adds."""
    received_tensor_framing_bytes: int
    """Bytes each tensor in a message to home adds."""


FIGURES = tuple(f.name for f in fields(Link) if f.name.endswith("_bytes"))


def link_names() -> list[str]:
    """The links that come with cutedge."""
    folder = files("costmodels") / "data" / "links"
    return sorted(Path(entry.name).stem for entry in folder.iterdir())


def load_link(name: str) -> Link:
    """A link by its name, or by the path of a TOML file. Raises InputError naming file and key."""
    if name.endswith(".toml") or "/" in name:
        return _parse(Path(name), read_text(Path(name), "link file"))
    known = link_names()
    if name not in known:
        raise InputError(
            f"unknown link {name!r}; known are {', '.join(known)}, or the path of a .toml file."
            + suggest(name, known)
        )
    resource = files("costmodels") / "data" / "links" / f"{name}.toml"
    return _parse(Path(f"{name}.toml"), resource.read_text(encoding="utf-8"))


def _parse(path: Path, text: str) -> Link:
    table = read_toml(path, text)
    check_keys(table, str(path), required=("description", *FIGURES))
    if not isinstance(table["description"], str):
        raise InputError(f"{path}: description must be text")
    return Link(
        name=path.stem,
        description=table["description"],
        **{key: _figure(path, key, table[key]) for key in FIGURES},
    )


def _figure(path: Path, key: str, entry: Any) -> int:
    where = f"{path}: [{key}]"
    if not isinstance(entry, dict):
        raise InputError(f"{where}: a table with value and source is wanted, not {entry!r}")
    check_keys(entry, where, required=("value", "source"))
    value = entry["value"]
    if type(value) is not int or not 0 <= value < 2**31:
        raise InputError(
            f"{where}: value must be a whole number of bytes from 0 to 2**31 - 1, not {value!r}"
        )
    if not isinstance(entry["source"], str) or not entry["source"].strip():
        raise InputError(f"{where}: source must say where the figure comes from")
    return value
