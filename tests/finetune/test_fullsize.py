"""The full-size fine-tuning models: names, sizes, weight decay groups, and outputs with closed-formula weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.models import fill_by_formula
from tests.support.reference import reference_arrays, reference_json
from trainer.classifier import Classifier
from trainer.head_config import MODELNET40, PB_T50_RS, SCANOBJECTNN, SegmentationConfig
from trainer.model_config import ModelConfig
from trainer.optim import no_decay_names
from trainer.segmentation import PartSegmenter

REFERENCE = ModelConfig.reference()
MODELS = {
    "finetune_modelnet40": lambda: Classifier(REFERENCE, MODELNET40),
    "finetune_scanobjectnn": lambda: Classifier(REFERENCE, SCANOBJECTNN),
    "partseg": lambda: PartSegmenter(REFERENCE, SegmentationConfig()),
}
COUNTS = {"finetune_modelnet40": 12_830_056, "finetune_scanobjectnn": 12_921_935, "partseg": 25_474_354}


@pytest.fixture(params=MODELS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def facts(kind):
    return reference_json("params")[kind]


@pytest.fixture
def model(kind) -> nn.Module:
    with torch.device("meta"):
        return MODELS[kind]()


def test_state_dict_has_the_references_names_shapes_and_order(model, facts):
    ours = {
        name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in model.state_dict().items()
    }
    assert ours == facts["state_dict"]
    assert list(ours) == list(facts["state_dict"])


def test_parameter_counts(kind, model, facts):
    assert sum(value.numel() for value in model.parameters()) == facts["parameters"] == COUNTS[kind]
    assert sum(value.numel() for value in model.h_encoder.parameters()) == facts["encoder_parameters"]


def test_weight_decay_groups(model, facts):
    named = dict(model.named_parameters())
    spared = no_decay_names(named.items(), "reference")
    assert set(spared) == set(facts["no_decay_names"])
    decayed = [name for name in named if name not in set(spared)]
    assert {"decay": len(decayed), "no_decay": len(spared)} == facts["tensors"]
    assert sum(named[name].numel() for name in decayed) == facts["elements"]["decay"]
    assert sum(named[name].numel() for name in spared) == facts["elements"]["no_decay"]


def test_every_parameter_is_trained(model):
    assert all(value.requires_grad for value in model.parameters())


@pytest.mark.parametrize(("name", "config"), [("mn", MODELNET40), ("scan", PB_T50_RS)])
def test_classifier_with_closed_formula_weights(name, config):
    arrays = reference_arrays("fullsize")
    with torch.device("meta"):
        model = Classifier(REFERENCE, replace(config, distance="expanded"))
    model = fill(model, float(arrays[f"{name}__weight_checksum"]))
    with torch.no_grad():
        logits = model(torch.from_numpy(arrays[f"{name}__pts"]))
    np.testing.assert_allclose(logits, arrays[f"{name}__eval_logits"], rtol=0, atol=5e-5)


def test_segmenter_with_closed_formula_weights():
    arrays = reference_arrays("partseg")
    with torch.device("meta"):
        model = PartSegmenter(REFERENCE, SegmentationConfig(distance="expanded"))
    model = fill(model, float(arrays["full_weight_checksum"]))
    with torch.no_grad():
        log_probs = model(torch.from_numpy(arrays["full_pts"]), torch.from_numpy(arrays["full_category"]))
    np.testing.assert_allclose(log_probs[:, ::8], arrays["full_eval_log_probs_every8"], rtol=0, atol=5e-5)


def fill(model: nn.Module, checksum: float) -> nn.Module:
    model = model.to_empty(device="cpu").eval()
    salt = reference_json("config")["config"]["salt"]
    assert fill_by_formula(model, salt) == pytest.approx(checksum, rel=1e-9)
    return model
