"""Towers of timm, against timm's own forward pass and attention asked for in full."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import ProjectionConfig, TeacherConfig
from pipeline.errors import TeacherError
from pipeline.teacher.tower import load_teacher, size_conflicts, teacher_conflicts
from tests.support.reference import shared_dir

TINY = "timm:test_vit"  # six blocks of 64 channels, two heads, images of 160, patches of 16
# Registers; rotations and biases of its own; rotations a block; a pool with a register; a pool with a class token.
TOWERS = {
    "timm:test_vit": 48,
    "timm:vit_small_patch14_reg4_dinov2": 42,
    "timm:vit_small_patch16_dinov3_qkvb": 48,
    "timm:vit_small_patch16_rope_mixed_224": 32,
    "timm:test_vit3": 64,
    "timm:vit_pe_core_tiny_patch16_384": 48,
}
POOLED = ("timm:test_vit3", "timm:vit_pe_core_tiny_patch16_384")


def config(architecture=TINY, **settings):
    chosen = {"architecture": architecture, "pretrained": "random", "device": "cpu", "seed": 3} | settings
    return TeacherConfig(**chosen)


def images(teacher, count=3, seed=0):
    side = teacher.image_side
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def disturbed(teacher, seed=5):
    """Every parameter moved, so that layer scale, biases, registers and norms matter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in teacher._tower.net.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return teacher


def attention_in_full(teacher, pixels):
    """All weights of the attention that sums up, from timm's own explicit softmax -> [M, L], mean over heads."""
    net = teacher._tower.net
    looking = net.blocks[-1].attn if net.attn_pool is None else net.attn_pool
    kept = []
    softmax = torch.Tensor.softmax
    looking.fused_attn = False
    handle = looking.register_forward_pre_hook(lambda *_: kept.append(None))
    try:
        torch.Tensor.softmax = lambda tensor, dim: kept.append(softmax(tensor, dim)) or kept[-1]
        net.forward_head(net.forward_features(pixels))
    finally:
        torch.Tensor.softmax = softmax
        handle.remove()
        looking.fused_attn = True
    return kept[kept.index(None) + 1][:, :, 0].mean(dim=1)


@pytest.mark.parametrize("name", TOWERS)
def test_features_and_saliency_are_timms_own(name):
    teacher = disturbed(load_teacher(config(name, image_side=TOWERS[name])))
    net, pixels = teacher._tower.net, images(teacher)
    tokens = (TOWERS[name] // teacher.patch_side) ** 2
    wanted = net.forward_features(pixels)
    features, saliency, whole = teacher.encode_views(pixels)
    assert features.shape == (3, tokens, net.embed_dim)
    # float32 sums in another order; measured 3e-6 of values up to 10
    torch.testing.assert_close(features, wanted[:, -tokens:], rtol=1e-4, atol=2e-5)
    full = attention_in_full(teacher, pixels)
    torch.testing.assert_close(full.sum(dim=1), torch.ones(3))
    torch.testing.assert_close(saliency, full[:, -tokens:], rtol=1e-4, atol=1e-6)
    assert saliency.std(dim=1).min() > 1e-4  # not flat: a wrong row would show
    torch.testing.assert_close(whole, net.forward_head(wanted, pre_logits=True), rtol=1e-4, atol=2e-5)
    both = teacher.encode_tokens(pixels)
    assert torch.equal(both[:, 0], whole)
    assert torch.equal(both[:, 1:], features)
    assert all(torch.equal(one, other) for one, other in zip(teacher.encode(pixels), (features, saliency), strict=True))


@pytest.mark.parametrize("name", TOWERS)
def test_only_a_class_token_attends_to_itself(name):
    teacher = load_teacher(config(name, image_side=TOWERS[name]))
    assert teacher.class_problem is None
    if name in POOLED:
        assert teacher.identity()["saliency"] == "attention pool"
        with pytest.raises(TeacherError, match="pools by attention; it has no class token that attends"):
            teacher.encode_class(images(teacher))
        return
    assert teacher.identity()["saliency"] == "class token"
    feature, attention = teacher.encode_class(images(teacher))
    full = attention_in_full(teacher, images(teacher))
    assert attention.shape == (3, teacher.tokens + 1)
    torch.testing.assert_close(attention[:, 0], full[:, 0], rtol=1e-4, atol=1e-6)
    assert torch.equal(attention[:, 1:], teacher.encode(images(teacher))[1])
    assert torch.equal(feature, teacher.encode_views(images(teacher))[2])


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_vit3", "timm:vit_small_patch16_dinov3_qkvb"])
def test_an_image_is_seen_alone_and_none_is_no_fault(name):
    teacher = load_teacher(config(name, image_side=48, batch_size=5))
    pixels = images(teacher, 5)
    others = images(teacher, 5, seed=1)
    others[2] = pixels[2]
    for one, other in zip(teacher.encode_views(pixels), teacher.encode_views(others), strict=True):
        assert torch.equal(one[2], other[2])
    assert [len(part) for part in teacher.encode_views(pixels[:0])] == [0, 0, 0]
    assert teacher.encode_tokens(pixels[:0]).shape == (0, 10, teacher.channels)


@pytest.mark.parametrize(("precision", "allowed"), [("float16", 5e-3), ("bfloat16", 4e-2)])
@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_vit3", "timm:vit_small_patch16_dinov3_qkvb"])
def test_half_precisions_differ_by_their_rounding(name, precision, allowed):
    exact, rounded = (load_teacher(config(name, image_side=48, precision=each)) for each in ("float32", precision))
    wanted, found = exact.encode(images(exact))[0], rounded.encode(images(exact))[0]
    assert found.dtype == torch.float32
    assert 0 < ((found - wanted).square().mean() / wanted.square().mean()).sqrt() < allowed
    assert exact.identity()["weights_sha256"] == rounded.identity()["weights_sha256"]


def written(folder, teacher, name="weights.safetensors", **changes):
    state = {key: value.contiguous() for key, value in teacher._tower.net.state_dict().items()} | changes
    state = {key: value for key, value in state.items() if value is not None}
    path = folder / name
    if path.suffix == ".pth":
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, path)
    else:
        save_file(state, path)
    return str(path)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_a_file_gives_back_its_teacher_and_its_classifier_is_left(tmp_path, name):
    given = disturbed(load_teacher(config()))
    path = written(tmp_path, given, name, **{"head.weight": torch.ones(7, 64), "head.bias": torch.ones(7)})
    teacher = load_teacher(config(weights=path))
    pixels = images(given)
    assert all(torch.equal(a, b) for a, b in zip(given.encode_views(pixels), teacher.encode_views(pixels), strict=True))
    identity = teacher.identity()
    assert identity["sizes"] == {
        "image_side": 160, "patch_side": 16, "width": 64, "blocks": 6, "heads": 2, "registers": 0
    }  # fmt: skip
    assert not {"random_seed", "positions"} & set(identity)
    assert str(tmp_path) not in str(identity)


