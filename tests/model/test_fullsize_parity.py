"""The full-size student with closed-formula weights and a ViT-B/16 teacher: recorded losses and features."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from cuda.project import project
from tests.support.models import closed_formula, fill_by_formula, recorded_order
from tests.support.reference import reference_arrays, reference_json
from trainer.maps import TeacherMaps
from trainer.masking import weight_logits
from trainer.model import I2PMAE, top_saliency
from trainer.model_config import MaskingConfig, ModelConfig


@pytest.fixture(scope="module")
def salt() -> str:
    return reference_json("config")["config"]["salt"]


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return reference_arrays("fullsize")


@pytest.fixture(scope="module")
def student(salt, arrays) -> I2PMAE:
    with torch.device("meta"):
        model = I2PMAE(ModelConfig.reference(drop_path=0.0), MaskingConfig(), teacher_channels=512)
    model = model.to_empty(device="cpu")
    assert fill_by_formula(model, salt) == pytest.approx(float(arrays["pre__weight_checksum"]), rel=1e-9)
    return model


@pytest.fixture(scope="module")
def maps(salt, arrays) -> TeacherMaps:
    """What a ViT-B/16 with closed-formula weights says about the recorded clouds."""
    points = torch.from_numpy(arrays["pre__pts"])
    depth, geometry = project(points)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    images = (torch.sigmoid(depth).flatten(0, 1)[:, None] - mean) / std
    features, saliency = _look(images, dict(_tower_weights(salt, float(arrays["pre__teacher_checksum"]))))
    B = points.shape[0]
    return TeacherMaps(features.unflatten(0, (B, 3)), saliency.unflatten(0, (B, 3)), geometry, 224)


def _tower_weights(salt: str, checksum: float) -> Iterator[tuple[str, Tensor]]:
    total = 0.0
    for name, (shape, _) in reference_json("params")["pretrain"]["teacher_state_dict"].items():
        if name.startswith("clip_model.visual."):
            value = closed_formula(name, tuple(shape), salt).astype(np.float16).astype(np.float32)
            total += np.abs(value.astype(np.float64)).sum()
            yield name.removeprefix("clip_model.visual."), torch.from_numpy(value)
    assert total == pytest.approx(checksum, rel=1e-9)


@torch.no_grad()
def _look(images: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """open_clip's own tower, and the attention of its last block asked for the plain way."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    with torch.device("meta"):
        tower = _build_vision_tower(512, CLIPVisionCfg(layers=12, width=768, patch_size=16), quick_gelu=True)
    tower.load_state_dict(weights, strict=True, assign=True)
    tower.eval().output_tokens = True
    last = tower.transformer.resblocks[-1]
    seen: list[Tensor] = []
    last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pooled, _ = tower(images)
    assert pooled.shape == (len(images), 512)
    x = seen[0]
    x = x if x.shape[0] == len(images) else x.transpose(0, 1)
    normed = last.ln_1(x)
    _, attention = last.attn(normed, normed, normed, need_weights=True, average_attn_weights=True)
    tokens = tower.ln_post(last(x))[:, 1:] @ tower.proj
    return tokens, attention[:, 0, 1:].contiguous()


def test_saliency_masks_and_losses(arrays, student, maps):
    points, order = torch.from_numpy(arrays["pre__pts"]), recorded_order(arrays, "pre__mask_ids")
    with torch.no_grad():
        plan = student.eval().plan(points, points, maps, None, mask_order=order)
        saliency = top_saliency(maps, plan.levels[-1].centres)
        np.testing.assert_allclose(saliency, arrays["pre__spatial_sals"], rtol=0, atol=1e-6)
        probabilities = weight_logits(saliency, student.masking).softmax(1)
        np.testing.assert_allclose(probabilities, arrays["pre__mask_probs"], rtol=0, atol=1e-6)
        for i, tokens in enumerate(plan.tokens):
            np.testing.assert_array_equal(~tokens.visible.numpy(), arrays[f"pre__mask_l{i}"])
        for mode in ("evalbn", "train"):
            student.train(mode == "train")
            losses = student.losses(plan, student.network(plan, None))
            assert losses.loss_3d.item() == pytest.approx(float(arrays[f"pre__{mode}_loss_3d"]), rel=1e-5)
            assert losses.loss_2d.item() == pytest.approx(float(arrays[f"pre__{mode}_loss_2d"]), rel=1e-5)


def test_evaluation_feature(arrays, student, salt):
    fill_by_formula(student, salt)  # the training-mode forward pass above moved the running averages
    points = torch.from_numpy(arrays["pre__pts"])
    with torch.no_grad():
        feature = student.eval().encode(points)
        _, tokens = student.plan_encoding(points)
    np.testing.assert_allclose(feature, arrays["pre__eval_feat"], rtol=0, atol=1e-4)
    assert [int((~t.visible).sum()) for t in tokens] == arrays["pre__eval_hidden"].tolist()
