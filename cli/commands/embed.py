"""``i2p embed``: features of a corpus in a file, and a picture of what lies nearest to what."""

import io
import json
import os
import secrets
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import LocalPath, json_option
from cli.show.terminal import answer

if TYPE_CHECKING:
    import numpy as np

    from trainer.downstream.clouds import LabelledClouds

__all__ = ["embed"]

QUERIES = 8  # rows of the picture


@click.command(
    epilog="Examples: i2p embed runs/quickstart folder:meshes --out features.npz --neighbours near.png; "
    "i2p embed point-nn 'synthetic:?count=200' --out features.zarr"
)
@click.argument("encoder")
@click.argument("uri")
@click.option(
    "--out",
    required=True,
    type=LocalPath(),
    help="An .npz or .parquet file or a .zarr folder, which must not be there.",
)
@click.option("--stored-points", type=int, help="Points read of each shape. [default: --points]")
@click.option("--points", type=int, default=1024, show_default=True, help="Points of each shape the encoder sees.")
@click.option("--feature", type=click.Choice(["levels", "top"]), default="levels", show_default=True,
              help="Of a pre-trained encoder.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the points that are drawn.")
@click.option("--neighbours", "picture", type=LocalPath(dir_okay=False), metavar="PNG",
              help="Draw some shapes, each beside those nearest to it.")  # fmt: skip
