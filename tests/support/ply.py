"""PLY files of any elements, for tests."""

import struct

__all__ = ["CODES", "made"]

CODES = {
    "char": "b",
    "uchar": "B",
    "short": "h",
    "ushort": "H",
    "int": "i",
    "uint": "I",
    "float": "f",
    "double": "d",
    "int64": "q",
}


def made(form: str, elements: list[tuple[str, list[str], list[list]]], end: str = "\n", extra: str = "") -> bytes:
    """A PLY of elements (name, properties, rows); a list is a list within its row. form: ascii, little or big."""
    name = form if form == "ascii" else f"binary_{form}_endian"
    head = f"ply\nformat {name} 1.0\n{extra}"
    body = b""
    for element, properties, rows in elements:
        head += f"element {element} {len(rows)}\n" + "".join(f"property {prop}\n" for prop in properties)
        for row in rows:
            words = []
            for prop, value in zip(properties, row, strict=True):
                *kinds, _ = prop.removeprefix("list ").split()
                values = [len(value), *value] if isinstance(value, (list, tuple)) else [value]
                kinds = [kinds[0]] + [kinds[-1]] * (len(values) - 1)
                order = "<" if form == "little" else ">"
                body += (
                    b""
                    if form == "ascii"
                    else b"".join(struct.pack(order + CODES[kind], v) for kind, v in zip(kinds, values, strict=True))
                )
                words += [f"{v:g}" for v in values]
            body += (" ".join(words) + "\n").encode() if form == "ascii" else b""
    header = (head + "end_header\n").replace("\n", end).encode()
    return header + (body.replace(b"\n", end.encode()) if form == "ascii" else body)