def test_positions_are_resized_by_timm_and_said_so(tmp_path):
    from timm.layers import resample_abs_pos_embed

    given = disturbed(load_teacher(config(image_side=112)))  # a grid of 7 in the file, neither 10 nor 5
    path = written(tmp_path, given)
    as_it_is, resized = (load_teacher(config(weights=path, image_side=side)) for side in (112, 80))
    assert "positions" not in as_it_is.identity()
    assert resized.identity()["positions"] == {
        "from": 7, "to": 5, "by": "timm.layers.resample_abs_pos_embed, bicubic, antialias"
    }  # fmt: skip
    assert resized.identity()["weights_sha256"] == as_it_is.identity()["weights_sha256"]
    wanted = resample_abs_pos_embed(given._tower.net.pos_embed, new_size=[5, 5], old_size=[7, 7], num_prefix_tokens=1)
    assert torch.equal(resized._tower.net.pos_embed, wanted)
    assert load_teacher(config(weights=path)).identity()["positions"]["to"] == 10


def test_dinov2s_own_layout_with_registers_is_timms(tmp_path):
    name = "timm:vit_small_patch14_reg4_dinov2"
    given = disturbed(load_teacher(config(name, image_side=42)))
    state = given._tower.net.state_dict()
    places = torch.cat([torch.full((1, 1, 384), 0.25), state["pos_embed"]], dim=1)
    original = {
        "register_tokens": state["reg_token"], "reg_token": None, "cls_token": state["cls_token"] - 0.25,
        "pos_embed": places, "mask_token": torch.zeros(1, 384),
    }  # fmt: skip
    teacher = load_teacher(config(name, image_side=42, weights=written(tmp_path, given, **original)))
    pixels = images(given)
    torch.testing.assert_close(teacher.encode(pixels)[0], given.encode(pixels)[0], rtol=1e-4, atol=1e-5)
    assert "positions" not in teacher.identity()
    assert teacher.identity()["sizes"]["registers"] == 4


