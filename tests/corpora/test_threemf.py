"""3MF files written here as the core specification has them: what the build places is what is read."""

import io
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpora import ShapeError
from pipeline.corpora.files import read_geometry
from pipeline.corpora.formats import isolated, threemf
from pipeline.corpora.formats.geometry import Malformed, ReadOptions
from pipeline.corpora.formats.threemf import read_3mf
from pipeline.corpora.surface import triangle_areas

CORE = "http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
TYPES = (
    '<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default '
    'Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Default Extension='
    '"model" ContentType="application/vnd.ms-package.3dmanufacturing-3dmodel+xml"/></Types>'
)
RELATIONS = (
    '<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    '<Relationship Target="/3D/{}.model" Id="r" Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/>'
    "</Relationships>"
)
CORNERS = np.array([[0, 0, 0], [3, 0, 0], [0, 5, 0], [0, 0, 7]], float)  # area 7.5 + 10.5 + 17.5 + the slanted face
FACES = [(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]
AREA = 7.5 + 10.5 + 17.5 + 0.5 * np.sqrt(35**2 + 21**2 + 15**2)
BIG = '<component objectid="1" transform="2 0 0 0 2 0 0 0 2 10 0 0"/>'


def mesh(id, more="", inside="", corners=CORNERS, faces=FACES):
    points = "".join(f'<vertex x="{x}" y="{y}" z="{z}"/>' for x, y, z in corners)
    triangles = "".join(f'<triangle v1="{a}" v2="{b}" v3="{c}"/>' for a, b, c in faces)
    body = f"<mesh><vertices>{points}</vertices><triangles>{triangles}</triangles>{inside}</mesh>"
    return f'<object id="{id}" {more}>{body}</object>'


def group(id, *components):
    return f'<object id="{id}"><components>{"".join(components)}</components></object>'


def model(objects, build, more="", before=""):
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{before}<model unit="inch" xml:lang="en-US" xmlns="{CORE}" {more}>'
        f"<resources>{''.join(objects)}</resources><build>{''.join(build)}</build></model>"
    )


def pack(text, method=zipfile.ZIP_DEFLATED, **others):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("[Content_Types].xml", TYPES)
        archive.writestr("_rels/.rels", RELATIONS.format("a"))
        archive.writestr("3D/a.model", text)
        for name, content in others.items():
            archive.writestr(f"3D/{name}.model", content)
            archive.writestr("3D/_rels/a.model.rels", RELATIONS.format(name))
    return out.getvalue()


def read(data, **options):
    return read_3mf(data, Path("a.3mf"), ReadOptions(**options))


def area(surface):
    return triangle_areas(surface.vertices, surface.faces).sum()


@pytest.fixture
def installed():
    pytest.importorskip("lib3mf", reason="lib3mf of the extra 'formats' is not installed")


@pytest.mark.usefixtures("installed")
def test_items_components_and_transforms_are_placed():
    """The mesh once as it is and once twice as large and moved by a component; then all of it turned by an item, which
    takes x to y and y to -x and then adds (0, 0, 100).
    """
    objects = [mesh(1), group(2, '<component objectid="1"/>', BIG)]
    surface = read(pack(model(objects, ['<item objectid="2" transform="0 1 0 -1 0 0 0 0 1 0 0 100"/>'])))
    assert area(surface) == pytest.approx(AREA * 5)
    plain = np.concatenate([CORNERS, CORNERS * 2 + [10, 0, 0]])
    expected = np.stack([-plain[:, 1], plain[:, 0], plain[:, 2] + 100], axis=1)
    np.testing.assert_allclose(surface.vertices, expected, rtol=1e-6)
    assert surface.faces.tolist() == [list(f) for f in FACES] + [[a + 4, b + 4, c + 4] for a, b, c in FACES]


@pytest.mark.usefixtures("installed")
def test_only_what_the_build_places_is_read_and_objects_are_parts():
    objects = [mesh(1, 'name="lid"'), mesh(2), mesh(3, 'type="support"'), mesh(4, 'name="unused"')]
    items = ['<item objectid="2"/>', '<item objectid="1"/>', '<item objectid="3"/>', '<item objectid="1"/>']
    surface = read(pack(model(objects, items)), parts="object")
    assert area(surface) == pytest.approx(AREA * 3)
    assert surface.part_names == ("object 2", "lid")
    assert surface.parts.tolist() == [0] * 4 + [1] * 8
    assert surface.notes == {"objects of type support": 1}


