"""Laws of the plan: every shape in exactly one shard, whatever is committed already."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.build.plan import CommittedShard, ShardTask, plan_shards
from pipeline.errors import BuildError


def names(count, prefix="s"):
    return [f"{prefix}{i}" for i in range(count)]


def commit(ids, tasks):
    """Receipts of these tasks, with every third shape in quarantine."""
    return {
        task.shard: CommittedShard(
            [ids[i] for i in task.indices if i % 3], [ids[i] for i in task.indices if i % 3 == 0]
        )
        for task in tasks
    }


def covered(ids, committed, tasks):
    held = [id for receipt in committed.values() for id in (*receipt.ids, *receipt.quarantined)]
    return sorted([*held, *(ids[i] for task in tasks for i in task.indices)])


def test_full_shards_in_order_and_a_partial_last_one():
    assert plan_shards(names(7), {}, shapes_per_shard=3) == [
        ShardTask(shard=0, indices=(0, 1, 2)),
        ShardTask(shard=1, indices=(3, 4, 5)),
        ShardTask(shard=2, indices=(6,)),
    ]


def test_nothing_to_do_for_a_complete_cache_and_for_an_empty_corpus():
    ids = names(7)
    complete = commit(ids, plan_shards(ids, {}, shapes_per_shard=3))
    assert plan_shards(ids, complete, shapes_per_shard=3) == []
    assert plan_shards([], {}, shapes_per_shard=3) == []


def test_growth_starts_a_new_shard_and_leaves_the_partial_one():
    ids = names(7)
    committed = commit(ids, plan_shards(ids, {}, shapes_per_shard=3))
    assert plan_shards(names(12), committed, shapes_per_shard=3) == [
        ShardTask(shard=3, indices=(7, 8, 9)),
        ShardTask(shard=4, indices=(10, 11)),
    ]


def test_a_lost_partial_shard_in_the_middle_is_made_again_from_its_own_shapes():
    ids = names(12)
    first = commit(ids, plan_shards(ids[:7], {}, shapes_per_shard=3))
    whole = first | commit(ids, plan_shards(ids, first, shapes_per_shard=3))
    lost = {shard: receipt for shard, receipt in whole.items() if shard != 2}
    assert plan_shards(ids, lost, shapes_per_shard=3) == [ShardTask(shard=2, indices=(6,))]


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(1, 9), st.data())
def test_a_killed_build_comes_back_to_the_very_shards_it_would_have_made(count, size, data):
    ids = names(count)
    undisturbed = plan_shards(ids, {}, shapes_per_shard=size)
    survived = data.draw(st.sets(st.sampled_from(undisturbed) if undisturbed else st.nothing()))
    again = plan_shards(ids, commit(ids, survived), shapes_per_shard=size)
    assert sorted([*again, *survived], key=lambda task: task.shard) == undisturbed


@settings(deadline=None)
@given(st.lists(st.integers(0, 15), max_size=4), st.integers(1, 7), st.randoms(use_true_random=False), st.data())
def test_every_shape_is_in_one_shard_through_growth_anywhere_and_lost_shards(growths, size, random, data):
    ids, committed = [], {}
    for round, more in enumerate(growths):
        for id in names(more, f"r{round}-"):
            ids.insert(random.randrange(len(ids) + 1), id)
        tasks = plan_shards(ids, committed, shapes_per_shard=size)
        assert covered(ids, committed, tasks) == sorted(ids)
        assert all(0 < len(task.indices) <= size for task in tasks)
        assert [task.shard for task in tasks] == sorted({task.shard for task in tasks} - set(committed))
        kept = data.draw(st.sets(st.sampled_from(tasks))) if tasks else set()
        committed |= commit(ids, kept)


def test_shapes_of_another_experiment_stay_where_they_are():
    ids = names(7)
    committed = commit(ids, plan_shards(ids, {}, shapes_per_shard=3))
    assert plan_shards(ids[:5], committed, shapes_per_shard=3, wanted=ids[:5]) == []
    grown = ["new", *ids[:5]]
    assert plan_shards(grown, committed, shapes_per_shard=3, wanted=grown) == [ShardTask(shard=3, indices=(0,))]


def test_only_what_is_wanted_is_built_and_indices_without_a_shape_stay_free():
    ids = names(12)
    whole = commit(ids, plan_shards(ids, {}, shapes_per_shard=3))
    stopped = {3: whole[3]}
    wanted = {"s1", "s4", "s5", "s6", "s9"}
    assert plan_shards(ids, stopped, shapes_per_shard=3, wanted=wanted) == [
        ShardTask(shard=0, indices=(1, 4, 5)),
        ShardTask(shard=1, indices=(6,)),
    ]
    assert plan_shards(ids, stopped, shapes_per_shard=3, wanted=["s9"]) == []


def test_shards_come_back_as_they_were_with_shapes_that_nobody_wants_now():
    ids = names(9)
    committed = {0: CommittedShard(("s5", "s1")), 2: CommittedShard(("s8",))}
    tasks = plan_shards(
        ids, committed, shapes_per_shard=3, wanted=["s0", "s3"], restore={1: ["s7", "vanished", "s1", "s3"], 4: ["s6"]}
    )
    assert tasks == [
        ShardTask(shard=1, indices=(7, 3)),
        ShardTask(shard=3, indices=(0,)),
        ShardTask(shard=4, indices=(6,)),
    ]


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 7), st.lists(st.sets(st.integers(0, 39)), max_size=5), st.data())
def test_experiments_in_any_order_leave_each_shape_once(count, size, experiments, data):
    ids, committed = names(count), {}
    asked = set()
    for chosen in experiments:
        wanted = {ids[index] for index in chosen if index < count}
        tasks = plan_shards(ids, committed, shapes_per_shard=size, wanted=wanted)
        asked |= wanted
        committed |= commit(ids, tasks)
        assert covered(ids, committed, []) == sorted(asked)
        assert all(0 < len(task.indices) <= size for task in tasks)
        lost = data.draw(st.sets(st.sampled_from(sorted(committed)))) if committed else set()
        before = {shard: [*committed[shard].ids, *committed[shard].quarantined] for shard in lost}
        rest = {shard: receipt for shard, receipt in committed.items() if shard not in lost}
        again = plan_shards(ids, rest, shapes_per_shard=size, wanted=wanted, restore=before)
        assert {task.shard: [ids[index] for index in task.indices] for task in again} == before
    assert covered(ids, committed, plan_shards(ids, committed, shapes_per_shard=size, wanted=ids)) == sorted(ids)


def test_an_id_that_comes_twice_is_refused():
    with pytest.raises(BuildError, match="3 shapes but only 2 distinct ids"):
        plan_shards(["a", "b", "a"], {}, shapes_per_shard=3)


def test_gaps_that_no_shape_is_left_for_are_refused():
    with pytest.raises(BuildError, match=r"shards 0..1 are missing, but only 1 shapes are left for these 2"):
        plan_shards(["a", "b"], {2: CommittedShard(("a",))}, shapes_per_shard=3)
