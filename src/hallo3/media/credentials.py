"""C2PA content credentials: a signed statement in the file of what made it, which breaks when the file is changed.

The signature is of the user's certificate, or of one made on this machine that says so in its name and vouches for
nobody. The library (`c2pa`) is imported where it is used.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..version import __version__
from .files import require_file
from .personal import keep, settings_folder
from .provenance import SOURCE_TYPE

RECORD = "io.github.hallo3.record"  # our assertion: the record that the tags hold too, as one JSON text
LOCAL_NAME = "hallo3: made on this machine, vouches for nobody"
LOCAL_FILE = "signing.pem"
MISSING = "c2pa-python is not installed, so the result carries no content credentials; pip install c2pa-python"
# Nothing is fetched, whatever a file asks for: neither what its credentials point to nor the state of a certificate.
_SETTINGS = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


@dataclass(frozen=True)
class Signer:
    """A private key and its certificates (PEM), the signer's own first; algorithm as C2PA names it."""

    algorithm: str
    certificates: bytes
    key: bytes
    local: bool


@dataclass(frozen=True)
class Credentials:
    """What a file's credentials say, and whether to believe them.

    state: `trusted`, `valid` (unchanged since it was signed, by a certificate that nobody known vouches for) or
    `invalid`. problems: the validator's codes. record: hallo3's own, if it is there. local: made by hallo3 on some
    machine. source_types: IPTC's terms for how the file came about.
    """

    state: str
    signer: str
    local: bool
    generator: str
    source_types: tuple[str, ...]
    record: dict[str, Any] | None
    problems: tuple[str, ...]


def available() -> bool:
    """Whether the library is installed."""
    try:
        import c2pa  # noqa: F401
    except ImportError:
        return False
    return True


def find_signer(certificate: Path | None = None, key: Path | None = None) -> Signer:
    """The signer of these PEM files, else the local one, which is made when it is first needed.

    Raises UserError for files that cannot be used, a certificate that has ended, or a key that is not its own.
    """
    if (certificate is None) != (key is None):
        raise UserError("--certificate and --private-key: one needs the other; give both, or neither")
    if certificate is not None and key is not None:
        chain = require_file(certificate, "certificate").read_bytes()
        return _checked(chain, require_file(key, "private key").read_bytes(), str(certificate), local=False)
    return _local_signer(settings_folder() / LOCAL_FILE)


def still_valid(signer: Signer) -> Signer:
    """The signer; or another local one, where the clock has jumped out of its time since it was found."""
    return find_signer() if signer.local and not _holds_now(signer.certificates) else signer


def _local_signer(path: Path) -> Signer:
    """The signer in this file; made when there is none, or when it is of another time, as after a jump of the clock."""
    if path.exists() and _holds_now(require_file(path, "signing certificate").read_bytes()) is not False:
        data = path.read_bytes()
    else:
        data = _make_local()
        try:
            keep(path, data)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(
                f"{path}: the signing certificate cannot be kept ({reason}); set HALLO3_HOME to a folder of yours, or "
                "leave credentials out with --no-credentials"
            ) from None
    return _checked(data, data, f"{path} (delete it, and another is made)", local=True)


def _holds_now(chain: bytes) -> bool | None:
    """Whether the first certificate is valid today; None where there is none that can be read."""
    from cryptography import x509

    try:
        own = x509.load_pem_x509_certificates(chain)[0]
    except (ValueError, IndexError):
        return None
    return own.not_valid_before_utc <= datetime.now(UTC) <= own.not_valid_after_utc


def sign(source: Path, target: Path, record: Mapping[str, Any], signer: Signer) -> None:
    """Writes a signed copy of an MP4. record: what `provenance_record` gives. Raises UserError and OSError."""
    import c2pa

    with open(source, "rb") as taken, open(target, "w+b") as made:
        try:
            info = c2pa.C2paSignerInfo(signer.algorithm.encode(), signer.certificates, signer.key, None)
            with (
                c2pa.Signer.from_info(info) as signing,
                c2pa.Builder(_manifest(record), context=_context()) as builder,
            ):
                builder.sign(signing, "video/mp4", taken, made)
        except c2pa.C2paError as error:
            raise _refused(error) from None


def try_signer(signer: Signer) -> None:
    """Signs a picture of one pixel, so that a certificate that C2PA refuses is known before hours of work.

    Raises UserError.
    """
    import io

    import c2pa
    from PIL import Image

    taken, made = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (1, 1)).save(taken, "PNG")
    taken.seek(0)
    try:
        info = c2pa.C2paSignerInfo(signer.algorithm.encode(), signer.certificates, signer.key, None)
        with c2pa.Signer.from_info(info) as signing, c2pa.Builder(_manifest({}), context=_context()) as builder:
            builder.sign(signing, "image/png", taken, made)
    except c2pa.C2paError as error:
        raise _refused(error) from None


