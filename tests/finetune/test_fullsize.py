"""The full-size fine-tuning models. Their names, sizes and outputs are compared in tests/parity."""

import pytest
import torch

from trainer.models.config import ModelConfig
from trainer.models.heads.classifier import Classifier
from trainer.models.heads.config import MODELNET40, SCANOBJECTNN, SegmentationConfig
from trainer.models.heads.part_segmenter import PartSegmenter

REFERENCE = ModelConfig.reference()
MODELS = {
    "finetune_modelnet40": (lambda: Classifier(REFERENCE, MODELNET40), 12_830_056),
    "finetune_scanobjectnn": (lambda: Classifier(REFERENCE, SCANOBJECTNN), 12_921_935),
    "partseg": (lambda: PartSegmenter(REFERENCE, SegmentationConfig()), 25_474_354),
}


@pytest.mark.parametrize(("make", "parameters"), MODELS.values(), ids=MODELS)
def test_every_parameter_is_trained(make, parameters):
    with torch.device("meta"):
        model = make()
    assert all(value.requires_grad for value in model.parameters())
    assert sum(value.numel() for value in model.parameters()) == parameters
