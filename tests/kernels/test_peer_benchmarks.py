"""Benchmarks beside other libraries and the official implementation: refusals, what is missing, the stand-ins."""

import importlib
import importlib.util
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as benchmarks_main
from benchmarks import _peers, bench_official, bench_peer_streams, bench_peers
from benchmarks import _stand_ins as stand_ins
from benchmarks._record_streams import LIBRARIES, Records
from benchmarks.bench_kernels import surfaces
from cuda.chamfer import chamfer
from cuda.fps import farthest_point_sample
from cuda.gather import gather
from cuda.knn import knn


@pytest.fixture
def no_peer(monkeypatch):
    def refuse(name: str):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(_peers.importlib, "import_module", refuse)


def test_peers_that_are_missing_are_named_with_the_remedy(no_peer, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_peers, "RESULTS", tmp_path / "peers.jsonl")
    bench_peers.main([])
    out = capsys.readouterr().out
    for package, module in (("torch-quickfps", "torch_quickfps"), ("torch-fps", "torch_fps"), ("fpsample", "fpsample")):
        line = f"not measured: {package} (No module named {module!r}); install it with: pip install {package}"
        assert line in out
    assert not (tmp_path / "peers.jsonl").exists()


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (bench_peers.main, ["--rounds", "1"], "--rounds 1 is too few for a spread; give 2 or more"),
        (bench_peer_streams.main, ["--records", "63"], "--records 63 --rounds 5: 64 records and 2 rounds at least"),
        (bench_peers.main, ["--clock", "sun"], "invalid choice: 'sun'"),
        (bench_official.main, ["."], "has no cfgs/pre-training/i2p-mae.yaml: it is not a clone of"),
    ],
)
def test_arguments_are_refused_with_the_reason(main, arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_official_step_is_not_among_all_benchmarks(monkeypatch, capsys):
    assert benchmarks_main.main(["official"]) == 2
    assert "python -m benchmarks.bench_official CHECKOUT" in capsys.readouterr().err
    monkeypatch.setattr(benchmarks_main, "NAMES", ["official"])
    assert benchmarks_main.main([]) == 0
    assert "official (" not in capsys.readouterr().out


def test_all_take_turns_in_every_round():
    order: list[str] = []
    spent = _peers.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert "".join(order) == "abababab"
    assert [len(times) for times in spent.values()] == [3, 3]
    assert _peers.ratio([2.0, 8.0, 6.0], [1.0, 2.0, 2.0]).p50 == 3.0


def test_a_row_is_of_the_peers_fastest_variant():
    spent = {"ours": [1.0, 1.0, 2.0], "x slow": [9.0, 9.0, 9.0], "x fast": [3.0, 3.0, 6.0]}
    package_of = {"x slow": ("x", "slow"), "x fast": ("x", "fast")}
    (row,) = bench_peers.rows_of("case", package_of, spent)
    assert (row["peer"], row["ratio"]["p50"]) == ("x fast", 3.0)


def test_indices_that_are_not_the_greedy_ones_are_not_timed():
    points = surfaces(2, 40)
    idx = farthest_point_sample(points, 8)
    bench_peers.check("exact", points, idx)
    with pytest.raises(ValueError, match="other does not give the indices of exact farthest point sampling"):
        bench_peers.check("other", points, idx.flip(0))


def test_stand_ins_agree_with_the_operators():
    points = surfaces(2, 50)
    points[:, 7] = 0.01  # near the origin: never chosen
    idx = stand_ins.furthest_point_sample(points, 12)
    assert torch.equal(idx.long(), farthest_point_sample(points, 12, skip_near_origin=True))
    centres = gather(points, idx.long())
    assert torch.equal(stand_ins.gather_operation(points.mT.contiguous(), idx).mT, centres)
    distance, neighbours = stand_ins.KNN(5, transpose_mode=True)(points, centres)
    dist2, expected = knn(points, centres, 5)
    assert torch.equal(neighbours, expected)
    torch.testing.assert_close(distance**2, dist2, rtol=1e-3, atol=1e-6)  # torch.cdist may go by products

    a, b = surfaces(3, 9).requires_grad_(), surfaces(5, 6)[2:].requires_grad_()
    ours = chamfer(a, b)
    there, back, in_b, in_a = stand_ins.chamfer_forward(a.detach(), b.detach())
    torch.testing.assert_close((there, back), tuple(distance.detach() for distance in ours))
    weights = torch.rand_like(there), torch.rand_like(back)
    grads = torch.autograd.grad(ours, (a, b), weights)
    torch.testing.assert_close(stand_ins.chamfer_backward(a.detach(), b.detach(), in_b, in_a, *weights), grads)

    sums = stand_ins.scatter(points, torch.arange(50).expand(2, -1) % 3, dim=1, reduce="sum")
    torch.testing.assert_close(sums[:, 1], points[:, 1::3].sum(1))
    with pytest.raises(ValueError, match="sums along axis 1 only; got axis 1, 'mean'"):
        stand_ins.scatter(points, torch.zeros(2, 50, dtype=torch.int64), dim=1, reduce="mean")


def test_stand_ins_are_there_only_while_they_are_needed():
    missing = [name for name in stand_ins.MODULES if importlib.util.find_spec(name.partition(".")[0]) is None]
    with stand_ins.put_in_place() as stood_in, stand_ins.without_gpu():
        assert stood_in == missing
        for name in missing:
            assert importlib.import_module(name) is sys.modules[name]
        assert torch.ones(1).cuda().device.type == "cpu"
    assert not set(missing) & set(sys.modules)


def test_a_checkout_is_forgotten_after_use(tmp_path):
    (tmp_path / "clip_attn").mkdir()
    (tmp_path / "clip_attn" / "__init__.py").write_text("here = True\n")
    with bench_official.importable(tmp_path):
        assert importlib.import_module("clip_attn").here
        assert Path.cwd() == tmp_path
    assert "clip_attn" not in sys.modules
    assert str(tmp_path) not in sys.path


def test_records_lost_and_repeated_are_told_against_a_whole_epoch():
    whole = [[0, 1], [2, 3], [4, 5]]
    assert bench_peer_streams.lost_and_repeated([[5, 4], [3, 2], [1, 0]], whole) == (0, 0)
    assert bench_peer_streams.lost_and_repeated([[0, 1], [1, 2], [1, 5]], whole) == (2, 2)


def test_our_stream_resumes_with_other_ranks_and_loses_nothing(tmp_path):
    library, folder = LIBRARIES["ours"], tmp_path / "cache"
    library.write(folder, Records(bench_peer_streams.SMALL, 40, distinct=8), 16, "zstd")

    def batches(ranks: int, workers: int, state=None) -> tuple[list[list[int]], list[object]]:
        shares, states = [], []
        for rank in range(ranks):
            with library.loader(folder, batch=8, ranks=ranks, rank=rank, workers=workers, state=state) as loader:
                read = [(library.ids(batch), library.state(loader, batch)) for batch in loader]
            shares.append([ids for ids, _ in read])
            states = [state for _, state in read]
        return [[*chain(*parts)] for parts in zip(*shares, strict=True)], states

    whole, states = batches(2, 1)
    after, _ = batches(4, 2, states[1])
    assert after == whole[2:]
    assert bench_peer_streams.lost_and_repeated(whole[:2] + after, whole) == (0, 0)
