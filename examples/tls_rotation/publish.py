"""Put a certificate into service: every worker answers new handshakes with it from now on.

Run: python publish.py CHAIN.pem KEY.pem
"""

from __future__ import annotations

import os
import sys

from certificate import STORE, Certificate, named

from shmcow import Writer


def main() -> None:
    """Publish the paths of two files, and the fingerprint of the certificate."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    chain, key = (os.path.abspath(path) for path in sys.argv[1:])
    try:
        certificate = named(chain, key)
    except (OSError, ValueError) as exc:
        sys.exit(f"publish.py: {exc}")
    with Writer(STORE, type=Certificate) as writer:
        print("version", writer.publish(certificate, message=f"certificate {certificate.sha256[:16]}"))


if __name__ == "__main__":
    main()
