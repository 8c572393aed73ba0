"""The house: which room, and which part of a room, may import which; and that our part of the `cuda` namespace leaves
NVIDIA's alone.
"""

import ast
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("cuda", "teacher_cache", "pipeline", "trainer", "cli")
# A room may import itself and these; pipeline.corpora and pipeline.settings are the doors from the trainer.
ALLOWED = {
    "cuda": set(),
    "teacher_cache": {"cuda"},
    "pipeline": {"teacher_cache", "cuda"},
    "trainer": {"teacher_cache", "cuda", "pipeline.corpora", "pipeline.settings"},
    "cli": {"trainer", "pipeline", "teacher_cache", "cuda"},
}
# Doors for one folder alone: the reference's .pth files are read as teachers' are, by one unpickler.
DOORS = {"trainer/checkpoints/reference": {"pipeline.teacher.weights", "pipeline.errors"}}
# Inside a room imports run from left to right; what stands in one tuple is of one rank, and neither imports the other.
ORDER = {
    "teacher_cache": (
        "testing", "__init__", "maintenance", ("reading", "writer"), "format", "storage", "recipe", "config",
        "location", ("documents", "foreign"), ("errors", "system"),
    ),
    "pipeline": ("build", "teacher", "views", "corpora", ("config", "errors"), "settings"),
    "pipeline/corpora": (
        "tar_index", ("survey", "packing"), "__init__", "uri", "kinds", ("files", "rows", "shard_index"), "file_rules",
        "inspection", "formats", ("faults", "processes"),
        ("entrance", "releases", "episodes"), ("options", "report"), "check", "base", ("surface", "objects"),
    ),
    "trainer": (
        "pretraining", "downstream", "checkpoints", "config", ("models", "engine"), ("losses", "randomness"), "errors",
    ),
    "trainer/models": (
        ("heads", "build"), ("hierarchical", "plain"), ("further_heads", "guided_student"), "student",
        ("tokens", "layers"), "random_inputs", "config",
    ),
    "cli": (
        "main", "commands", "suite", ("actions", "study"), "report", ("show", "experiment", "options"), "exit_codes",
    ),
}  # fmt: skip
NVIDIAS = (["cuda", "bindings"], ["cuda", "core"], ["cuda", "pathfinder"])  # packages that share the namespace
FORBIDDEN = {"trainer": {"dask", "distributed", "open_clip"}, "teacher_cache": {"dask", "open_clip"}}


@cache
def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    sources = [path for path in (ROOT / room).rglob("*.py")]
    assert sources
    wrong = []
    for path in sources:
        for name in imported(path):
            top = name.split(".")[0]
            doors = {room} | ALLOWED[room] | doors_of(path)
            # `import cuda.bindings` is NVIDIA's, not ours.
            ours = top in ROOMS and not (top == "cuda" and not (ROOT / (name.replace(".", "/") + ".py")).exists())
            if ours and not any(name == door or name.startswith(f"{door}.") for door in doors):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
            if top in FORBIDDEN.get(room, set()):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def doors_of(path):
    return set().union(*(doors for folder, doors in DOORS.items() if (ROOT / folder) in path.parents))


def modules(room):
    """The modules of a room by their full names."""
    found = {}
    for path in (ROOT / room).rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


@pytest.mark.parametrize("place", ORDER)
def test_imports_run_one_way_inside_a_room(place):
    ranks = {
        part: rank
        for rank, parts in enumerate(ORDER[place])
        for part in (parts if isinstance(parts, tuple) else (parts,))
    }
    prefix = place.replace("/", ".")
    sources = modules(place.split("/")[0])

    def part_of(name):
        if name == prefix:
            return "__init__"
        return name.removeprefix(f"{prefix}.").split(".")[0] if name.startswith(f"{prefix}.") else None

    inside = {name: part_of(name) for name in sources if part_of(name) is not None}
    assert {part for part in inside.values() if part != "__init__"} <= set(ranks), "a part without a place in ORDER"
    wrong = []
    for name, part in inside.items():
        for other in imported(sources[name]) & set(inside):
            theirs = inside[other]
            # A package's own name comes with whatever is imported from below it.
            if theirs != part and {part, theirs} <= set(ranks) and ranks[theirs] <= ranks[part]:
                if theirs == "__init__" and not names_taken(sources[name], other):
                    continue
                wrong.append(f"{sources[name].relative_to(ROOT)} ({part}) imports {other} ({theirs})")
    assert wrong == []


def test_students_are_known_by_their_protocol():
    """Only the models, and the files laid out like the reference's student, know which student there is."""
    knows = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "trainer").rglob("*.py")
        if any(name.startswith(("trainer.models.hierarchical", "trainer.models.plain")) for name in imported(path))
    }
    assert knows
    places = ("trainer/models/", "trainer/checkpoints/reference/")
    assert [path for path in sorted(knows) if not path.startswith(places)] == []


def names_taken(path, module):
    """Whether a file takes names from a package itself, and not only modules below it."""
    below = {name.removeprefix(f"{module}.").split(".")[0] for name in modules(module.split(".")[0])}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == module:
            if {alias.name for alias in node.names} - below:
                return True
        elif isinstance(node, ast.Import) and module in {alias.name for alias in node.names}:
            return True
    return False


@pytest.mark.parametrize("room", ROOMS)
def test_no_import_circle(room):
    """Imports inside functions count: a circle that is hidden is one all the same."""
    sources = modules(room)
    needs = {
        name: {other for other in imported(path) & set(sources) if other != name and names_taken(path, other)}
        for name, path in sources.items()
    }
    assert sum(map(len, needs.values())) > 10
    done, circles = set(), []

    def walk(name, way):
        if name in way:
            circles.append(" > ".join([*way[way.index(name) :], name]))
        elif name not in done:
            for other in sorted(needs[name]):
                walk(other, [*way, name])
            done.add(name)

    for name in sorted(needs):
        walk(name, [])
    assert circles == []


def test_the_cuda_folder_is_a_shared_namespace():
    assert not (ROOT / "cuda" / "__init__.py").exists()
    assert not (ROOT / "tests" / "cuda").exists()
    code = (
        "import torch, cupy, cuda.pathfinder, cuda.fps; print(cuda.pathfinder.__file__, cuda.fps.__file__, sep='\\n')"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "site-packages" in out[0]
    assert Path(out[1]) == ROOT / "cuda" / "fps.py"


def test_help_loads_no_room_that_is_heavy():
    code = (
        "import sys\nfrom cli.main import cli\n"
        "try:\n    cli.main(['--help'], standalone_mode=True)\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'cupy', 'dask', 'open_clip', 'zarr', 'numba', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout


def test_no_folder_of_tests_is_left_out(pytestconfig):
    """pytest's own list of folders that it does not enter has `build`, `dist`, `venv` and others in it."""
    ignored = pytestconfig.getini("norecursedirs")
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")}
    assert Path("tests/build") in folders
    assert not [
        str(folder) for folder in folders if any(fnmatch(part, glob) for part in folder.parts for glob in ignored)
    ]


def test_modules_of_the_house_that_are_imported_exist():
    """Type checking takes a module that is missing for a library without types, so a name of the past would pass."""
    missing = []
    for room in (*ROOMS, "benchmarks", "tests"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                named = [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
                named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                for name in named:
                    place = ROOT.joinpath(*name.split("."))
                    ours = name.split(".")[0] in (*ROOMS, "benchmarks", "tests") and name.split(".")[:2] not in NVIDIAS
                    if ours and not (place.is_dir() or place.with_suffix(".py").is_file()):
                        missing.append(f"{path.relative_to(ROOT)} imports {name}")
    assert missing == []
