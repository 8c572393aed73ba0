"""Several corpora in one option."""

import pytest

from pipeline.corpora.uri import split_uris


@pytest.mark.parametrize(
    ("text", "uris"),
    [
        ("folder:a,folder:b", ["folder:a", "folder:b"]),
        (
            "folder:a?formats=off,obj&split=train,npz:b.npz?split=test",
            ["folder:a?formats=off,obj&split=train", "npz:b.npz?split=test"],
        ),
        ("folder:a?formats=off,obj", ["folder:a?formats=off,obj"]),
        ("synthetic:?categories=chair,table,synthetic:?categories=mug,bowl&split=test",
         ["synthetic:?categories=chair,table", "synthetic:?categories=mug,bowl&split=test"]),
        ("folder:my%2Cnpz:x,npz:y.npz", ["folder:my%2Cnpz:x", "npz:y.npz"]),
        ("folder:old,new,folder:b", ["folder:old,new", "folder:b"]),
        ("x", ["x"]),
        ("", []),
    ],
)  # fmt: skip
def test_commas_within_a_uri_do_not_split_it(text, uris):
    assert split_uris(text) == uris
