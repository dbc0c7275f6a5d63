"""Models that are not on disk: the same numbers from fewer bytes, or one clear sentence."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from headatlas.errors import HeadatlasError
from headatlas.mapping.run import map_heads
from headatlas.weights import (
    load_modules,
    load_tokenizer,
    open_checkpoint,
    remote,
    tokenizer_hash,
)
from headatlas.weights.remote import Address, Patience, RemoteStore
from tests.mapping import checkpoints
from tests.weights import builders
from tests.weights.range_server import Server, serving
from tests.weights.test_quantized import quantised_llama

WEIGHTS = "model/model.safetensors"
QUICK = Patience(attempts=3, first_pause=0.01, longest_pause=0.05, timeout=1)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "PATIENCE", QUICK)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def mapped_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose relations can be mapped."""
    torch.set_num_threads(1)
    return checkpoints.save(checkpoints.tiny_model("llama"), tmp_path_factory.mktemp("mapped") / "tiny")


def assert_same_tensors(there: str, here: Path) -> None:
    remote, local = open_checkpoint(there), open_checkpoint(here)
    assert {n: (i.shape, i.dtype, i.nbytes) for n, i in remote.source.infos().items()} == {
        n: (i.shape, i.dtype, i.nbytes) for n, i in local.source.infos().items()
    }
    for name in local.source.infos():
        got, wanted = remote.source.read(name), local.source.read(name)
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)
        for rows in (slice(1, 5), slice(None, None, 3), [7, 0, 7, -1], []):
            assert torch.equal(remote.source.read(name, rows), local.source.read(name, rows))


def test_every_tensor_is_the_same(server: Server, llama_folder: Path) -> None:
    assert_same_tensors(server.serve(llama_folder), llama_folder)


def test_shards_are_the_same(server: Server, sharded_folder: Path) -> None:
    assert_same_tensors(server.serve(sharded_folder), sharded_folder)