def test_what_does_not_fit_is_named_together(tmp_path):
    given = load_teacher(config())
    changes = {"cls_token": None, "norm.bias": None, "extra.weight": torch.ones(2), "norm.weight": torch.ones(65)}
    with pytest.raises(TeacherError) as caught:
        load_teacher(config(weights=written(tmp_path, given, **changes)))
    text = str(caught.value)
    assert "2 missing: cls_token, norm.bias" in text
    assert "1 unexpected: extra.weight" in text
    assert "1 of another shape: norm.weight (65,) for (64,)" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pos_embed": torch.ones(1, 49, 64)}, r"pos_embed has 49 positions; timm:test_vit has 1 before those"),
        ({"patch_embed.proj.weight": torch.ones(64, 3, 8, 8)}, r"patches of 8 x 8 pixels; .* has 16 x 16"),
        ({"pos_embed": None}, r"1 missing: pos_embed"),
    ],
)  # fmt: skip
def test_files_of_other_grids_and_patches_are_refused(tmp_path, changes, said):
    with pytest.raises(TeacherError, match=said):
        load_teacher(config(weights=written(tmp_path, load_teacher(config()), **changes)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:test_vit2", "neither a class token nor an attention pool"),
        ("timm:eva02_tiny_patch14_224", "its last norm follows the pooling"),
        ("timm:resnet18", "one of timm's plain vision transformers"),
        ("timm:flexivit_small", "resizes its position embedding by other rules"),
        ("timm:vit_base_patch16_xp_224", "its blocks are ParallelScalingBlock"),
        ("timm:vit_smal_patch14_dinov2", "did you mean timm:vit_small_patch14_dinov2"),
        ("timm:", "is not a vision transformer of timm"),
        ("timm:test_vit.r160_in1k", 'set teacher.architecture = "timm:test_vit" and teacher.pretrained = "r160_in1k"'),
    ],
)
def test_towers_that_cannot_teach_are_refused_by_name(name, said):
    for ask in (load_teacher, lambda each: list(teacher_conflicts(each, ProjectionConfig()))):
        with pytest.raises(TeacherError, match=said):
            ask(config(name))


def test_tags_are_timms_and_a_download_that_fails_says_what_to_fetch(monkeypatch):
    name = "timm:vit_small_patch14_dinov2"
    with pytest.raises(TeacherError, match=r"'openai' is not a tag of timm:vit_small_patch14_dinov2 in .*lvd142m"):
        load_teacher(config(name, pretrained="openai"))

    def no_network(repository, filename):
        raise OSError(f"no route to {repository}/{filename}")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_network)
    with pytest.raises(TeacherError, match="could not be downloaded") as caught:
        load_teacher(config(name, pretrained="lvd142m"))
    text = str(caught.value)
    assert "model.safetensors from https://huggingface.co/timm/vit_small_patch14_dinov2.lvd142m" in text
    assert "teacher.weights = PATH/TO/model.safetensors" in text


def test_a_downloaded_file_fills_the_tower(monkeypatch, tmp_path):
    path = written(tmp_path, disturbed(load_teacher(config())))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, filename: path)
    fetched, named = load_teacher(config(pretrained="r160_in1k")), load_teacher(config(weights=path))
    assert fetched.identity() == named.identity()


def test_images_must_be_of_the_towers_side_and_moments():
    dinov2 = config("timm:vit_small_patch14_dinov2", pretrained="lvd142m")
    fitting = ProjectionConfig(image_side=224, patch_side=14)
    assert list(teacher_conflicts(replace(dinov2, image_side=224), fitting)) == []
    assert list(teacher_conflicts(dinov2, replace(fitting, normalisation="clip"))) == [
        "projection.image_side = 224 is not the 518 that teacher.architecture = timm:vit_small_patch14_dinov2 takes",
        "projection.normalisation = clip is not the imagenet that teacher.architecture = "
        "timm:vit_small_patch14_dinov2 was trained with",
    ]
    siglip = config("timm:vit_base_patch16_siglip_224", pretrained="v2_webli")
    assert list(teacher_conflicts(siglip, replace(fitting, patch_side=16, normalisation="half"))) == []
    with pytest.raises(TeacherError, match=r"teacher.image_side = 225 is not a multiple of 14, the patch side"):
        load_teacher(replace(dinov2, image_side=225))
    with pytest.raises(TeacherError, match=r"mean \(0.43, 0.411, 0.296\) .* projection.normalisation supports only"):
        list(teacher_conflicts(config("timm:vit_large_patch16_dinov3", pretrained="sat493m"), fitting))


def test_a_loaded_teacher_says_which_moments_it_knows(tmp_path, caplog):
    random = load_teacher(config())
    assert random.normalisations == ()
    teacher = load_teacher(config(weights=written(tmp_path, random)))
    assert len(teacher.normalisations) == 1
    wrong = next(word for word in ("imagenet", "half") if word not in teacher.normalisations)
    projection = ProjectionConfig(image_side=160, patch_side=16, normalisation=wrong)
    assert len(list(size_conflicts("it", 160, 16, projection, teacher.normalisations))) == 1
    assert "does not say with which" not in caplog.text
    name = "timm:vit_small_patch16_224"  # DINO's weights know ImageNet's moments, those of timm 0.5
    path = written(tmp_path, load_teacher(config(name, image_side=32)), "several.safetensors")
    assert load_teacher(config(name, image_side=32, weights=path)).normalisations == ("imagenet", "half")
    assert "trained with projection.normalisation = imagenet or half" in caplog.text


