"""What is spared weight decay, and how a gradient is measured and clipped."""

import pytest
import torch
from torch import nn

from tests.support.models import tiny_model
from tests.support.reference import reference_json
from trainer.config import TrainerConfig
from trainer.engine.optimiser import build_optimizer, no_decay_names, set_learning_rate, total_gradient_norm


def _recorded_parameters(model: str) -> list[tuple[str, torch.Tensor]]:
    entries = reference_json("params")[model]["state_dict"]
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return [
        (name, torch.empty(shape, device="meta")) for name, (shape, _) in entries.items() if not name.endswith(buffers)
    ]


def test_the_reference_rule_decays_scalars_and_the_default_does_not() -> None:
    named = [
        ("logit_scale", torch.tensor(1.0)),
        ("norm.weight", torch.ones(3)),
        ("token_embed.weight", torch.ones(3, 3)),
    ]
    assert no_decay_names(named, "reference") == ["norm.weight", "token_embed.weight"]
    assert no_decay_names(named, "vectors") == ["logit_scale", "norm.weight"]


def test_default_rule_decays_the_token_embeddings_convolutions() -> None:
    parameters = dict(_recorded_parameters("pretrain"))
    spared = set(no_decay_names(parameters.items(), "vectors"))
    assert "mask_token" in spared
    assert "h_encoder.token_embed.0.first_conv.0.weight" not in spared
    assert spared - {"mask_token"} == {name for name, value in parameters.items() if value.ndim == 1}


def test_groups_hold_every_trainable_parameter_once() -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, TrainerConfig(weight_decay=0.3))
    decayed, spared = optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_a_factor_of_the_rate_has_groups_of_its_own_and_stays_with_them() -> None:
    model = tiny_model()
    config = TrainerConfig(weight_decay=0.3, learning_rate=0.5)
    optimizer = build_optimizer(model, config, lambda name: 0.25 if name.startswith("h_encoder.") else 1.0)
    set_learning_rate(optimizer, 2.0)
    names = {id(value): name for name, value in model.named_parameters()}
    found = {
        names[id(value)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for value in group["params"]
    }
    assert len(optimizer.param_groups) == 4
    wanted = [name for name, value in model.named_parameters() if value.requires_grad]
    spared = no_decay_names(model.named_parameters(), config.no_decay)
    assert found == {
        name: (0.5 if name.startswith("h_encoder.") else 2.0, 0.0 if name in spared else 0.3) for name in wanted
    }


def test_total_norm_is_over_all_gradients_and_skips_what_has_none() -> None:
    a, b, c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert total_gradient_norm([a, b, c]).item() == 5.0
    with pytest.raises(ValueError, match="no parameter has a gradient; call this after a backward pass"):
        total_gradient_norm([c])
