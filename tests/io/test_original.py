"""Checkpoints of the original: there and back without a bit lost, refused by name, nothing in them ever run."""

from __future__ import annotations

import json
import pickle
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import mlx.core as mx
import numpy as np
import pytest
from reference import GOLDEN, load_adapters
from tiny import assert_same, same_bits

from clara.io import original
from clara.io.errors import ClaraError
from clara.io.original import (
    ADAPTERS,
    CONFIG,
    EMBEDDINGS,
    HEAD,
    MODEL,
    TABLES,
    Original,
    is_original,
    locate_original,
    read_original,
    write_original,
)

CHECKPOINTS = ("checkpoint_stage1", "checkpoint_stage2_instruct", "checkpoint_stage3")
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.10.mlp.down_proj"
RANK, HIDDEN, ROWS = 2, 6, 9


@pytest.fixture
def torch() -> Any:
    """Return PyTorch, or skip the test where it is not installed."""
    return pytest.importorskip("torch")


def state(torch: Any, tables: dict[str, Any], seed: int = 0, dtype: str = "float32") -> dict[str, Any]:
    """Return the state dict of an adapter of two modules, the tables after it."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {f"{Q}.lora_A": (RANK, HIDDEN), f"{Q}.lora_B": (4, RANK)}
    shapes |= {f"{DOWN}.lora_A": (RANK, 10), f"{DOWN}.lora_B": (HIDDEN, RANK)}
    kind = getattr(torch, dtype)
    return {f"{k}.weight": torch.randn(shape, generator=draw).to(kind) for k, shape in shapes.items()} | tables


def tables(torch: Any, tied: bool = False, dtype: str = "float32") -> dict[str, Any]:
    """Return an embedding table and, unless it is tied, a head."""
    draw = torch.Generator().manual_seed(9)
    names = (EMBEDDINGS,) if tied else (EMBEDDINGS, HEAD)
    return {name: torch.randn((ROWS, HIDDEN), generator=draw).to(getattr(torch, dtype)) for name in names}


def checkpoint(
    torch: Any, folder: Path, *, tied: bool = False, repeated: bool = True, dtype: str = "float32"
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Return a small checkpoint as the original would save it: its folder, its adapters, its tables."""
    folder.mkdir(parents=True)
    both = tables(torch, tied, dtype)
    inside = ({EMBEDDINGS: both[EMBEDDINGS], HEAD: both.get(HEAD, both[EMBEDDINGS])}) if repeated else {}
    states = {
        name: state(torch, inside, seed, dtype) for seed, name in enumerate(("decoder_adapter", "encoder_adapter"))
    }
    (folder / CONFIG).write_text(json.dumps({"lora_r": RANK, "doc_max_length": 8, "compr_rate": 4}))
    torch.save(states, folder / ADAPTERS)
    torch.save(both, folder / TABLES)
    return folder, states, both


