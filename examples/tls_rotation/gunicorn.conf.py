"""The same under gunicorn: new handshakes get the newest certificate in every worker, without HUP or a restart.

Run, in this directory, with an application of your own, when a certificate was published (python publish.py ...):

    gunicorn --config gunicorn.conf.py --bind :8443 app:app
"""

from __future__ import annotations

import ssl

from certificate import STORE, Certificate, certificates, following

from shmcow import Reader

# gunicorn serves TLS when it is given files; which certificate a handshake gets, the context below decides.
_now = Reader(STORE, type=Certificate).get()
certfile, keyfile = _now.chain, _now.key


def ssl_context(_config: object, _default: object) -> ssl.SSLContext:
    """Return the context that gunicorn wraps its connections with; called in each worker."""
    return following(certificates)
