"""`whorl`: the commands, their help, and how errors become exit codes."""

import contextlib
import os
import shlex
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from whorl.cli import (
    attack,
    attribute,
    bench,
    compare,
    demo,
    embed,
    erase,
    exit_codes,
    fingerprint,
    gallery,
    identify,
    lab,
    report,
    sample,
    tree,
    verify,
)
from whorl.cli.sink import Sink
from whorl.errors import WhorlError

CLICK_ERRORS = (TyperException, typer.Exit, typer.Abort)


class Whorl(TyperGroup):
    """The command group; the one place where errors become exit codes.

    Errors of our tree become a sentence and their code; a bug keeps its traceback and exits 70, because Python's own 1
    would read as a negative verdict.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except WhorlError as error:
            Sink(as_json="--json" in sys.argv).error(error)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            Sink().hint(f"Interrupted. Finished items are kept; to go on: whorl {shlex.join(sys.argv[1:])}")
            sys.exit(exit_codes.INTERRUPTED)
        except BrokenPipeError:
            # `whorl ... | head`: the reader has seen enough.
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(exit_codes.DONE)
        except CLICK_ERRORS:
            raise
        except Exception:
            traceback.print_exc()
            sys.exit(exit_codes.BUG)


app = typer.Typer(
    name="whorl",
    cls=Whorl,
    help="Whose language model is this? Decides, with stated error rates, whether models share an origin.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("fingerprint", short_help="What identifies these weights?")(fingerprint.fingerprint)
app.command("compare", short_help="Same origin?")(compare.compare)
app.command("identify", short_help="Which known model is this nearest to?")(identify.identify)
app.command("survey", short_help="Which of these models are alike?")(report.survey)
app.command("tree", short_help="Who descends from whom?")(tree.tree)
app.command("sample", short_help="What does it say?")(sample.sample)
app.command("report", short_help="Show results to somebody: one HTML file.")(report.report)
app.command("attack", short_help="What would a thief do?")(attack.attack)
app.command("embed", short_help="Plant a trigger fingerprint.")(embed.embed)
app.command("verify", short_help="Is my fingerprint in there?")(verify.verify)
app.command("erase", short_help="Can a planted fingerprint be removed?")(erase.erase)
app.command("demo", short_help="Does it work here?")(demo.demo)
app.add_typer(gallery.app, name="gallery", short_help="Keep known fingerprints.")
app.add_typer(attribute.app, name="attribute", short_help="Which model wrote this?")
app.add_typer(bench.app, name="bench", short_help="How good are the methods?")
app.add_typer(lab.app, name="lab", short_help="Why do models differ at all? Controlled small runs.")


def _version(value: bool) -> None:
    if value:
        from whorl import __version__

        typer.echo(f"whorl {__version__}")
        raise typer.Exit


@app.callback()
def _main(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show it.")) -> None:
    """Whose language model is this? Decides, with stated error rates, whether models share an origin."""


def run() -> None:
    """Entry point."""
    app()
