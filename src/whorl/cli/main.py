"""`whorl`: the commands, their help, and how errors become exit codes."""

import contextlib
import os
import sys

import typer

from whorl.cli import compare, exit_codes, fingerprint, lab, report
from whorl.cli.sink import Sink
from whorl.errors import WhorlError

app = typer.Typer(
    name="whorl",
    help="Whose language model is this? Decides, with stated error rates, whether models share an origin.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("fingerprint")(fingerprint.fingerprint)
app.command("compare")(compare.compare)
app.command("survey")(report.survey)
app.command("report")(report.report)
app.command("demo")(report.demo)
app.add_typer(lab.app, name="lab")


def _version(value: bool) -> None:
    if value:
        from whorl import __version__

        typer.echo(f"whorl {__version__}")
        raise typer.Exit


@app.callback()
def _main(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show it.")) -> None:
    """Whose language model is this? Decides, with stated error rates, whether models share an origin."""


def run() -> None:
    """Entry point: errors of our tree become a sentence and their exit code; a bug keeps its traceback and exits 70."""
    sys.excepthook = _bug
    try:
        app()
    except WhorlError as error:
        Sink(as_json="--json" in sys.argv).error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        command = " ".join(sys.argv[1:])
        Sink().hint(f"Interrupted. Finished items are kept; to go on: whorl {command}")
        sys.exit(exit_codes.INTERRUPTED)
    except BrokenPipeError:
        # `whorl ... | head`: the reader has seen enough.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(exit_codes.DONE)


def _bug(kind: type[BaseException], error: BaseException, trace: object) -> None:
    sys.__excepthook__(kind, error, trace)  # type: ignore[arg-type]
    sys.stderr.flush()
    os._exit(exit_codes.BUG)