def read_credentials(path: Path) -> Credentials | None:
    """The content credentials of a file; None for a file without. Raises UserError where they cannot be read."""
    import c2pa

    try:
        with open(path, "rb") as file, c2pa.Reader("video/mp4", file, context=_context()) as reader:
            store = json.loads(reader.json())
    except c2pa.C2paError.ManifestNotFound:
        return None
    except (c2pa.C2paError, ValueError) as error:
        raise UserError(f"{path}: its content credentials cannot be read ({' '.join(str(error).split())})") from None
    return _credentials(store)


def _credentials(store: Mapping[str, Any]) -> Credentials:
    active = store.get("manifests", {}).get(store.get("active_manifest"), {})
    signature, record, sources = active.get("signature_info") or {}, None, []
    for assertion in active.get("assertions", ()):
        data = assertion.get("data")
        if not isinstance(data, dict):
            continue
        if assertion.get("label") == RECORD:
            record = _mapping(data.get("json"))
        sources += [a["digitalSourceType"] for a in data.get("actions", ()) if "digitalSourceType" in a]
    name = signature.get("common_name") or signature.get("issuer") or "unnamed"
    generators = [f"{g.get('name', '')} {g.get('version', '')}" for g in active.get("claim_generator_info") or ()]
    problems = tuple(one.get("code", "unknown") for one in store.get("validation_status") or ())
    return Credentials(
        state=str(store.get("validation_state", "invalid")).lower(),
        signer=name,
        local=name == LOCAL_NAME,
        generator=", ".join(generators).strip() or str(active.get("claim_generator", "unnamed")),
        source_types=tuple(sources),
        record=record,
        problems=problems,
    )


def _mapping(text: Any) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _manifest(record: Mapping[str, Any]) -> dict[str, Any]:
    agent = {"name": "hallo3", "version": __version__}
    action = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE, "softwareAgent": agent}
    # As text: the library takes a list of small numbers for bytes.
    text = json.dumps(record, ensure_ascii=False, sort_keys=True)
    return {
        "claim_generator_info": [agent],
        "title": "AI-generated talking portrait",
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [action]}},
            {"label": RECORD, "data": {"json": text}},
        ],
    }


def _context() -> Any:
    import c2pa

    return c2pa.Context.from_dict(_SETTINGS)


def _refused(error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(
        f"content credentials: the result cannot be signed ({reason}); mend the certificate, or leave them out with "
        "--no-credentials"
    )


def _checked(chain: bytes, key: bytes, place: str, *, local: bool) -> Signer:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        certificates = x509.load_pem_x509_certificates(chain)
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:  # TypeError: a key under a pass phrase
        raise UserError(f"{place}: no usable certificate and private key in PEM ({str(error).rstrip('.')})") from None
    own = certificates[0]
    if own.public_key() != private.public_key():
        raise UserError(f"{place}: the private key is of another certificate; give the two that belong together")
    if not _holds_now(chain):
        first, last = own.not_valid_before_utc, own.not_valid_after_utc
        raise UserError(
            f"{place}: the certificate is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d}; renew it, or set the clock"
        )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return Signer(
        _algorithm(private, place),
        b"".join(one.public_bytes(pem) for one in certificates),
        private.private_bytes(pem, pkcs8, serialization.NoEncryption()),
        local,
    )


def _algorithm(key: Any, place: str) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    sizes = {256: "es256", 384: "es384", 521: "es512"}
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size in sizes:
        return sizes[key.curve.key_size]
    raise UserError(f"{place}: C2PA knows no such key; use one on the curve P-256, Ed25519 or RSA")


def _make_local() -> bytes:
    """A private key and two certificates in one PEM text: the signer's, and its issuer's, whose key is thrown away.

    They name neither person nor machine.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    issuing, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    parts = [own.private_bytes(pem, pkcs8, serialization.NoEncryption())]
    for key, name, issues in ((own, LOCAL_NAME, False), (issuing, f"{LOCAL_NAME} (issuer)", True)):
        parts.append(_certificate(key, name, issuing, f"{LOCAL_NAME} (issuer)", issues).public_bytes(pem))
    return b"".join(parts)


def _certificate(key: Any, name: str, issuing: Any, issuer: str, issues: bool) -> Any:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def named(text: str) -> x509.Name:
        organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "made locally, not verified")
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text), organisation])

    may = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
         "decipher_only"), False,
    )  # fmt: skip
    usage = x509.KeyUsage(digital_signature=not issues, key_cert_sign=issues, crl_sign=issues, **may)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=issues, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuing.public_key()), critical=False)
    )
    if not issues:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purpose, critical=False)
    return builder.sign(issuing, hashes.SHA256())
