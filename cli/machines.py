"""The options that say which devices there are, how they are linked, and what they can hold."""

from typing import Annotated

import typer

from cli import complete

Home = Annotated[
    str,
    typer.Option(
        help="The device that holds inputs and outputs: any name; one of `devices`, or a .toml "
        "file, has seconds. NAME=DEVICE calls it NAME.",
        autocompletion=complete.devices,
    ),
]
Accel = Annotated[
    list[str] | None,
    typer.Option(
        help="A device that home calls, as --home; again for another. gpu when left out.",
        autocompletion=complete.devices,
    ),
]
LinkNames = Annotated[
    list[str] | None,
    typer.Option(
        "--link",
        help="A link's name, or a .toml file: of home and every accelerator; GPU=LINK is of home "
        "and that one, A+B=LINK of two accelerators (else the slower of their two). zmq-ipc when "
        "left out.",
        autocompletion=complete.links,
    ),
]
Memory = Annotated[
    list[str] | None,
    typer.Option(help="At most so much on a device: gpu=4GiB; for policies with an objective."),
]
