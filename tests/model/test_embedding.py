"""The token embedding by blocks of groups, against the layers one after the other."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.models import tiny_model
from trainer.models.layers import token_embedding
from trainer.models.layers import token_embedding_cpu as embedding_rows
from trainer.models.layers.token_embedding import TokenEmbed

SIZES = [
    (3, (8, 16), 32, 12, 40, 16),
    (12, (12, 12), 21, 21, 33, 8),
    (3, (8, 16), 32, 12, 1, 2),
    (5, (4, 7), 9, 6, 700, 1),
]
"""Widths in, first, hidden and out; groups; members."""


def embedding(width_in: int, first: tuple[int, int], hidden: int, width_out: int) -> TokenEmbed:
    """With norms that are not those of a fresh module."""
    module = TokenEmbed(width_in, first, hidden, width_out)
    generator = torch.Generator().manual_seed(0)
    for value in module.parameters():
        nn.init.normal_(value, std=0.3, generator=generator)
    return module


def layer_by_layer(module: TokenEmbed) -> TokenEmbed:
    other = copy.deepcopy(module)
    other._by_blocks = lambda members, weight: False
    return other


def trained(module: TokenEmbed, members: Tensor, grad: Tensor, *, half: bool = False) -> dict[str, Tensor]:
    """The output and every gradient and buffer of one training pass; half: under autocast to bfloat16."""
    members = members.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        out = module(members, None)
    out.backward(grad.to(out.dtype))
    assert members.grad is not None
    gradients = {f"gradient of {name}": value.grad for name, value in module.named_parameters()}
    return {"output": out.detach(), "gradient of members": members.grad, **gradients, **dict(module.named_buffers())}


def inputs(width_in: int, width_out: int, groups: int, members: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(groups, members, width_in, generator=generator)
    return x, torch.randn(groups, width_out, generator=generator)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_by_blocks_is_the_same_function_with_the_same_gradients(size, monkeypatch):
    monkeypatch.setattr(embedding_rows, "_BLOCK", 100)  # several blocks
    width_in, first, hidden, width_out, groups, members = size
    module = embedding(width_in, first, hidden, width_out)
    other = layer_by_layer(module)
    exact = layer_by_layer(module).double()
    x, grad = inputs(width_in, width_out, groups, members)
    assert module._by_blocks(x, None)
    ours, theirs = trained(module, x, grad), trained(other, x, grad)
    true = trained(exact, x.double(), grad.double())
    size_of = max(value.abs().max().item() for name, value in true.items() if name.startswith("gradient"))
    for name, value in true.items():
        if name.startswith("gradient"):
            # A bias before a norm has no gradient but rounding: compared to the size of the others. Seen 1e-6.
            assert (ours[name] - value).abs().max() < 2e-5 * size_of, name
            assert (theirs[name] - value).abs().max() < 2e-5 * size_of, name
        else:
            # A norm is x * slope + offset here, one rounding more than torch's: each is 1.2e-6 from the truth.
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=4e-6, msg=name)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_operands_of_another_type_change_nothing_but_rounding(size, monkeypatch):
    """What bfloat16 does, with operands that round nothing: float64."""
    monkeypatch.setattr(embedding_rows, "_BLOCK", 100)
    width_in, first, hidden, width_out, groups, members = size
    x, grad = inputs(width_in, width_out, groups, members)
    plain = trained(embedding(width_in, first, hidden, width_out), x, grad)
    monkeypatch.setattr(token_embedding, "_operands", lambda x: torch.float64)
    monkeypatch.setattr(TokenEmbed, "_by_blocks", lambda self, members, weight: True)
    wide = trained(embedding(width_in, first, hidden, width_out), x, grad)
    size_of = max(value.abs().max().item() for name, value in plain.items() if name.startswith("gradient"))
    for name, value in plain.items():
        scale = size_of if name.startswith("gradient") else value.abs().max().item()
        assert wide[name].dtype == value.dtype
        assert (wide[name] - value).abs().max() <= 2e-5 * scale, name


@pytest.mark.parametrize("size", [size for size in SIZES if size[4] > 1], ids=str)
def test_in_bfloat16_it_is_nearer_to_the_truth_than_layers_under_autocast(size):
    """Rounding makes another member a group's maximum here and there, and that is most of the gradients' error.

    Relative errors in norm, means of 25 draws: outputs 0.6 to 0.7 % (layers: 0.8 to 1.3), gradients 6 to 15 % (10 to
    20).
    """
    width_in, first, hidden, width_out, groups, members = size
    module = embedding(width_in, first, hidden, width_out)
    exact, layers = layer_by_layer(module).double(), layer_by_layer(module)
    off: dict[str, list[float]] = {"ours": [], "theirs": [], "ours, output": [], "theirs, output": []}
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        for one in (module, exact, layers):
            one.zero_grad()
            one.load_state_dict(embedding(width_in, first, hidden, width_out).state_dict())
        x = torch.randn(groups, members, width_in, generator=generator)
        grad = torch.randn(groups, width_out, generator=generator)
        true = trained(exact, x.double(), grad.double())
        for name, one in (("ours", module), ("theirs", layers)):
            found = trained(one, x, grad, half=True)
            keys = [key for key in true if key.startswith("gradient")]
            off[name].append(apart([found[key] for key in keys], [true[key] for key in keys]))
            off[f"{name}, output"].append(apart([found["output"]], [true["output"]]))
            assert found["output"].dtype == (torch.float32 if name == "ours" else torch.bfloat16)
    mean = {name: np.mean(values) for name, values in off.items()}
    assert 1e-4 < mean["ours, output"] < min(0.01, 1.05 * mean["theirs, output"])
    assert mean["ours"] < min(0.25, 1.15 * mean["theirs"])


def apart(found: list[Tensor], true: list[Tensor]) -> float:
    """The norm of the difference over that of what is true."""
    both = [torch.cat([value.double().reshape(-1) for value in values]) for values in (found, true)]
    return ((both[0] - both[1]).norm() / both[1].norm()).item()


def test_ties_of_the_maximum_go_to_the_same_member():
    module = embedding(3, (8, 16), 20, 12)
    x, grad = inputs(3, 12, 30, 8)
    x[:, 4:] = x[:, :4]  # each maximum is reached twice
    ours, theirs = trained(module, x, grad), trained(layer_by_layer(embedding(3, (8, 16), 20, 12)), x, grad)
    torch.testing.assert_close(ours["gradient of members"], theirs["gradient of members"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours["gradient of members"][:, 4:], ours["gradient of members"][:, :4])


@pytest.mark.parametrize("half", [False, True])
def test_threads_change_no_bit(monkeypatch, half):
    x, grad = inputs(3, 12, 500, 16)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(trained(embedding(3, (8, 16), 20, 12), x, grad, half=half))
    for other in results[1:]:
        assert all(torch.equal(other[name], value) for name, value in results[0].items())


def test_without_a_gradient_for_the_members():
    module = embedding(3, (8, 16), 20, 12)
    x, grad = inputs(3, 12, 30, 8)
    module(x, None).backward(grad)
    assert all(value.grad is not None for value in module.parameters())
    with torch.no_grad():
        assert not module(x, None).requires_grad


def test_where_layers_are_taken_one_by_one():
    module = embedding(3, (8, 16), 20, 12)
    x, _ = inputs(3, 12, 30, 8)
    assert module._by_blocks(x, None)
    assert not module._by_blocks(x, torch.ones(30)), "some groups do not count in the statistics"
    assert not module._by_blocks(x.double(), None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module._by_blocks(x, None)
        assert module(x, None).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.float16):
        assert not module._by_blocks(x, None)
    assert not module.eval()._by_blocks(x, None)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_the_mini_pointnet_of_its_definition(size):
    """NumPy, member by member, in evaluation mode."""
    width_in, first, hidden, width_out, groups, members = size
    module = embedding(width_in, first, hidden, width_out).double().eval()
    with torch.no_grad():
        for value in module.buffers():
            if value.is_floating_point():
                value.copy_(torch.linspace(0.5, 2, value.numel()))
    x = inputs(width_in, width_out, groups, members)[0].double()
    weights = {name: value.detach().numpy() for name, value in module.state_dict().items()}

    def layer(name: str, rows: np.ndarray) -> np.ndarray:
        return rows @ weights[f"{name}.weight"][:, :, 0].T + weights[f"{name}.bias"]

    def norm(name: str, rows: np.ndarray) -> np.ndarray:
        scaled = (rows - weights[f"{name}.running_mean"]) / np.sqrt(weights[f"{name}.running_var"] + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    expected = []
    for group in x.numpy():
        own = layer("first_conv.3", np.maximum(norm("first_conv.1", layer("first_conv.0", group)), 0))
        joint = np.concatenate([np.repeat(own.max(0, keepdims=True), len(own), 0), own], axis=1)
        active = np.maximum(norm("second_conv.1", layer("second_conv.0", joint)), 0)
        expected.append(layer("second_conv.3", active).max(0))
    # float64 on both sides, sums in another order: 1e-15 seen
    np.testing.assert_allclose(module(x, None).detach().numpy(), np.stack(expected), rtol=1e-10, atol=1e-10)


def test_widths_where_no_level_doubles_the_one_below():
    """Point-M2AE's: 2 x the second width inside at the finest level, the level's own width above."""
    model = tiny_model(embed_first=(5, 7), encoder_dims=(6, 22, 34), decoder_dims=(34, 22))
    shapes = [
        [tuple(embed.get_submodule(name).weight.shape[:2]) for name in
         ("first_conv.0", "first_conv.3", "second_conv.0", "second_conv.3")]
        for embed in model.h_encoder.token_embed
    ]  # fmt: skip
    assert shapes == [
        [(5, 3), (7, 5), (14, 14), (6, 14)],
        [(6, 6), (6, 6), (22, 12), (22, 22)],
        [(22, 22), (22, 22), (34, 44), (34, 34)],
    ]
