"""Checkpoints of the original PyTorch code: found, read and written, tensor for tensor."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import huggingface_hub
import mlx.core as mx
import numpy as np

from clara.core.prompts import Prompts
from clara.core.types import Adapter
from clara.io.errors import ClaraError
from clara.io.files import reason, staged
from clara.io.original_prompts import read_prompts

CONFIG, MODEL = "config.json", "modeling_clara.py"
ADAPTERS, TABLES = "adapters.pth", "decoder_first_last_layers.pth"
NAMES = {"encoder_adapter": "compressor", "decoder_adapter": "generator", "query_reasoner_adapter": "reasoner"}
"""The original's adapters and what they are called here."""
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""Keys of the two tables."""
LORA = re.compile(r"(.+)\.lora_([AB])\.weight")
LINEARS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")
"""Linear layers of a block in the order that state dicts have them."""
State = dict[str, Any]
"""PyTorch tensors by key."""


class Original(NamedTuple):
    """A checkpoint of the original."""

    config: dict[str, Any]
    """config.json as it is."""
    adapters: dict[str, Adapter]
    """Adapters by this project's names; alpha is twice the rank, `lora_r` of the config."""
    embeddings: mx.array
    """[V', D]: the resized embedding table: the base's rows as far as its tokenizer goes, then the special tokens'."""
    head: mx.array | None
    """[V', D]: the resized head; None where it is tied to the embeddings."""
    prompts: Prompts | None = None
    """What it was trained with; None where no model file lies beside it."""
    names: Mapping[str, tuple[str, ...]] = {}
    """The keys of each state dict in their order, by the original's adapter, and by file for the tables; empty for a
    checkpoint that the original never wrote."""


def is_original(path: Path) -> bool:
    """Return whether a folder holds a checkpoint of the original."""
    return (path / ADAPTERS).is_file()


