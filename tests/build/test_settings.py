"""Every fault of a section is reported, in words that name the key and the value."""

from dataclasses import replace

import pytest

from pipeline.config import BuildConfig, CorpusConfig, ProjectionConfig, TeacherConfig, conflicts
from pipeline.errors import TeacherError
from pipeline.teacher.tower import teacher_conflicts


@pytest.mark.parametrize("section", [CorpusConfig(), ProjectionConfig(), TeacherConfig(), BuildConfig()])
def test_the_defaults_are_sound(section):
    assert list(section.problems()) == []


def test_the_defaults_fit_together():
    assert list(conflicts(CorpusConfig(), ProjectionConfig())) == []
    assert list(teacher_conflicts(TeacherConfig(), ProjectionConfig())) == []


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        (CorpusConfig, {"uri": "meshes"}, "uri = 'meshes' has no kind"),
        (CorpusConfig, {"points": 31}, "points = 31 is outside 32..10000000"),
        (ProjectionConfig, {"image_side": 230}, "image_side = 230 is not a multiple of patch_side = 16"),
        (ProjectionConfig, {"image_side": 225, "patch_side": 15}, "image_side = 225 is not an even number"),
        (ProjectionConfig, {"image_side": 6, "patch_side": 2}, "image_side = 6 is outside 8..4096"),
        (ProjectionConfig, {"patch_side": 0}, "patch_side = 0 is smaller than 1"),
        (ProjectionConfig, {"splat": 4}, "splat = 4 is not an odd number"),
        (ProjectionConfig, {"splat": 17}, "splat = 17 is outside 1..15"),
        (ProjectionConfig, {"reduction": "median"}, "reduction = 'median' is none of sum, mean, max, nearest"),
        (ProjectionConfig, {"points": 31}, "points = 31 is neither 0"),
        (ProjectionConfig, {"normalisation": "none"}, "normalisation = 'none' is none of imagenet, clip, half, unit"),
        (TeacherConfig, {"architecture": ""}, 'architecture = "" is empty'),
        (TeacherConfig, {"architecture": "openai"}, 'architecture = "openai" is inferred from a weights file'),
        (TeacherConfig, {"pretrained": ""}, 'pretrained = "" and weights = "" give no weights'),
        (TeacherConfig, {"quickgelu": "yes"}, "quickgelu = 'yes' is none of auto, on, off"),
        (TeacherConfig, {"precision": "int8"}, "precision = 'int8' is none of"),
        (TeacherConfig, {"batch_size": -1}, "batch_size = -1 is negative"),
        (TeacherConfig, {"device": "gpu"}, "device = 'gpu' is none of auto, cpu, cuda, cuda:N"),
        (TeacherConfig, {"device": "cpu:0"}, "device = 'cpu:0' is none of"),
        (TeacherConfig, {"seed": -1}, "seed = -1 is outside 0..2^63-1"),
        (BuildConfig, {"scheduler": "mpi"}, "scheduler = 'mpi' is none of threads, processes, or an address"),
        (BuildConfig, {"workers": -1}, "workers = -1 is negative"),
        (BuildConfig, {"retries": 101}, "retries = 101 is outside 0..100"),
        (BuildConfig, {"changed": "ask"}, "changed = 'ask' is none of refuse, rebuild"),
        (BuildConfig, {"max_refused": float("nan")}, "max_refused = nan is not a number"),
    ],
)
def test_each_fault_is_named_alone(section, changes, said):
    (problem,) = section(**changes).problems()
    assert problem.startswith(said)


def test_all_faults_of_a_section_come_together():
    assert len(list(ProjectionConfig(image_side=230, splat=2, reduction="x").problems())) == 3  # type: ignore[arg-type]


def test_more_points_drawn_than_stored_is_a_conflict():
    (problem,) = conflicts(CorpusConfig(points=1024), ProjectionConfig(points=2048))
    assert problem == "projection.points = 2048 is more than the stored corpus.points = 1024"


def test_sizes_that_are_not_the_teachers_are_named_with_both_values():
    projection = replace(ProjectionConfig(), image_side=448, patch_side=14)
    assert list(teacher_conflicts(TeacherConfig(), projection)) == [
        "projection.image_side = 448 is not the 224 that teacher.architecture = ViT-B-16 takes",
        "projection.patch_side = 14 is not the 16 that teacher.architecture = ViT-B-16 takes",
    ]


def test_an_unknown_architecture_gets_a_suggestion():
    with pytest.raises(TeacherError, match=r"'ViT-B16' is not a model of open_clip .*did you mean .*ViT-B-16"):
        list(teacher_conflicts(TeacherConfig(architecture="ViT-B16"), ProjectionConfig()))
