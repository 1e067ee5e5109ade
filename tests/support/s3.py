"""S3 by moto: prints its address, which may be given (HOST PORT), and serves until its input ends.

One request at a time: moto checks a condition and writes in two steps.
"""
import os
import sys
import threading

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

inner = DomainDispatcherApplication(create_backend_app)
lock = threading.Lock()


def application(environment, start):
    with lock:
        return list(inner(environment, start))


host, port = sys.argv[1:] or ("127.0.0.1", 0)
server = make_server(host, int(port), application, threaded=True)
print(f"{host}:{server.server_port}", flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
server.serve_forever()
