"""Weights of a vision tower: safe reading of files, and download of those open_clip knows.

Three layouts are read: OpenAI's and open_clip's state dicts (the same key names, the vision tower under `visual.`) and
a vision tower alone (no prefix). Containers: safetensors, and PyTorch files that contain only tensors.
"""

import logging
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from pipeline.errors import TeacherError
from teacher_cache.foreign import misnomer, without_wrappers

__all__ = [
    "TowerWeights",
    "cached_weights",
    "check_kind",
    "download_weights",
    "openai_architecture",
    "own_items",
    "read_pickled",
    "read_tensors",
    "read_weights",
]

logger = logging.getLogger(__name__)

# Scalars that OpenAI's own archives carry beside their tensors; open_clip's files never do.
OPENAI_MARKERS = frozenset({"input_resolution", "context_length", "vocab_size"})
OPENAI_HEAD_WIDTH = 64
HUB_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # in the order open_clip tries them
INSIDE = ("state_dict", "model_state_dict", "model")  # where a training checkpoint has its weights
_KEYS_SHOWN = 4
_NUMBERS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "u1": "B", "b1": "?"}  # NumPy's code -> struct's
_DATA = "tensors, dictionaries and numbers only"
_OPENAI_BY_NAME = "\n  teacher.pretrained = openai without teacher.weights downloads OpenAI's weights as safetensors."


@dataclass(frozen=True)
class TowerWeights:
    """The vision tower of a weights file.

    tensors  named as in open_clip's VisionTransformer (`read_tensors`: as in the file), dtype as stored.
    openai   True when the file carries the marks of OpenAI's own archives (so QuickGELU is certain).
    source   the file, for messages.
    """

    tensors: Mapping[str, Tensor]
    openai: bool
    source: str


def read_weights(path: str | Path) -> TowerWeights:
    """Read the vision tower of a weights file; the container is detected by its content, not by its name.

    Raises TeacherError as `read_tensors` does, and for a file without a vision tower in a layout listed above.
    """
    path = Path(path).expanduser()
    state = _read_state(path)
    prefix = "visual." if any(key.startswith("visual.") for key in state) else ""
    tower = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if "class_embedding" not in tower or "conv1.weight" not in tower:
        _refuse_layout(state, path)
    return TowerWeights(tower, bool(OPENAI_MARKERS & state.keys()), str(path))


def read_tensors(path: str | Path) -> TowerWeights:
    """Read all tensors of a weights file under their own names without wrappers' prefixes, in any layout.

    Where names begin with `visual.`, a safetensors file gives these alone: the text tower is not read.

    Raises TeacherError for a file that is absent, damaged, executable (TorchScript) or pickled with anything but
    tensors.
    """
    path = Path(path).expanduser()
    state = _read_state(path)
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    return TowerWeights(tensors, bool(OPENAI_MARKERS & state.keys()), str(path))


