"""Checks of XML in untrusted files: complete, and without entities that could multiply."""

import xml.parsers.expat as expat

from pipeline.corpora.formats.geometry import Malformed

__all__ = ["check_xml"]


def check_xml(data: bytes, what: str) -> None:
    """Raise Malformed unless the bytes are one whole XML document without a document type.

    Libraries that read on over the end of a cut file leave out what is missing; entities, which only a document type
    can declare, can stand for any number of bytes and for other files.
    """
    parser = expat.ParserCreate()

    def doctype(*_: object) -> None:
        raise Malformed(f"{what} declares a document type, which can define entities; such XML is refused")

    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise Malformed(f"{what} is not complete XML: {error}") from error
