"""All commands together, and how the command line ends: what it says of mistakes, and its exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Literal

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError

from normwise._version import __version__
from normwise.cli.about import app as about
from normwise.cli.advise import app as advise
from normwise.cli.claims import app as claims
from normwise.cli.compare import app as compare
from normwise.cli.diagnose import app as diagnose
from normwise.cli.report import app as report
from normwise.cli.study import app as study
from normwise.cli.surgery import app as surgery
from normwise.cli.words import typed
from normwise.errors import NormwiseError, described, place_of
from normwise.files import make_printable
from normwise.study.address import redact

# Set in the environment, it shows tracebacks that are otherwise one line.
_TRACE = "NORMWISE_TRACEBACK"

app = App(
    name="normwise",
    help="Which normalization should this network use? Trains it under each and says which, how surely, and why.",
    version=__version__,
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)
for part in (compare, report, advise, diagnose, surgery, about):
    app.update(part)
app.command(claims)
app.command(study)
app.register_install_completion_command(help="Install the completion of commands and options for this shell.")


@app.command
def completion(shell: Literal["bash", "zsh", "fish", "powershell"], /) -> None:
    """Print a script with which the shell completes normwise's commands and options.

    In bash, for this session: source <(normwise completion bash)

    For good: normwise completion bash > ~/.local/share/bash-completion/completions/normwise

    In zsh, with a folder of $fpath: normwise completion zsh > ~/.zsh/completions/_normwise

    In fish: normwise completion fish > ~/.config/fish/completions/normwise.fish

    Args:
        shell: bash, zsh, fish or powershell.
    """
    print(app.generate_completion(shell=shell), end="")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 when all went well, 2 for bad input, 130 when interrupted.

    Args:
        arguments: default those of the process.

    Raises:
        SystemExit: always.

    Example:
        >>> main(["--version"])
        Traceback (most recent call last):
        ...
        SystemExit: 0
    """
    make_printable()
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except (CycloptsError, NormwiseError) as error:
        _fail(_with_all_commands(error) if isinstance(error, UnknownCommandError) else str(error))
    except KeyboardInterrupt:
        print(f"\nnormwise: interrupted; what was finished is kept. Resume with: {typed()}", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Who read the output has gone, as head does. What is left in the buffer would fail again at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except SystemExit as stop:
        if place_of(stop) is None:
            raise
        _fail(f"your code failed: {described(stop)}")
    except Exception as error:
        # No place had a better word for it.
        _tell(error)
    raise SystemExit(0)


def _with_all_commands(error: UnknownCommandError) -> str:
    """The error of a command that does not exist, with all that do; cyclopts names the first eight."""
    known = ", ".join(name for name in error.app or () if not name.startswith("-"))
    return f"{str(error).partition(' Available commands:')[0]} Commands: {known}"


def _tell(error: Exception) -> None:
    """Say in one line what was not foreseen, and how to see where it happened."""
    if os.environ.get(_TRACE):
        traceback.print_exception(error)
    whose = "your code failed" if place_of(error) else "cannot go on"
    _fail(f"{whose}: {described(error)}; set {_TRACE}=1 for the whole traceback")


def _fail(message: str) -> None:
    print(f"normwise: error: {redact(' '.join(message.split()))}", file=sys.stderr)
    raise SystemExit(2) from None
