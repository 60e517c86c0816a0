"""The commands, and the one place where an error becomes a sentence and an exit status."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import App, CycloptsError, Group, Parameter
from pydantic import ValidationError
from rich.markup import escape

from refusalscope import __version__
from refusalscope.cli.session import SESSION
from refusalscope.errors import RefusalscopeError

FAILED, BROKEN, STOPPED = 1, 70, 130

app = App(
    name="refusalscope",
    help="See how a chat model refuses, prove it, watch it, mend it.",
    help_epilogue="Example: `refusalscope audit builtin:chat --out runs/first`",
    help_format="markdown",
    version=__version__,
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative_bool=(), negative_iterable=()),
)
app.meta.suppress_keyboard_interrupt = False
EVERYWHERE = Parameter(group=Group("For every command", sort_key=9))
app.command(
    "refusalscope.cli.audit:audit", help="Audit a chat model into a run folder with a report."
)
app.command(
    "refusalscope.cli.audit:directions", help="The directions study, with all of its settings."
)
app.command(
    "refusalscope.cli.routing:routing",
    help="Which attention heads carry the refusal, proven by exact interchange.",
    help_epilogue="Example: `refusalscope routing builtin:planted-routes --out runs/routing`",
)
app.command(
    "refusalscope.cli.features:features",
    help="Which SAE latents carry the refusal, in sets that are run and proven minimal.",
    help_epilogue="Example: `refusalscope features builtin:chat --out runs/features`",
)
app.command(
    "refusalscope.cli.cliff:cliff",
    help="Where a reasoning model drops its refusal, and which heads push it.",
)
app.command(
    "refusalscope.cli.cliff:repair",
    help="Fine-tune a reasoning model where it drops its refusal, and measure it before and after.",
    help_epilogue="Example: `refusalscope repair builtin:reasoner --export models/repaired`",
)
app.command(
    "refusalscope.cli.belief:belief",
    help="Harm and refusal as two beliefs: clusters, positions, categories, jailbreaks, steering.",
    help_epilogue="Example: `refusalscope belief builtin:chat --out runs/belief`",
)
app.command(
    "refusalscope.cli.guard:guard",
    help="The model's own belief of harm as a calibrated guard: fit, card, score, serve, drift.",
)
app.command(
    "refusalscope.cli.judge:judge",
    help="Label replies, and measure a judge against people.",
    help_epilogue="Example: `refusalscope judge replies.csv --against human_label --out runs/judged`",
)
app.command(
    "refusalscope.cli.judge:train",
    name="judge-train",
    help="Train the text judge by its recipe.",
    help_epilogue="Example: `refusalscope judge-train --shared ../shared --out models/judge`",
)
app.command("refusalscope.cli.show:show", help="Show a run: its tables in the terminal.")
app.command(
    "refusalscope.cli.organism:organism",
    help="Models whose circuit is known: list, build, train and score methods on them.",
)


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    quiet: Annotated[bool, EVERYWHERE] = False,
    debug: Annotated[bool, EVERYWHERE] = False,
) -> object:
    """See how a chat model refuses, prove it, watch it, mend it.

    Parameters
    ----------
    quiet
        Print results only: no progress bars.
    debug
        Show the traceback of an error.
    """
    SESSION.quiet, SESSION.debug = quiet, debug
    return app(tokens, exit_on_error=False, print_error=False)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `refusalscope` command; leaves with an exit status."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    """Run one command line and return its exit status: 0, 1 for a mistake, 70 for a fault of ours."""
    try:
        app.meta(argv, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _fail(f"{_mistake(error)} See refusalscope --help.", FAILED)
    except RefusalscopeError as error:
        return _fail(str(error), FAILED)
    except KeyboardInterrupt:
        way = (
            " What was finished is kept: give the same command with --resume."
            if _resumes(argv)
            else ""
        )
        return _fail(f"Stopped.{way}", STOPPED)
    except BrokenPipeError:
        return FAILED
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"The system refused: {error.strerror or error}{where}.", FAILED)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else FAILED
    except MemoryError:
        return _fail("The memory is full: give fewer prompts or a smaller model.", FAILED)
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback reaches a user
        if type(error).__name__ == "OutOfMemoryError":
            return _fail(
                "The device's memory is full: choose --dtype bfloat16, give fewer prompts, or spread the "
                "model with --device-map auto.",
                FAILED,
            )
        return _fail(
            f"This is a fault of refusalscope, not of yours: {type(error).__name__}: {error}. "
            f"Give the same command with --debug to see where.",
            BROKEN,
        )
    return 0


def _mistake(error: CycloptsError) -> str:
    """What is wrong with a command line, without the words that pydantic puts around it."""
    wrong = error.__cause__
    if not isinstance(wrong, ValidationError):
        return str(error).strip()
    found = [
        f"{'.'.join(map(str, each['loc']))}: {each['msg'].removeprefix('Value error, ')}"
        for each in wrong.errors()
    ]
    return f"A setting is wrong: {'; '.join(found)}."


def _resumes(argv: list[str]) -> bool:
    words = set(argv)
    studies = {"audit", "belief", "cliff", "directions", "features", "judge", "routing", "score"}
    return bool(studies & words) and not {"cliff", "rank"} <= words


def _fail(message: str, status: int) -> int:
    if SESSION.debug:
        SESSION.err.print_exception()
    SESSION.err.print(f"[red]error:[/red] {escape(' '.join(message.split()))}", soft_wrap=True)
    return status
