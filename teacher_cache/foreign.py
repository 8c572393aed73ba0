"""Recognition of files from elsewhere: pointers, web pages, encodings, wrapped names."""

__all__ = ["decode_text", "marked_encoding", "misnomer", "without_wrappers"]

WRAPPERS = ("module.", "_orig_mod.", "model.")  # put before every name by data parallelism, torch.compile and Lightning
_MARKS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
)


def misnomer(data: bytes) -> str | None:
    """Tell from its first kilobyte that a file is not what its name claims.

    -> what it is instead, with the remedy; None if nothing shows.
    """
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not data:
        return "is empty; download it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer and not the file itself; run `git lfs pull` in its clone"
    if b"/annex/objects/" in head[:512]:
        return "is a git-annex pointer and not the file itself; run `git annex get` on it"
    if head.startswith((b"<!doctype html", b"<html", b"<head")):
        return "is a web page (HTML), such as a download page saved in place of the file; download the file itself"
    if head.startswith((b"<?xml", b"<error")):
        return "is XML, such as the error response of an object store; download the file itself"
    if head.startswith(b"\x1f\x8b"):
        return "is compressed with gzip; unpack it first"
    if not data[:1024].strip(b"\0"):
        return "begins with zeros, as files do after a power failure; download it again"
    return None


def marked_encoding(data: bytes) -> str | None:
    """Return the encoding named by a byte order mark at the start, or None."""
    return next((name for mark, name in _MARKS if data.startswith(mark)), None)


def decode_text(data: bytes) -> str:
    """Decode text in UTF-8, with or without a byte order mark, or in UTF-16 or UTF-32 with one; any line ends.

    Raises ValueError with what is wrong, and the remedy.
    """
    name = marked_encoding(data) or "utf-8"
    try:
        text = data.decode(name)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"line {line} is not valid {name.removesuffix('-sig').upper()}: save the file as UTF-8 (some editors save "
            "in code pages such as cp1252)"
        ) from None
    if "\0" in text:
        raise ValueError(
            f"line {text[: text.index(chr(0))].count(chr(10)) + 1} contains NUL bytes: the file is damaged"
        )
    return text


def without_wrappers(names: list[str]) -> str:
    """Return the longest prefix made of WRAPPERS, in any order, that all names share; "" for none."""
    prefix = ""
    while names:
        found = next((w for w in WRAPPERS if all(name.startswith(prefix + w) for name in names)), None)
        if found is None:
            break
        prefix += found
    return prefix
