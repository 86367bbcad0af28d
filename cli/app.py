"""What every command shares: the Typer app, its errors, its common options."""

import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stderr, suppress
from contextvars import ContextVar
from functools import wraps
from inspect import Parameter, signature
from io import StringIO, TextIOWrapper
from time import perf_counter
from traceback import print_exc
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from typer import Option
from typer.core import TyperGroup

from cli.options import WORDS, flattened
from cli.terminal import WIDE, broken, hide_progress, progress, room
from tracer.errors import CutedgeError
from tracer.interrupts import say_as
from tracer.words import visible

JSON_VERSION = 1
"""Of what ``--json`` prints: one more where a key goes, is renamed or means another thing."""

_AS_JSON: ContextVar[bool] = ContextVar("_AS_JSON", default=False)
"""Whether the command that runs was given ``--json``: then its errors are JSON too."""


def say(text: str = "", *, bold: bool = False) -> None:
    """Print text for people; what a name hides in it is seen. Only a terminal shows what is bold."""
    for line in visible(text).split("\n"):
        shown = "\n".join(broken(line, room(sys.stdout)))
        typer.echo(typer.style(shown, bold=True) if bold and shown else shown)


def warn(*texts: str) -> None:
    """Print warnings on standard error, with ``--json`` each as an object in a line."""
    for text in texts:
        _complain("warning", text)


def _complain(what: str, text: str, **more: int) -> None:
    if _AS_JSON.get():
        typer.echo(_as_json(what, text, **more), err=True)
    else:
        hide_progress()
        for line in visible(f"{what}: {text}").split("\n"):
            typer.echo("\n".join(broken(line, room(sys.stderr))), err=True)


def _as_json(what: str, text: str, **more: int) -> str:
    return json.dumps({"version": JSON_VERSION, what: text, **more})


def _fail(text: str, code: int) -> NoReturn:
    _complain("error", text, exit_code=code)
    sys.exit(code)


class Commands(TyperGroup):
    """All commands: errors as a message on stderr; a traceback is for our bugs only."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Run one command; its exit code is 0, 1 or 2."""
        if isinstance(sys.stdout, TextIOWrapper):  # what an old encoding lacks is escaped
            sys.stdout.reconfigure(errors="backslashreplace")
        words = sys.argv[1:] if args is None else list(args)
        _AS_JSON.set("--json" in words)
        WORDS.set(words)
        if "--json" in words:
            say_as(lambda text: _as_json("error", text, exit_code=130))
        try:
            try:
                return self._run(words, *more, **options)
            finally:
                if sys.stdout:  # else a full disk is noticed when the interpreter has ended
                    sys.stdout.flush()
        except CutedgeError as error:
            _fail(str(error), error.exit_code)
        except OSError as error:
            if error.errno != errno.EPIPE:  # `cutedge query ... | head` ends quietly
                where = error.filename or "cannot print the results"
                _complain("error", f"{where}: {error.strerror or error}", exit_code=1)
            with suppress(OSError, AttributeError):  # let what is not printed yet go nowhere
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)

    def _run(self, words: list[str], *more: Any, **options: Any) -> Any:
        if not _AS_JSON.get():
            return super().main(words, *more, **options)
        try:  # else what is wrong with the options would be drawn in a box
            code = super().main(words, *more, **{**options, "standalone_mode": False})
        except Exception as error:  # click's, which typer carries under a name of its own
            if not hasattr(error, "format_message"):
                raise
            _fail(error.format_message(), getattr(error, "exit_code", 2))
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    name="cutedge",
    cls=Commands,
    help="What it costs to split a model between two machines: trace a model into an op graph, "
    "place every op on a device, and see the bytes that cross.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"cutedge {version('cutedge')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        Option("--version", help="Say which version this is.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """What all commands have."""


Command = TypeVar("Command", bound=Callable[..., Any])


def command(
    example: str, group: typer.Typer = app, *, tables: bool = True
) -> Callable[[Command], Command]:
    """Register a command, with an example under its help, and the switches that all have.

    One that prints ``tables`` has --wide too.
    """

    def register(function: Command) -> Command:
        switches = {"quiet": Quiet, "verbose": Verbose, **({"wide": Wide} if tables else {})}
        group.command(epilog=f"Example: [bold]{example}[/bold]")(
            _switched(flattened(function), switches)
        )
        return function

    return register


Quiet = Annotated[
    bool,
    Option("--quiet", "-q", help="No warnings and no progress: errors alone on standard error."),
]
Verbose = Annotated[
    bool, Option("--verbose", "-v", help="Say how long it took, and of an error where it arose.")
]
Wide = Annotated[bool, Option("--wide", help="Whole tables, also where the terminal is narrower.")]


def _switched(function: Callable[..., Any], switches: dict[str, Any]) -> Callable[..., Any]:
    """A command that may be quiet, verbose or wide."""

    @wraps(function)
    def run(*args: Any, quiet: bool, verbose: bool, wide: bool = False, **options: Any) -> Any:
        begun = perf_counter()
        token = WIDE.set(wide)
        told = nullcontext() if quiet or _AS_JSON.get() else progress()
        try:
            with redirect_stderr(StringIO()) if quiet else nullcontext(), told:
                return function(*args, **options)
        except CutedgeError:
            if verbose:
                print_exc()
            raise
        finally:
            WIDE.reset(token)
            if verbose:
                typer.echo(f"{perf_counter() - begun:.2f} s", err=True)

    shown = signature(function)
    run.__signature__ = shown.replace(  # type: ignore[attr-defined]
        parameters=[
            *shown.parameters.values(),
            *(
                Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=kind)
                for name, kind in switches.items()
            ),
        ]
    )
    run.__annotations__ = {**function.__annotations__, **switches}
    return run
