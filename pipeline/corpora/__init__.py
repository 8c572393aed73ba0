"""Readers of 3D shapes behind one small interface: ``open_corpus(uri, points=2048)[i]`` is a ``Shape``."""

from pipeline.corpora.base import (
    Corpus,
    CorpusError,
    MachineFault,
    Shape,
    ShapeError,
    UnreadHere,
    corpus_fingerprint,
    identity_hash,
)
from pipeline.corpora.check import check_shape, normalise
from pipeline.corpora.uri import KINDS, open_corpus

__all__ = [
    "KINDS",
    "Corpus",
    "CorpusError",
    "MachineFault",
    "Shape",
    "ShapeError",
    "UnreadHere",
    "check_shape",
    "corpus_fingerprint",
    "identity_hash",
    "normalise",
    "open_corpus",
]