@pytest.mark.usefixtures("installed")
def test_objects_of_other_model_parts_are_placed():
    """The production extension, as slicers write projects: components by path."""
    path = 'xmlns:p="http://schemas.microsoft.com/3dmanufacturing/production/2015/06" requiredextensions="p"'
    ids = iter(range(9))
    uuid = lambda: f'p:UUID="0000000{next(ids)}-0000-0000-0000-000000000000"'  # noqa: E731
    whole = f'<object id="2" {uuid()}><components><component p:path="/3D/b.model" objectid="1" {uuid()} '
    objects = [whole + 'transform="1 0 0 0 1 0 0 0 1 0 50 0"/></components></object>']
    main = model(objects, [f'<item objectid="2" {uuid()}/>'], path).replace("<build>", f"<build {uuid()}>")
    surface = read(pack(main, b=model([mesh(1, uuid())], [], path)))
    np.testing.assert_allclose(surface.vertices, np.add(CORNERS, [0, 50, 0]), rtol=1e-6)


BEAMS = 'xmlns:b="http://schemas.microsoft.com/3dmanufacturing/beamlattice/2017/02" requiredextensions="b"'
LATTICE = '<b:beamlattice radius="1" minlength="0.1"><b:beams><b:beam v1="0" v2="1"/></b:beams></b:beamlattice>'
ITEM = ['<item objectid="1"/>']


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (model([mesh(1)], []), "its build section places nothing"),
        (model([mesh(1)], ITEM, 'xmlns:q="http://example.com/q" requiredextensions="q"'), "requires an extension"),
        (model([mesh(1, inside=LATTICE)], ITEM, BEAMS), "object 1 is made of beams"),
        (model([mesh(1)], ['<item objectid="7"/>']), "cannot be read by lib3mf"),
        (model([mesh(1, faces=[(0, 1, 9)])], ITEM), "cannot be read by lib3mf"),
        (model([mesh(1, 'type="support"')], ITEM), r"has no triangles \(1 objects of type support\)"),
        (model([mesh(1)], ITEM * 2)[:-30], "a.model' is not complete XML: unclosed token"),
        (model([mesh(1)], ITEM, before='<!DOCTYPE m [<!ENTITY a "3">]>'), "a.model' declares a document type"),
    ],
)
def test_what_cannot_be_placed_is_refused(text, reason):
    with pytest.raises(Malformed, match=reason):
        read(pack(text))


@pytest.mark.usefixtures("installed")
def test_components_that_multiply_are_counted_before_they_are_placed():
    wide = [group(k, *[f'<component objectid="{k - 1}"/>'] * 1500) for k in (2, 3)]
    with pytest.raises(Malformed, match=f"place {4 * 1500**2} triangles in {1 + 1500 + 1500**2} objects"):
        read(pack(model([mesh(1), *wide], ['<item objectid="3"/>'])))


@pytest.mark.usefixtures("installed")
def test_time_that_components_take_is_bounded(monkeypatch):
    """Thirty objects of two components each, 2^30 meshes from 1.2 kB: lib3mf itself follows them all."""
    monkeypatch.setattr(isolated, "FREE_SECONDS", 2)
    groups = [group(k, *[f'<component objectid="{k - 1}"/>'] * 2) for k in range(2, 32)]
    with pytest.raises(Malformed, match=r"takes more than 2 s to read|place 4294967296 triangles"):
        read(pack(model([mesh(1), *groups], ['<item objectid="31"/>'])))


def test_members_are_sized_before_they_are_unpacked(monkeypatch):
    monkeypatch.setattr(threemf, "MAX_BYTES", 2**20)
    with pytest.raises(Malformed, match=r"as a whole unpacks to \d{7} bytes, more than the 1048576 allowed"):
        read(pack(model([mesh(1)], ITEM) + " " * 2**20))
    with pytest.raises(Malformed, match="is packed by method 14; expected deflate"):
        read(pack(model([mesh(1)], ITEM), zipfile.ZIP_LZMA))


def test_other_files_and_parts_are_refused():
    with pytest.raises(Malformed, match="not a complete 3MF file"):
        read(struct.pack("<I", 7) * 9)
    with pytest.raises(Malformed, match="parts=material was requested; a 3MF file has parts by object"):
        read(pack(model([mesh(1)], ITEM)), parts="material")


def test_without_the_library_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lib3mf", None)
    (tmp_path / "a.3MF").write_bytes(pack(model([mesh(1)], ITEM)))
    with pytest.raises(ShapeError, match=r"is a 3MF file, and lib3mf.*pip install 'i2p-pretrain\[formats\]'"):
        read_geometry(tmp_path / "a.3MF")
