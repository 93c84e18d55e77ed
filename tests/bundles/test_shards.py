import json

import pytest
import torch
from safetensors.torch import load_file

from hallo3.bundles.shards import BLOCK_BYTES, Fresh, Joined, Rows, Stored, parse_size, plan_shards, write_shards
from hallo3.errors import UserError


def load_all(folder, stem):
    loaded = {}
    for file in sorted(folder.glob(f"{stem}*.safetensors")):
        loaded |= load_file(file)
    return loaded


def test_what_is_written_is_read_back(tmp_path):
    generator = torch.Generator().manual_seed(0)
    big = torch.randn(3, BLOCK_BYTES // 4 + 5, generator=generator)  # a row is larger than a block
    tall = torch.randn(BLOCK_BYTES // 16 * 3 + 1, 4, generator=generator)  # four blocks, the last of one row
    tensors = {
        "big": big,
        "tall": tall,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "count": torch.arange(7),
        "turned": torch.randn(6, 5, generator=generator).T,
        "flags": torch.tensor([True, False]),
        "half": torch.randn(5, generator=generator).half(),
    }
    total = write_shards(tmp_path, "model", {name: Stored.of(x) for name, x in tensors.items()}, None, "6MB")
    loaded = load_all(tmp_path, "model")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert total == sum(x.numel() * x.dtype.itemsize for x in tensors.values())


def test_only_floating_point_changes_its_format(tmp_path):
    tensors = {"weight": torch.randn(9, 2), "count": torch.arange(4)}
    write_shards(tmp_path, "model", {n: Stored.of(x) for n, x in tensors.items()}, torch.bfloat16)
    loaded = load_all(tmp_path, "model")
    assert torch.equal(loaded["weight"], tensors["weight"].bfloat16())
    assert torch.equal(loaded["count"], tensors["count"])


def test_pieces_rows_and_fresh_tensors(tmp_path):
    source = Stored.of(torch.arange(24.0).reshape(6, 4))
    streams = {
        "halves": Joined((Rows(source, 3, 6), Rows(source, 0, 3))),
        "ones": Fresh((2, 3), value=1.0),
        "noise": Fresh((4000, 50), std=0.1, seed=7),
        "again": Fresh((4000, 50), std=0.1, seed=7),
        "other": Fresh((4000, 50), std=0.1, seed=8),
    }
    write_shards(tmp_path, "model", streams)
    loaded = load_all(tmp_path, "model")
    whole = torch.arange(24.0).reshape(6, 4)
    assert torch.equal(loaded["halves"], torch.cat([whole[3:], whole[:3]]))
    assert torch.equal(loaded["ones"], torch.ones(2, 3))
    assert loaded["noise"].std().item() == pytest.approx(0.1, rel=0.02)
    assert torch.equal(loaded["noise"], loaded["again"]) and not torch.equal(loaded["noise"], loaded["other"])


def test_shards_are_named_and_indexed_as_loaders_expect(tmp_path):
    write_shards(tmp_path, "model", {f"t{i}": Stored.of(torch.full((10,), float(i))) for i in range(5)}, None, 80)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 200}
    assert index["weight_map"] == {
        "t0": "model-00001-of-00003.safetensors",
        "t1": "model-00001-of-00003.safetensors",
        "t2": "model-00002-of-00003.safetensors",
        "t3": "model-00002-of-00003.safetensors",
        "t4": "model-00003-of-00003.safetensors",
    }
    for file in tmp_path.glob("*.safetensors"):
        assert (8 + int.from_bytes(file.read_bytes()[:8], "little")) % 8 == 0


def test_no_shard_exceeds_the_limit_unless_one_tensor_does():
    assert plan_shards({"a": 4, "b": 4, "c": 4}, 8) == [["a", "b"], ["c"]]
    assert plan_shards({"a": 1, "huge": 99, "b": 1}, 8) == [["a"], ["huge"], ["b"]]
    assert plan_shards({}, 8) == []


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("9 mb", 9 * 10**6), ("1.5K", 1500), ("800", 800), (70, 70)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "five", "-5GB", "0", "5GiB", "1e3"])
def test_what_is_no_size_is_said(text):
    with pytest.raises(UserError, match="not a size"):
        parse_size(text)
