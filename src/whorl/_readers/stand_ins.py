"""Files that stand where another kind of file should be: pointer texts, web pages, archives, pickles.

The first bytes only choose the better message. A file that could be valid safetensors is never judged here.
"""

from whorl._readers.subject import Subject

HEAD_BYTES = 64

POINTER_ADVICE = "Run `git lfs pull` in the repository, or download it with `hf download`."
PAGE_ADVICE = "The download saved a web page, often a login or error page: sign in and fetch the file again."
UNPACK_ADVICE = "Unpack it with a tool you trust into a folder of its own, and name that folder."

_POINTERS = ((b"version https://git-lfs", "a Git-LFS pointer text"), (b"# xet version", "a Xet pointer text"))
_PAGES = (b"<!doctype html", b"<html", b"<?xml")
_ARCHIVES = (
    (b"PK\x03\x04", "a zip archive or PyTorch pickle file"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-zip archive"),
    (b"Rar!", "a rar archive"),
)
_OTHERS = (
    (b"GGUF", "a GGUF file", "Give it a name that ends in .gguf."),
    (b"\x89HDF\r\n", "an HDF5 (Keras) file", "Ask its owner for safetensors."),
    (b"\x93NUMPY", "a NumPy array", "Ask its owner for safetensors."),
    (b"\x80\x02", "a pickle, which can run code", "Ask its owner for safetensors."),
    (b"\x80\x03", "a pickle, which can run code", "Ask its owner for safetensors."),
    (b"\x80\x04", "a pickle, which can run code", "Ask its owner for safetensors."),
    (b"\x80\x05", "a pickle, which can run code", "Ask its owner for safetensors."),
)


def refuse_text_stand_in(head: bytes, subject: Subject, expected: str) -> None:
    """Refuse pointer texts and web pages.

    Args:
        head: First bytes of the file, `HEAD_BYTES` or more where it has them.
        subject: What the file is called.
        expected: What should be there, in words.

    Raises:
        MalformedFile: the file is a pointer text or a web page.
    """
    for start, kind in _POINTERS:
        if head.startswith(start):
            raise subject.malformed(f"{kind} instead of the content", expected, POINTER_ADVICE)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        raise subject.malformed("a web page (HTML) instead of the content", expected, PAGE_ADVICE)


def refuse_non_safetensors(head: bytes, subject: Subject) -> None:
    """Name the true kind of a file that cannot be safetensors.

    Raises:
        MalformedFile: a pointer text or a web page.
        UnsupportedFile: an archive, pickle, HDF5, NumPy or GGUF file.
    """
    if len(head) < 8 or head[4:8] == b"\0\0\0\0":  # a header of less than 4 GB: may be safetensors
        return
    refuse_text_stand_in(head, subject, "safetensors")
    for magic, kind in _ARCHIVES:
        if head.startswith(magic):
            raise subject.unsupported(kind, "safetensors", UNPACK_ADVICE)
    for magic, kind, advice in _OTHERS:
        if head.startswith(magic):
            raise subject.unsupported(kind, "safetensors", advice)
