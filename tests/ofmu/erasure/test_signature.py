from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from ofmu.erasure.signature import (
    fingerprint,
    is_signature,
    parse_public_key,
    public_pem,
    read_private_key,
    read_public_key,
)
from ofmu.errors import ConfigError

OPENSSL = shutil.which("openssl")


def write_key(path: Path, key: object, encryption: KeySerializationEncryption | None = None) -> Path:
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())  # type: ignore[attr-defined]
    )
    return path


def test_the_signature_of_rfc_8032():
    """The second test vector of section 7.1."""
    secret = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    expected = (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    key = Ed25519PrivateKey.from_private_bytes(secret)
    assert key.sign(b"\x72").hex() == expected
    public = parse_public_key(public_pem(key), "test")
    assert is_signature(public, bytes.fromhex(expected), b"\x72")
    assert not is_signature(public, bytes.fromhex(expected), b"\x73")
    assert not is_signature(public, b"", b"\x72")
    assert not is_signature(Ed25519PrivateKey.generate().public_key(), bytes.fromhex(expected), b"\x72")


@pytest.mark.skipif(OPENSSL is None, reason="there is no openssl on this machine")
def test_keys_and_fingerprints_are_those_of_openssl(tmp_path: Path):
    def openssl(*words: str) -> bytes:
        return subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True).stdout

    openssl("genpkey", "-algorithm", "ed25519", "-out", "key.pem")
    openssl("pkey", "-in", "key.pem", "-pubout", "-out", "public.pem")
    key = read_private_key(tmp_path / "key.pem")
    assert public_pem(key) == (tmp_path / "public.pem").read_bytes()
    der = tmp_path / "public.der"
    der.write_bytes(openssl("pkey", "-pubin", "-in", "public.pem", "-outform", "DER"))
    expected = openssl("dgst", "-sha256", "-r", str(der)).decode().split()[0]
    assert fingerprint(read_public_key(tmp_path / "public.pem")) == expected
    (tmp_path / "text").write_bytes(b"some text")
    (tmp_path / "text.sig").write_bytes(key.sign(b"some text"))
    verify = ("pkeyutl", "-verify", "-pubin", "-inkey", "public.pem", "-rawin", "-in", "text", "-sigfile", "text.sig")
    assert b"Successfully" in openssl(*verify)


def test_an_encrypted_key_needs_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    key = Ed25519PrivateKey.generate()
    path = write_key(tmp_path / "key.pem", key, BestAvailableEncryption(b"secret"))
    monkeypatch.delenv("OFMU_KEY_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match="is encrypted: put its password in the variable OFMU_KEY_PASSWORD"):
        read_private_key(path)
    monkeypatch.setenv("OFMU_KEY_PASSWORD", "wrong")
    with pytest.raises(ConfigError, match="cannot be decrypted: check the password"):
        read_private_key(path)
    monkeypatch.setenv("OFMU_KEY_PASSWORD", "secret")
    assert public_pem(read_private_key(path)) == public_pem(key)
    # A password that is not needed does no harm.
    assert public_pem(read_private_key(write_key(tmp_path / "plain.pem", key))) == public_pem(key)


def test_the_command_for_a_key_replaces_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("key.pem", "new-key.pem", "new-key-2.pem"):
        with pytest.raises(ConfigError, match=f"or make one with openssl genpkey -algorithm ed25519 -out {name}$"):
            read_private_key(tmp_path / "missing.pem")
        (tmp_path / name).touch()


def test_what_is_no_key_is_refused(tmp_path: Path):
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with pytest.raises(ConfigError, match="is no Ed25519 key"):
        read_private_key(write_key(tmp_path / "rsa.pem", other))
    with pytest.raises(ConfigError, match="There is no private key"):
        read_private_key(tmp_path / "missing.pem")
    with pytest.raises(ConfigError, match="it is a directory"):
        read_private_key(tmp_path)
    key = Ed25519PrivateKey.generate()
    (tmp_path / "public.pem").write_bytes(public_pem(key))
    with pytest.raises(ConfigError, match=r"public\.pem is a public key: name the private one"):
        read_private_key(tmp_path / "public.pem")
    with pytest.raises(ConfigError, match="holds no public key in PEM"):
        read_public_key(write_key(tmp_path / "private.pem", key))
    (tmp_path / "text.pem").write_text("hello")
    for read in (read_private_key, read_public_key):
        with pytest.raises(ConfigError, match=r"text\.pem"):
            read(tmp_path / "text.pem")
    with pytest.raises(ConfigError, match="holds no private key in PEM: make one with openssl"):
        read_private_key(tmp_path / "text.pem")