def _read_state(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise TeacherError(f"teacher.weights = {str(path)!r} is not a file; expected a .safetensors, .pt or .bin file")
    head = _head(path)
    # safetensors: eight bytes of length, then a JSON object
    if head[8:9] == b"{":
        state = _read_safetensors(path)
    else:
        state = read_pickled(path, instead=_OPENAI_BY_NAME)
    return _unwrap(state, path)


def read_pickled(path: str | Path, *, mapped: bool = False, instead: str = "") -> Any:
    """Load a PyTorch file that holds data alone, without running anything in it.

    A pickle can call any function. Here only what torch counts as data is built (tensors, dictionaries,
    lists, text, numbers), and NumPy's numbers, common in metrics, which come back as Python's; a file that names
    anything else is refused before it is used.

    mapped   leave the tensors of a zip file on the disk until they are used; the file must then not be written to
    instead  a further remedy, for a file that is a program
    ->       what was saved, tensors in the computer's memory

    Raises OSError for a file that cannot be opened, and TeacherError for one that is damaged, of another kind (see
    `check_kind`), or needs more than data to be read.
    """
    path = Path(path)
    head = _head(path)
    zipped = _is_zip(path)
    if not zipped and head.startswith(b"PK"):
        raise TeacherError(f"{path} is truncated: a zip archive without its directory at the end. Download it again.")
    if zipped and _is_program(path):
        raise TeacherError(
            f"{path} is a TorchScript archive, which is a program; expected {_DATA}.{instead}\n"
            "  If you trust the file, convert it once:\n"
            "    python -c \"import torch; torch.save(torch.jit.load('IN.pt', 'cpu').state_dict(), 'OUT.pt')\""
        )
    allowed: list[Any] = [(_NumpyType, "numpy.dtype")]
    allowed += [(_numpy_number, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipped)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is not None:
            raise TeacherError(
                f"{path} needs {named[1]} to be read; expected {_DATA}. Such a file can run any code, so it was not "
                "opened. If you trust it, load it elsewhere and save only its state dict, preferably as safetensors."
            ) from None
        raise TeacherError(f"{path} is not a valid PyTorch file ({_first_line(error)}). Download it again.") from None
    except Exception as error:  # random bytes can make the unpickler raise nearly any class of error
        raise TeacherError(f"{path} is not a valid PyTorch file ({_first_line(error)}). Download it again.") from None


def check_kind(path: str | Path) -> None:
    """Raise TeacherError for what is no weights file at all (a web page, a Git LFS pointer, ...), with what it is."""
    _head(Path(path))


def own_items(mapping: dict[Any, Any]) -> dict[Any, Any]:
    """Copy a dictionary from a file: an OrderedDict can carry an attribute `items` that is not dict's method."""
    return dict(dict.items(mapping))


def openai_architecture(weights: TowerWeights) -> dict[str, Any]:
    """Infer the sizes of a tower in OpenAI's layout from its tensors, as open_clip does: heads are 64 wide.

    ->  {"embed_dim", "vision_cfg": {"image_size", "patch_size", "width", "layers", "head_width"}}

    Raises TeacherError when the tensors do not describe a ViT.
    """
    try:
        tensors = weights.tensors
        width, _, patch, _ = tensors["conv1.weight"].shape
        positions, _ = tensors["positional_embedding"].shape
        _, channels = tensors["proj"].shape
    except (KeyError, ValueError) as error:
        raise TeacherError(
            f"{weights.source}: not a ViT in OpenAI's layout ({error}).\n  Set teacher.architecture."
        ) from error
    layers = sum(key.endswith(".attn.in_proj_weight") for key in tensors)
    side = round((positions - 1) ** 0.5)
    if side * side + 1 != positions or width % OPENAI_HEAD_WIDTH or not layers:
        raise TeacherError(
            f"{weights.source}: {positions} positions, width {width} and {layers} blocks are not a ViT of OpenAI, "
            f"which has a square grid and heads of width {OPENAI_HEAD_WIDTH}.\n"
            "  Set teacher.architecture."
        )
    vision = {
        "image_size": side * patch,
        "patch_size": patch,
        "width": width,
        "layers": layers,
        "head_width": OPENAI_HEAD_WIDTH,
    }
    return {"embed_dim": channels, "vision_cfg": vision}


def download_weights(architecture: str, tag: str, entry: Mapping[str, Any]) -> Path:
    """Return the local file of open_clip's weights for (architecture, tag), downloaded from the hub if not cached.

    entry  open_clip's description of those weights: `hf_hub` ("org/name/" or "org/name/file") or `url`.

    Raises TeacherError, with the file to download by hand and the settings that name it, when the download fails.
    """
    hub, url = entry.get("hf_hub", ""), entry.get("url", "")
    repository, _, name = hub.rpartition("/")
    logger.info("teacher weights %s %s: looking in the local cache, then at %s", architecture, tag, repository or url)
    try:
        if not hub:
            from open_clip import download_pretrained_from_url

            return Path(download_pretrained_from_url(url))
        return _from_hub(repository, (name,) if name else HUB_NAMES)
    except (OSError, RuntimeError, ValueError) as error:  # the hub's client and urllib: every failure is one of these
        where = f"{name or HUB_NAMES[0]} from https://huggingface.co/{repository}" if hub else url
        gelu = "\n    teacher.quickgelu = on" if entry.get("quick_gelu") else ""
        raise TeacherError(
            f"teacher.architecture = {architecture}, teacher.pretrained = {tag}: the weights could not be downloaded "
            f"({type(error).__name__}: {_first_line(error)}).\n"
            f"  Fetch {where} on a machine with a network, put the file anywhere on this one, and set\n"
            f"    teacher.weights = PATH/TO/{name or HUB_NAMES[0] if hub else url.rpartition('/')[2]}{gelu}"
        ) from error


def cached_weights(architecture: str, tag: str, entry: Mapping[str, Any]) -> Path | None:
    """Find the local copy that `download_weights` would use, without a look at the network; None: there is none."""
    hub, url = entry.get("hf_hub", ""), entry.get("url", "")
    if not hub:
        path = Path.home() / ".cache" / "clip" / url.rpartition("/")[2]  # where open_clip puts them
        return path if url and path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    repository, _, name = hub.rpartition("/")
    for each in (name,) if name else HUB_NAMES:
        found = try_to_load_from_cache(repository, each)
        if isinstance(found, str):
            return Path(found)
    return None


def _from_hub(repository: str, names: tuple[str, ...]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in names[:-1]:
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError:
            raise  # no network and not in the cache: the other name would only repeat the wait
        except EntryNotFoundError:
            continue  # the repository has no file of this name
    return Path(hf_hub_download(repository, names[-1]))


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            prefix = without_wrappers(names)
            towers = [name for name in names if name.startswith(f"{prefix}visual.")] or names
            wanted = set(towers) | (OPENAI_MARKERS & set(names))
            return {name: file.get_tensor(name) for name in names if name in wanted}
    except SafetensorError as error:
        raise TeacherError(f"{path}: not a complete safetensors file ({error}).\n  Download it again.") from error


def _unwrap(state: Any, path: Path) -> dict[str, Any]:
    """Return the state dict itself: training checkpoints nest it under a key, and wrappers prefix all names."""
    while isinstance(state, dict):
        state = own_items(state)
        inner = next((state[key] for key in INSIDE if isinstance(state.get(key), dict)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise TeacherError(f"{path}: contains a {type(state).__name__} without tensors; expected a state dict.")
    names = [key for key in state if isinstance(key, str)]
    if len(names) < len(state):
        raise TeacherError(f"{path}: has names that are not strings; expected a state dict.")
    prefix = without_wrappers(names)
    if prefix:
        logger.info("%s: all names begin with %r, which is removed", path, prefix)
    return {name.removeprefix(prefix): state[name] for name in names}


def _refuse_layout(state: Mapping[str, Any], path: Path) -> NoReturn:
    shown = ", ".join(list(state)[:_KEYS_SHOWN])
    remedy = (
        "Expected keys such as visual.class_embedding (OpenAI, open_clip) or class_embedding (an image tower only)."
    )
    if any(key.startswith("vision_model.") for key in state):
        remedy = (
            "This is the layout of the transformers package. Download the same weights in open_clip's: their "
            "repositories on the hub have open_clip_model.safetensors."
        )
    raise TeacherError(f"{path}: no vision tower found among its {len(state)} keys ({shown}, ...).\n  {remedy}")


def _head(path: Path) -> bytes:
    """The first kilobyte. Raises TeacherError as `check_kind` does."""
    with path.open("rb") as file:
        head = file.read(1024)
    found = misnomer(head)
    if found is not None:
        raise TeacherError(f"{path} {found}.")
    return head


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # a directory that points to other disks
        return True


def _is_program(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition("/")[2] == "constants.pkl" or "/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return False  # damaged; torch's message says how


class _NumpyType:
    """Stands in for numpy.dtype while a file is read, so that numpy's own unpickling never sees the file."""

    def __init__(self, code: Any, *flags: Any) -> None:
        if code not in _NUMBERS:
            raise pickle.UnpicklingError(f"GLOBAL numpy.dtype({code!r})")
        self.format = "<" + _NUMBERS[code]

    def __setstate__(self, state: Any) -> None:
        if state[1] == ">":
            self.format = ">" + self.format[1:]


def _numpy_number(kind: Any, raw: Any) -> Any:
    """Stands in for numpy's constructor of numbers; gives Python's."""
    return struct.unpack(kind.format, raw)[0]


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
