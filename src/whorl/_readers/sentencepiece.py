"""The pieces of a SentencePiece model file: the one field that says which string belongs to which id.

The file is a protocol buffer: a sequence of (field number, wire type, value). Wanted are the messages of field 1
(`pieces`), whose own field 1 is the string (`piece`); id = position. Everything else is stepped over, and only the
four wire types that today's writers make are known.
"""

from collections.abc import Iterator

from whorl._readers import limits
from whorl._readers.subject import Subject

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_MAX_VARINT = 10  # bytes, of the format
_PIECES = 1  # field of the model, repeated
_PIECE = 1  # field of one entry

Field = tuple[int, int, int, int]
"""Field number, wire type, and where its value starts and stops."""


def read_pieces(data: bytes, name: str) -> tuple[str, ...]:
    """The strings of all pieces in id order.

    Args:
        data: The whole file.
        name: Its name for messages.

    Raises:
        MalformedFile: not a protocol buffer, no piece, a piece without one string, a string that is not UTF-8.
        UnsafeFile: more pieces than the cap.
    """
    subject = Subject("tokenizer", name)
    pieces: list[str] = []
    for number, wire, start, stop in _fields(data, 0, len(data), subject):
        if number != _PIECES:
            continue
        if wire != _BYTES:
            raise subject.malformed("a piece that is a number", "a SentencePiece model")
        if len(pieces) == limits.MAX_TOKENS:
            raise subject.unsafe(f"over {limits.MAX_TOKENS} pieces", "fewer")
        pieces.append(_string(data, start, stop, subject))
    if not pieces:
        raise subject.malformed("no pieces", "a SentencePiece model")
    return tuple(pieces)


def _string(data: bytes, start: int, stop: int, subject: Subject) -> str:
    found = [field for field in _fields(data, start, stop, subject) if field[0] == _PIECE]
    if len(found) != 1 or found[0][1] != _BYTES:
        raise subject.malformed(f"a piece with {len(found)} strings", "one string in each piece")
    try:
        return data[found[0][2] : found[0][3]].decode("utf-8")
    except UnicodeDecodeError as error:
        raise subject.malformed("a piece that is not UTF-8", "strings in UTF-8") from error


def _fields(data: bytes, position: int, stop: int, subject: Subject) -> Iterator[Field]:
    while position < stop:
        tag, position = _varint(data, position, stop, subject)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            end = _varint(data, position, stop, subject)[1]
        elif wire == _BYTES:
            length, position = _varint(data, position, stop, subject)
            end = position + length
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            end = position + (8 if wire == _EIGHT_BYTES else 4)
        else:
            raise subject.malformed(f"wire type {wire} at byte {position}", "a SentencePiece model")
        if number == 0 or end > stop:
            raise subject.malformed(f"a field beyond its end at byte {position}", "a whole SentencePiece model")
        yield number, wire, position, end
        position = end


def _varint(data: bytes, position: int, stop: int, subject: Subject) -> tuple[int, int]:
    """A number of 7 bits a byte, lowest first, and the position after it."""
    value = 0
    for n_read, byte in enumerate(data[position : min(stop, position + _MAX_VARINT)], start=1):
        value |= (byte & 0x7F) << 7 * (n_read - 1)
        if byte < 0x80:
            return value, position + n_read
    raise subject.malformed(f"a number without end at byte {position}", "a SentencePiece model")