def assert_equal_files(torch: Any, first: Path, second: Path) -> None:
    """Assert that two checkpoints have the same keys in the same order, dtypes and bits."""
    for name in (ADAPTERS, TABLES):
        one, other = (torch.load(folder / name, weights_only=True) for folder in (first, second))
        dicts = [(one, other)] if name == TABLES else [(one[key], other[key]) for key in one]
        assert list(one) == list(other)
        for left, right in dicts:
            assert list(left) == list(right)
            assert [key for key in left if left[key].dtype != right[key].dtype] == []
            assert [key for key in left if not torch.equal(left[key], right[key])] == []


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_the_original_saved_is_read_as_it_is(torch: Any, name: str) -> None:
    read = read_original(GOLDEN / name)
    config = json.loads((GOLDEN / name / CONFIG).read_text())
    assert read.config == config and read.prompts is None
    assert_same(read.adapters, load_adapters(GOLDEN / name / ADAPTERS))
    assert read.embeddings.shape == (611, 64) and read.head is not None and read.head.shape == (611, 64)
    assert not mx.array_equal(read.embeddings, read.head)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_the_original_saved_is_written_as_it_was(torch: Any, name: str, tmp_path: Path) -> None:
    write_original(tmp_path / "out", read_original(GOLDEN / name))
    assert_equal_files(torch, GOLDEN / name, tmp_path / "out")
    assert (tmp_path / "out" / CONFIG).read_bytes() == (GOLDEN / name / CONFIG).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([CONFIG, ADAPTERS, TABLES])


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_without_the_names_that_were_read_modules_and_tables_have_the_order_of_the_original(
    torch: Any, name: str, tmp_path: Path
) -> None:
    read = read_original(GOLDEN / name)
    shuffled = {key: dict(sorted(adapter.items(), reverse=True)) for key, adapter in read.adapters.items()}
    write_original(tmp_path / "out", read._replace(adapters=shuffled, names={}))
    one, other = (torch.load(folder / ADAPTERS, weights_only=True) for folder in (GOLDEN / name, tmp_path / "out"))
    assert one.keys() == other.keys()
    assert {key: list(one[key]) for key in one} == {key: list(other[key]) for key in one}
    assert all(torch.equal(one[key][entry], other[key][entry]) for key in one for entry in one[key])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "not tied"])
@pytest.mark.parametrize("repeated", [True, False], ids=["tables repeated", "tables once"])
def test_each_kind_of_checkpoint_comes_back(torch: Any, dtype: str, tied: bool, repeated: bool, tmp_path: Path) -> None:
    folder, states, both = checkpoint(torch, tmp_path / "in", tied=tied, repeated=repeated, dtype=dtype)
    read = read_original(folder)
    assert (read.head is None) == tied
    assert list(read.adapters) == ["generator", "compressor"]
    assert read.embeddings.dtype == getattr(mx, dtype)
    for theirs, ours in (("decoder_adapter", "generator"), ("encoder_adapter", "compressor")):
        expected = states[theirs][f"{DOWN}.lora_A.weight"].float().numpy().T
        assert np.array_equal(np.array(read.adapters[ours][DOWN]["lora_a"].astype(mx.float32)), expected)
        assert read.adapters[ours][DOWN]["lora_b"].shape == (RANK, HIDDEN)
    assert np.array_equal(np.array(read.embeddings.astype(mx.float32)), both[EMBEDDINGS].float().numpy())
    write_original(tmp_path / "out", read)
    assert_equal_files(torch, folder, tmp_path / "out")


def test_bfloat16_keeps_every_bit(torch: Any) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).reshape(256, 256)
    array = original.to_mlx(bits.view(torch.bfloat16))
    assert array.dtype == mx.bfloat16
    assert np.array_equal(np.array(array.view(mx.int16)), bits.numpy())
    assert torch.equal(original.to_torch(array).view(torch.int16), bits)


def test_a_converted_checkpoint_of_ours_is_complete(torch: Any, tmp_path: Path) -> None:
    adapter = {
        path: {"lora_a": mx.ones((HIDDEN, RANK)), "lora_b": mx.zeros((RANK, 4))}
        for path in ("model.layers.10.mlp.up_proj", "model.layers.2.mlp.down_proj", "model.layers.2.self_attn.k_proj")
    }
    table = mx.random.normal((ROWS, HIDDEN)).astype(mx.bfloat16)
    made = Original({"lora_r": RANK}, {"reasoner": adapter, "compressor": adapter}, table, None)
    write_original(tmp_path / "out", made)
    states = torch.load(tmp_path / "out" / ADAPTERS, weights_only=True)
    modules = ("model.layers.2.self_attn.k_proj", "model.layers.2.mlp.down_proj", "model.layers.10.mlp.up_proj")
    keys = [f"{module}.lora_{half}.weight" for module in modules for half in "AB"]
    assert list(states) == ["encoder_adapter", "query_reasoner_adapter"]
    assert [list(entries) for entries in states.values()] == [[*keys, EMBEDDINGS, HEAD]] * 2
    assert list(torch.load(tmp_path / "out" / TABLES, weights_only=True)) == [EMBEDDINGS]
    read = read_original(tmp_path / "out")
    assert_same(read.adapters, made.adapters)
    assert same_bits(read.embeddings, table) and read.head is None


