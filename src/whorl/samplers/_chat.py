"""Chat templates: foreign programs (Jinja) that turn a conversation into a text; rendered by a limited child process."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

from whorl.errors import UnsafeFile, UnsupportedFile, safe_name
from whorl.samplers._chat_child import MAX_CHARACTERS, MAX_SECONDS, TEMPLATE_ERROR, TOO_LONG, TOO_MUCH

MAX_TEMPLATE = 1_000_000  # characters
MAX_START_S = 120.0  # of the child, on a busy machine
_ADVICE = "Do not use this template: sample the raw text, or ask its owner."

Conversation = Sequence[Mapping[str, str]]


def check_template(template: str, label: str) -> None:
    """Refuse a template over the cap.

    Raises:
        UnsafeFile: over 1,000,000 characters.
    """
    if len(template) > MAX_TEMPLATE:
        found = f"{len(template)} characters"
        raise UnsafeFile("chat template of", label, found, f"at most {MAX_TEMPLATE}", _ADVICE)


def render(template: str, conversations: Sequence[Conversation], special: Mapping[str, str], label: str) -> list[str]:
    """The text of each conversation, up to where the model goes on.

    Args:
        template: Source of the template.
        conversations: Turns with "role" and "content".
        special: Names that templates use ("bos_token", ...) and their texts.
        label: How messages call the model.

    Raises:
        UnsafeFile: over 5 seconds for one conversation, over 10,000,000 characters, or over 1 GB of memory.
        UnsupportedFile: the template fails, or refuses the conversation.
    """
    task = json.dumps({"template": template, "conversations": list(conversations), "special": dict(special)})
    command = [sys.executable, "-m", "whorl.samplers._chat_child"]
    limit_s = MAX_START_S + MAX_SECONDS * len(conversations)
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command, input=task, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise _unsafe(label, f"over {limit_s:.0f} seconds", f"{MAX_SECONDS} seconds a conversation") from None
    if done.returncode == TOO_LONG:
        raise _unsafe(label, f"over {MAX_SECONDS} seconds", "an answer in time")
    if done.returncode == TOO_MUCH or done.returncode < 0:
        raise _unsafe(label, "too much memory or output", f"at most {MAX_CHARACTERS} characters and 1 GB")
    if done.returncode == TEMPLATE_ERROR:
        found = f"an error: {safe_name(done.stderr, 200)}"
        raise UnsupportedFile("chat template of", label, found, "a text", "Use other turns, or sample the raw text.")
    if done.returncode:
        raise RuntimeError(f"the renderer of chat templates failed: {done.stderr[-2000:]}")
    texts: list[str] = json.loads(done.stdout)
    return texts


def _unsafe(label: str, found: str, expected: str) -> UnsafeFile:
    return UnsafeFile("chat template of", label, found, expected, _ADVICE)
