"""What a launcher says, and whether the ranks that it started agree."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.engine.ranks import Place, place_in_launch
from trainer.errors import TrainingError

ROOT = Path(__file__).resolve().parents[2]
WHOLE = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, Place(0, 1, None)),
        ({"WORLD_SIZE": ""}, Place(0, 1, None)),
        ({"RANK": "0"}, Place(0, 1, None)),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, Place(0, 1, None)),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}, Place(0, 1, None)),
        (WHOLE, Place(3, 4, 1)),
        (WHOLE | {"RANK": " 2 "}, Place(2, 4, 1)),
    ],
)
def test_places(environ: dict[str, str], place: Place) -> None:
    assert place_in_launch(environ) == place


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"RANK": "3"}, "RANK is '3', but WORLD_SIZE is not set"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "SLURM_STEP_NUM_TASKS is '8', so srun started several"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "so mpirun started several"),
        ({"WORLD_SIZE": "1", "RANK": "1"}, "RANK is '1', but WORLD_SIZE is 1"),
        *(
            (WHOLE | {name: value}, f"{name} is {value!r}")
            for name in WHOLE
            if name != "MASTER_ADDR"
            for value in ("auto", "-1", "1.0", "9" * 30, "٣")
        ),
        *(
            ({key: value for key, value in WHOLE.items() if key != name}, f"{name} is not set")
            for name in WHOLE
            if name != "WORLD_SIZE"
        ),
        (WHOLE | {"RANK": "4"}, "RANK is '4'"),
        (WHOLE | {"LOCAL_RANK": "4"}, "LOCAL_RANK is '4'"),
        (WHOLE | {"MASTER_PORT": "0"}, "MASTER_PORT is '0'"),
        (WHOLE | {"MASTER_PORT": "65536"}, "MASTER_PORT is '65536'"),
        (WHOLE | {"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        (WHOLE | {"RANK": "", "MASTER_ADDR": " "}, "RANK is not set, MASTER_ADDR is not set"),
    ],
)  # fmt: skip
def test_variables_that_cannot_be_are_named(environ: dict[str, str], text: str) -> None:
    with pytest.raises(TrainingError) as caught:
        place_in_launch(environ)
    assert text in str(caught.value)
    assert "torchrun" in str(caught.value)


def _ranks(folder: Path, *programs: str) -> list[subprocess.Popen[str]]:
    """One process for each program, which find each other through a file."""
    prelude = (
        "import sys, torch, torch.distributed as dist\n"
        "from trainer.engine.ranks import Ranks\nfrom trainer.errors import TrainingError\n"
        f"rank = int(sys.argv[1])\ndist.init_process_group('gloo', init_method='file://{folder / 'meeting'}', "
        f"rank=rank, world_size={len(programs)})\n"
        "ranks = Ranks(rank=rank, size=dist.get_world_size(), device=torch.device('cpu'))\n"
    )
    return [
        subprocess.Popen(
            [sys.executable, "-c", prelude + program, str(rank)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank, program in enumerate(programs)
    ]  # fmt: skip


def _outputs(processes: list[Any]) -> list[str]:
    return [process.communicate(timeout=1200)[0] for process in processes]


def test_ranks_that_differ_all_stop_with_the_fact(tmp_path: Path) -> None:
    program = (
        "facts = {'the cache': 'recipe ' + 'a' * 100 + ('b' if rank == 1 else 'c'), 'epoch': '3'}\n"
        "try:\n    ranks.agree(facts)\nexcept TrainingError as error:\n    print(error)\n"
    )
    outputs = _outputs(_ranks(tmp_path, program, program, program))
    assert all("the ranks do not agree on the cache" in output for output in outputs)
    assert all("ac in rank 0" in output and "ab in rank 1" in output for output in outputs)


def test_ranks_that_agree_go_on(tmp_path: Path) -> None:
    program = "ranks.agree({'epoch': '3'})\nranks.agree({})\nprint('went on')\n"
    assert _outputs(_ranks(tmp_path, program, program)) == ["went on\n"] * 2


def test_a_rank_that_dies_ends_the_others(tmp_path: Path) -> None:
    waits = (
        "print('here', flush=True)\n"
        "try:\n    ranks.wait(); ranks.wait()\nexcept TrainingError as error:\n    print(error)\n"
    )
    dies = f"import os\nranks.wait()\nos.kill(os.getpid(), {signal.SIGKILL.value})\n"
    survivor, victim = _ranks(tmp_path, waits, dies)
    output = _outputs([survivor])[0]
    victim.wait(timeout=1200)
    assert victim.returncode == -signal.SIGKILL
    assert "rank 0 lost the other ranks: one of them stopped" in output
    assert os.linesep in output
