import shutil
import socket

import pytest
import torch
from bundle_parts import GOLDEN, SETTINGS
from huggingface_hub import ModelCard, constants

from hallo3.bundles.card import CARD
from hallo3.bundles.download import download, fetch, open_repository
from hallo3.bundles.layout import load_components, missing_parts, read_index, save_components
from hallo3.bundles.places import list_bundles, registry
from hallo3.cli import main
from hallo3.errors import UserError
from hub_server import serving

NAME = "fudan-generative-ai/hallo3"
WEIGHTS = "hallo3/1/mp_rank_00_model_states.pt"


@pytest.fixture(scope="module")
def published(tmp_path_factory, components):
    """A small copy of the published repository: recorded networks and VAE, tiny encoders, and things nobody needs."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copytree(GOLDEN / "dit" / "hallo3", folder / "hallo3")
    (folder / "cogvideox-5b-i2v-sat" / "vae").mkdir(parents=True)
    shutil.copy(GOLDEN / "vae" / "vae" / "3d-vae.pt", folder / "cogvideox-5b-i2v-sat" / "vae")
    components["text_encoder"].save_pretrained(folder / "t5-v1_1-xxl")
    (folder / "t5-v1_1-xxl" / "pytorch_model.bin").write_bytes(b"an older copy" * 1000)
    components["speech_encoder"].save_pretrained(folder / "wav2vec" / "wav2vec2-base-960h")
    models = folder / "face_analysis" / "models"
    models.mkdir(parents=True)
    for name in ("scrfd_10g_bnkps.onnx", "glintr100.onnx", "face_landmarker_v2_with_blendshapes.task"):
        (models / name).write_bytes(name.encode() * 50)
    (folder / "cogvideox-5b-i2v-sat" / "transformer" / "1").mkdir(parents=True)
    (folder / "cogvideox-5b-i2v-sat" / "transformer" / "1" / "mp_rank_00_model_states.pt").write_bytes(b"base" * 5000)
    return folder


def point_at(url, monkeypatch):
    """What HF_ENDPOINT does to a new process."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    monkeypatch.setenv("HALLO3_HOME", str(tmp_path / "home"))
    with serving({NAME: published}) as running:
        point_at(running.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield running


def downloads(home):
    return [path for path in (home / "home" / "downloads").rglob("*") if path.is_file()]


def test_the_published_files_become_a_bundle(hub, tmp_path):
    seen = []
    folder, report = download("hallo3", dtype=None, on_download=lambda done, total: seen.append((done, total)))
    assert folder == registry() / "hallo3" == tmp_path / "home" / "bundles" / "hallo3"
    assert report.missing == missing_parts(folder) == ("tokenizer",)
    assert read_index(folder).notes["_hallo3_source"] == f"{NAME}@{hub.commit}"
    assert sum(p.numel() for p in load_components("hallo3", ["transformer"])["transformer"].parameters()) > 500_000
    assert [b.name for b in list_bundles() if b.kind == "registry"] == ["hallo3"]
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)
    asked = {path for method, path, _ in hub.requests if method == "GET"}
    assert not any("transformer/1" in path or path.endswith(".bin") for path in asked)
    assert downloads(tmp_path) == []
    with pytest.raises(UserError, match="exists, and nothing is overwritten"):
        download("hallo3")


def test_a_broken_connection_is_taken_up_where_it_broke(hub, tmp_path):
    hub.cuts[WEIGHTS] = [1_500_000, 3_000_000]
    folder, _ = download("hallo3", tmp_path / "b", dtype=None, keep_files=True)
    assert hub.ranges_of(WEIGHTS) == [None, "bytes=1500000-", "bytes=3000000-"]
    assert (GOLDEN / "dit" / WEIGHTS).read_bytes() == next(
        p for p in downloads(tmp_path) if p.suffix == ".pt"
    ).read_bytes()
    assert "transformer" in read_index(folder).parts


