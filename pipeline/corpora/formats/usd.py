"""USD (usda, usdc, usd, usdz), read by OpenUSD: the surface that the stage shows, at its earliest time.

OpenUSD determines the prims and their places. Any visible prim of a type that is not read here is refused by the name
of its type. Source: OpenUSD's documentation of UsdGeom.
"""

import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpora.faults import read_file
from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.isolated import MAX_MESSAGE, call, errors_of, need
from pipeline.corpora.formats.isolated import decode as decode_apart
from pipeline.corpora.formats.numpy_files import ZIP_ERRORS
from pipeline.corpora.formats.placed import Placed
from pipeline.corpora.formats.polygons import cut_polygons

__all__ = ["beside_usd", "decode", "layers", "prepare", "read_usd"]

MAX_LAYERS = 1000
MAX_NESTED = 10  # instancers within instancers
REMEDY = "export it as polygons (usdcat --flatten joins layers, Blender and Houdini make meshes)"
_STARTS = (b"#usda 1.0", b"PXR-USDC", b"PK\x03\x04")
_LINES = ("BasisCurves", "NurbsCurves", "HermiteCurves")
_CUBE = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])


def read_usd(data: bytes, path: Path, options: ReadOptions) -> Surface | Cloud:
    """Read the visible surface of the stage, placed; points alone as a cloud.

    Meshes, cubes and point instances are read, with the stage's layers, payloads and default variants. Lengths and axes
    are the stage's.

    Left out and counted: what is invisible, for the purposes proxy and guide, curves, faces that are holes. A
    subdivision surface is read as its control mesh, which is noted. ``parts=node`` gives the prims' paths.
    """
    if options.parts not in ("", "node"):
        raise Malformed(f"parts={options.parts} was requested; a USD file has parts by node")
    _check_start(data)
    need("pxr", "is a USD file")
    return decode_apart(__name__, data, path, options)


def beside_usd(path: Path) -> Sequence[Path]:
    """List the layers that a USD file is made of, besides itself."""
    data = read_file(path)
    _check_start(data)
    if data.startswith(b"PK") or (data.startswith(b"#usda") and b"@" not in data):
        return []  # what a package needs is in it, and a text names layers between @s: no process has to look
    need("pxr", "is a USD file")
    return [Path(name) for name in call(__name__, "layers", data, path, ReadOptions())]


def _check_start(data: bytes) -> None:
    if not data.startswith(_STARTS):
        raise Malformed("starts neither as usda (#usda 1.0), usdc (PXR-USDC) nor usdz (a zip file)")
    if data.startswith(b"PK"):
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
        except ZIP_ERRORS as error:
            raise Malformed(f"not a complete USDZ file: {error}") from error
        if packed:
            raise Malformed(f"{packed[0][:60]!a} in it is compressed; USDZ stores files uncompressed")


def prepare() -> None:
    """Import what `decode` needs."""
    from pxr import Usd, UsdGeom  # noqa: F401


# -- in the process that decodes ---------------------------------------------------------------------------------------


@contextmanager
def _told() -> Iterator[None]:
    """Convert OpenUSD's exceptions to Malformed, without the source locations at the start of its messages."""
    from pxr import Tf

    with errors_of("OpenUSD"):
        try:
            yield
        except Tf.ErrorException as error:
            said = " ".join(re.sub(r"Error in '[^']*' at line \d+ in file \S+ : ", "", str(error)).split())
            raise Malformed(f"cannot be read by OpenUSD: {said}"[:MAX_MESSAGE]) from error


def layers(data: bytes, path: Path, options: ReadOptions) -> list[str]:
    """List the files of all layers but the first. Raises Malformed for one not below the folder of `path`."""
    with _told():
        return [str(name) for name in _layers(path)[1]]


def _layers(path: Path) -> tuple[list[Any], list[Path]]:
    """Open the layers that the first one is composed of, itself included; -> them, and the files of the others.

    Nothing is opened before it is known to lie below the folder.
    """
    from pxr import Ar, Sdf

    folder = path.parent.resolve()
    first = Sdf.Layer.FindOrOpen(str(path))
    if first is None:
        raise Malformed("cannot be opened by OpenUSD; it is damaged or truncated")
    found, files, left, seen = [first], [], [first], {first.identifier}
    while left:
        layer = left.pop()
        for asset in layer.GetCompositionAssetDependencies():
            name = layer.ComputeAbsolutePath(asset)
            outer = Ar.SplitPackageRelativePathOuter(name)[0] if Ar.IsPackageRelativePath(name) else name
            target = Path(outer).resolve()
            if "://" in asset or not target.is_relative_to(folder) or not target.is_file():
                raise Malformed(f"refers to the layer {asset[:120]!r}, which is not a file beside it")
            opened = Sdf.Layer.FindOrOpen(name)
            if opened is None:
                raise Malformed(f"refers to the layer {asset[:120]!r}, which OpenUSD cannot open")
            if opened.identifier in seen:
                continue
            seen.add(opened.identifier)
            if len(seen) > MAX_LAYERS:
                raise Malformed(f"is made of more than {MAX_LAYERS} layers")
            found.append(opened)
            left.append(opened)
            if target != path.resolve():
                files.append(target)
    return found, sorted(set(files))


