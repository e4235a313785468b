"""Which certificate is in service: a path and a fingerprint in a store, and an SSLContext that follows them.

What is published is *where* the certificate and its key lie and *which* certificate that must be. The key itself stays
in its file, and each process reads it with its own rights. A key does not belong in a snapshot:

- Whoever may read the store would have it, and so would their core dumps. A key file has an owner and a mode of its
  own; a store has one mode for all its readers.
- Nothing is erased when it is replaced. Older versions are retained, rolled back to, and stay in memory for as long as
  any process holds them; reclaiming removes a name, and overwrites nothing. tmpfs may be swapped to a disk.
- Everything here is made for showing values: ``shmcow get``, ``history``, ``diff``, ``export``.

The same goes for passwords and tokens.

The fingerprint is what makes a rotation one step, though two files and a store are written one after the other: a
process that finds another certificate in the file than the one that was published refuses it, and the last good
context stays in service. Give every certificate a file of its own (chain-2026-11.pem), so that no process ever looks at
one that is being written, and a rollback finds the one before.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from pathlib import Path

import msgspec

from shmcow import Reader

STORE = os.environ.get("TLS_STORE", "tls-example")


class Certificate(msgspec.Struct, frozen=True):
    """A certificate that servers are to use.

    Attributes:
        chain: path of the PEM file with the certificate and the intermediate ones.
        key: path of the PEM file with its private key.
        sha256: of the certificate (DER), in hexadecimal digits.
    """

    chain: str
    key: str
    sha256: str


def fingerprint(der: bytes) -> str:
    """Return the SHA-256 of a certificate in DER form."""
    return hashlib.sha256(der).hexdigest()


def named(chain: str, key: str) -> Certificate:
    """Return what to publish for two files. It looks at the certificate only: the key is the servers' business.

    Raises:
        OSError: the certificate cannot be read.
        ValueError: it is no PEM.
    """
    first = re.search(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", Path(chain).read_text(), re.DOTALL)
    if first is None:
        raise ValueError(f"there is no certificate in {chain}: expected a PEM file")
    return Certificate(chain, key, fingerprint(ssl.PEM_cert_to_DER_cert(first[0])))


def load(certificate: Certificate) -> ssl.SSLContext:
    """Return a server's context with this certificate: a reader's ``transform``, once for each version and process.

    Raises:
        OSError: a file is missing or cannot be read.
        ssl.SSLError: a file is no PEM, or the key is another certificate's.
        ValueError: it is not the certificate that was published.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.chain, certificate.key)
    found = fingerprint(_served_with(context))
    if found != certificate.sha256:
        raise ValueError(f"{certificate.chain} has the certificate {found}, expected {certificate.sha256}")
    return context


def _served_with(context: ssl.SSLContext) -> bytes:
    """Return the certificate that a context answers with, by a handshake in memory: the file may have changed since."""
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE  # whose it is, the fingerprint says
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = anybody.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
    der = client.getpeercert(binary_form=True)
    assert der is not None
    return der


def following(reader: Reader[ssl.SSLContext]) -> ssl.SSLContext:
    """Return a context for a server that takes one at its start: each handshake is made with the reader's newest one.

    Open connections go on with what they were made with, and so do clients that resume a session. This works for
    whatever wraps its sockets with a context: ``http.server``, ``asyncio.start_server(ssl=...)``, the ``ssl_context``
    hook of gunicorn. What is not the certificate (protocol versions, ALPN, client certificates) is set in what this
    returns.

    Raises:
        ShmcowError: there is no usable certificate yet.
    """
    reader.get()  # a server without a certificate should not start

    def choose(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = reader.get()  # one atomic load, as long as nothing was published

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = choose  # called for each handshake, also of a client that names no server
    return context


certificates: Reader[ssl.SSLContext] = Reader(STORE, type=Certificate, transform=load)
