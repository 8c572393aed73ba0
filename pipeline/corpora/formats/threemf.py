"""3MF, read by lib3mf: what the build places, with components, transforms and the parts of the production extension.

Source: 3MF Consortium, 3D Manufacturing Format Core Specification 1.3.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpora.entrance import unpacking_fault
from pipeline.corpora.formats.geometry import Cloud, Malformed, ReadOptions, Surface
from pipeline.corpora.formats.isolated import decode as decode_apart
from pipeline.corpora.formats.isolated import errors_of, need
from pipeline.corpora.formats.numpy_files import ZIP_ERRORS
from pipeline.corpora.formats.placed import MAX_PLACED, MAX_TRIANGLES, Placed
from pipeline.corpora.formats.xml_text import check_xml

__all__ = ["decode", "prepare", "read_3mf"]

MAX_BYTES = 2**30  # of all members, unpacked
REMEDY = "export it as a mesh alone"
_UNKNOWN_EXTENSION = 32914  # lib3mf's warning: a required extension is not supported
_LEFT_OUT = {2: "support", 4: "other"}  # types of objects that are no part of the shape


def read_3mf(data: bytes, path: Path, options: ReadOptions) -> Surface | Cloud:
    """Read every item of the build, in the file's unit, once per placement of a mesh by items and components.

    Objects of the types support and other are left out and counted. Beams, level sets, stacks of slices instead of a
    mesh, and required extensions that lib3mf does not know are refused. ``parts=object`` gives the objects' names.
    """
    if options.parts not in ("", "object"):
        raise Malformed(f"parts={options.parts} was requested; a 3MF file has parts by object")
    _check_archive(data)
    need("lib3mf", "is a 3MF file")
    return decode_apart(__name__, data, path, options)


def _check_archive(data: bytes) -> None:
    """Check the unpacked sizes before anything is unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
    except ZIP_ERRORS as error:
        raise Malformed(f"not a complete 3MF file: {error}") from error
    for info in members:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Malformed(f"{info.filename[:60]!a} is packed by method {info.compress_type}; expected deflate")
        if info.flag_bits & 1:
            raise Malformed(f"{info.filename[:60]!a} is encrypted")
    fault = unpacking_fault(sum(info.file_size for info in members), len(data), MAX_BYTES)
    if fault:
        raise Malformed(f"as a whole {fault}")


def prepare() -> None:
    """Import what `decode` needs."""
    import lib3mf  # noqa: F401


def decode(data: bytes, path: Path, options: ReadOptions) -> Surface:
    """Decode a surface from an archive whose members' sizes were checked."""
    import lib3mf

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            if info.filename.lower().endswith((".model", ".rels")):
                try:
                    text = archive.read(info)
                except ZIP_ERRORS as error:
                    raise Malformed(f"{info.filename[:60]!a} cannot be unpacked: {error}") from error
                check_xml(text, ascii(info.filename[:60]))
    with errors_of("lib3mf"):
        model = lib3mf.get_wrapper().CreateModel()
        reader = model.QueryReader("3mf")
        reader.SetStrictModeActive(False)
        reader.ReadFromBuffer(data)
        for k in range(reader.GetWarningCount()):
            code, said = reader.GetWarning(k)
            if code == _UNKNOWN_EXTENSION:
                raise Malformed(f"requires an extension that lib3mf does not know ({said}); {REMEDY}")
        placed = Placed(parts=bool(options.parts))
        placed.note("warnings of lib3mf", reader.GetWarningCount())
        scene = _Scene(placed)
        items = model.GetBuildItems()
        if not items.Count():
            raise Malformed("its build section places nothing; only its resources contain objects")
        roots = []
        while items.MoveNext():
            item = items.GetCurrent()
            roots.append((item.GetObjectResource(), _matrix(item) if item.HasObjectTransform() else np.eye(4)))
        meshes, triangles = np.sum([scene.count(thing, ()) for thing, _ in roots], axis=0, dtype=object)
        if triangles > MAX_TRIANGLES or meshes > MAX_PLACED:
            raise Malformed(f"its items and components place {triangles} triangles in {meshes} objects")
        for thing, matrix in roots:
            scene.place(thing, matrix)
    return placed.surface()


class _Scene:
    """Objects of one model, each read once."""

    def __init__(self, placed: Placed) -> None:
        self._placed = placed
        self._meshes: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._counts: dict[int, tuple[int, int]] = {}

    def count(self, thing: Any, above: tuple[int, ...]) -> tuple[int, int]:
        """Count the objects and triangles one object places, without placing them: few bytes can mean 2^60."""
        number = thing.GetUniqueResourceID()
        if number in above or len(above) > 100:
            raise Malformed("its components contain themselves, or are nested more than 100 deep")
        if number not in self._counts:
            if thing.IsMeshObject():
                found = 1, thing.GetTriangleCount()
            elif thing.IsComponentsObject():
                below = [self.count(part.GetObjectResource(), (*above, number)) for part in _components(thing)]
                found = 1 + sum(n for n, _ in below), sum(n for _, n in below)
            else:
                raise Malformed(f"places object {thing.GetResourceID()}, which is not a mesh (a level set?); {REMEDY}")
            self._counts[number] = found
        return self._counts[number]

    def place(self, thing: Any, matrix: np.ndarray) -> None:
        left_out = _LEFT_OUT.get(int(thing.GetType()))
        if left_out:
            self._placed.note(f"objects of type {left_out}", 1)
            return
        if thing.IsMeshObject():
            vertices, faces = self._mesh(thing)
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused when it is sampled
                moved = vertices @ matrix[:3, :3] + matrix[3, :3]
            self._placed.add(moved, faces, thing.GetName() or f"object {thing.GetResourceID()}")
            return
        for part in _components(thing):
            below = _matrix(part) if part.HasTransform() else np.eye(4)
            self.place(part.GetObjectResource(), below @ matrix)

    def _mesh(self, thing: Any) -> tuple[np.ndarray, np.ndarray]:
        number = thing.GetUniqueResourceID()
        if number not in self._meshes:
            if thing.BeamLattice().GetBeamCount():
                raise Malformed(f"object {thing.GetResourceID()} is made of beams, which are not supported; {REMEDY}")
            if thing.HasSlices(False) and int(thing.GetSlicesMeshResolution()) != 0:
                raise Malformed(f"object {thing.GetResourceID()} is made of slices, which are not supported; {REMEDY}")
            vertices = np.array([p.Coordinates[:] for p in thing.GetVertices()], np.float64).reshape(-1, 3)
            faces = np.array([t.Indices[:] for t in thing.GetTriangleIndices()], np.int64).reshape(-1, 3)
            self._meshes[number] = vertices, faces
        return self._meshes[number]


def _components(thing: Any) -> list[Any]:
    return [thing.GetComponent(k) for k in range(thing.GetComponentCount())]


def _matrix(placing: Any) -> np.ndarray:
    """Return [4, 4] for row vectors: a point p goes to p @ matrix."""
    fields = (placing.GetObjectTransform if hasattr(placing, "GetObjectTransform") else placing.GetTransform)().Fields
    matrix = np.eye(4)
    matrix[:, :3] = [list(row) for row in fields]
    return matrix