def decode(data: bytes, path: Path, options: ReadOptions) -> Surface | Cloud:
    """Decode the geometry of the stage whose root layer is `path`."""
    from pxr import Usd, UsdGeom

    with _told():
        held, _ = _layers(path)
        for key in ("metersPerUnit", "upAxis"):  # OpenUSD does not bring layers to one unit or axis
            said = {layer.pseudoRoot.GetInfo(key) for layer in held if layer.pseudoRoot.HasInfo(key)}
            if len(said) > 1:
                raise Malformed(f"its layers differ in {key}: {', '.join(sorted(map(str, said)))[:60]}; {REMEDY}")
        stage = Usd.Stage.Open(held[0], Usd.Stage.LoadAll)
        errors = stage.GetCompositionErrors()
        if errors:
            raise Malformed(f"its layers cannot be composed: {errors[0]}"[:300])
        scene = _Scene(stage, options)
        scene.note_axis(str(UsdGeom.GetStageUpAxis(stage)).lower(), options.up)
        scene.draw(stage.GetPseudoRoot(), None, 0)
        return scene.geometry()


class _Scene:
    """The parts of a stage placed so far."""

    def __init__(self, stage: Any, options: ReadOptions) -> None:
        from pxr import Usd, UsdGeom

        self._time = Usd.TimeCode.EarliestTime()
        self._world = UsdGeom.XformCache(self._time)
        self._placed = Placed(parts=bool(options.parts))
        self._points: list[np.ndarray] = []
        self._cut: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def note_axis(self, stated: str, wanted: str) -> None:
        """Compare the stage's axis with the user's option. Raises Malformed where they differ."""
        if wanted in ("y", "z") and wanted != stated:
            raise Malformed(f"declares {stated} as up, but up={wanted} declares {wanted}")
        if stated == "y" and wanted not in ("y", "z"):
            self._placed.note("stage that has y up, not turned (up=y turns it)", 1)

    def geometry(self) -> Surface | Cloud:
        if self._points and not self._cut:
            return Cloud(np.concatenate(self._points), notes=self._placed.notes)
        self._placed.note("points beside the meshes, not sampled", sum(map(len, self._points)))
        return self._placed.surface()

    def draw(self, root: Any, placing: np.ndarray | None, depth: int) -> None:
        """Place what lies at and below a prim. placing [4, 4] takes the prim's own frame to the world's, for rows; None
        where each prim's own place counts.
        """
        from pxr import Usd, UsdGeom

        prims = Usd.PrimDefaultPredicate if placing is None else Usd.PrimIsActive & Usd.PrimIsLoaded
        walk = iter(Usd.PrimRange(root, Usd.TraverseInstanceProxies(prims)))
        for prim in walk:
            if prim.HasMetadata("clips"):
                raise Malformed(f"{prim.GetPath()} takes values from clips, which are not supported; {REMEDY}")
            if not prim.IsA(UsdGeom.Imageable):
                continue
            shape = UsdGeom.Imageable(prim)
            drawn = prim.IsA(UsdGeom.Gprim) or prim.IsA(UsdGeom.PointInstancer)
            if drawn and shape.ComputeVisibility(self._time) == "invisible":
                self._leave_out(walk, "invisible shapes")
            elif drawn and shape.ComputePurpose() in ("proxy", "guide"):
                self._leave_out(walk, f"shapes of the purpose {shape.ComputePurpose()}")
            elif prim.IsA(UsdGeom.PointInstancer):
                walk.PruneChildren()  # prototypes below it are not drawn themselves
                self._instances(UsdGeom.PointInstancer(prim), self._matrix(prim, root, placing), depth)
            elif drawn:
                self._shape(prim, self._matrix(prim, root, placing))

    def _leave_out(self, walk: Any, reason: str) -> None:
        self._placed.note(reason, 1)
        walk.PruneChildren()

    def _matrix(self, prim: Any, root: Any, placing: np.ndarray | None) -> np.ndarray:
        if placing is None:
            return np.array(self._world.GetLocalToWorldTransform(prim))
        if prim == root:
            return placing
        return np.array(self._world.ComputeRelativeTransform(prim, root)[0]) @ placing

    def _instances(self, instancer: Any, matrix: np.ndarray, depth: int) -> None:
        if depth >= MAX_NESTED:
            raise Malformed(f"holds instancers more than {MAX_NESTED} deep")
        stage = instancer.GetPrim().GetStage()
        indices = instancer.GetProtoIndicesAttr().Get(self._time)
        targets = instancer.GetPrototypesRel().GetForwardedTargets()
        for index in set(indices or ()):
            if not 0 <= index < len(targets) or not stage.GetPrimAtPath(targets[index]):
                raise Malformed(f"{instancer.GetPath()} refers to prototype {index}; there are {len(targets)}")
        # The prototype's own transform is part of each; what is not shown is masked out below.
        matrices = instancer.ComputeInstanceTransformsAtTime(
            self._time, self._time, instancer.IncludeProtoXform, instancer.IgnoreMask
        )
        shown = instancer.ComputeMaskAtTime(self._time) or [True] * len(indices or ())
        if indices is None or len(matrices) != len(indices):
            raise Malformed(f"{instancer.GetPath()} has {len(indices or ())} instances and {len(matrices)} places")
        self._placed.note("instances that are masked", len(indices) - sum(map(bool, shown)))
        for index, place, visible in zip(indices, matrices, shown, strict=True):
            if visible:
                self.draw(stage.GetPrimAtPath(targets[index]), np.array(place) @ matrix, depth + 1)

    def _shape(self, prim: Any, matrix: np.ndarray) -> None:
        from pxr import UsdGeom

        kind = prim.GetTypeName()
        if kind in _LINES:
            self._placed.note(f"prims of type {kind}", 1)
        elif kind == "Points":
            points = _array(UsdGeom.Points(prim).GetPointsAttr().Get(self._time), np.float64, 3)
            self._points.append(_apply(points, matrix))
        elif kind in ("Mesh", "Cube"):
            path = str(prim.GetPath())
            if path not in self._cut:
                self._cut[path] = self._mesh(prim) if kind == "Mesh" else self._cube(prim)
            vertices, faces = self._cut[path]
            self._placed.add(_apply(vertices, matrix), faces, path.lstrip("/"))
        else:
            raise Malformed(f"shows {prim.GetPath()} of type {kind}, which is not supported; {REMEDY}")

    def _cube(self, prim: Any) -> tuple[np.ndarray, np.ndarray]:
        from pxr import UsdGeom

        half = UsdGeom.Cube(prim).GetSizeAttr().Get(self._time) / 2
        corners = np.array([[x, y, z] for x in (-half, half) for y in (-half, half) for z in (-half, half)])
        return corners, cut_polygons(corners, [_CUBE]).faces

    def _mesh(self, prim: Any) -> tuple[np.ndarray, np.ndarray]:
        from pxr import UsdGeom

        joints = UsdGeom.PrimvarsAPI(prim).FindPrimvarWithInheritance("skel:jointIndices")
        if joints.HasAuthoredValue() or prim.GetAttribute("skel:blendShapes").HasAuthoredValue():
            raise Malformed(f"{prim.GetPath()} is posed by a skeleton (UsdSkel), which is not supported; {REMEDY}")
        mesh = UsdGeom.Mesh(prim)
        vertices = _array(mesh.GetPointsAttr().Get(self._time), np.float64, 3)
        counts = _array(mesh.GetFaceVertexCountsAttr().Get(self._time), np.int64, 1)[:, 0]
        corners = _array(mesh.GetFaceVertexIndicesAttr().Get(self._time), np.int64, 1)[:, 0]
        if (counts < 0).any() or counts.sum() != len(corners):
            raise Malformed(f"{prim.GetPath()} declares {counts.sum()} face corners and lists {len(corners)}")
        if mesh.GetPointsAttr().ValueMightBeTimeVarying():
            self._placed.note("meshes that move, read at their earliest time", 1)
        if mesh.GetSubdivisionSchemeAttr().Get() != "none":
            self._placed.note("subdivision surfaces, read as their control meshes", 1)
        holes = _array(mesh.GetHoleIndicesAttr().Get(self._time), np.int64, 1)[:, 0]
        kept = np.ones(len(counts), bool)
        kept[holes[(holes >= 0) & (holes < len(counts))]] = False
        self._placed.note("faces that are holes", int((~kept).sum()))
        starts = np.cumsum(counts) - counts
        groups = [
            corners[starts[kept & (counts == k)][:, None] + np.arange(k)] for k in np.unique(counts[kept]).tolist()
        ]
        cut = cut_polygons(vertices, groups)
        for reason, count in cut.notes.items():
            self._placed.note(reason, count)
        return vertices, cut.faces


def _array(values: Any, dtype: Any, columns: int) -> np.ndarray:
    """Convert to [M, columns], empty if nothing is stored."""
    return np.asarray([] if values is None else values, dtype).reshape(-1, columns)


def _apply(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused when it is sampled
        return points @ matrix[:3, :3] + matrix[3, :3]
