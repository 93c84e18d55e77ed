"""Content credentials: signed aside, read back, broken by a change; whose certificate, and what is refused."""

import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from media_samples import write_video

from hallo3.errors import UserError
from hallo3.media import credentials
from hallo3.media.credentials import LOCAL_FILE, find_signer, read_credentials, sign, try_signer
from hallo3.media.provenance import provenance_record
from hallo3.media.video import probe, read_video

RECORD = provenance_record(bundle="b", seed=3, settings={"numbers": [1, 2.5], "prompt": "ü"}, inputs={"speech": "x:1"})


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HALLO3_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    source = write_video(tmp_path / "plain.mp4", 0.4)
    sign(source, tmp_path / "signed.mp4", RECORD, find_signer())
    return tmp_path / "signed.mp4"


def test_what_was_signed_is_read(signed: Path, tmp_path: Path) -> None:
    found = read_credentials(signed)
    assert found is not None and (found.state, found.local) == ("valid", True)
    assert found.record == RECORD
    assert found.source_types == (RECORD["digital_source_type"],)
    assert found.generator.startswith("hallo3 ") and "vouches for nobody" in found.signer
    assert probe(signed).frames == probe(tmp_path / "plain.mp4").frames
    assert (read_video(signed).frames == read_video(tmp_path / "plain.mp4").frames).all()
    assert read_credentials(tmp_path / "plain.mp4") is None


def test_a_change_breaks_them(signed: Path) -> None:
    data = bytearray(signed.read_bytes())
    at = data.index(b"mdat") + 200
    data[at] ^= 1
    signed.write_bytes(data)
    found = read_credentials(signed)
    assert found is not None and found.state == "invalid" and "assertion.bmffHash.mismatch" in found.problems


def test_the_local_certificate_is_made_once_and_private(own_home: Path) -> None:
    first = find_signer()
    assert first.local and first.algorithm == "es256"
    assert find_signer() == first
    assert stat.S_IMODE((own_home / LOCAL_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(own_home.stat().st_mode) == 0o700
    assert sorted(path.name for path in own_home.iterdir()) == [LOCAL_FILE]


def test_the_first_ones_of_a_machine_can_be_made_side_by_side(own_home: Path) -> None:
    """As by two servers that start together."""
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: find_signer(), range(64)))
    assert find_signer() in made
    assert [path.name for path in own_home.iterdir()] == [LOCAL_FILE]


def own_pair(folder: Path) -> tuple[Path, Path]:
    """A certificate and a key in two files, as people have them."""
    signer = find_signer()
    (folder / "chain.pem").write_bytes(signer.certificates)
    (folder / "key.pem").write_bytes(signer.key)
    return folder / "chain.pem", folder / "key.pem"


def test_a_certificate_of_ones_own(tmp_path: Path) -> None:
    signer = find_signer(*own_pair(tmp_path))
    assert not signer.local
    try_signer(signer)


def test_refused(tmp_path: Path) -> None:
    chain, key = own_pair(tmp_path)
    other = ec.generate_private_key(ec.SECP256R1())
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "other.pem").write_bytes(other.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    locked = other.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"word"))
    (tmp_path / "locked.pem").write_bytes(locked)
    for pair, word in (
        ((chain, None), "--private-key"),
        ((chain, tmp_path / "none.pem"), "no such file"),
        ((key, key), "PEM"),
        ((chain, tmp_path / "other.pem"), "another certificate"),
        ((chain, tmp_path / "locked.pem"), "PEM"),
    ):
        with pytest.raises(UserError, match=word):
            find_signer(*pair)


def test_a_certificate_that_may_not_sign_is_known_at_once(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = credentials._certificate(key, "an issuer", key, "an issuer", True)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "c.pem").write_bytes(issuer.public_bytes(pem))
    (tmp_path / "k.pem").write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    with pytest.raises(UserError, match="--no-credentials"):
        try_signer(find_signer(tmp_path / "c.pem", tmp_path / "k.pem"))


def test_a_broken_local_file_is_named(own_home: Path) -> None:
    own_home.mkdir()
    (own_home / LOCAL_FILE).write_text("nonsense")
    with pytest.raises(UserError, match="delete it"):
        find_signer()


def test_a_local_certificate_of_another_time_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock was wrong when it was made, or is now."""

    class Earlier(datetime):
        @classmethod
        def now(cls, tz=None):  # type: ignore[no-untyped-def]
            return cls(1980, 1, 1, tzinfo=tz)

    with monkeypatch.context() as then:
        then.setattr(credentials, "datetime", Earlier)
        old = find_signer()
    new = find_signer()
    assert old.certificates != new.certificates and find_signer() == new
    try_signer(new)
    monkeypatch.setattr(credentials, "datetime", Earlier)
    assert find_signer().certificates not in (old.certificates, new.certificates)


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HALLO3_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="HALLO3_HOME"):
        find_signer()
