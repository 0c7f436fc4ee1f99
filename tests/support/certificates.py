"""Certificates for servers of tests, which sign themselves; made by ``openssl``."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def make_certificate(folder: Path, name: str, *key: str) -> tuple[Path, Path]:
    """Make a certificate for this machine, and its key; skip the test where there is no openssl.

    Args:
        folder: for ``NAME.pem`` and ``NAME.key``.
        name: of both.
        key: options of ``openssl req`` for the key, instead of none with a password.
    """
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    certificate, key_file = folder / f"{name}.pem", folder / f"{name}.key"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    given = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", *names, *(key or ("-nodes",))]
    subprocess.run([*given, "-keyout", str(key_file), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key_file