def locate_original(name: str) -> Path:
    """Return the folder of a checkpoint: a local one, or that of a Hugging Face id with or without a sub-folder.

    name: a path, owner/name, or owner/name/sub-folder, of which only the files of that checkpoint are fetched. Raises
    ClaraError where there is none, naming the folders beside or below that hold one, and where the hub has no answer.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        found, others = path, [str(file.parent) for file in path.glob(f"*/{ADAPTERS}")]
    else:
        owner, _, rest = name.rstrip("/").partition("/")
        parts = [owner, *rest.split("/")]
        if path.exists() or owner == "~" or not {"", ".", ".."}.isdisjoint(parts):
            raise ClaraError(
                f"{name}: neither a folder nor a Hugging Face id; wanted a folder with {ADAPTERS}, "
                "owner/name, or owner/name/sub-folder"
            )
        found, others = _fetch("/".join(parts[:2]), "/".join(parts[2:]))
    if is_original(found):
        return found
    hint = f"there is one in {', '.join(sorted(others))}" if others else "nor is there one in its sub-folders"
    raise ClaraError(f"{name}: no {ADAPTERS} in it, so it is no checkpoint of the original; {hint}")


def _fetch(repository: str, folder: str) -> tuple[Path, list[str]]:
    """Return where a folder of a Hugging Face repository was put and, if that is no checkpoint, the names of those."""
    place = PurePosixPath(folder)
    wanted = [str(place / file) for file in (CONFIG, ADAPTERS, TABLES, MODEL)] + [str(place.parent / MODEL)]
    try:
        local = Path(huggingface_hub.snapshot_download(repository, allow_patterns=wanted)) / folder
        files = [] if is_original(local) else huggingface_hub.list_repo_files(repository)
    except Exception as error:  # of the hub's client, its HTTP library or the system
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ClaraError(
            f"{repository}: neither a local folder nor to be had from the Hugging Face hub ({said}). "
            "Check the name and the network, run `hf auth login` where it asks for an account, or give a local folder"
        ) from error
    held = [PurePosixPath(file).parent for file in files if PurePosixPath(file).name == ADAPTERS]
    return local, [str(PurePosixPath(repository) / parent) for parent in held]


def read_original(path: Path) -> Original:
    """Return the checkpoint in a folder, with its prompts where the model file lies in it or in the folder above.

    The files are read as plain tensors: nothing in them is run. Raises ClaraError that names the file, and the adapter
    or tensor in it, where one is missing, damaged, would run code, or does not fit the others; and without PyTorch.
    """
    config = _read_config(path / CONFIG)
    tables, states = _load(path / TABLES), _load(path / ADAPTERS)
    embeddings, head = _tables(path / TABLES, tables)
    if not states or not all(isinstance(state, dict) and _named(state) for state in states.values()):
        raise ClaraError(f"{path / ADAPTERS}: wanted a state dict for each adapter")
    if unknown := [name for name in states if name not in NAMES]:
        raise ClaraError(f"{path / ADAPTERS}: unknown adapter {unknown[0]!r}; known are {', '.join(NAMES)}")
    whole = {EMBEDDINGS: embeddings, HEAD: embeddings if head is None else head}
    adapters = {
        NAMES[name]: _adapter(f"{path / ADAPTERS}: {name}", state, config["lora_r"], whole)
        for name, state in states.items()
    }
    names = {name: tuple(state) for name, state in states.items()} | {TABLES: tuple(tables)}
    return Original(
        config, adapters, to_mlx(embeddings), None if head is None else to_mlx(head), _read_prompts(path), names
    )


def _read_config(file: Path) -> dict[str, Any]:
    """Return a config.json, which has the rank of the adapters."""
    try:
        config = json.loads(file.read_bytes())
    except OSError as error:
        raise ClaraError(f"{file}: cannot be read ({reason(error)})") from error
    except ValueError as error:
        raise ClaraError(f"{file}: no JSON ({error})") from error
    rank = config.get("lora_r") if isinstance(config, dict) else None
    if type(rank) is not int or rank < 1:
        raise ClaraError(f"{file}: lora_r is {rank!r}; wanted the rank of the adapters")
    return dict(config)


def _read_prompts(path: Path) -> Prompts | None:
    """Return the prompts in the model file of a checkpoint."""
    for file in (path / MODEL, path.absolute().parent / MODEL):
        if file.is_file():
            try:
                return read_prompts(file.read_text("utf-8"), str(file))
            except (OSError, UnicodeDecodeError) as error:
                raise ClaraError(f"{file}: cannot be read ({error})") from error
    return None


def _torch() -> Any:
    """Return PyTorch."""
    try:
        import torch
    except ImportError as error:
        raise ClaraError(
            'the original\'s checkpoints are PyTorch files: pip install "clara-mlx[import]" reads and writes them'
        ) from error
    return torch


def _load(file: Path) -> State:
    """Return the dict in a file of PyTorch's, its tensors mapped to memory."""
    torch = _torch()
    if not file.is_file():
        raise ClaraError(f"{file}: missing; a checkpoint has {CONFIG}, {ADAPTERS} and {TABLES}")
    if not zipfile.is_zipfile(file):
        raise ClaraError(f"{file}: truncated, or no file of torch.save; fetch it again")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it names {found[1]}, which is no part of a tensor" if found else str(error).partition("\n")[0]
        raise ClaraError(f"{file}: refused, and nothing of it was run: {what}") from error
    except Exception as error:  # whatever a damaged file makes of PyTorch's reader
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ClaraError(f"{file}: damaged ({said}); fetch it again") from error
    if not isinstance(content, dict) or not _named(content):
        raise ClaraError(f"{file}: holds a {type(content).__name__}; wanted a dict by names")
    return content


def _named(content: dict[Any, Any]) -> bool:
    """Return whether every key is a text."""
    return all(isinstance(key, str) for key in content)


def _tables(file: Path, tables: State) -> tuple[Any, Any]:
    """Return the embedding table and the head, None where it is tied."""
    for key, tensor in tables.items():
        if key not in (EMBEDDINGS, HEAD):
            raise ClaraError(f"{file}: unknown entry {key!r}; wanted {EMBEDDINGS} and, unless tied, {HEAD}")
        _check(f"{file}: {key}", tensor)
    if EMBEDDINGS not in tables:
        raise ClaraError(f"{file}: no {EMBEDDINGS}")
    embeddings, head = tables[EMBEDDINGS], tables.get(HEAD)
    if head is not None and head.shape != embeddings.shape:
        raise ClaraError(
            f"{file}: {HEAD} is {tuple(head.shape)} and {EMBEDDINGS} {tuple(embeddings.shape)}; wanted one shape"
        )
    return embeddings, head


