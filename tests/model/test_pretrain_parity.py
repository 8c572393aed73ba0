"""The small recorded student, quantity by quantity. Tolerances are those of the reference folder's README."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.models import recorded_batch, recorded_model, recorded_order
from tests.support.reference import reference_json
from trainer.config import TrainerConfig
from trainer.masking import weight_logits
from trainer.model import I2PMAE, Plan, Prediction, top_saliency
from trainer.model_config import MaskingConfig
from trainer.optim import build_optimizer


@pytest.fixture(scope="module")
def recorded():
    return recorded_batch()


@pytest.fixture(scope="module", params=["packed", "static"])
def evaluated(request, recorded) -> tuple[I2PMAE, Plan, Prediction]:
    arrays, points, maps = recorded
    model = recorded_model(layout=request.param).eval()
    with torch.no_grad():
        plan = model.plan(points, points, maps, None, mask_order=recorded_order(arrays))
        return model, plan, model.network(plan, None)


@pytest.fixture(scope="module", params=["packed", "static"])
def trained(request, recorded) -> tuple[I2PMAE, Tensor, Tensor]:
    """A model after one training forward and backward pass, and its two losses."""
    arrays, points, maps = recorded
    model = recorded_model(layout=request.param).train()
    output = model(points, points, maps, None, mask_order=recorded_order(arrays))
    output.total.backward()
    return model, output.loss_3d.detach(), output.loss_2d.detach()


def close(value: Tensor | np.ndarray, expected: np.ndarray, *, rel: float = 0.0, tol: float = 0.0) -> None:
    """Largest difference within bounds; refuses NaN and other shapes."""
    value = np.asarray(value.detach() if isinstance(value, Tensor) else value)
    assert value.shape == expected.shape
    assert np.isfinite(value).all()
    np.testing.assert_allclose(value, expected, rtol=rel, atol=tol)


def test_groups_are_exact(recorded, evaluated):
    arrays, (_, plan, _) = recorded[0], evaluated
    for i, level in enumerate(plan.levels):
        np.testing.assert_array_equal(level.centres, arrays[f"center_l{i}"])
        np.testing.assert_array_equal(level.members, arrays[f"idx_l{i}"])


def test_saliency_and_drawing_probabilities(recorded):
    arrays, _, maps = recorded
    saliency = top_saliency(maps, torch.from_numpy(arrays["center_l2"]))
    close(saliency, arrays["spatial_sals"], tol=1e-6)
    close(weight_logits(saliency, MaskingConfig()).softmax(1), arrays["mask_probs"], tol=1e-6)


def test_masks_are_exact_and_hold_the_leak(recorded, evaluated):
    arrays, (_, plan, _) = recorded[0], evaluated
    for i, tokens in enumerate(plan.tokens):
        np.testing.assert_array_equal(~tokens.visible.numpy(), arrays[f"mask_l{i}"])


def test_without_the_leak_only_the_recorded_extra_tokens_differ(recorded):
    arrays, points, maps = recorded
    plan = recorded_model(token0_leak=False).plan(points, points, maps, None, mask_order=recorded_order(arrays))
    notes = reference_json("config")
    for i, tokens in enumerate(plan.tokens):
        extra = np.argwhere(tokens.visible.numpy() & arrays[f"mask_l{i}"])
        assert len(extra) == 0  # leaving the leak out shows nothing new
    missing = np.argwhere(~plan.tokens[1].visible.numpy() & ~arrays["mask_l1"])
    assert missing.tolist() == notes["pretrain_extra_visible_l1"]


def test_encoder_of_each_level(recorded, evaluated):
    arrays, (_, plan, prediction) = recorded[0], evaluated
    for i, (tokens, encoded) in enumerate(zip(plan.tokens, prediction.encoded, strict=True)):
        expected = arrays[f"evalbn__enc_l{i}"][arrays[f"evalbn__enc_valid_l{i}"]]
        close(encoded[tokens.valid], expected, tol=5e-5)


def test_decoder_and_heads(recorded, evaluated):
    arrays, (model, _, prediction) = recorded[0], evaluated
    hidden, seen = arrays["mask_l1"].reshape(-1), ~arrays["mask_l1"].reshape(-1)
    static = model.config.layout == "static"
    rec_3d, rec_2d = prediction.rec_3d.flatten(1), prediction.rec_2d
    close(prediction.decoded, arrays["evalbn__dec"], tol=1e-4)
    close(rec_3d[hidden] if static else rec_3d, arrays["evalbn__rec_3d"], tol=1e-4)
    close(rec_2d[seen] if static else rec_2d, arrays["evalbn__rec_2d"], tol=1e-4)


def test_losses_with_running_statistics(recorded, evaluated):
    arrays, (model, plan, prediction) = recorded[0], evaluated
    losses = model.losses(plan, prediction)
    close(losses.loss_3d, arrays["evalbn__loss_3d"], rel=1e-5)
    close(losses.loss_2d, arrays["evalbn__loss_2d"], rel=1e-5)


def test_losses_with_batch_statistics(recorded, trained):
    arrays, (_, loss_3d, loss_2d) = recorded[0], trained
    close(loss_3d, arrays["train__loss_3d"], rel=1e-5)
    close(loss_2d, arrays["train__loss_2d"], rel=1e-5)


def test_every_gradient_norm(recorded, trained):
    arrays, (model, _, _) = recorded[0], trained
    parameters = dict(model.named_parameters())
    assert list(parameters) == arrays["param_names"].tolist()
    for name, expected in zip(arrays["param_names"], arrays["train__grad_norms"], strict=True):
        gradient = parameters[str(name)].grad
        if np.isnan(expected):
            assert gradient is None, name
            continue
        norm = gradient.double().norm().item()
        large = expected > 1e-3
        assert norm == pytest.approx(expected, rel=3e-3 if large else 0, abs=0 if large else 1e-3), name


def test_whole_gradients(recorded, trained):
    arrays, (model, _, _) = recorded[0], trained
    close(model.mask_token.grad, arrays["train__grad_mask_token"], tol=1e-3)
    close(model.rec_head_3d.bias.grad, arrays["train__grad_rec_head_3d_bias"], tol=1e-3)
    first = model.h_encoder.token_embed[0].first_conv[0].weight
    close(first.grad, arrays["train__grad_first_conv_weight"], tol=1e-3)


def test_batch_norm_buffers_after_one_forward(recorded, trained):
    arrays, (model, _, _) = recorded[0], trained
    buffers = {name: value for name, value in model.named_buffers() if not name.endswith("num_batches_tracked")}
    assert list(buffers) == arrays["buffer_names"].tolist()
    norms = np.array([value.double().norm().item() for value in buffers.values()])
    close(norms, arrays["train__buffer_norms_after"], rel=1e-5)
    first = model.h_encoder.token_embed[0].first_conv[1]
    close(first.running_mean, arrays["train__bn0_running_mean_after"], tol=1e-5)
    close(first.running_var, arrays["train__bn0_running_var_after"], tol=1e-5)


def test_parameter_norms_after_one_adamw_step(recorded):
    arrays, points, maps = recorded
    model = recorded_model().train()
    model(points, points, maps, None, mask_order=recorded_order(arrays)).total.backward()
    recipe = TrainerConfig(learning_rate=1e-3, weight_decay=0.05, no_decay="reference")
    build_optimizer(model, recipe).step()
    norms = [p.detach().double().norm().item() for p in model.parameters()]
    for name, norm, expected, gradient in zip(
        arrays["param_names"], norms, arrays["train__param_norms_after_step"], arrays["train__grad_norms"], strict=True
    ):
        # where the gradient is noise the first step follows its sign, which is noise too
        large = gradient > 1e-3
        assert norm == pytest.approx(expected, rel=2e-4 if large else 0, abs=0 if large else 1e-2), name


def test_evaluation_feature_and_its_hidden_tokens(recorded):
    arrays, points, _ = recorded
    model = recorded_model().eval()
    with torch.no_grad():
        close(model.encode(points), arrays["eval_feat"], tol=1e-4)
        levels, tokens = model.plan_encoding(points)
        encoded = model.h_encoder(points, levels, tokens, None)
    for i, (layout, rows) in enumerate(zip(tokens, encoded, strict=True)):
        np.testing.assert_array_equal(~layout.visible.numpy(), arrays[f"eval__mask_l{i}"])
        close(rows[layout.valid], arrays[f"eval__enc_l{i}"][arrays[f"eval__enc_valid_l{i}"]], tol=5e-5)
