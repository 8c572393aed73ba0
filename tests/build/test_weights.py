"""Weights files: every layout gives the same teacher, and what is unsafe, damaged or foreign is refused in words."""

import copy
import json
import pickle
import urllib.error

import pytest
import torch

from pipeline.config import TeacherConfig
from pipeline.errors import TeacherError
from pipeline.teacher.tower import load_teacher
from tests.support.teachers import LAYOUTS, TINY, clip_state, tiny_architecture, tower_state, write_weights


@pytest.fixture(scope="module")
def state():
    return clip_state()


@pytest.fixture
def architecture(tmp_path):
    return tiny_architecture(tmp_path)


def load(architecture, path, **settings):
    return load_teacher(TeacherConfig(architecture=architecture, weights=str(path), device="cpu", **settings))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_teacher(tmp_path, architecture, state, layout):
    teacher = load(architecture, write_weights(tmp_path, layout, state), quickgelu="off")
    wanted = load(architecture, write_weights(tmp_path, "plain", state), quickgelu="off")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(teacher.encode(pixels)[0], wanted.encode(pixels)[0])
    assert teacher.identity() == wanted.identity()
    assert "random_seed" not in teacher.identity()


def test_the_container_is_told_by_its_content_not_its_name(tmp_path, architecture, state):
    path = write_weights(tmp_path, "safetensors", state).rename(tmp_path / "weights.pt")
    assert load(architecture, path).channels == 8


def test_openais_marks_mean_quickgelu_and_a_plain_file_follows_the_architecture(tmp_path, architecture, state):
    assert load(architecture, write_weights(tmp_path, "openai", state)).identity()["quickgelu"] is True
    assert load(architecture, write_weights(tmp_path, "plain", state)).identity()["quickgelu"] is False
    assert (
        load(architecture, write_weights(tmp_path, "openai", state), quickgelu="off").identity()["quickgelu"] is False
    )


def test_the_architecture_openai_is_read_off_the_file(tmp_path, architecture):
    config = copy.deepcopy(TINY)
    config["vision_cfg"]["head_width"] = 64  # OpenAI's own
    path = write_weights(tmp_path, "tower", clip_state(config))
    teacher = load("openai", path)
    assert (teacher.image_side, teacher.patch_side, teacher.channels) == (32, 8, 8)
    assert teacher.identity()["quickgelu"] is True
    (tmp_path / "wide.json").write_text(json.dumps(config))
    named = load(str(tmp_path / "wide.json"), path, quickgelu="on")
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(teacher.encode(pixels)[1], named.encode(pixels)[1])


def test_weights_that_may_be_of_either_gelu_must_say_which(tmp_path):
    config = {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 224, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": TINY["text_cfg"],
    }
    path = write_weights(tmp_path, "tower", clip_state(config))
    with pytest.raises(TeacherError, match=r"(?s)exist with QuickGELU .* Set teacher.quickgelu = on") as caught:
        load("ViT-B-16", path)
    assert str(path) in str(caught.value)


def test_missing_unexpected_and_reshaped_tensors_are_named_together(tmp_path, architecture, state):
    damaged = tower_state(state)
    del damaged["ln_post.weight"], damaged["proj"]
    damaged["extra"] = torch.zeros(1)
    damaged["conv1.weight"] = torch.zeros(64, 3, 16, 16)
    torch.save(damaged, tmp_path / "x.pt")
    with pytest.raises(TeacherError) as caught:
        load(architecture, tmp_path / "x.pt")
    text = str(caught.value)
    assert "2 missing: proj, ln_post.weight" in text
    assert "1 unexpected: extra" in text
    assert "1 of another shape: conv1.weight (64, 3, 16, 16) for (64, 3, 8, 8)" in text
    assert "Set teacher.architecture to the architecture of these weights" in text


