"""Writes docs/reference: every command, column, policy, device field and link field.

``python -m tools.reference`` (`make reference`). All of it is said in the code: in the parsers, the
tables' schemas, the policies' files, and the docstrings of dataclasses.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from inspect import signature
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import pyarrow as pa
import typer

from cli.main import app
from costmodels.area import AreaFigures, area_names, load_area
from costmodels.cost_table import COSTS
from costmodels.described import Figure
from costmodels.devices import (
    ARRAY_FIGURES,
    COUNT_FIGURES,
    TILE_FIGURES,
    Array,
    ArrayMemory,
    Device,
    Npu,
    TilePhases,
    device_names,
    load_device,
)
from costmodels.energy import EnergyFigures, energy_names, load_energy
from costmodels.links import FIGURES, Link, link_names, load_link
from costmodels.packing import FIGURES as OF_PACKINGS
from costmodels.packing import Packing, load_packing, packing_names
from costmodels.weight_parts import PARTS, Model, Weight
from costmodels.weights import FIGURES as OF_WEIGHTS
from costmodels.weights import Encoding, EncodingRule, load_weights, weight_names
from cutedge._design_table import DESIGNS
from cutedge._frontier import FRONTIER
from cutedge.runtime.measured import MEASURED_CALLS
from cutedge.sweeping.point_files import SWEEP
from partition.mask_table import MASKS
from partition.policy import Policy, load_policy, policy_names
from partition.schedule_table import SCHEDULE
from partition.summary_table import SUMMARY
from partition.tables import CALLS, PLACEMENT, TRANSFERS
from tools.describe import field_words, plain, write
from tools.schemas import schemas
from tracer.serde import EDGES, OPS, RUN, TENSORS, description

FOLDER = "docs/reference"

TABLES: Mapping[str, tuple[str, pa.Schema]] = {
    "ops": ("A row is an op: an ATen call, a graph input, or the one op of kind `output`.", OPS),
    "tensors": ("A row is a value that an op makes, or a parameter or buffer.", TENSORS),
    "edges": ("A row is a tensor that flows into an op.", EDGES),
    "placement": ("A row is an op on its device.", PLACEMENT),
    "transfers": ("A row is a tensor that crosses from one device to another, once.", TRANSFERS),
    "calls": ("A row is a round trip from home to an accelerator and back.", CALLS),
    "summary": ("The one row is the whole run.", SUMMARY),
    "schedule": (
        "A row is an op or a transfer of a request, in time. `--schedule` of `partition` and "
        "`compare` writes it.",
        SCHEDULE,
    ),
    "frontier": (
        "A row is the best placement with so much memory on the accelerator, from the most to the "
        "least. `partition --frontier` writes it into the partition's folder, beside a chart.",
        FRONTIER,
    ),
    "masks": (
        "A row is what home does for a mask: of a policy that protects ops, and where one is away.",
        MASKS,
    ),
    "costs": ("A row is an op on a device. `cutedge cost` writes it.", COSTS),
    "measured_calls": ("A row is a round trip as `cutedge verify` ran it.", MEASURED_CALLS),
    "sweep": (
        "A row is a point of a grid. Model, phase and policy stand in the path of the file.",
        SWEEP,
    ),
    "designs": (
        "A row is a design of a chip for a run of a model. `cutedge design --out` writes it.",
        DESIGNS,
    ),
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def code(text: object) -> str:
    """As code; nothing for nothing."""
    return f"`{text}`" if str(text) else ""


# --- commands -------------------------------------------------------------------------------------


def _commands() -> str:
    root: Any = typer.main.get_command(app)
    found: list[tuple[str, Any]] = []
    for name, one in root.commands.items():
        inner = getattr(one, "commands", None)
        found += [(name, one)] if inner is None else [(f"{name} {n}", c) for n, c in inner.items()]
    listed = table(
        ("command", "what it does"),
        [
            (f"[`{name}`](#cutedge-{name.replace(' ', '-')})", _first(one.help))
            for name, one in found
        ],
    )
    return "\n\n".join(
        [
            "# Every command and option",
            "What each command takes, from its parser. [The commands](../guide/commands.md) shows them "
            "at work. A choice in bold is the default.",
            listed,
            *(_command(name, one) for name, one in found),
        ]
    )


def _first(text: str) -> str:
    return text.strip().split("\n\n")[0]


def _command(name: str, one: Any) -> str:
    arguments = [p for p in one.params if p.param_type_name == "argument"]
    options = [p for p in one.params if p.param_type_name == "option" and p.name != "help"]
    parts = [f"## cutedge {name}", " ".join(one.help.split())]
    if arguments:
        parts.append(
            table(
                ("argument", "value", "what it is"),
                [(code(_metavar(p)), _values(one, p), p.help or "") for p in arguments],
            )
        )
    parts.append(
        table(
            ("option", "value", "default", "what it is"),
            [
                (
                    ", ".join(map(code, (*p.opts, *p.secondary_opts))),
                    _values(one, p),
                    _default(one, p),
                    p.help or "",
                )
                for p in options
            ],
        )
    )
    example = one.epilog.removeprefix("Example: [bold]").removesuffix("[/bold]")
    parts.append(f"```sh\n{example}\n```")
    known = schemas()
    schema = name.replace(" ", "-")
    shapes = [shape for shape in known if shape == schema or shape.startswith(f"{schema}-")]
    if shapes and schema in known:
        links = ", ".join(f"[{shape}.json](../schema/{shape}.json)" for shape in shapes)
        parts.append(f"`--json` prints {links}.")
    return "\n\n".join(parts)


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


_SORTS = {int: "whole number", float: "number", str: "text", Path: "path"}


def _asked(command: Any, parameter: Any) -> tuple[Any, Any]:
    """(the type, what the parser is told beside it), as the function has them."""
    kind, told = get_args(signature(command.callback).parameters[parameter.name].annotation)
    given = [one for one in get_args(kind) if one is not NoneType]
    return given[0] if NoneType in get_args(kind) else kind, told


def _values(command: Any, parameter: Any) -> str:
    """What may be given: choices, or a sort of value with its limits."""
    kind, told = _asked(command, parameter)
    if kind is bool:
        return "switch"
    many = parameter.multiple or parameter.nargs == -1
    if get_origin(kind) is list:
        (kind,) = get_args(kind)
    if get_origin(kind) is tuple:
        text = " ".join(_SORTS[one] for one in get_args(kind))
    elif kind in _SORTS:
        text = _SORTS[kind]
    else:
        names = get_args(kind) or [one.value for one in kind]
        text = ", ".join(f"**`{n}`**" if n == parameter.default else f"`{n}`" for n in names)
    least, most = told.min, told.max
    if least is not None:
        text += f", {least:,g} or more" if most is None else f", {least:,} to {most:,}"
    return text + ("; again for another" if many else "")


def _default(command: Any, parameter: Any) -> str:
    """What is taken where the option is left out; choices have theirs in bold."""
    default, (kind, _) = parameter.default, _asked(command, parameter)
    if parameter.required:
        return "needed"
    if default is None or kind is bool or kind not in _SORTS:
        return ""
    return code(default)


# --- columns --------------------------------------------------------------------------------------


def _tables() -> str:
    return "\n\n".join(
        [
            "# Every column",
            "The columns of the tables, from their schemas. The same descriptions are in each Parquet "
            "file, as metadata of its fields. [The tables](../guide/tables.md) shows how to ask them.",
            "## Of the run",
            "Each row of each table ends with the run that it is of; those of a trace alone have no "
            "`policy`, `wire`, `residency` and `machine`.",
            _columns(RUN),
            *(
                part
                for name, (about, schema) in TABLES.items()
                for part in (f"## {name}", about, _columns(schema))
            ),
        ]
    )


def _columns(schema: pa.Schema) -> str:
    return table(
        ("column", "type", "what it is"),
        [(code(field.name), _type(field), description(field)) for field in schema],
    )


def _type(field: pa.Field) -> str:
    text = str(field.type).replace("item: ", "").replace(" ('item')", "")
    return code(f"{text}?" if field.nullable else text)


# --- policies, devices, links ---------------------------------------------------------------------


def _policies() -> str:
    return "\n\n".join(
        [
            "# Every policy",
            "The policies that come with cutedge, from their files. The first rule that matches an op "
            "places it; `default` is where the others go. [Your own](../guide/own.md) says how one is "
            "written.",
            *(_policy(load_policy(name)) for name in policy_names()),
        ]
    )


def _policy(policy: Policy) -> str:
    objective = " and ".join(policy.objective or ()) or "nothing: no op is free"
    parts = [
        f"## {policy.name}",
        policy.description,
        f"Default: `{policy.default}`. Best for {objective}."
        + (" One cut, between two layers." if policy.cut == "layers" else ""),
    ]
    if policy.rules:
        parts.append(
            table(
                ("rule", "ops", "place", "reason"),
                [
                    (str(n), code(rule), code(rule.place), rule.reason)
                    for n, rule in enumerate(policy.rules, 1)
                ],
            )
        )
    if policy.secrets:
        parts.append(
            table(
                ("secret", "tensors", "what is made of them", "reason"),
                [
                    (
                        str(n),
                        code(secret),
                        "secret too" if secret.derived else "not secret",
                        secret.reason,
                    )
                    for n, secret in enumerate(policy.secrets, 1)
                ],
            )
        )
    return "\n\n".join(parts)


def _fields(kind: type, names: Iterable[str] | None = None) -> str:
    hints, about = get_type_hints(kind), field_words(kind)
    return table(
        ("field", "type", "what it is"),
        [
            (code(name), code(_python(hints[name])), plain(about[name]))
            for name in names or [field.name for field in fields(kind)]
        ],
    )


def _python(kind: Any) -> str:
    text = kind.__name__ if isinstance(kind, type) else str(kind)
    for prefix in ("typing.", "collections.abc.", "costmodels.devices.", "costmodels.links."):
        text = text.replace(prefix, "")
    return text.replace("NoneType", "None")


_ARRAY_KEYS = {
    "array_dataflow": "dataflow",
    "array_rows_elements": "rows",
    "array_columns_elements": "columns",
    "array_depth_elements": "depth",
    "tile_cycles": "tile_cycles",
    "clock_hertz": "clock_hertz",
    "array_count": "arrays",
}


def _limits(figure: Figure) -> str:
    kind = "whole number" if figure.whole else "number"
    return f"{kind}, {'above 0' if figure.positive else '0 or more'}" + (
        "" if figure.most == Figure().most else f", at most {figure.most:g}"
    )


def _devices() -> str:
    array = {**ARRAY_FIGURES, **TILE_FIGURES, **COUNT_FIGURES}
    return "\n\n".join(
        [
            "# Devices",
            "What a description of a device may say, and the devices of cutedge. A file has the "
            "fields as keys, each figure as a table with `value` and `source`; `cutedge devices "
            "NAME` shows the sources. [Your own](../guide/own.md) has an example.",
            "## Fields",
            _fields(Device),
            "## Fields of an array",
            _fields(Array),
            "In a file these are keys with a prefix and a unit:",
            table(
                ("key", "field", "value"),
                [
                    (code(name), code(field), _limits(array[name]) if name in array else "text")
                    for name, field in _ARRAY_KEYS.items()
                ],
            ),
            "## Figures of area",
            "What a file of area figures may say (`costmodels/data/area`, `design --area`). Figures by "
            "dtype stand as `[mac_square_micrometres.int8]`.",
            _fields(AreaFigures),
            table(
                ("file", "figure", "value", "source"),
                [
                    (code(name), code(key), f"{value:g}", found.sources[key])
                    for name in area_names()
                    for found in [load_area(name)]
                    for key, value in found.by_key.items()
                ],
            ),
            "## What the cycles of a fixed tile hold",
            "Keys of the file, which add up to `tile_cycles`.",
            _fields(TilePhases),
            "## Buffers of a systolic array",
            "Keys of the file; products wait for them, each operand in its own width.",
            _fields(ArrayMemory),
            "## Units and memories of a chip",
            "Keys of the file, `kinds` as `op_kinds`; rates by dtype are tables, as "
            "`[macs_per_cycle.int8]`.",
            _fields(Npu),
            "## Figures of energy",
            "What a file of energy figures may say (`costmodels/data/energy`), and a device in place of "
            "the file that it names with `energy`. Figures by dtype stand as `[mac_picojoules.int8]`, "
            "an SRAM by its size as `[sram_picojoules_per_byte.8_kib]`.",
            _fields(EnergyFigures),
            table(
                ("file", "figure", "value", "source"),
                [
                    (code(name), code(key), f"{value:g}", sources[key])
                    for name in energy_names()
                    for found, sources in [load_energy(name)]
                    for key, value in found.by_key.items()
                ],
            ),
            "## The devices",
            _described(
                device_names(),
                load_device,
                ("device", "trusted", "what it is"),
                lambda one: (code(one.name), "yes" if one.trusted else "no", one.description),
            ),
        ]
    )


def _links() -> str:
    return "\n\n".join(
        [
            "# Links",
            "What a description of a link may say, and the links of cutedge. `cutedge links NAME` "
            "shows the source of each figure.",
            "## Fields",
            _fields(Link, ("name", "description", *FIGURES, "sources")),
            "## The links",
            _described(
                link_names(),
                load_link,
                ("link", "what it is"),
                lambda one: (code(one.name), one.description),
            ),
        ]
    )


def _packings() -> str:
    def figures(one: Packing) -> str:
        told = [f"{dtype} {ratio:.4g}" for dtype, ratio in one.ratios.items()]
        return ", ".join(told) or ("exact" if one.is_exact else "")

    def nanoseconds(value: float | None) -> str:
        return "" if value is None else f"{value * 1e9:.3g}"

    return "\n\n".join(
        [
            "# Packings",
            "What a description of a packing may say, and the packings of cutedge. A file has a "
            "`description`, a `codec` (plain, zstd, lz4, blocks, range), for zstd a `level`, and "
            "`byte_planes`; each figure is a table with `value` and `source`. Of a dtype without one "
            "the plain bytes count. [Packing](../guide/packing.md) has examples.",
            "## Figures",
            table(("key", "what it is"), [(code(key), what) for key, what in OF_PACKINGS.items()]),
            "## The packings",
            _described(
                packing_names(),
                load_packing,
                (
                    "packing",
                    "packed bytes over bytes",
                    "ns a byte to pack",
                    "to unpack",
                    "what it is",
                ),
                lambda one: (
                    code(one.name),
                    figures(one),
                    nanoseconds(one.pack_seconds_per_byte),
                    nanoseconds(one.unpack_seconds_per_byte),
                    one.description,
                ),
            ),
            "## Where the figures come from",
            table(
                ("packing", "figure", "source"),
                [
                    (code(name), code(key), source)
                    for name in packing_names()
                    for key, source in load_packing(name).sources.items()
                ],
            ),
        ]
    )


def _weights() -> str:
    def bits(name: str) -> str:
        one = load_weights(name)
        way = one.encoding_of(_MATRIX, _DENSE)
        return f"{way.bytes(4096, 4096) * 8 / 4096**2:.4g}"

    return "\n\n".join(
        [
            "# Weight formats",
            "What a description of a weight format may say, and the formats of cutedge. A file has "
            "figures, each a table with `value` and `source`, or the `encoding` of another file; "
            "`otherwise` is the encoding of rows that are no whole number of groups; a table "
            "`[[tensor]]` is a rule, with `parts`, `as` (an encoding or a dtype) and `source`, and "
            "`rules_of` takes another file's rules after its own. [Weights](../guide/weights.md) "
            "has examples.",
            "## Figures",
            _fields(Encoding, tuple(OF_WEIGHTS)),
            "## Conditions of a rule",
            _fields(EncodingRule, ("layers", "experts", "depth", "queries_a_key", "names")),
            "## Parts",
            table(("part", "what it is"), [(code(part), what) for part, what in PARTS.items()]),
            "## The formats",
            "Bits a weight are those of a matrix of 4096 x 4096 in a feed-forward part.",
            _described(
                weight_names(),
                load_weights,
                ("format", "bits a weight", "what it is"),
                lambda one: (code(one.name), bits(one.name), one.description),
            ),
        ]
    )


_MATRIX, _DENSE = Weight("ffn_up", 4096, 4096), Model(experts=1, layers=32, queries_a_key=1)


def _described(
    names: Iterable[str],
    load: Callable[[str], Any],
    head: Sequence[str],
    row: Callable[[Any], Sequence[str]],
) -> str:
    return table(head, [row(load(name)) for name in names])


def texts() -> dict[str, str]:
    """The pages, by their path in the repository."""
    pages = {
        "commands": _commands,
        "tables": _tables,
        "policies": _policies,
        "devices": _devices,
        "links": _links,
        "packings": _packings,
        "weights": _weights,
    }
    return {f"{FOLDER}/{name}.md": page() + "\n" for name, page in pages.items()}


if __name__ == "__main__":
    write(texts())
