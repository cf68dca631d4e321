"""The error tree, its messages and its exit codes."""

import pytest

from whorl import errors


def subclasses(kind):
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def test_the_drawing_in_the_docstring_is_the_tree():
    for kind in subclasses(errors.WhorlError):
        assert kind.__name__ in errors.__doc__


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UsageError, 2),
        (errors.MalformedFile, 3),
        (errors.UnsafeFile, 3),
        (errors.UnsupportedFile, 3),
        (errors.NotComparable, 4),
        (errors.NotEnoughEvidence, 4),
        (errors.RemoteError, 4),
    ],
)
def test_exit_codes(kind, code):
    assert kind.exit_code == code


def test_refusals_have_one_form():
    error = errors.MalformedFile("shard", "a\x1b[31m.safetensors", "8 bytes", "9 bytes", "Fetch it again.")
    assert str(error) == r"Refused shard 'a\x1b[31m.safetensors': 8 bytes; expected 9 bytes. Fetch it again."


def test_names_are_ascii_and_short():
    shown = errors.safe_name("\u00e9\u202e" + "x" * 500)
    assert shown.isascii()
    assert len(shown) == errors.MAX_SHOWN_NAME


def test_a_refusal_survives_the_way_from_a_worker_process():
    import pickle

    from whorl.errors import UnsafeFile

    error = UnsafeFile("file", "x", "a", "b", "Do c.")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(again) is UnsafeFile
    assert str(again) == str(error)