def alter(torch: Any, file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the content of a file of PyTorch's."""
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)


def rename(name: str, other: str) -> Callable[[dict[str, Any]], None]:
    """Return a change of one key."""
    return lambda content: content.update({other: content.pop(name)})


A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
DAMAGE: dict[str, tuple[str, Callable[[Any, dict[str, Any]], Any], str]] = {
    "unknown adapter": (
        ADAPTERS,
        lambda t, c: rename("encoder_adapter", "other_adapter")(c),
        "unknown adapter 'other_adapter'; known are encoder_adapter, decoder_adapter, query_reasoner_adapter",
    ),
    "no adapters": (ADAPTERS, lambda t, c: c.clear(), "wanted a state dict for each adapter"),
    "no state dict": (
        ADAPTERS,
        lambda t, c: c.update(encoder_adapter=t.zeros(2, 2)),
        "wanted a state dict for each adapter",
    ),
    "no lora_B": (ADAPTERS, lambda t, c: c["encoder_adapter"].pop(B), f"encoder_adapter: {Q} has no lora_B"),
    "no lora_A": (ADAPTERS, lambda t, c: c["decoder_adapter"].pop(A), f"decoder_adapter: {Q} has no lora_A"),
    "rank": (
        ADAPTERS,
        lambda t, c: c["encoder_adapter"].update({A: t.zeros(3, HIDDEN)}),
        rf"encoder_adapter: {Q} has lora_A \(3, 6\) and lora_B \(4, 2\); config.json says rank 2",
    ),
    "transposed": (
        ADAPTERS,
        lambda t, c: c["encoder_adapter"].update({B: t.zeros(RANK, 4)}),
        rf"{Q} has lora_A \(2, 6\) and lora_B \(2, 4\)",
    ),
    "unknown entry": (
        ADAPTERS,
        lambda t, c: c["encoder_adapter"].update({"model.norm.weight": t.zeros(2, 2)}),
        "encoder_adapter: unknown entry 'model.norm.weight'",
    ),
    "no tensor": (
        ADAPTERS,
        lambda t, c: c["encoder_adapter"].update({A: 3}),
        r"encoder_adapter: .*lora_A.weight is a int; wanted a dense tensor",
    ),
    "sparse": (
        ADAPTERS,
        lambda t, c: c["encoder_adapter"].update({A: t.zeros(RANK, HIDDEN).to_sparse()}),
        "lora_A.weight is a Tensor; wanted a dense tensor",
    ),
    "whole numbers": (
        ADAPTERS,
        lambda t, c: c["encoder_adapter"].update({A: t.zeros(RANK, HIDDEN, dtype=t.int8)}),
        r"lora_A.weight is \(2, 6\) of torch.int8; wanted a matrix of float32, float16 or bfloat16",
    ),
    "vector": (
        ADAPTERS,
        lambda t, c: c["encoder_adapter"].update({A: t.zeros(HIDDEN)}),
        r"lora_A.weight is \(6,\) of torch.float32; wanted a matrix",
    ),
    "two tables": (
        ADAPTERS,
        lambda t, c: c["encoder_adapter"].update({HEAD: t.zeros(ROWS, HIDDEN)}),
        f"encoder_adapter: {HEAD} differs from that in {TABLES}",
    ),
    "no table": (TABLES, lambda t, c: c.pop(EMBEDDINGS), f"no {EMBEDDINGS}"),
    "unknown table": (TABLES, lambda t, c: c.update(other=t.zeros(2, 2)), "unknown entry 'other'"),
    "uneven tables": (
        TABLES,
        lambda t, c: c.update({HEAD: t.zeros(ROWS + 1, HIDDEN)}),
        rf"{HEAD} is \(10, 6\) and {EMBEDDINGS} \(9, 6\); wanted one shape",
    ),
}


