"""An encoder as one graph of torch's own operators, which runs without this package: torch.export and ONNX.

This package's operators are replaced by their definitions in torch: farthest point sampling becomes as many steps as
there are groups, so the number of groups is fixed, and the cloud's number of points; the batch is free. Where distances
are equal, torch and ONNX may take another neighbour than the kernels, which take the lowest index.
"""

import io
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cuda import fps, gather, knn
from teacher_cache.storage.atomic import replace_file
from trainer.checkpoints.files import MODEL, find_checkpoint
from trainer.checkpoints.models import load_model
from trainer.errors import CheckpointError
from trainer.models.layers.pooling import Feature

__all__ = ["encoder_graph", "write_graph"]

REGISTERED = (fps, gather, knn)  # the modules whose import registers the operators named below
NEAR = 1e-3  # squared norm below which the reference's sampling chooses nothing
CLOSE = 1e-3  # largest difference to the encoder, relative to its largest value


def write_graph(path: str | Path, out: Path, *, points: int, feature: Feature = "levels") -> dict[str, Any]:
    """Write the encoder of a checkpoint or run to OUT.pt2 (torch.export) or OUT.onnx; -> what is said of it there.

    points   of every cloud.   feature  as of `encode`.

    The graph takes `points` [B, N, 3] float32 and gives `features` [B, D] float32, any B. What it gives is compared
    with the encoder before it is written. Raises CheckpointError for what is no encoder, for too few points, for a
    student that is no single graph, and where ONNX is asked for without its packages.
    """
    found = find_checkpoint(path)
    model, header = load_model(found)
    if out.suffix == ".onnx" and find_spec("onnxscript") is None:  # before the minutes
        raise CheckpointError('ONNX needs its packages: pip install "i2p-pretrain[onnx]"')
    if points < model.config.least_points:
        raise CheckpointError(
            f"{found}: {model.config.least_points_reason} needs at least {model.config.least_points} points, "
            f"not {points}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)  # before the minutes
    program = encoder_graph(model, points=points, feature=feature)
    about: dict[str, Any] = {"points": points, "feature": feature, "numbers": model.features[feature]}
    about["sha256"] = header.files[MODEL]["sha256"]
    if out.suffix == ".onnx":
        replace_file(out, _onnx(program, about))
    else:
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={"about.json": json.dumps(about)})
        replace_file(out, file.getvalue())
    return about


def encoder_graph(model: nn.Module, *, points: int, feature: Feature = "levels") -> torch.export.ExportedProgram:
    """The encoding of clouds of so many points as a program of torch's own operators, any number of clouds.

    Raises CheckpointError where the student's encoding is no single graph, or the graph says something else.
    """
    whole = _Encoding(model.eval(), feature)
    generator = torch.Generator().manual_seed(0)
    example, other = (torch.rand(B, points, 3, generator=generator) - 0.5 for B in (2, 3))
    batch = torch.export.Dim("batch", min=1)
    own = torch.ops.i2p
    plain: dict[Any, Callable[..., Any]] = {
        own.fps.default: _fps, own.knn.default: _knn, own.gather.default: _rows, own.group.default: _group
    }  # fmt: skip
    try:
        with torch.no_grad():
            program = torch.export.export(whole, (example,), dynamic_shapes=({0: batch},), strict=False)
            program = program.run_decompositions(plain)
    except Exception as error:  # torch names its own in many classes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(
            f"{type(model).__name__} with these settings is no single graph: {reason}\n"
            "  Where what is hidden depends on the cloud (model.eval_hide_unused), sizes do."
        ) from error
    left = [str(node.target) for node in program.graph.nodes if "i2p." in str(node.target)]
    with torch.no_grad():
        wanted, found = whole(other), program.module()(other)
    if left or not torch.allclose(found, wanted, rtol=0, atol=CLOSE * float(wanted.abs().max())):
        raise CheckpointError(
            f"{type(model).__name__}: the graph differs from the encoder by {float((found - wanted).abs().max()):.3g}"
            f"{', and holds ' + left[0] if left else ''}; it is not written"
        )
    return program


class _Encoding(nn.Module):
    def __init__(self, model: Any, feature: Feature):
        super().__init__()
        self.model, self.feature = model, feature

    def forward(self, points: Tensor) -> Tensor:
        features: Tensor = self.model.encode(points, self.feature)
        return features


def _onnx(program: torch.export.ExportedProgram, about: dict[str, Any]) -> bytes:
    written = torch.onnx.export(
        program, input_names=["points"], output_names=["features"], opset_version=18, external_data=False, verbose=False
    )
    assert written is not None
    proto = written.model_proto
    for key, value in about.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, str(value)
    data: bytes = proto.SerializeToString()
    return data


# The definitions, as cuda/plain.py has them in NumPy: the same operations in the same order.


def _dist2(a: Tensor, b: Tensor) -> Tensor:
    d = a - b
    return d[..., 0] * d[..., 0] + d[..., 1] * d[..., 1] + d[..., 2] * d[..., 2]


def _rows(values: Tensor, idx: Tensor) -> Tensor:
    return values.gather(1, idx.unsqueeze(-1).expand(idx.shape[0], idx.shape[1], values.shape[2]))


def _fps(points: Tensor, k: int, skip_near_origin: bool) -> Tensor:
    allowed = _dist2(points, torch.zeros_like(points)) > NEAR if skip_near_origin else None
    last = torch.zeros_like(points[:, :1, 0], dtype=torch.int64)  # [B, 1]
    chosen, best = [last], None
    for _ in range(k - 1):
        dist2 = _dist2(points, _rows(points, last))
        best = dist2 if best is None else torch.minimum(best, dist2)
        last = (best if allowed is None else torch.where(allowed, best, -1.0)).argmax(1, keepdim=True)
        chosen.append(last)
    return torch.cat(chosen, 1)


def _knn(points: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    found = torch.topk(_dist2(points.unsqueeze(1), queries.unsqueeze(2)), k, dim=2, largest=False, sorted=True)
    return found.values, found.indices


def _group(points: Tensor, centres: Tensor, idx: Tensor) -> Tensor:
    B, G, K = idx.shape
    return _rows(points, idx.reshape(B, G * K)).reshape(B, G, K, points.shape[2]) - centres.unsqueeze(2)
