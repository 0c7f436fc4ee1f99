"""A certificate and its key, for HTTP and gRPC."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from fastpipe.errors import PipeError

__all__ = ["Encryption"]

CERTIFICATE, PRIVATE_KEY = b"CERTIFICATE-----", b"PRIVATE KEY-----"
"""How the lines end that PEM begins them with, whatever kind they are of."""


@dataclass(frozen=True)
class Encryption:
    """What a server shows its clients, and what proves that it may.

    Args:
        certificate: a file in PEM with the server's certificate first, and those that have signed it behind.
        key: a file in PEM with the private key, without a password; None: it is in the same file.
    """

    certificate: Path
    key: Path | None = None

    def check(self) -> None:
        """Find out now what is wrong with the files.

        Raises:
            PipeError: they cannot be read, or do not belong together.
        """
        self.pem()
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self.certificate, self.key, password=self._has_a_password
            )
        except (OSError, ValueError) as error:  # of ssl, too
            raise PipeError(self._why_not(error)) from error

    def pem(self) -> tuple[bytes, bytes]:
        """Return key and certificate as gRPC wants them."""
        try:
            certificate = self.certificate.read_bytes()
            return certificate if self.key is None else self.key.read_bytes(), certificate
        except OSError as error:
            raise PipeError(f"TLS: {error.filename} cannot be read: {error.strerror}") from error

    def _why_not(self, error: Exception) -> str:
        """Return in words why OpenSSL does not take the files; of a wrong one it says no more than "PEM lib"."""
        key, certificate = self.pem()
        if CERTIFICATE not in certificate:
            swapped = f"; {self.key} has one: the two files may be swapped" if CERTIFICATE in key else ""
            return f"TLS: there is no certificate in {self.certificate}: no line says BEGIN CERTIFICATE{swapped}"
        if PRIVATE_KEY not in key and self.key is None:
            return f"TLS: there is no private key in {self.certificate}: name the file that has it with --tls-key"
        if PRIVATE_KEY not in key:
            return (
                f"TLS: there is no private key in {self.key}: no line says BEGIN PRIVATE KEY, or BEGIN RSA PRIVATE KEY"
            )
        where = "the same file" if self.key is None else f"{self.key}"
        return f"TLS: {self.certificate} and the key in {where} cannot be used: {error}"

    def _has_a_password(self) -> str:
        """Called if OpenSSL wants one: it would ask for it at the terminal."""
        raise ValueError("the key has a password")