@pytest.mark.parametrize(("file", "change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_what_does_not_fit_is_refused_by_name(
    torch: Any, file: str, change: Callable[[Any, dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    folder, _, _ = checkpoint(torch, tmp_path / "in")
    read_original(folder)
    alter(torch, folder / file, lambda content: change(torch, content))
    with pytest.raises(ClaraError, match=f"^{folder / file}: .*{message}"):
        read_original(folder)


@pytest.mark.parametrize("name", [CONFIG, ADAPTERS, TABLES])
def test_a_file_that_is_missing_is_named(torch: Any, name: str, tmp_path: Path) -> None:
    folder, _, _ = checkpoint(torch, tmp_path / "in")
    (folder / name).unlink()
    with pytest.raises(ClaraError, match=f"^{folder / name}: "):
        read_original(folder)


@pytest.mark.parametrize("name", [ADAPTERS, TABLES])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(torch: Any, name: str, share: float, tmp_path: Path) -> None:
    folder, _, _ = checkpoint(torch, tmp_path / "in")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ClaraError, match=f"^{folder / name}: truncated, or no file of torch.save"):
        read_original(folder)


@pytest.mark.parametrize("content", ["[]", "{", '{"lora_r": "16"}', '{"lora_r": 0}', '{"lora_r": true}', "{}"])
def test_a_configuration_without_a_rank_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(content)
    with pytest.raises(ClaraError, match=f"^{tmp_path / CONFIG}: (no JSON|lora_r is .*wanted the rank)"):
        read_original(tmp_path)


class Trap:
    """A value that would write a file when it is unpickled as Python does it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "caught")


@pytest.mark.parametrize("name", [ADAPTERS, TABLES])
@pytest.mark.parametrize("archive", [True, False], ids=["torch.save", "plain pickle"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(
    torch: Any, name: str, archive: bool, tmp_path: Path
) -> None:
    folder, _, _ = checkpoint(torch, tmp_path / "in")
    trap = {"decoder_adapter": Trap(tmp_path / "caught")}
    if archive:
        torch.save(trap, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(trap))
    said = r"refused, and nothing of it was run: it names \S+, which is no part" if archive else "no file of torch.save"
    with pytest.raises(ClaraError, match=f"^{folder / name}: .*{said}"):
        read_original(folder)
    assert not (tmp_path / "caught").exists()
    if not archive:
        pickle.loads((folder / name).read_bytes())
        assert (tmp_path / "caught").read_text() == "caught", "the trap works"


def test_without_pytorch_the_way_to_get_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ClaraError, match=r'pip install "clara-mlx\[import\]"'):
        read_original(GOLDEN / CHECKPOINTS[0])


def test_a_folder_that_is_not_empty_is_left_alone(torch: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("x")
    with pytest.raises(ClaraError, match=f"^{tmp_path / 'out'}: holds something already"):
        write_original(tmp_path / "out", read_original(GOLDEN / CHECKPOINTS[0]))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
@pytest.mark.parametrize("limit", [1_000, 100_000], ids=["at once", "half way"])
def test_a_full_disk_leaves_nothing(torch: Any, limit: int, tmp_path: Path) -> None:
    read = read_original(GOLDEN / CHECKPOINTS[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(ClaraError, match=f"^{tmp_path / 'out'}: cannot be written"):
            write_original(tmp_path / "out", read)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("above", [False, True], ids=["beside", "above"])
def test_the_model_file_gives_the_prompts(
    torch: Any, above: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = checkpoint(torch, tmp_path / "all" / "in")
    file = (folder.parent if above else folder) / MODEL
    file.write_text("read")
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(original, "read_prompts", lambda source, where: seen.append((source, where)))
    read_original(folder)
    assert seen == [("read", str(file))]


def test_a_model_file_that_is_no_text_is_named(torch: Any, tmp_path: Path) -> None:
    folder, _, _ = checkpoint(torch, tmp_path / "in")
    (folder / MODEL).write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ClaraError, match=f"^{folder / MODEL}: cannot be read"):
        read_original(folder)


def files(folder: Path, *names: str) -> Path:
    """Return a folder with empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_a_folder_is_found_and_told_from_others(tmp_path: Path) -> None:
    files(tmp_path, f"one/{ADAPTERS}", "two/adapters.safetensors")
    assert locate_original(str(tmp_path / "one")) == tmp_path / "one"
    assert [is_original(tmp_path / name) for name in ("one", "two", "three")] == [True, False, False]


def test_a_folder_without_a_checkpoint_names_the_folders_in_it_that_have_one(tmp_path: Path) -> None:
    files(tmp_path, f"compression-4/{ADAPTERS}", f"compression-16/{ADAPTERS}", f"other/{CONFIG}")
    with pytest.raises(
        ClaraError, match=f"there is one in {tmp_path / 'compression-16'}, {tmp_path / 'compression-4'}$"
    ):
        locate_original(str(tmp_path))
    with pytest.raises(ClaraError, match=f"^{tmp_path / 'other'}: no adapters.pth in it.* nor is there one"):
        locate_original(str(tmp_path / "other"))


@pytest.mark.parametrize("name", ["/nowhere/at/all", "~/nowhere", "./a/b", "a/../b", "owner", "a//b", "owner/"])
def test_what_is_neither_a_folder_nor_an_id_is_refused_without_asking_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ClaraError, match="neither a folder nor a Hugging Face id; wanted"):
        locate_original(name)


def hub(monkeypatch: pytest.MonkeyPatch, snapshot: Path, *names: str) -> dict[str, list[str]]:
    """Let the hub have one repository of these files; returns what was asked of it, by repository."""
    asked: dict[str, list[str]] = {}

    def download(repository: str, *, allow_patterns: list[str]) -> str:
        asked[repository] = allow_patterns
        return str(files(snapshot, *(name for name in names if name in allow_patterns)))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repository: list(names))
    return asked


PUBLISHED = [f"compression-{rate}/{name}" for rate in (16, 128) for name in (CONFIG, ADAPTERS, TABLES, "model.bin")]


def test_of_an_id_with_a_sub_folder_only_its_checkpoint_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = hub(monkeypatch, tmp_path, *PUBLISHED, MODEL, "README.md")
    assert locate_original("owner/name/compression-16") == tmp_path / "compression-16"
    fetched = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert fetched == {*(f"compression-16/{name}" for name in (CONFIG, ADAPTERS, TABLES)), MODEL}
    assert list(asked) == ["owner/name"] and f"compression-16/{MODEL}" in asked["owner/name"]


def test_an_id_that_is_a_checkpoint_itself_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, tmp_path, CONFIG, ADAPTERS, TABLES, MODEL, *PUBLISHED)
    assert locate_original("owner/name") == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, ADAPTERS, TABLES, MODEL}


@pytest.mark.parametrize("name", ["owner/name", "owner/name/compression-32", "owner/name/"])
def test_an_id_without_a_checkpoint_names_those_of_the_repository(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(monkeypatch, tmp_path, *PUBLISHED)
    with pytest.raises(ClaraError, match=r"there is one in owner/name/compression-128, owner/name/compression-16$"):
        locate_original(name)


def test_a_hub_that_does_not_answer_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> str:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(ClaraError, match=r"^owner/name: neither .* hub \(no route to host\)\. Check the name"):
        locate_original("owner/name/compression-16")
