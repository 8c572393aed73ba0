"""What is special while training, against the plain thing it becomes."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.teacher.tiny_clip.config import LearningConfig
from pipeline.teacher.tiny_clip.towers import PatchSelection, Standardise, new_towers, plain_state
from pipeline.teacher.tiny_clip.train import _grounding
from pipeline.teacher.tiny_clip.views import _majority

TOWERS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


def test_empty_patches_are_dropped_first():
    selection = PatchSelection(0.5).train()
    pixels = torch.full((3, 32, 32), 0.5)
    pixels[0, :8, :16] = torch.rand(8, 16)  # patches 0 and 1
    pixels[1, 9, 9] = 0.7  # patch 5
    pixels[2] = torch.rand(32, 32)
    selection.look(pixels, 8)
    assert selection.touched.sum(1).tolist() == [2, 1, 16]
    numbers = torch.arange(17.0).expand(3, 17)[..., None]
    kept = selection(numbers)[..., 0]
    assert kept.shape == (3, 9)
    assert (kept[:, 0] == 0).all()  # the class token
    assert {1.0, 2.0} <= set(kept[0].tolist())
    assert 6.0 in kept[1].tolist()
    assert torch.equal(kept[:, 1:].long() - 1, selection.chosen)
    assert len(set(kept[2].tolist())) == 9
    assert selection.eval()(numbers).shape == (3, 17, 1)


def test_standardising_is_a_batch_norm_and_folds_into_the_layer_norm():
    torch.manual_seed(0)
    norm = nn.LayerNorm(8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    module = Standardise(norm).train()
    tokens = torch.randn(20, 5, 8) * 3 + 1
    pooled = module(tokens)[:, 0]
    assert torch.allclose(pooled.mean(0), torch.zeros(8), atol=1e-5)
    assert torch.allclose(pooled.std(0), torch.ones(8), atol=1e-3)
    for _ in range(200):
        module(tokens)
    plain = nn.LayerNorm(8)
    weight, bias = module.folded()
    plain.load_state_dict({"weight": weight, "bias": bias})
    assert torch.allclose(plain(tokens), module.eval()(tokens), atol=1e-5)
    module.train().at = torch.full((20,), 3)
    assert torch.allclose(module(tokens)[:, 3].mean(0), torch.zeros(8), atol=1e-5)


def test_the_plain_weights_are_those_of_an_open_clip_model():
    from open_clip.model import CLIP

    trained = new_towers(TOWERS, LearningConfig(patch_dropout=0.5))
    images, texts = torch.randn(6, 3, 32, 32), torch.randint(1, 60, (6, 12))
    for _ in range(3):  # batch norms take in some statistics
        trained.visual(images)
        trained.ln_final.at = texts.argmax(dim=1)
        trained.encode_text(texts)
    plain = CLIP(TOWERS["embed_dim"], TOWERS["vision_cfg"], TOWERS["text_cfg"]).eval()
    plain.load_state_dict(plain_state(trained))
    trained.eval()
    assert torch.allclose(plain.encode_image(images), trained.visual(images)[0], atol=1e-5)
    assert torch.allclose(plain.encode_text(texts), trained.encode_text(texts), atol=1e-5)


def test_grounding_is_the_mean_cross_entropy_of_the_patches_that_show_a_part():
    generator = torch.Generator().manual_seed(0)
    patches = nn.functional.normalize(torch.randn(2, 3, 4, generator=generator), dim=-1)
    texts = nn.functional.normalize(torch.randn(5, 4, generator=generator), dim=-1)
    parts = torch.tensor([[0, -1, 4, 2], [3, 3, -1, -1]])
    chosen = torch.tensor([[0, 1, 3], [1, 2, 3]])
    terms = []
    for image, row, part in ((0, 0, 0), (0, 2, 2), (1, 0, 3)):
        logits = (10.0 * patches[image, row] @ texts.T).double()
        terms.append(torch.logsumexp(logits, 0) - logits[part])
    scale = torch.tensor(10.0)
    assert _grounding(patches, parts, chosen, texts, scale).item() == pytest.approx(float(sum(terms)) / 3, rel=1e-5)
    nothing = torch.full((2, 4), -1)
    assert _grounding(patches, nothing, None, texts[:0], scale).item() == 0.0


def test_the_part_of_a_patch_is_the_most_frequent_one():
    patch = np.array([0, 0, 0, 2, 2, 3])
    labels = np.array([7, 5, 5, 6, 7, 5], dtype=np.int16)
    assert _majority(patch, labels, 5).tolist() == [5, -1, 6, 5, -1]
