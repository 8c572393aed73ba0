"""What an evaluation knows of its test shapes: their features, and what the classifier said of each.

A run leaves it beside metrics.json as `embedding.npz`, plain NumPy without pickles, for pictures and notebooks.
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from teacher_cache.storage.atomic import read_regular, replace_file
from trainer.downstream.clouds import LabelledClouds
from trainer.downstream.linear_svm import SvmScore
from trainer.errors import EvaluationError

__all__ = ["EMBEDDING", "Embedding", "embedding_of", "read_embedding", "write_embedding"]

EMBEDDING = "embedding.npz"  # of a run
MOST = 4096  # shapes whose features are kept: those of ModelNet40's test split, and as many for a map as can be seen
_LIMIT = 1 << 31  # bytes


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Labelled shapes as an encoder sees them.

    uri          the corpus
    epoch        of the encoder
    points       of each shape that the encoder saw
    ids          [n] names of the shapes, as of the corpus
    labels       [n] int64 into label_names
    label_names  of all classes
    predicted    [n] int64, the class that the classifier fitted on the training split says; None where none was fitted
    rows         [m] int64 into n, ascending, the shapes whose features are kept: all, or MOST evenly over the corpus
    features     [m, D] float32
    """

    uri: str
    epoch: int
    points: int
    ids: tuple[str, ...]
    labels: np.ndarray
    label_names: tuple[str, ...]
    predicted: np.ndarray | None
    rows: np.ndarray
    features: np.ndarray


def embedding_of(
    clouds: LabelledClouds, features: np.ndarray, score: SvmScore, *, epoch: int, points: int
) -> Embedding:
    """Return what is kept of one score: features [n, D] of the clouds, and what the fit said of them."""
    n = len(clouds)
    rows = np.unique(np.linspace(0, n - 1, min(n, MOST)).round().astype(np.int64))
    return Embedding(
        uri=clouds.uri,
        epoch=epoch,
        points=points,
        ids=clouds.ids,
        labels=clouds.labels,
        label_names=clouds.label_names,
        predicted=np.asarray(score.predicted, dtype=np.int64),
        rows=rows,
        features=np.ascontiguousarray(features[rows], dtype=np.float32),
    )


def write_embedding(path: Path, embedding: Embedding) -> None:
    """Write it durably; the same bytes for the same content. Raises ValueError where nothing is predicted."""
    if embedding.predicted is None:
        raise ValueError("an embedding without predictions does not come from an evaluation; expected predicted [n]")
    file = io.BytesIO()
    np.savez(
        file,
        uri=np.array(embedding.uri),
        epoch=np.array(embedding.epoch),
        points=np.array(embedding.points),
        ids=np.array(embedding.ids, dtype=str),
        labels=embedding.labels,
        label_names=np.array(embedding.label_names, dtype=str),
        predicted=embedding.predicted,
        rows=embedding.rows,
        features=embedding.features,
    )
    replace_file(path, file.getvalue())


def read_embedding(path: Path) -> Embedding:
    """Read what `write_embedding` wrote. Nothing in the file is unpickled.

    Raises FileNotFoundError, and EvaluationError for a file that is damaged or holds anything else.
    """
    try:
        with np.load(io.BytesIO(read_regular(path, _LIMIT)), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        embedding = Embedding(
            uri=str(found["uri"]),
            epoch=int(found["epoch"]),
            points=int(found["points"]),
            ids=tuple(found["ids"].tolist()),
            labels=found["labels"],
            label_names=tuple(found["label_names"].tolist()),
            predicted=found["predicted"],
            rows=found["rows"],
            features=found["features"],
        )
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise EvaluationError(f"{path}: expected the features of an evaluation, found another file: {error}") from None
    if fault := _fault(embedding):
        raise EvaluationError(f"{path}: {fault}; remove it, and `i2p report` computes the features again")
    return embedding


def _fault(found: Embedding) -> str | None:
    n, classes = len(found.ids), len(found.label_names)
    if not all(isinstance(text, str) for text in (*found.ids, *found.label_names)):
        return "its names are not text"
    for name in ("labels", "predicted"):
        values = getattr(found, name)
        if values.shape != (n,) or values.dtype != np.int64 or not n:
            return f"{name} is {values.dtype} {list(values.shape)}; expected int64 [{n}] of at least one shape"
        if values.min() < 0 or values.max() >= classes:
            return f"{name} is outside its {classes} classes"
    m = len(found.rows)
    if found.rows.dtype != np.int64 or found.rows.shape != (m,) or not m or (np.diff(found.rows) <= 0).any():
        return "its rows are not ascending"
    if found.rows[0] < 0 or found.rows[-1] >= n:
        return f"its rows are outside its {n} shapes"
    if found.features.dtype != np.float32 or found.features.ndim != 2 or len(found.features) != m:
        return f"features are {found.features.dtype} {list(found.features.shape)}; expected float32 [{m}, D]"
    return None if np.isfinite(found.features).all() else "its features are not finite"
