"""Who home and its workers trust: a token, TLS from certificate files; and what is in the clear."""

import ssl
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from tracer.errors import InputError

TOKEN = "CUTEDGE_TOKEN"
"""The environment variable that has the token which home and its workers share."""

LEAST_TOKEN = 16
"""Characters that it must have where workers listen for others than the home that started them."""


def identity(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a worker proves with who it is. Raises InputError for files that are no such pair."""

    def no_password() -> str:
        raise InputError(f"{key} has a passphrase: give a key without one")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key, no_password)
    except (OSError, ValueError) as error:  # ssl's own errors are OSErrors
        raise InputError(
            f"--tls-cert {certificate} and --tls-key {key} are no certificate and its key in PEM "
            f"({getattr(error, 'reason', None) or getattr(error, 'strerror', None) or error})"
        ) from error
    return context


def trust(authority: Path) -> ssl.SSLContext:
    """Whose certificates are trusted: those that an authority's file has signed, for the name or
    address that is connected to. Raises InputError for a file that is no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(authority)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--tls-ca {authority} is no certificate in PEM "
            f"({getattr(error, 'reason', None) or getattr(error, 'strerror', None) or error})"
        ) from error
    return context


def stays_here(host: str) -> bool:
    """Whether what goes to a host, by name or address, stays on this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def clear_text(hosts: Sequence[str], option: str) -> list[str]:
    """A warning where bytes leave this machine without TLS, and which ``option`` gives that."""
    away = [host for host in hosts if not stays_here(host)]
    return (
        [
            f"what goes to and from {', '.join(away)} is in the clear, and whoever is on the way can "
            f"change it: give {option}"
        ]
        if away
        else []
    )