def test_packed_weights_are_the_same(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 500)
    folder = quantised_llama(tmp_path / "fp8")
    assert "F8_E4M3" in {info.dtype for info in open_checkpoint(folder).source.infos().values()}
    assert_same_tensors(server.serve(folder), folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types_and_small_blocks(
    server: Server, tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 2000)
    monkeypatch.setattr(remote, "GAP_BYTES", 64)
    folder = builders.save(builders.tiny_llama(dtype), tmp_path / "m")
    assert_same_tensors(server.serve(folder), folder)


def test_scalars_empty_tensors_and_wide_rows(
    server: Server, tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 64)
    tensors = {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "wide": torch.arange(120.0).reshape(2, 3, 20),
    }
    folder = tmp_path / "odd"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_bytes((llama_folder / "config.json").read_bytes())
    source = open_checkpoint(server.serve(folder)).source
    for name, tensor in tensors.items():
        assert torch.equal(source.read(name), tensor)


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_other_file_systems(scheme: str, llama_folder: Path) -> None:
    import fsspec

    if scheme == "memory":
        memory = fsspec.filesystem("memory")
        for path in llama_folder.iterdir():
            memory.pipe_file(f"/remote-test/{path.name}", path.read_bytes())
    there = f"file://{llama_folder}" if scheme == "file" else "memory://remote-test"
    assert_same_tensors(there, llama_folder)


def test_tokenizer_and_identity(server: Server, llama_folder: Path, private_cache: Path) -> None:
    address = server.serve(llama_folder)
    remote, local = open_checkpoint(address), open_checkpoint(llama_folder)
    assert tokenizer_hash(load_tokenizer(remote)) == tokenizer_hash(load_tokenizer(local))
    assert (remote.name, remote.spec, remote.architecture) == ("model", address, local.architecture)
    assert remote.config == local.config
    assert remote.source.fingerprint() == open_checkpoint(f"{address}/").source.fingerprint()
    assert remote.source.fingerprint().startswith("remote-sha256:")
    body = bytearray(server.files[WEIGHTS])
    body[-1] ^= 1
    server.files[WEIGHTS] = bytes(body)
    assert open_checkpoint(address).source.fingerprint() != local.source.fingerprint()


def test_small_files_are_kept_until_they_change(
    server: Server, llama_folder: Path, private_cache: Path
) -> None:
    address = server.serve(llama_folder)
    open_checkpoint(address)
    before = server.sent["model/tokenizer.json"]
    assert open_checkpoint(address).path == open_checkpoint(address).path
    assert server.sent["model/tokenizer.json"] == before
    config = json.loads(server.files["model/config.json"]) | {"rms_norm_eps": 0.125}
    server.files["model/config.json"] = json.dumps(config).encode()
    assert open_checkpoint(address).config["rms_norm_eps"] == 0.125
    server.etags = False
    server.files["model/config.json"] = json.dumps(config | {"rms_norm_eps": 0.375}).encode()
    assert open_checkpoint(address).config["rms_norm_eps"] == 0.375


def test_a_map_is_the_same_and_reads_less(
    server: Server, mapped_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headatlas.cli.map import map_summary

    # Bytes are counted below: on a busy machine nothing may be asked for twice.
    monkeypatch.setattr(remote, "PATIENCE", Patience(timeout=60))
    relations = checkpoints.random_relations()
    address = server.serve(mapped_folder)
    local = map_heads(mapped_folder, relations=relations, lens="maps")
    there = map_heads(address, relations=relations, lens="maps", out=tmp_path / "out")
    for name in ("promotion_rank", "suppression_rank", "control_rank", "cell_promotion_rank"):
        assert np.array_equal(there.dataset[name].values, local.dataset[name].values)
    assert there.table().equals(local.table())
    model = there.provenance["model"]
    assert model["fetched_bytes"] == server.sent[WEIGHTS]
    assert model["stored_bytes"] == len(server.files[WEIGHTS])
    assert "of weights (" in map_summary(there, tmp_path, [], 1.0)
    assert "fetched_bytes" not in local.provenance["model"]
    # Queries, keys and the MLPs of later layers are never asked for.
    infos = open_checkpoint(mapped_folder).source.infos()
    unread = sum(i.nbytes for n, i in infos.items() if any(s in n for s in ("q_proj", "k_proj", "1.mlp")))
    overhead = 64 << 10  # header, and the windows of the fingerprint, which cover all of so small a file
    assert unread > 0
    windows = 64 * min(16 << 10, len(server.files[WEIGHTS]))
    assert model["fetched_bytes"] - windows < len(server.files[WEIGHTS]) - unread + overhead


def test_a_map_asks_only_for_what_the_lens_reads(server: Server, mapped_folder: Path) -> None:
    from headatlas.architectures import open_model

    server.serve(mapped_folder)
    model = open_model(open_checkpoint(f"{server.url}/model"))
    traffic = model.checkpoint.traffic
    assert traffic is not None
    header = traffic.read
    assert header == 8 + int.from_bytes(server.files[WEIGHTS][:8], "little")
    for layer in range(model.dims.n_layers):
        model.heads(layer)
    model.unembed()
    model.embed()
    model.first_mlp(torch.zeros(1, model.dims.d_model))
    assert traffic.read - header == model.bytes_needed(forward_pass=False)
    assert traffic.read == server.sent[WEIGHTS] < len(server.files[WEIGHTS])


def test_rows_close_together_are_one_request(server: Server, tmp_path: Path, llama_folder: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    table = torch.arange(2000 * 512, dtype=torch.float32).reshape(2000, 512)  # 2 KiB a row
    save_file({"table": table}, folder / "model.safetensors")
    (folder / "config.json").write_bytes((llama_folder / "config.json").read_bytes())
    source = open_checkpoint(server.serve(folder)).source
    server.ranges.clear()
    before = server.sent[WEIGHTS]
    rows = [1500, 3, 40, 1999, 3]
    assert torch.equal(source.read("table", rows), table[rows])
    assert len(server.ranges) == 3
    assert server.sent[WEIGHTS] - before == (38 + 1 + 1) * 2048
    server.ranges.clear()
    source.read("table", list(range(0, 2000, 50)))
    assert len(server.ranges) == 1


PASSING = (
    *("truncated", "reset", "stall", "503", "429", "500", "longer-announced", "shorter-announced"),
    *("other-range", "no-content-range"),
)
LASTING = {
    "ignores-range": "does not send parts of files",
    "compressed": "compressed",
    "other-size": "changed since it was opened",
    "other-etag": "another ETag",
    "403": "answered 403",
    "404": "answered 404",
    "redirect-ftp": "redirects to something other than http",
    "redirect-file": "redirects to something other than http",
}
TENSOR = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("fault", PASSING)
def test_what_may_pass_is_tried_again(server: Server, llama_folder: Path, fault: str) -> None:
    address = server.serve(llama_folder)
    server.faults[WEIGHTS] = [fault] * 2  # of the header
    source = open_checkpoint(address).source
    server.faults[WEIGHTS] = [fault]
    assert torch.equal(source.read(TENSOR), open_checkpoint(llama_folder).source.read(TENSOR))
    assert not server.faults[WEIGHTS]


@pytest.mark.parametrize("fault", PASSING)
def test_what_does_not_pass_ends_in_a_sentence(server: Server, llama_folder: Path, fault: str) -> None:
    source = open_checkpoint(server.serve(llama_folder)).source
    server.always[WEIGHTS] = fault
    with pytest.raises(HeadatlasError, match=r"model\.safetensors cannot be read: .*3 attempts"):
        source.read(TENSOR)


@pytest.mark.parametrize(("fault", "says"), LASTING.items())
def test_what_lasts_is_not_tried_again(server: Server, llama_folder: Path, fault: str, says: str) -> None:
    source = open_checkpoint(server.serve(llama_folder)).source
    server.faults[WEIGHTS] = [fault]
    with pytest.raises(HeadatlasError, match=says):
        source.read(TENSOR)
    with pytest.raises(HeadatlasError, match=says):
        server.always[WEIGHTS] = fault
        open_checkpoint(f"{server.url}/model")


def test_one_bad_block_of_many(server: Server, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1024)
    source = open_checkpoint(server.serve(llama_folder)).source
    server.faults[WEIGHTS] = ["truncated", "503", "other-range", "reset"]
    assert torch.equal(source.read(TENSOR), open_checkpoint(llama_folder).source.read(TENSOR))


def test_a_file_that_changes_is_not_read_on(server: Server, llama_folder: Path) -> None:
    source = open_checkpoint(server.serve(llama_folder)).source
    server.files[WEIGHTS] = server.files[WEIGHTS][:-4] + b"abcd"
    with pytest.raises(HeadatlasError, match="another ETag"):
        source.read(TENSOR)


def test_a_file_that_changes_elsewhere_is_not_read_on(llama_folder: Path, tmp_path: Path) -> None:
    folder = builders.save(builders.tiny_llama(), tmp_path / "m")
    source = open_checkpoint(f"file://{folder}").source
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    os.utime(weights, (1, 1))
    with pytest.raises(HeadatlasError, match="changed since it was opened"):
        source.read(TENSOR)


def test_servers_without_head(server: Server, llama_folder: Path) -> None:
    """fsspec asks with GET then; both failing for a while must not look like a missing file."""
    address = server.serve(llama_folder)
    server.heads["model/tokenizer_config.json"] = "503"
    with pytest.raises(
        HeadatlasError, match=r"tokenizer_config\.json cannot be read: the server answered 503"
    ):
        open_checkpoint(address)
    server.heads["model/tokenizer_config.json"] = "403"
    with pytest.raises(HeadatlasError, match="answered 403"):
        open_checkpoint(address)
    # Object stores say “forbidden” of what is not there.
    server.heads = {"model/added_tokens.json": "403", "model/model.safetensors.index.json": "403"}
    assert_same_tensors(address, llama_folder)


@pytest.mark.parametrize("fault", ["truncated", "503", "shorter-announced"])
def test_small_files_are_checked_too(server: Server, llama_folder: Path, fault: str) -> None:
    address = server.serve(llama_folder)
    server.faults["model/tokenizer.json"] = [fault]
    assert load_tokenizer(open_checkpoint(address)).get_vocab()
    server.always["model/config.json"] = fault
    server.files["model/config.json"] += b"\n"
    with pytest.raises(HeadatlasError, match=r"config\.json cannot be read"):
        open_checkpoint(address)


def test_a_truncated_file_is_refused(server: Server, llama_folder: Path) -> None:
    address = server.serve(llama_folder)
    whole = server.files[WEIGHTS]
    for kept, says in ((whole[:-4], "truncated"), (whole[:50], "truncated"), (b"", "truncated")):
        server.files[WEIGHTS] = kept
        with pytest.raises(HeadatlasError, match=says):
            open_checkpoint(address)
    server.files[WEIGHTS] = (1 << 40).to_bytes(8, "little") + whole[8:]
    sent = server.sent[WEIGHTS]
    with pytest.raises(HeadatlasError, match="its header would be"):
        open_checkpoint(address)
    assert server.sent[WEIGHTS] - sent == 8


def test_missing_parts_are_named(server: Server, sharded_folder: Path, llama_folder: Path) -> None:
    address = server.serve(sharded_folder)
    shard = next(name for name in server.files if "-of-" in name)
    with pytest.raises(HeadatlasError, match="is one shard of a model"):
        open_checkpoint(f"{server.url}/{shard}")
    del server.files[shard]
    with pytest.raises(HeadatlasError, match=r"-of-.*is not there"):
        open_checkpoint(address)
    with pytest.raises(HeadatlasError, match=r"config\.json is not there"):
        open_checkpoint(f"{server.url}/nowhere")
    server.serve(llama_folder, "bare")
    del server.files["bare/model.safetensors"]
    with pytest.raises(HeadatlasError, match="only safetensors are read from afar"):
        open_checkpoint(f"{server.url}/bare")


def test_one_file_and_redirects(server: Server, llama_folder: Path) -> None:
    server.serve(llama_folder, "elsewhere")
    for name in list(server.files):
        server.redirects[name.replace("elsewhere", "moved")] = f"{server.url}/{name}"
    assert_same_tensors(f"{server.url}/moved/model.safetensors", llama_folder)


def test_a_redirect_from_https_to_http_is_not_used() -> None:
    """No server here has a certificate: the answer is made up."""
    import asyncio
    from types import SimpleNamespace
    from unittest.mock import AsyncMock, MagicMock

    answer = MagicMock(status=206, url=SimpleNamespace(scheme="http"))
    answer.history = [SimpleNamespace(url=SimpleNamespace(scheme="https"))]
    session = MagicMock()
    session.get.return_value.__aenter__.return_value = answer
    system = SimpleNamespace(set_session=AsyncMock(return_value=session), encode_url=str)
    file = remote.RemoteFile("https://h/m", "https://h/m", 8, None, "")
    with pytest.raises(remote.UnusableAnswerError, match="redirects from https to http"):
        asyncio.run(remote._http_part(system, file, 0, 8))
    answer.read.assert_not_called()


def test_one_hopeless_part_ends_the_others(
    server: Server, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PATIENCE", Patience(attempts=3, first_pause=60, longest_pause=60))
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1024)
    source = open_checkpoint(server.serve(llama_folder)).source
    server.faults[WEIGHTS] = ["404"]
    server.always[WEIGHTS] = "503"
    began = time.monotonic()
    with pytest.raises(HeadatlasError, match="cannot be read"):
        source.read(TENSOR)
    assert time.monotonic() - began < 30


def test_the_command_line(server: Server, mapped_folder: Path, tmp_path: Path) -> None:
    from headatlas.cli import app

    address, relations = server.serve(mapped_folder), tmp_path / "copy.json"
    relations.write_text(checkpoints.random_relations()[-1].to_json())
    args = ["plan", address, "--lens", "maps", "--relations", str(relations), "--json"]
    said = CliRunner().invoke(app, args)
    plan = json.loads(said.stdout)
    assert plan["bytes_to_read"] < len(server.files[WEIGHTS])
    assert server.sent[WEIGHTS] == 8 + int.from_bytes(server.files[WEIGHTS][:8], "little")
    said = CliRunner().invoke(app, ["plan", str(mapped_folder), "--remote"])
    assert said.exit_code == 2
    assert "--remote reads a model of the Hub" in said.stderr


def test_what_needs_the_whole_model_is_refused(server: Server, llama_folder: Path) -> None:
    address = server.serve(llama_folder)
    with pytest.raises(HeadatlasError, match=r"neutral lens needs the whole model .*`lens=maps`"):
        map_heads(address)
    with pytest.raises(HeadatlasError, match="download it"):
        load_modules(open_checkpoint(address))
    with pytest.raises(HeadatlasError, match="`remote=True` reads a model of the Hub"):
        open_checkpoint(str(llama_folder), remote=True)


def test_credentials_are_shown_nowhere(
    server: Server, mapped_folder: Path, tmp_path: Path, private_cache: Path
) -> None:
    server.serve(mapped_folder)
    secret = f"http://ann:s3cret@127.0.0.1:{server.port}/model?sig=t0ken"
    told: list[str] = []
    atlas = map_heads(
        secret,
        relations=checkpoints.random_relations(),
        lens="maps",
        out=tmp_path / "out",
        progress=lambda p: told.append(repr(p)),
    )
    assert any(kind.startswith("Basic ") for kind in server.authorised)
    said = [repr(atlas.provenance), *told]
    source = open_checkpoint(secret).source
    for fault in ("404", "503", "reset", "stall", "ignores-range", "redirect-ftp"):
        server.always[WEIGHTS] = fault
        with pytest.raises(HeadatlasError) as caught:
            source.read(TENSOR)
        said.append(str(caught.value))
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
    for spec in (secret.replace("/model", "/none"), f"{secret}#x", "s4://ann:s3cret@host/t0ken?t0ken"):
        with pytest.raises(HeadatlasError) as caught:
            open_checkpoint(spec)
        said.append(str(caught.value).replace("/t0ken", ""))
    files = [path for root in (tmp_path, private_cache) for path in root.rglob("*") if path.is_file()]
    said += [str(path) + path.read_bytes().decode("latin-1") for path in files]
    assert not [text for text in said for word in ("s3cret", "t0ken", "ann:") if word in text]


def test_addresses() -> None:
    file = Address.parse("https://h/org/name/resolve/main/model.safetensors?t=1")
    assert (file.of("config.json"), file.file) == (
        "https://h/org/name/resolve/main/config.json?t=1",
        "model.safetensors",
    )
    assert file.name == "name"
    assert Address.parse("memory://m").of("a") == "memory://m/a"
    assert Address.parse("file:///x/y/").of("a") == "file:///x/y/a"
    for spec in ("https://", "zip://x::https://h/a", "https://h/m.gguf", "s3://b/m?versionId=3"):
        with pytest.raises(HeadatlasError):
            Address.parse(spec)


def test_unknown_schemes_and_missing_packages() -> None:
    with pytest.raises(HeadatlasError, match="cannot be opened by fsspec"):
        open_checkpoint("nothing://h/m")
    with pytest.raises(HeadatlasError, match="a package is missing"):
        RemoteStore.at("oci://h/m")
