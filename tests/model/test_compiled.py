"""The learnt part of a step as one graph, without and with autocast; what stays out of every graph."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from cuda.untraced import untraced
from tests.support.models import assert_same, tiny_batch, tiny_model
from trainer.losses.terms import weighted_sum
from trainer.models.hierarchical.student import I2PMAE, Plan
from trainer.models.random_inputs import Draws


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_a_step_traces_whole_and_gives_the_same_losses_and_gradients(autocast):
    torch.compiler.reset()
    points, maps = tiny_batch()
    results: list[tuple[Tensor, dict[str, Tensor]]] = []
    for compiled in (False, True):
        base = tiny_model()
        model = I2PMAE(base.config, base.masking, teacher_channels=base.teacher_channels, whole=True).train()
        model.initialise(torch.Generator().manual_seed(1))
        draws = Draws.for_records(range(len(points)), model.config, seed=3, epoch=0)
        plan = model.plan(points, points, maps, draws)

        def losses(plan: Plan, drop_path: Tensor, model=model) -> Tensor:
            prediction = model.network(plan, drop_path)
            assert prediction.whole is not None
            return weighted_sum(model.losses(plan, prediction)) + prediction.whole.float().square().mean()

        run = torch.compile(losses, backend="aot_eager", fullgraph=True) if compiled else losses
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            total = run(plan, draws.drop_path)
        total.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((total.detach(), gradients))
    (eager, expected), (traced, got) = results
    assert expected
    # The batch norms add up in another order, which in bfloat16 moves some activations by a rounding step.
    torch.testing.assert_close(traced, eager, rtol=1e-2 if autocast else 1e-5, atol=0)
    if autocast:
        assert got.keys() == expected.keys()
        assert all(value.isfinite().all() for value in got.values())
    else:
        # A bias before a norm has no gradient but noise, which torch's one-by-one sums make larger: seen 4e-4.
        assert_same(expected, got, floor=1e-4)


def test_what_is_not_to_be_traced_runs_as_it_is_between_two_graphs():
    torch.compiler.reset()
    traced: list[bool] = []

    def inner(x: Tensor) -> Tensor:
        traced.append(torch.compiler.is_compiling())
        return x.sin()

    @untraced
    def plan(x: Tensor) -> Tensor:
        return inner(x)

    graphs = torch._dynamo.testing.EagerAndRecordGraphs()
    compiled = torch.compile(lambda x: plan(x + 1) * 2, backend=graphs)
    x = torch.linspace(0, 1, 5)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), (x + 1).sin() * 2)
    assert traced == [False, False]
    assert ["add" in graph.code for graph in graphs.graphs] == [True, False]
    assert not any("sin" in graph.code for graph in graphs.graphs)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(plan, backend="eager", fullgraph=True)(x)


def test_encoding_does_not_load_torch_s_compiler():
    code = (
        "import sys, torch\nfrom tests.support.models import tiny_batch, tiny_model\n"
        "from tests.support.plain_student import plain_student\nimport trainer.models.heads.build\n"
        "points, _ = tiny_batch()\n"
        "tiny_model().eval().encode(points), plain_student().eval().encode(points)\n"
        "sys.exit('loaded' if 'torch._dynamo' in sys.modules else 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
