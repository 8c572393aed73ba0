"""The house: which room may import which, and that our part of the `cuda` namespace leaves NVIDIA's alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("cuda", "teacher_cache", "pipeline", "trainer", "cli")
# A room may import itself and these; pipeline.corpora is the one door from the trainer.
ALLOWED = {
    "cuda": set(),
    "teacher_cache": {"cuda"},
    "pipeline": {"teacher_cache", "cuda"},
    "trainer": {"teacher_cache", "cuda", "pipeline.corpora"},
    "cli": {"trainer", "pipeline", "teacher_cache", "cuda"},
}
FORBIDDEN = {"trainer": {"dask", "distributed", "open_clip"}, "teacher_cache": {"dask", "open_clip"}}


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
            doors = {room} | ALLOWED[room]
            # `import cuda.bindings` is NVIDIA's, not ours.
            ours = top in ROOMS and not (top == "cuda" and not (ROOT / (name.replace(".", "/") + ".py")).exists())
            if ours and not any(name == door or name.startswith(f"{door}.") for door in doors):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
            if top in FORBIDDEN.get(room, set()):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


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