def test_moments_that_no_setting_gives_are_named(tmp_path, caplog, monkeypatch):
    """As DINOv3's ViT-L has: one tag knows ImageNet's moments, the other those of satellite images."""
    path = written(tmp_path, load_teacher(config()))
    tags = {
        "lvd": SimpleNamespace(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        "sat": SimpleNamespace(mean=(0.43, 0.411, 0.296), std=(0.213, 0.156, 0.143)),
    }
    monkeypatch.setattr("pipeline.teacher.timm_tower._entries", lambda name: tags)
    assert load_teacher(config(weights=path)).normalisations == ("imagenet",)
    assert (
        "= imagenet or mean (0.43, 0.411, 0.296) and standard deviation (0.213, 0.156, 0.143), which no" in caplog.text
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"architecture": "ViT-B-16", "image_side": 224}, "image_side = 224 applies to timm's towers"),
        ({"image_side": -14}, "image_side = -14 is outside 0..4096"),
        ({"quickgelu": "on"}, "quickgelu = 'on' does not apply to timm's"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, said):
    (problem,) = config(**settings).problems()
    assert problem.startswith(said)


def test_a_version_that_computes_otherwise_is_refused(monkeypatch):
    from timm.models.vision_transformer import VisionTransformer

    forward = VisionTransformer.forward_features
    monkeypatch.setattr(VisionTransformer, "forward_features", lambda self, x: forward(self, x) * 1.01)
    with pytest.raises(TeacherError, match="this version of timm is not supported"):
        load_teacher(config())


def test_a_real_dinov2_sees_through_timm_what_it_sees_through_open_clip(tmp_path):
    folder = shared_dir("teachers")
    plain = load_teacher(
        TeacherConfig(
            architecture=str(folder / "dinov2-small-14.json"),
            weights=str(folder / "dinov2-small-14.safetensors"),
            device="cpu",
        )
    )
    # By hand, not by the code under test. The file's patch bias stands in its positions.
    renamed = {"patch_embed.proj.bias": torch.zeros(384)}
    words = {
        "transformer.resblocks": "blocks", "ln_1": "norm1", "ln_2": "norm2", "ls_1": "ls1", "ls_2": "ls2",
        "in_proj_": "qkv.", "out_proj": "proj", "c_fc": "fc1", "c_proj": "fc2", "ln_post": "norm",
        "conv1": "patch_embed.proj",
    }  # fmt: skip
    for key, tensor in load_file(folder / "dinov2-small-14.safetensors").items():
        name = key.removeprefix("visual.")
        match name:
            case "class_embedding":
                renamed["cls_token"] = tensor[None, None]
            case "positional_embedding":
                renamed["pos_embed"] = tensor[None]
            case "proj":
                assert torch.equal(tensor.float(), torch.eye(384))
            case _ if key.startswith("visual."):
                for old, new in words.items():
                    name = name.replace(old, new)
                renamed[name] = tensor.contiguous()
    save_file(renamed, tmp_path / "dinov2.safetensors")
    teacher = load_teacher(
        config("timm:vit_small_patch14_dinov2", image_side=224, weights=str(tmp_path / "dinov2.safetensors"))
    )
    assert teacher.normalisations == ("imagenet",)
    pixels = images(plain, 2)
    for wanted, found in zip(plain.encode_views(pixels), teacher.encode_views(pixels), strict=True):
        # float32 sums in another order, of features up to 10 after twelve blocks
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * min(1.0, wanted.abs().max().item()))
    assert math.isclose(teacher.encode(pixels)[0].square().mean().sqrt(), 2.3, rel_tol=0.3)  # the README's


def test_the_example_of_the_docs_fits_together(tmp_path):
    from pathlib import Path

    from cli.experiment.toml import load_experiment

    text = (Path(__file__).resolve().parents[2] / "docs" / "teacher.md").read_text(encoding="utf-8")
    (example,) = [part.partition("```")[0] for part in text.split("```toml\n")[1:] if part.startswith("# dinov2.toml")]
    (tmp_path / "dinov2.toml").write_text(example)
    experiment = load_experiment(str(tmp_path / "dinov2.toml"))
    assert experiment.teacher.architecture == "timm:vit_small_patch14_dinov2"
    assert list(teacher_conflicts(experiment.teacher, experiment.projection)) == []
