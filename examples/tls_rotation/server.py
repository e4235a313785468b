"""An HTTPS server of several processes whose certificate is rotated while it runs.

Run, in this directory (pip install 'shmcow[cli]'):

    openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 7 -keyout key-1.pem -out chain-1.pem
    python publish.py chain-1.pem key-1.pem
    python server.py 8443

and from another shell:

    curl --insecure https://localhost:8443      who answers, and what stands in the way of the newest certificate
    openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 7 -keyout key-2.pem -out chain-2.pem
    python publish.py chain-2.pem key-2.pem     the next handshake has it, whichever process makes it
    shmcow rollback tls-example                 and back

The store outlives the server; to remove it: shmcow rm tls-example
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from certificate import certificates, following

WORKERS = 3


class Answer(BaseHTTPRequestHandler):
    """Answers every GET with who answers, and the state of its certificate."""

    protocol_version = "HTTP/1.1"  # a connection serves many requests
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer."""
        said = {"pid": os.getpid(), "version": certificates.version, "problem": str(certificates.problem or "")}
        body = json.dumps(said | {"failures": certificates.failures}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as http.server calls it
        """Say nothing."""


def serve(listening: socket.socket) -> None:
    """Serve for ever, in one of the workers."""
    server = ThreadingHTTPServer(("localhost", 0), Answer, bind_and_activate=False)
    server.socket.close()
    # The handshake is made by the connection's own thread, when it reads.
    server.socket = following(certificates).wrap_socket(listening, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


def main() -> None:
    """Listen, fork the workers, and end with them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    listening = socket.create_server(("localhost", int(sys.argv[1])))
    listening.setblocking(False)
    workers = []
    for _ in range(WORKERS):
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            serve(listening)
        workers.append(pid)
    print("port", listening.getsockname()[1], flush=True)
    try:
        ended, _ = os.wait()
        workers.remove(ended)
        sys.exit(f"worker {ended} ended")
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