def test_an_interrupted_download_goes_on_in_another_run(hub, tmp_path):
    hub.cuts[WEIGHTS] = [2_000_000] + [0] * 20
    with pytest.raises(UserError, match=r"can't be reached .*; check the network and give the same command again"):
        download("hallo3", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    (part,) = (path for path in downloads(tmp_path) if path.name.endswith(".pt.part"))
    assert part.stat().st_size == 2_000_000
    hub.cuts.clear()
    hub.requests.clear()
    download("hallo3", tmp_path / "b", dtype=None)
    assert hub.ranges_of(WEIGHTS) == ["bytes=2000000-"]
    assert "transformer" in read_index(tmp_path / "b").parts


def test_a_server_without_ranges_starts_again_and_stays_right(hub, tmp_path):
    hub.cuts[WEIGHTS], hub.ranges = [1_000_000], False
    repository = open_repository(NAME, "main")
    fetch(repository, [WEIGHTS], tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == (GOLDEN / "dit" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("file", [WEIGHTS, "t5-v1_1-xxl/config.json"])
def test_a_damaged_file_is_rejected_and_not_kept(file, hub, tmp_path):
    hub.corrupt.add(file)
    with pytest.raises(UserError, match=f"{file} arrived damaged"):
        download("hallo3", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert not any(path.name.startswith(file.split("/")[-1]) for path in downloads(tmp_path) if file in str(path))
    hub.corrupt.clear()
    assert "transformer" in read_index(download("hallo3", tmp_path / "b")[0]).parts


def test_a_repository_that_is_a_bundle_is_taken_as_it_is(hub, tmp_path, components):
    parts = {name: components[name] for name in ("vae", "speech_encoder")}
    save_components(tmp_path / "source", parts, SETTINGS, max_shard_size="20KB")
    hub.repositories["someone/small"] = tmp_path / "source"
    (tmp_path / "source" / "vae" / "run.py").write_text("print('no')")
    folder, report = download("someone/small")
    assert folder.name == "small" and set(report.parts) == set(parts)
    loaded = load_components("small", parts)
    for name, part in parts.items():
        assert all(torch.equal(x, loaded[name].state_dict()[n]) for n, x in part.state_dict().items())


@pytest.mark.parametrize("text", [None, "Their own words."])
def test_a_downloaded_bundle_has_a_card(text, hub, tmp_path, components):
    save_components(tmp_path / "source", {"vae": components["vae"]}, SETTINGS)
    (tmp_path / "source" / CARD).unlink()
    if text is not None:
        (tmp_path / "source" / CARD).write_text(text)
    hub.repositories["someone/small"] = tmp_path / "source"
    folder, _ = download("someone/small")
    card = (folder / CARD).read_text()
    if text is not None:
        assert card == text
    else:
        assert "| vae | `AutoencoderKLCogVideoX` |" in card and f"- source: `someone/small@{hub.commit}`" in card
        assert ModelCard(card).data.license == "other" and "--bundle small" in card


def test_the_hub_s_token_is_told_to_the_hub_alone(hub, tmp_path, capfd, caplog, monkeypatch):
    """Whatever goes wrong: not to people, not to logs, not to what is written."""
    token = "hf_" + "s3cr3t" * 5
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HALLO3_DEBUG", "1")
    caplog.set_level("DEBUG")
    said = ""
    for fault in ("status", "cut", "corrupt", "none"):
        hub.status = 403 if fault == "status" else None
        hub.cuts = {WEIGHTS: [1_000_000, *[0] * 20]} if fault == "cut" else {}
        hub.corrupt = {WEIGHTS} if fault == "corrupt" else set()
        assert main(["download", "hallo3", "--out", str(tmp_path / "b")]) == (0 if fault == "none" else 2)
        captured = capfd.readouterr()
        said += captured.out + captured.err
    assert hub.tokens == {f"Bearer {token}"}
    assert "answered 403" in said and "arrived damaged" in said and "lacks tokenizer" in said
    assert token not in said + caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]


def test_a_bundle_on_the_hub_is_loaded_by_its_name(hub, tmp_path, components):
    save_components(tmp_path / "source", {"vae": components["vae"]}, SETTINGS)
    hub.repositories["someone/small"] = tmp_path / "source"
    loaded = load_components("someone/small", ["vae"])["vae"]
    assert all(torch.equal(x, loaded.state_dict()[n]) for n, x in components["vae"].state_dict().items())
    assert [(b.name, b.missing[0]) for b in list_bundles() if b.kind == "hub cache"] == [
        ("someone/small", "transformer")
    ]
    hub.status = 500
    assert load_components("someone/small", ["vae"], local_files_only=True)["vae"] is not None
    with pytest.raises(UserError, match="someone/other: not on this machine"):
        load_components("someone/other", ["vae"], local_files_only=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("someone/nothing", "has no such repository"),
        ("not a name", "give hallo3, cogvideox-5b-i2v or OWNER/REPOSITORY"),
        ("../up", "give hallo3"),
        ("someone/empty", "holds neither Hallo3"),
    ],
)
def test_what_the_hub_does_not_have(name, words, hub, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("nothing")
    hub.repositories["someone/empty"] = tmp_path / "empty"
    with pytest.raises(UserError, match=words) as caught:
        download(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("status", "words"), [(503, "answered 503"), (401, "no such repository|answered 401")])
def test_a_hub_that_says_no_is_one_line(status, words, hub):
    hub.status = status
    with pytest.raises(UserError, match=words):
        download("hallo3")


def test_without_a_network_there_is_one_line(tmp_path, monkeypatch):
    with socket.socket() as unused:  # a port where nobody listens
        unused.bind(("127.0.0.1", 0))
        point_at(f"http://127.0.0.1:{unused.getsockname()[1]}", monkeypatch)
        monkeypatch.setenv("HALLO3_HOME", str(tmp_path))
        with pytest.raises(UserError, match="can't be reached") as caught:
            download("hallo3")
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="can't be reached"):
            load_components("someone/small", ["vae"])
