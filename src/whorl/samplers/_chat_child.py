"""Renders chat templates in a process of its own, where a hostile template can burn neither time nor memory of ours.

Input on stdin, output on stdout, both JSON. Limits: seconds per conversation, memory of the process, characters in all.
"""

import json
import signal
import sys

MAX_SECONDS = 5
MAX_MEMORY = 1_000_000_000  # bytes of address space; rendering needs a sixth of it
MAX_CHARACTERS = 10_000_000
TOO_LONG, TOO_MUCH, TEMPLATE_ERROR = 11, 12, 13
"""Exit codes."""


def main() -> int:
    """Render all conversations."""
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    task = json.load(sys.stdin)
    _limit_memory()
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, lambda *_: sys.exit(TOO_LONG))
    texts: list[str] = []
    for conversation in task["conversations"]:
        if hasattr(signal, "SIGALRM"):
            signal.alarm(MAX_SECONDS)
        try:
            (text,), _ = render_jinja_template(
                [conversation], chat_template=task["template"], add_generation_prompt=True, **task["special"]
            )
        except MemoryError:
            return TOO_MUCH
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError, LookupError) as error:
            sys.stderr.write(f"{type(error).__name__}: {error}")
            return TEMPLATE_ERROR
        texts.append(text)
        if len(text) > MAX_CHARACTERS:
            return TOO_MUCH
    json.dump(texts, sys.stdout)
    return 0


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows; time is limited there by our parent alone
        return
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


if __name__ == "__main__":
    sys.exit(main())