def _adapter(where: str, state: State, rank: int, tables: State) -> Adapter:
    """Return an adapter from its state dict, in which both tables may be repeated."""
    halves: dict[str, dict[str, Any]] = {}
    for key, tensor in state.items():
        _check(f"{where}: {key}", tensor)
        if key in tables:
            if tensor.dtype != tables[key].dtype or not _torch().equal(tensor, tables[key]):
                raise ClaraError(f"{where}: {key} differs from that in {TABLES}; a checkpoint has one of each")
        elif found := LORA.fullmatch(key):
            halves.setdefault(found[1], {})[found[2]] = tensor
        else:
            raise ClaraError(f"{where}: unknown entry {key!r}; wanted MODULE.lora_A.weight and MODULE.lora_B.weight")
    for path, pair in halves.items():
        if missing := {"A", "B"} - pair.keys():
            raise ClaraError(f"{where}: {path} has no lora_{missing.pop()}")
        shapes = tuple(pair["A"].shape), tuple(pair["B"].shape)
        if (shapes[0][0], shapes[1][1]) != (rank, rank):
            raise ClaraError(
                f"{where}: {path} has lora_A {shapes[0]} and lora_B {shapes[1]}; {CONFIG} says rank {rank}"
            )
    return {path: {"lora_a": to_mlx(pair["A"].T), "lora_b": to_mlx(pair["B"].T)} for path, pair in halves.items()}


def _check(where: str, tensor: Any) -> None:
    """Raise ClaraError unless a value is a matrix of floats."""
    torch = _torch()
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ClaraError(f"{where} is a {type(tensor).__name__}; wanted a dense tensor")
    if tensor.dtype not in kinds or tensor.ndim != 2:
        wanted = "a matrix of float32, float16 or bfloat16"
        raise ClaraError(f"{where} is {tuple(tensor.shape)} of {tensor.dtype}; wanted {wanted}")


def to_mlx(tensor: Any) -> mx.array:
    """Return a PyTorch tensor as an array of the same bits."""
    plain = tensor.detach().contiguous()
    if plain.dtype == _torch().bfloat16:
        return mx.array(plain.view(_torch().int16).numpy()).view(mx.bfloat16)
    return mx.array(plain.numpy())


def to_torch(array: mx.array) -> Any:
    """Return an array as a PyTorch tensor of the same bits."""
    torch, whole = _torch(), mx.contiguous(array)
    if whole.dtype == mx.bfloat16:
        return torch.from_numpy(np.array(whole.view(mx.int16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(whole))


def write_original(folder: Path, original: Original) -> None:
    """Write a checkpoint that the original loads, whole or not at all: its configuration, adapters and tables.

    What `read_original` returned is written as it was: tensors, keys, their order, dtypes. Each adapter's state dict
    repeats the tables where it did, or where nothing is known of that. Prompts are not written: the original has them
    in its model file. Raises ClaraError where the folder is not empty or cannot be written.
    """
    torch = _torch()
    tables = {EMBEDDINGS: to_torch(original.embeddings)}
    tables[HEAD] = tables[EMBEDDINGS] if original.head is None else to_torch(original.head)
    kept = (EMBEDDINGS,) if original.head is None else (EMBEDDINGS, HEAD)
    ours = {theirs: original.adapters[name] for theirs, name in NAMES.items() if name in original.adapters}
    first = [name for name in original.names if name in ours]
    states = {name: _state(ours[name], tables, original.names.get(name, ())) for name in dict.fromkeys([*first, *ours])}
    with staged(folder) as beside:
        (beside / CONFIG).write_text(json.dumps(original.config, indent=2, sort_keys=True) + "\n", "utf-8")
        try:
            torch.save(states, beside / ADAPTERS)
            torch.save({key: tables[key] for key in original.names.get(TABLES, kept)}, beside / TABLES)
        except RuntimeError as error:  # as PyTorch's writer calls a full disk
            raise ClaraError(f"{folder}: cannot be written ({error})") from error


def _state(adapter: Adapter, tables: State, keys: tuple[str, ...]) -> State:
    """Return the state dict of an adapter, in the order of its keys, or in the usual one where there are none."""
    state = dict(tables)
    for path in sorted(adapter, key=_place):
        state[f"{path}.lora_A.weight"] = to_torch(adapter[path]["lora_a"].T)
        state[f"{path}.lora_B.weight"] = to_torch(adapter[path]["lora_b"].T)
    return {key: state[key] for key in keys or [key for key in state if key not in tables] + [*tables]}


def _place(path: str) -> tuple[list[int], int, str]:
    """Return by what a module is sorted: its layer, its place among a block's linear layers, and its name."""
    last = path.rpartition(".")[2]
    return [int(part) for part in path.split(".") if part.isdecimal()], (*LINEARS, last).index(last), path
