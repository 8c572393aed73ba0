"""The student and its training: model, loop, checkpoints, evaluation; docs/training.md is the guide.

from trainer.pretraining.loop import pretrain
from trainer.checkpoints.models import load_encoder

features = load_encoder("runs/quickstart").encode(points)      # [B, N, 3] float32 -> [B, D]
"""
