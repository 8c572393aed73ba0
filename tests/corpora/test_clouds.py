"""Clouds as people save them: one table of numbers in every spelling comes out right, or is refused by name."""

import base64
import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpora import ShapeError
from pipeline.corpora.files import read_geometry
from pipeline.corpora.formats.geometry import Cloud, ReadOptions

POINTS = np.round(np.random.default_rng(5).normal(size=(70, 3)) * (1, 2, 30), 3)  # 70 is no size of anything else here


def lines(points=POINTS, between=" ", decimal=".", before="", behind="", end="\n", number="{:.3f}"):
    rows = (between.join(number.format(value).replace(".", decimal) for value in point) for point in points)
    return end.join(before.format(k=k) + row + behind for k, row in enumerate(rows)) + end


def counted(text, head="{n}\n"):
    return head.format(n=len(POINTS)) + text


PLAIN = lines()
SPELLINGS = {
    "blanks.xyz": PLAIN,
    "padded.xyz": lines(between="    ", before="  "),
    "tabs.txt": lines(between="\t"),
    "tab and blank.txt": lines(between=" \t"),
    "commas.csv": lines(between=","),
    "commas and blanks.csv": lines(between=" , "),
    "trailing comma.csv": lines(between=",", behind=","),
    "semicolons.csv": lines(between=";"),
    "euro.csv": lines(between=";", decimal=","),
    "euro tabs.xyz": lines(between="\t", decimal=","),
    "euro blanks.xyz": lines(between="  ", decimal=","),
    "euro quoted.csv": "\n".join(",".join(f'"{v:.3f}"'.replace(".", ",") for v in point) for point in POINTS),
    "quoted.csv": "\n".join(",".join(f'"{v:.3f}"' for v in point) for point in POINTS),
    "quoted header.csv": '"x","y","z"\n' + "\n".join(",".join(f'"{v:.3f}"' for v in point) for point in POINTS),
    "spreadsheet.csv": "sep=;\n" + lines(between=";", decimal=","),
    "crlf.txt": lines(end="\r\n"),
    "mac.txt": lines(end="\r"),
    "blank lines.txt": lines(end="\n\n \n"),
    "no last newline.txt": PLAIN.rstrip("\n"),
    "bom.txt": "\ufeff" + PLAIN,
    "count.pts": counted(PLAIN),
    "two scans.pts": f"30\n{lines(POINTS[:30])}40\n{lines(POINTS[30:])}",
    "hash.txt": "# free words about this cloud\n" + PLAIN,
    "hash names.txt": "# x y z\n" + PLAIN,
    "slashes.txt": "//X Y Z\n" + PLAIN,
    "slashes and count.pts": f"//X;Y;Z\n{len(POINTS)}\n" + lines(between=";"),
    "percent.txt": "% made by hand\n" + PLAIN,
    "comment behind.txt": lines(behind="  # seen"),
    "header.csv": "x,y,z\n" + lines(between=","),
    "header and count.csv": f"x y z\n{len(POINTS)}\n" + PLAIN,
    "units.csv": "X [m], Y [m], Z [m]\n" + lines(between=","),
    "paraview.csv": '"Points:0","Points:1","Points:2"\n' + lines(between=","),
    "pandas.csv": "0,1,2\n" + lines(between=","),
    "pandas index.csv": ",0,1,2\n" + lines(between=",", before="{k},"),
    "named index.csv": ",x,y,z\n" + lines(between=",", before="{k},"),
    "row numbers.csv": lines(between=",", before="{k},"),
    "row numbers.xyz": lines(before="{k} "),
    "other order.csv": "z,label,y,x\n" + "".join(f"{z:.3f},7,{y:.3f},{x:.3f}\n" for x, y, z in POINTS),
    "comment in another order.txt": "# i z y x\n" + "".join(f"7 {z:.3f} {y:.3f} {x:.3f}\n" for x, y, z in POINTS),
    "normals.txt": lines(behind=" 0 0 1"),
    "nan normals.txt": lines(behind=" nan nan nan"),
    "windows nan.txt": lines(behind=" -nan(ind) -nan(ind) 1.#QNAN"),
    "class behind.txt": lines(behind=" chair"),
    "class of two words.csv": lines(between=",", behind=",office chair"),
    "empty field.csv": lines(between=",", behind=",,255"),
    "control character.txt": lines(behind=" 185\x10000"),
    "exponents.txt": lines(number="{:.6e}"),
    "plus signs.txt": lines(number="{:+.3f}"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_one_cloud_in_every_spelling(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(SPELLINGS[name].encode())
    cloud = read_geometry(path)
    assert isinstance(cloud, Cloud)
    np.testing.assert_array_equal(cloud.points, POINTS)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_text_of_windows_programs_is_read_by_its_mark(tmp_path, encoding):
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    (tmp_path / "a.txt").write_bytes(mark + PLAIN.encode(encoding))
    np.testing.assert_array_equal(read_geometry(tmp_path / "a.txt").points, POINTS)


REFUSED = {
    "label first.txt": (lines(before="3 "), "whole numbers only, unlike the next three.*columns=2,3,4"),
    "counting up.xyz": (
        "".join(f"{k} {k * k}.5 0.25\n" for k in range(40)),
        "counts 0, 1, 2, ... like row numbers.*columns=",
    ),
    "word first.txt": (lines(before="H "), "starts with 'H', not with a number.*columns="),
    "names.csv": ("u,v,w\n" + lines(between=","), "names u, v, w.*columns="),
    "two xs.csv": ("x,x,y,z\n" + lines(between=",", before="1.5,"), "names x, x, y, z"),
    "short header.csv": ("x,y,z\n" + lines(between=",", behind=",1,2"), "header of 3 names .* 5 columns"),
    "numbers or header.csv": (
        "0,1,2\n" + lines(np.round(POINTS), between=",", number="{:.0f}"),
        "a header .* or a point",
    ),
    "both decimal.csv": (lines(between=",", decimal=","), "commas are decimal signs and separators both"),
    "both decimal, and NaN.csv": (
        lines(between=",", decimal=",", number="{:.2f}") + "nan,nan,nan,nan,nan,nan\n",
        "commas are decimal signs and separators both",
    ),
    "thousands.csv": (lines(between=";", decimal=",") + "1.234,5;2,5;3,5\n", "line 71 has '1.234,5' in column 1"),
    "mixed.txt": (lines() + lines(between=","), "line 71 mixes commas and blanks"),
    "rgb behind.txt": (lines(between=",", behind=" 255,0,0"), "line 1 mixes commas and blanks"),
    "open quote.csv": ('"1.5,2.5,3.5\n' + lines(between=","), "line 1 has unbalanced quotes"),
    "ragged.txt": (PLAIN + "1 2\n", "line 71 has 2 columns, the first has 3"),
    "hole.csv": (
        lines(between=",") + "1,,3\n",
        "line 71 has '' in column 2, which is not a number: the field is empty",
    ),
    "letter.txt": (PLAIN + "1 2 O\n", "line 71 has 'O' in column 3, which is not a number"),
    "hex.txt": (PLAIN + "1 2 0x3\n", "line 71 has '0x3' in column 3"),
    "underscore.txt": (PLAIN + "1 2 3_0\n", "line 71 has '3_0' in column 3"),
    "less.pts": (f"{len(POINTS) + 1}\n{PLAIN}", "promise 71 points, 70 follow"),
    "more.pts": (f"{len(POINTS) - 1}\n{PLAIN}", "promise 69 points, 70 follow"),
    "many digits.pts": ("9" * 5000 + "\n" + PLAIN, "line 1 has 1 columns"),
    "molecule.xyz": (f"{len(POINTS)}\nwater\n" + lines(before="H "), "header of 1 names"),
    "zeros.txt": (PLAIN[:500] + "\0" * 500, "binary"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_is_refused_with_the_remedy(tmp_path, name):
    text, reason = REFUSED[name]
    (tmp_path / name).write_bytes(text.encode())
    with pytest.raises(ShapeError, match=reason):
        read_geometry(tmp_path / name)


def test_utf16_without_its_mark_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(PLAIN.encode("utf-16-le"))
    with pytest.raises(ShapeError, match="UTF-16 without a byte order mark; save it as UTF-8"):
        read_geometry(tmp_path / "a.txt")


@pytest.mark.parametrize("suffix", [".txt", ".npy", ".pcd"])
def test_the_user_may_say_which_columns_are_coordinates(tmp_path, suffix):
    table = np.c_[np.full(len(POINTS), 3), POINTS[:, ::-1]]  # label, z, y, x
    path = tmp_path / f"a{suffix}"
    if suffix == ".txt":
        path.write_text(lines(table, number="{:.3f}"))
    elif suffix == ".npy":
        np.save(path, table)
    else:
        path.write_bytes(pcd("label u v w", "ascii", lines(table).encode(), n=len(POINTS)))
    cloud = read_geometry(path, ReadOptions(columns=("4", "3", "2"), parts="1"))
    np.testing.assert_array_equal(cloud.points, POINTS)
    assert cloud.parts.tolist() == [3] * len(POINTS)
    for wrong, reason in {
        ("1", "2"): "names 2 columns",
        ("1", "2", "2"): "one column twice",
        ("1", "2", "5"): "columns 1 to 4",
        ("x", "y", "h"): "the column '[xh]'",
    }.items():
        with pytest.raises(ShapeError, match=reason):
            read_geometry(path, ReadOptions(columns=wrong))


def test_columns_by_name(tmp_path):
    rows = "".join(f"{z:.3f},{k % 4},{y:.3f},{x:.3f}\n" for k, (x, y, z) in enumerate(POINTS))
    (tmp_path / "a.csv").write_text("up,part,north,east\n" + rows)
    cloud = read_geometry(tmp_path / "a.csv", ReadOptions(columns=("east", "north", "up"), parts="part"))
    np.testing.assert_array_equal(cloud.points, POINTS)
    assert cloud.parts.tolist() == [k % 4 for k in range(len(POINTS))]


def test_lines_without_coordinates_are_left_out_and_counted(tmp_path):
    (tmp_path / "a.txt").write_text(PLAIN + "nan nan nan\nNaN NaN NaN\n")
    cloud = read_geometry(tmp_path / "a.txt")
    np.testing.assert_array_equal(cloud.points, POINTS)
    assert cloud.notes == {"points without coordinates (NaN)": 2}


# -- arrays ------------------------------------------------------------------------------------------------------------


def test_arrays_whose_columns_are_named_or_numbered(tmp_path):
    table = POINTS.astype("f4")
    fields = [("i", "i4"), ("z", "f4"), ("x", "f8"), ("y", "f4")]
    record = np.zeros(len(table), fields)
    for axis, column in zip("xyz", table.T, strict=True):
        record[axis] = column
    np.save(tmp_path / "record.npy", record)
    np.save(tmp_path / "index.npy", np.c_[np.arange(len(table)), POINTS])
    np.savez(tmp_path / "only.npz", POINTS)
    np.testing.assert_array_equal(read_geometry(tmp_path / "record.npy").points, table)
    np.testing.assert_array_equal(read_geometry(tmp_path / "index.npy").points, POINTS)
    np.testing.assert_array_equal(read_geometry(tmp_path / "only.npz").points, POINTS)


ARRAYS = {
    "label first": (np.c_[np.full(70, 2), POINTS], "whole numbers only, unlike the next three"),
    "transposed": (POINTS.T, "looks transposed"),
    "batch": (POINTS[None], r"shape \(1, 70, 3\)"),
    "words": (np.full((70, 3), "a"), "expected numbers"),
    "complex": (POINTS.astype("c8"), "type complex64"),
    "object": (POINTS.astype(object), "type object"),
    "record without z": (np.zeros(70, [("x", "f4"), ("y", "f4")]), r"expected \(n, 3\) or more columns"),
    "record of others": (np.zeros(70, [("u", "f4"), ("v", "f4"), ("w", "f4")]), "fields are u, v, w"),
    "record of vectors": (np.zeros(70, [("x", "f4", 3), ("y", "f4"), ("z", "f4")]), "not numbers: x"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_refused(tmp_path, name):
    array, reason = ARRAYS[name]
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(ShapeError, match=reason):
        read_geometry(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr':'<f4','fortran_order':False,'shape':(0,99999999999999999999)}",
        "{'descr':'<f4','fortran_order':True,'shape':(99999999999999999999,0,3)}",
        "{'descr':{'names':['a'],'formats':['<f4'],'offsets':[99999999999999999999]},'fortran_order':False,'shape':(1,3)}",
        "{'descr':'V0','fortran_order':False,'shape':(9,3)}",
        "{'descr':('<f4',(2,2)),'fortran_order':False,'shape':(0,3)}",
        "{'descr':'<f4','fortran_order':False,'shape':(True,3)}",
        "{'descr':'<f4','fortran_order':False,'shape':(-1,3)}",
        "[" * 5000,
    ],
)
def test_absurd_headers_are_refused_as_data(tmp_path, header):
    text = header.encode() + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text)
    with pytest.raises(ShapeError):
        read_geometry(tmp_path / "a.npy")


def test_query_points_with_occupancies_are_no_cloud(tmp_path):
    np.savez(tmp_path / "points.npz", points=POINTS, occupancies=np.zeros(9, np.uint8))
    with pytest.raises(ShapeError, match="query points with occupancies"):
        read_geometry(tmp_path / "points.npz")


def test_a_directory_that_lies_about_a_size(tmp_path):
    """The central directory says 4 kB, the member unpacks to 4 MB: no more than 4 kB and a byte is taken."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("points.npy", bytes(2**22))
    data = raw.getvalue().replace(struct.pack("<I", 2**22), struct.pack("<I", 4096))
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ShapeError, match=r"not a complete NPZ|does not unpack to|does not start as a NPY"):
        read_geometry(tmp_path / "a.npz")


# -- PCD ---------------------------------------------------------------------------------------------------------------


def pcd(fields, form, body, *, n, types=None, sizes=None, counts=None, width=None, height=1, extra=""):
    k = len(fields.split())
    head = (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE {sizes or ' '.join('4' * k)}\n"
        f"TYPE {types or ' '.join('F' * k)}\n"
        f"COUNT {counts or ' '.join('1' * k)}\nWIDTH {width or n}\nHEIGHT {height}\nVIEWPOINT 0 0 0 1 0 0 0\n{extra}"
        f"POINTS {n}\nDATA {form}\n"
    )
    return head.encode() + body


def lzf(raw: bytes) -> bytes:
    """LZF of literal runs, and one back reference when the data begins with a repeat."""
    return b"".join(bytes([len(raw[i : i + 32]) - 1]) + raw[i : i + 32] for i in range(0, len(raw), 32))


def test_compressed_clouds_with_fields_of_many_sizes(tmp_path):
    rng = np.random.default_rng(1)
    points = POINTS.astype("f4")
    columns = [rng.integers(0, 9, 70).astype("u1"), points[:, 2], points[:, 0], rng.normal(size=70), points[:, 1]]
    raw = b"".join(column.tobytes() for column in columns)
    body = struct.pack("<II", len(lzf(raw)), len(raw)) + lzf(raw)
    data = pcd("part z x w y", "binary_compressed", body, n=70, types="U F F F F", sizes="1 4 4 8 4")
    (tmp_path / "a.pcd").write_bytes(data)
    cloud = read_geometry(tmp_path / "a.pcd", ReadOptions(parts="part"))
    np.testing.assert_array_equal(cloud.points, points)
    assert cloud.parts.tolist() == columns[0].tolist()


def test_a_compressed_cloud_that_another_program_packed(tmp_path):
    """70 points as pypcd4 1.5.1 stored them: 840 bytes in 65, most of them back references."""
    body = base64.b64decode(
        "QQAAAEgDAAABAABAAAGAPyAFAEAgAiADAIAgAwCgIAMAwCADQADg8xsAACEXQP8AwCAHQR9gACAL4PMTAYC/YQVhA+D/CwGAvw=="
    )
    (tmp_path / "a.pcd").write_bytes(pcd("x y z", "binary_compressed", body, n=70))
    k = np.arange(70)
    np.testing.assert_array_equal(
        read_geometry(tmp_path / "a.pcd").points, np.stack([k % 7, k % 5 / 2, k % 3 - 1.0], axis=1)
    )


def test_back_references_of_lzf(tmp_path):
    """70 points of one repeated value: a literal of 4 bytes, then references that overlap their own output."""
    size = 70 * 12
    body = b"\x03" + struct.pack("<f", 1.5)
    left = size - 4
    while left:
        run = min(left, 264) if left not in (265, 266) else 200
        body += (b"\xe0" + bytes([run - 9]) if run >= 9 else bytes([(run - 2) << 5])) + b"\x03"
        left -= run
    (tmp_path / "a.pcd").write_bytes(
        pcd("x y z", "binary_compressed", struct.pack("<II", len(body), size) + body, n=70)
    )
    assert (read_geometry(tmp_path / "a.pcd").points == 1.5).all()


def test_organised_clouds_keep_their_valid_points(tmp_path):
    points = np.r_[POINTS, np.full((14, 3), np.nan)].astype("f4")
    points[80, :2] = 1  # a sensor that lost the depth alone
    (tmp_path / "a.pcd").write_bytes(pcd("x y z", "binary", points.tobytes(), n=84, width=12, height=7))
    cloud = read_geometry(tmp_path / "a.pcd")
    np.testing.assert_array_equal(cloud.points, POINTS.astype("f4"))
    assert cloud.notes == {"points without coordinates (NaN)": 14}


BODY = POINTS.astype("f4").tobytes()
PCDS = {
    "no fields": (b"FIELDS\nSIZE\nTYPE\nCOUNT\nPOINTS 0\nDATA ascii\n", "no FIELDS"),
    "grid": (pcd("x y z", "binary", BODY, n=70, width=9, height=9), "9 x 9 and POINTS = 70"),
    "more lines": (pcd("x y z", "ascii", PLAIN.encode(), n=69), "declares 69 points, 70 lines follow"),
    "less lines": (pcd("x y z", "ascii", PLAIN.encode(), n=71), "71 points, 70 lines follow; the file is truncated"),
    "wide line": (pcd("x y z", "ascii", lines(behind=" 4").encode(), n=70), "point 1 has 4 numbers"),
    "two x": (pcd("x x y z", "binary", BODY * 2, n=70), "fields are x x y z"),
    "vector": (pcd("x y z", "binary", BODY * 2, n=70, counts="2 1 1"), "'x' has 2 numbers"),
    "huge count": (pcd("x y z a", "binary", BODY, n=70, counts="1 1 1 999999"), "more than a megabyte"),
    "digits": (pcd("x y z", "binary", BODY, n="9" * 5000), "WIDTH '9+'; expected"),
    "type": (pcd("x y z", "binary", BODY, n=70, types="F F O"), "type O"),
    "size": (pcd("x y z", "binary", BODY, n=70, sizes="4 4 3"), "size 3"),
    "twice": (pcd("x y z", "binary", BODY, n=70, extra="POINTS 3\n"), "two lines POINTS"),
    "form": (pcd("x y z", "zip", BODY, n=70), "DATA is 'zip'"),
    "bomb": (
        pcd("x y z", "binary_compressed", struct.pack("<II", 16, 2**31) + bytes(16), n=2**31 // 12),
        "unpack to 2147483648",
    ),
    "noise": (
        pcd("x y z", "binary_compressed", struct.pack("<II", 300, 840) + b"\xff" * 300, n=70),
        "LZF data cannot be unpacked",
    ),
}


@pytest.mark.parametrize("name", PCDS)
def test_pcd_files_that_are_refused(tmp_path, name):
    data, reason = PCDS[name]
    (tmp_path / "a.pcd").write_bytes(data)
    with pytest.raises(ShapeError, match=reason):
        read_geometry(tmp_path / "a.pcd")


# -- whatever the bytes ------------------------------------------------------------------------------------------------

SEEDS = [
    (".txt", lines(between=";", decimal=",").encode()),
    (".csv", SPELLINGS["pandas index.csv"].encode()),
    (".csv", SPELLINGS["euro quoted.csv"].encode()),
    (".pts", SPELLINGS["slashes and count.pts"].encode()),
    (".pcd", pcd("x y z", "ascii", PLAIN.encode(), n=70)),
    (".pcd", pcd("x y z", "binary", BODY, n=70)),
    (".pcd", pcd("x y z", "binary_compressed", struct.pack("<II", len(lzf(BODY)), len(BODY)) + lzf(BODY), n=70)),
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SEEDS), st.data())
def test_damaged_clouds_are_read_or_refused(tmp_path_factory, seed, data):
    """Bytes changed, cut out, doubled: a cloud or a ShapeError, nothing else."""
    suffix, raw = seed
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(damaged) - 1, 0)))
        match data.draw(st.sampled_from(["set", "cut", "insert"])):
            case "set" if damaged:
                damaged[at] = data.draw(st.integers(0, 255))
            case "cut":
                del damaged[at : at + data.draw(st.integers(1, 400))]
            case _:
                damaged[at:at] = data.draw(st.binary(max_size=12))
    path = tmp_path_factory.mktemp("damaged") / f"a{suffix}"
    path.write_bytes(bytes(damaged))
    try:
        cloud = read_geometry(path)
    except ShapeError:
        return
    assert isinstance(cloud, Cloud)
    assert cloud.points.shape[1] == 3
    assert cloud.points.nbytes <= 90 * (len(damaged) + 100)  # never more than the bytes can hold
