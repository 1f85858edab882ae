"""Ed25519 signatures of evidence (RFC 8032), through the package cryptography.

A signature covers the bytes of ``evidence.json``, which holds the hashes of the other files. It is stored raw, so that
OpenSSL can check it too.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from ofmu.errors import ConfigError
from ofmu.io.files import check_regular, looked_for

PASSWORD_VARIABLE = "OFMU_KEY_PASSWORD"
"""The environment variable with the password of an encrypted private key."""
_MAX_KEY_BYTES = 65_536


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key in PEM. The environment variable OFMU_KEY_PASSWORD holds the password of an encrypted key.

    Raises:
        ConfigError: the file is missing, or holds no Ed25519 private key that can be read.
    """
    content = _read(path, "private key", f", or make one with {_command_for_a_key()}")
    password = os.environ.get(PASSWORD_VARIABLE)
    encrypted = b"ENCRYPTED" in content
    try:
        key = load_pem_private_key(content, password.encode() if password and encrypted else None)
    except TypeError:  # cryptography's error for a missing password
        raise ConfigError(
            f"The key {path} is encrypted: put its password in the variable {PASSWORD_VARIABLE}"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        if encrypted:
            raise ConfigError(
                f"The key {path} cannot be decrypted: check the password in the variable {PASSWORD_VARIABLE}"
            ) from None
        if b"PUBLIC KEY" in content:
            raise ConfigError(f"{path} is a public key: name the private one, with which evidence is signed") from None
        raise ConfigError(
            f"The file {path} holds no private key in PEM: make one with {_command_for_a_key()}"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"The key {path} is no Ed25519 key, and evidence is signed with one: make one with {_command_for_a_key()}"
        )
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key in PEM.

    Raises:
        ConfigError: the file is missing, or holds no Ed25519 public key.
    """
    return parse_public_key(_read(path, "public key"), str(path))


def parse_public_key(content: bytes, source: str) -> Ed25519PublicKey:
    """Return the public key of a PEM text.

    Args:
        content: the PEM.
        source: where the text comes from, for errors.

    Raises:
        ConfigError: the text holds no Ed25519 public key.
    """
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        make = "openssl pkey -in key.pem -pubout"
        raise ConfigError(f"{source} holds no public key in PEM: make it from the private key with {make}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{source} is no Ed25519 key, and evidence is signed with one: name the signer's key")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 (hex) of a key in DER, as ``openssl pkey -pubin -outform DER | sha256sum`` prints it."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def public_pem(key: Ed25519PrivateKey) -> bytes:
    """Return the public half of a key in PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def is_signature(key: Ed25519PublicKey, signature: bytes, content: bytes) -> bool:
    """Return whether ``signature`` is the signature of ``content`` by the owner of ``key``."""
    try:
        key.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def _command_for_a_key() -> str:
    """Return the command that makes a key, in a file that is not there: the command would replace an older key."""
    names = itertools.chain(("key.pem", "new-key.pem"), (f"new-key-{number}.pem" for number in itertools.count(2)))
    name = next(name for name in names if not Path(name).exists())
    return f"openssl genpkey -algorithm ed25519 -out {name}"


def _read(path: Path, what: str, fix: str = "") -> bytes:
    try:
        check_regular(path, _MAX_KEY_BYTES)
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"There is no {what} {looked_for(path)}: check the path{fix}") from None
    except OSError as error:
        raise ConfigError(f"The {what} {path} cannot be read: {error.strerror or error}") from error