@click.option("--nearest", type=click.IntRange(1, 20), default=5, show_default=True, help="How many beside each.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@json_option
def embed(
    encoder: str,
    uri: str,
    out: Path,
    stored_points: int | None,
    points: int,
    feature: str,
    seed: int,
    picture: Path | None,
    nearest: int,
    device: str,
    as_json: bool,
) -> None:
    """Write an encoder's features of every shape of a corpus: arrays features, ids, labels, label_names.

    ENCODER is a run directory, one of its checkpoints, embedded, coordinates or point-nn. Shapes without labels have
    label -1; shapes that cannot be read are named and left out.
    """
    from cli.actions.encoders import named_encoders, points_needed
    from cli.show.progress import Progress
    from pipeline.corpora import open_corpus
    from trainer.downstream.clouds import read_clouds
    from trainer.downstream.features import encode, feature_name
    from trainer.downstream.neighbours import agreement
    from trainer.downstream.neighbours import nearest as nearest_of
    from trainer.engine.ranks import joined

    if out.suffix not in _WRITERS:
        raise click.UsageError(f"--out {out}: expected a name ending in .npz, .zarr or .parquet")
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise click.UsageError(f"--out {out}: Parquet needs pyarrow: pip install 'i2p-pretrain[parquet]'")
    if os.path.lexists(out):
        raise click.UsageError(f"--out {out} already exists; remove it, or choose another name")
    if points_needed([encoder]) > points:
        raise click.UsageError(f"--points {points} is less than the {points_needed([encoder])} groups of the encoder")
    stored = stored_points or points
    if stored < points:
        raise click.UsageError(f"--stored-points {stored} is less than --points {points}")
    with joined(device) as ranks:
        (made,) = named_encoders([encoder], device=ranks.device, feature=feature).values()
        with Progress("reading", 0, unit="shapes") as progress:
            progress.expect(len(open_corpus(uri, points=stored)))
            clouds = read_clouds(uri, points=stored, labelled=False, progress=progress.add)
        drawn = clouds.draw(points, seed)
        with Progress("encoding", len(clouds), unit="shapes") as progress:
            features = encode(made, drawn, batch_size=32, progress=progress.add)
    about = {
        "encoder": encoder, "feature": feature_name(made), "corpus": uri, "points": points, "stored_points": stored,
        "seed": seed, "skipped": list(clouds.skipped),
    }  # fmt: skip
    k = min(nearest, len(clouds) - 1)
    if picture is not None and not k:
        raise click.UsageError("a corpus of one shape has no neighbours to draw")
    out.parent.mkdir(parents=True, exist_ok=True)
    _WRITERS[out.suffix](out, features, clouds, about)
    lines = [f"features    {out}: {features.shape[0]} shapes of {features.shape[1]} numbers ({about['feature']})"]
    found: dict[str, Any] = {"features": str(out), "shapes": features.shape[0], "numbers": features.shape[1], **about}
    if clouds.skipped:
        lines.append(f"left out    {len(clouds.skipped)} shapes that cannot be read")
    if k:
        near = nearest_of(features, k)
        share = agreement(near.idx, clouds.labels)
        found |= {"nearest": k, "agreement": share}
        if share is not None:
            lines.append(f"neighbours  {100 * share:.1f}% of the {k} nearest of a shape have its label")
        if picture is not None:
            _draw(picture, clouds, drawn, near.idx)
            found["picture"] = str(picture)
            lines.append(f"picture     {picture}")
    answer(found, "\n".join(lines), as_json=as_json)


def _write_npz(out: Path, features: "np.ndarray", clouds: "LabelledClouds", about: dict[str, Any]) -> None:
    import numpy as np

    from teacher_cache.storage.atomic import replace_file

    file = io.BytesIO()
    np.savez(file, features=features, labels=clouds.labels, ids=np.array(clouds.ids),
             label_names=np.array(clouds.label_names, dtype=str), about=np.array(json.dumps(about)))  # fmt: skip
    replace_file(out, file.getvalue())


def _write_zarr(out: Path, features: "np.ndarray", clouds: "LabelledClouds", about: dict[str, Any]) -> None:
    """Plain Zarr v3; ids and names are attributes, for text has no type that all readers of v3 know."""
    import zarr

    temporary = out.with_name(f".{out.name}.{secrets.token_hex(8)}.new")
    try:
        group = zarr.open_group(str(temporary), mode="w-", zarr_format=3)
        for name, array in (("features", features), ("labels", clouds.labels)):
            group.create_array(name, data=array, chunks=(min(len(array), 4096), *array.shape[1:]))
        group.attrs.update({"ids": list(clouds.ids), "label_names": list(clouds.label_names), "about": about})
        os.rename(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_parquet(out: Path, features: "np.ndarray", clouds: "LabelledClouds", about: dict[str, Any]) -> None:
    """One row a shape: id, label (null for none) and its name, features as a list of D float32."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from teacher_cache.storage.atomic import replace_file

    known = [None if label < 0 else int(label) for label in clouds.labels]
    named = [None if label is None or not clouds.label_names else clouds.label_names[label] for label in known]
    rows = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
    table = pa.table(
        {"id": pa.array(clouds.ids, pa.string()), "label": pa.array(known, pa.int64()),
         "label_name": pa.array(named, pa.string()), "features": rows}
    )  # fmt: skip
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"about": json.dumps(about)}), file, compression="zstd")
    replace_file(out, file.getvalue())


_WRITERS = {".npz": _write_npz, ".zarr": _write_zarr, ".parquet": _write_parquet}


def _draw(path: Path, clouds: "LabelledClouds", points: "np.ndarray", idx: "np.ndarray") -> None:
    """Some shapes, evenly over the corpus, each followed by its neighbours."""
    import numpy as np

    from cli.show.clouds import contact_sheet
    from pipeline.corpora import Shape

    rows = np.unique(np.linspace(0, len(clouds) - 1, min(QUERIES, len(clouds))).astype(int))
    chosen = [int(row) for query in rows for row in (query, *idx[query])]
    shapes = [Shape(id=clouds.ids[row], points=points[row]) for row in chosen]
    named = [clouds.label_names[clouds.labels[row]] if clouds.labels[row] >= 0 else clouds.ids[row] for row in chosen]
    width = idx.shape[1] + 1
    titles = [name if place % width else f"{name}, nearest:" for place, name in enumerate(named)]
    contact_sheet(shapes, path, titles=titles, columns=width, colour="height")
