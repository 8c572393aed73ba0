"""Several corpora in one option."""

import pytest

from cli.options import labelled_pair
from pipeline.corpora.uri import split_uris
from tests.support.commands import run


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


PAIR = "folder:a?formats=off,obj&split=train", "npz:b,c.npz?split=test"


def test_a_study_takes_corpora_with_commas():
    assert labelled_pair(f"mine={','.join(PAIR)}", "--real") == ("mine", *PAIR)


def test_a_teacher_is_scored_on_corpora_with_commas(capsys, monkeypatch):
    asked = []

    def score(config, projection, named, **more):
        asked.extend(named)
        return {}

    monkeypatch.setattr("cli.actions.teacher_scores.score_teacher", score)
    outcome = run(capsys, "teacher", "eval", "--corpus", f"mine={','.join(PAIR)}", "--json")
    assert outcome.code == 0, outcome.err
    assert asked[1:] == [("mine", *PAIR)]


@pytest.mark.parametrize(
    "text", ["mine=folder:a?formats=off,obj", "mine=folder:a,folder:b,folder:c", "=folder:a,folder:b"]
)
def test_other_than_two_corpora_are_refused(capsys, text):
    for arguments in (("teacher", "eval", "--corpus", text), ("study", "guidance", "--real", text)):
        outcome = run(capsys, *arguments)
        assert outcome.code == 2
        assert "expected NAME=TRAIN,TEST with two corpora" in outcome.err