def test_only_the_first_few_of_many_keys_are_named(tmp_path, architecture, state):
    cut = {name: tensor for name, tensor in tower_state(state).items() if "resblocks.1" not in name}
    torch.save(cut, tmp_path / "x.pt")
    with pytest.raises(TeacherError, match=r"12 missing: (transformer\S+ ){3}transformer\S+ \.\.\.\n"):
        load(architecture, tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_a_torchscript_archive_is_not_run_and_the_remedies_are_named(tmp_path, architecture):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "ViT-B-16.pt"))
    with pytest.raises(TeacherError, match=r"is a TorchScript archive, which is a program") as caught:
        load(architecture, tmp_path / "ViT-B-16.pt")
    assert "teacher.pretrained = openai" in str(caught.value)
    assert "torch.jit.load" in str(caught.value)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a weights file was executed",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_pickled_objects_are_not_opened(tmp_path, architecture, save):
    path = tmp_path / "x.pt"
    if save == "torch":
        torch.save({"visual.class_embedding": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps({"visual.class_embedding": Bomb()}))
    with pytest.raises(
        TeacherError, match=r"x.pt (needs _pytest.outcomes._Fail to be read|is not a valid PyTorch file)"
    ):
        load(architecture, path)


@pytest.mark.parametrize("layout", ["plain", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_damaged(tmp_path, architecture, state, layout, share):
    path = write_weights(tmp_path, layout, state)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(TeacherError, match=f"{path.name}(: not a complete| is not a valid| is truncated| is empty)"):
        load(architecture, path)


def test_a_file_of_another_layout_is_named_with_its_first_keys(tmp_path, architecture):
    torch.save({"vision_model.embeddings.class_embedding": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(TeacherError, match=r"no vision tower found .*vision_model\.embeddings") as caught:
        load(architecture, tmp_path / "x.pt")
    assert "transformers package" in str(caught.value)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "y.pt")
    with pytest.raises(TeacherError, match=r"no vision tower found among its 1 keys \(weight, \.\.\.\)"):
        load(architecture, tmp_path / "y.pt")
    torch.save([1, 2], tmp_path / "z.pt")
    with pytest.raises(TeacherError, match="contains a list without tensors"):
        load(architecture, tmp_path / "z.pt")


def test_a_file_that_is_not_there(architecture, tmp_path):
    with pytest.raises(TeacherError, match=r"teacher.weights = '.*nothing.pt' is not a file"):
        load(architecture, tmp_path / "nothing.pt")


def test_without_a_network_the_error_says_which_file_to_get_and_how_to_name_it(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def offline(repository, name):
        asked.append((repository, name))
        raise LocalEntryNotFoundError("cannot find the file in the local cache; check your connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(TeacherError) as caught:
        load_teacher(TeacherConfig(device="cpu"))
    assert asked == [("timm/vit_base_patch16_clip_224.openai", "open_clip_model.safetensors")]
    text = str(caught.value)
    assert "teacher.architecture = ViT-B-16, teacher.pretrained = openai: the weights could not be downloaded" in text
    assert "Fetch open_clip_model.safetensors from https://huggingface.co/timm/vit_base_patch16_clip_224.openai" in text
    assert "teacher.weights = PATH/TO/open_clip_model.safetensors" in text
    assert "teacher.quickgelu = on" in text


def test_a_tag_without_a_hub_repository_names_its_address(monkeypatch):
    import open_clip

    def offline(url):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(open_clip, "download_pretrained_from_url", offline)
    entry = {"url": "https://example.org/x/ViT.pt", "hf_hub": ""}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda architecture, tag: entry)
    with pytest.raises(TeacherError, match=r"(?s)Fetch https://example.org/x/ViT.pt .* = PATH/TO/ViT.pt"):
        load_teacher(TeacherConfig(device="cpu", pretrained="other"))


def test_downloaded_weights_take_the_tags_quickgelu(tmp_path, monkeypatch, architecture, state):
    import huggingface_hub
    import open_clip

    path = write_weights(tmp_path, "safetensors", state)
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda a, tag: {"hf_hub": "org/name/", "quick_gelu": True})
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, name: str(path))
    teacher = load_teacher(TeacherConfig(architecture=architecture, pretrained="tag", device="cpu"))
    assert teacher.identity()["quickgelu"] is True


def test_an_unknown_tag_lists_those_there_are():
    with pytest.raises(TeacherError, match=r"'laion9b' is not a tag of ViT-B-16 in open_clip; the tags are: openai, "):
        load_teacher(TeacherConfig(pretrained="laion9b", device="cpu"))


def test_a_json_that_describes_no_model(tmp_path):
    (tmp_path / "x.json").write_text('{"embed_dim": 8}')
    with pytest.raises(TeacherError, match="is not a model description"):
        load_teacher(TeacherConfig(architecture=str(tmp_path / "x.json"), pretrained="random", device="cpu"))
