"""A certificate and its key, for HTTP and gRPC."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from fastpipe.errors import PipeError

__all__ = ["Encryption"]


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
            key = "the certificate" if self.key is None else f"{self.key}"
            raise PipeError(f"TLS: {self.certificate} and the key in {key} cannot be used: {error}") from error

    def pem(self) -> tuple[bytes, bytes]:
        """Return key and certificate as gRPC wants them."""
        try:
            certificate = self.certificate.read_bytes()
            return certificate if self.key is None else self.key.read_bytes(), certificate
        except OSError as error:
            raise PipeError(f"TLS: {error.filename} cannot be read: {error.strerror}") from error

    def _has_a_password(self) -> str:
        """Called if OpenSSL wants one: it would ask for it at the terminal."""
        raise ValueError("the key has a password")
