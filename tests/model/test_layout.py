"""Rows, padded samples and index order: three forms of the same tokens."""

import pytest
import torch

from trainer.models.tokens.visible import everything, hidden_rows, lay_out, pad, select, spread, unpad

VISIBLE = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 1], [0, 0, 1, 0]]).bool()


def values() -> torch.Tensor:
    return torch.arange(1.0, 13).view(3, 4, 1)  # token g of sample b is 4 b + g + 1


def test_packed_by_hand():
    (tokens,) = lay_out([VISIBLE], packed=True)
    rows = select(values(), tokens.rows)
    assert rows[:, 0].tolist() == [2, 4, 5, 6, 8, 11]
    padded = pad(rows, tokens)
    assert padded[..., 0].tolist() == [[2, 4, 0], [5, 6, 8], [11, 0, 0]]
    assert tokens.valid.int().tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert tokens.uneven
    assert tokens.length == 3
    assert tokens.rank.tolist() == [[0, 0, 0, 1], [0, 1, 0, 2], [0, 0, 0, 0]]
    assert torch.equal(unpad(padded, tokens), rows)
    assert spread(padded, tokens, torch.tensor(-1.0))[..., 0].tolist() == [
        [-1, 2, -1, 4],
        [5, 6, -1, 8],
        [-1, -1, 11, -1],
    ]
    hidden, weight = hidden_rows(tokens)
    assert hidden.tolist() == [0, 2, 6, 8, 9, 11]
    assert weight is None


def test_static_by_hand():
    (tokens,) = lay_out([VISIBLE], packed=False)
    rows = select(values(), tokens.rows)
    assert rows[:, 0].tolist() == list(range(1, 13))
    assert tokens.weight.tolist() == VISIBLE.flatten().float().tolist()
    padded = pad(rows, tokens)
    assert torch.equal(padded, values())
    assert spread(padded, tokens, torch.tensor(-1.0))[..., 0].tolist() == [
        [-1, 2, -1, 4],
        [5, 6, -1, 8],
        [-1, -1, 11, -1],
    ]
    hidden, weight = hidden_rows(tokens)
    assert hidden is None
    assert weight.tolist() == (~VISIBLE).flatten().float().tolist()


def test_equal_numbers_need_no_attention_mask():
    (tokens,) = lay_out([torch.tensor([[True, False, True], [False, True, True]])], packed=True)
    assert not tokens.uneven
    assert tokens.length == 2
    whole = everything(2, 3, torch.device("cpu"))
    assert not whole.uneven
    assert torch.equal(spread(values()[:2, :3], whole, torch.tensor(0.0)), values()[:2, :3])


@pytest.mark.parametrize("packed", [True, False])
def test_levels_are_laid_out_one_by_one(packed):
    levels = lay_out([VISIBLE, VISIBLE[:, :2] | VISIBLE[:, 2:]], packed=packed)
    assert [tokens.visible.shape for tokens in levels] == [(3, 4), (3, 2)]
    if packed:
        assert [tokens.length for tokens in levels] == [3, 2]
