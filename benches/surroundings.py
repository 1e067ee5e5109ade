"""The common part of the benchmarks: the programs that tests/lab found, Pebble on free ports, and
processes that are measured and always ended. It needs only Python's standard library."""

import ast
import contextlib
import json
import os
import select
import shlex
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Missing(Exception):
    """The machine lacks a program; reported in a line `SKIPPED: …`."""


def progress(text):
    """Shows progress on a terminal, over the previous text."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def skipped(what, why):
    print(f"SKIPPED: {what}: {why}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def bounded(seconds):
    """Raises at the time limit and at signals to end, so that every `finally` runs."""

    def end(number, _frame):
        raise SystemExit(f"FAILED: ended by {signal.Signals(number).name} (the limit is {seconds} s)")

    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def programs():
    """The paths that tests/lab names, as CERTS_LAB_…; those in the environment win."""
    found = {name: value for name, value in os.environ.items() if name.startswith("CERTS_LAB_")}
    lab = subprocess.run([ROOT / "tests/lab", "--env"], stdout=subprocess.PIPE, text=True, check=True)
    for line in lab.stdout.splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        found.setdefault(name, shlex.split(value)[0])
    return {name: path for name, path in found.items() if os.access(path, os.X_OK)}


def release_binary(given):
    """`given`, or the program that `cargo build --release` makes."""
    if given:
        return str(Path(given).resolve(strict=True))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "certs"
    target = os.environ.get("CARGO_TARGET_DIR") or os.environ.get("CERTS_BUILD_DIR") or str(cache / "target")
    command = ["cargo", "build", "--release", "--locked", "--bin", "certs", "--message-format=json-render-diagnostics"]
    environment = {**os.environ, "CARGO_TARGET_DIR": target}
    built = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    return next(path for message in messages if (path := message.get("executable")))


def environment(home, **more):
    """Only PATH of the caller's environment: no configuration, no proxy."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home), "LC_ALL": "C.UTF-8", **more}


def free_port():
    """A port that is free for both TCP and UDP."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            with contextlib.suppress(OSError):
                udp.bind(tcp.getsockname())
                return tcp.getsockname()[1]


def until(what, ready, seconds=20.0, pause=0.02):
    end = time.monotonic() + seconds
    while not (answer := ready()):
        if time.monotonic() > end:
            raise SystemExit(f"FAILED: {what}: not within {seconds:.0f} s")
        time.sleep(pause)
    return answer


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def running(command, **options):
    """A process that ends with the block: by SIGTERM, else by SIGKILL."""
    process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            print(f"{command[0]} had to be killed", file=sys.stderr)
            process.kill()
            process.wait()


# A process starts with the peak memory of its parent, even after exec. This launcher, as small as
# Python can be, is that parent: its own peak is the smallest that can be measured.
LAUNCHER = """
import posix, sys, time
report = int(sys.argv[1])
posix.set_inheritable(report, False)
start = time.monotonic()
child = posix.posix_spawn(sys.argv[2], sys.argv[2:], posix.environ)
_, status, used = posix.wait4(child, 0)
wall = time.monotonic() - start
posix.write(report, repr((status, wall, used.ru_utime + used.ru_stime, used.ru_maxrss)).encode())
"""


def measured(command, env, limit=60):
    """Runs `command` to its end: (wall s, CPU s, peak KiB), its children included. Raises when it fails."""
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as output, os.fdopen(reading, "rb") as figures:
        try:
            launcher = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", LAUNCHER, str(writing), *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                pass_fds=[writing],
                start_new_session=True,
            )
        finally:
            os.close(writing)
        try:
            finished = select.select([figures], [], [], limit)[0]
            reported = figures.read() if finished else b""
        finally:
            # Kills a hanging process with its whole session.
            if launcher.poll() is None and not wait_briefly(launcher):
                os.killpg(launcher.pid, signal.SIGKILL)
                launcher.wait()
        status, *used = ast.literal_eval(reported.decode()) if reported else (None,)
        if status != 0:
            output.seek(0)
            end = output.read().decode(errors="replace")[-2000:]
            how = f"exit {os.waitstatus_to_exitcode(status)}" if reported else f"no end within {limit} s"
            raise RuntimeError(f"{command[0]}: {how}\n{end}")
        return tuple(used)


def wait_briefly(process):
    """Whether the process ends within half a second."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.5)
        return True
    return False


CERTIFICATES = """
openssl ecparam -name prime256v1 -genkey -noout -out root-key.pem
openssl req -x509 -new -key root-key.pem -subj "/CN=the directory's root" -days 2 -out root.pem
openssl ecparam -name prime256v1 -genkey -noout -out key.pem
openssl req -new -key key.pem -subj "/CN=localhost" -out leaf.csr
printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n' >leaf.ext
openssl x509 -req -in leaf.csr -CA root.pem -CAkey root-key.pem -CAcreateserial -days 2 -extfile leaf.ext -out leaf.pem
"""


class Pebble:
    """A CA without sleeps, whose DNS sends every name to loopback, or is a server at `dns`."""

    def __init__(self, directory, port, http_port, pid):
        self.directory = directory
        self.pid = pid
        self.url = f"https://localhost:{port}/dir"
        self.http_port = http_port
        self.root = directory / "root.pem"

    @classmethod
    @contextlib.contextmanager
    def start(cls, found, dns=None, **settings):
        for name in ("CERTS_LAB_PEBBLE", "CERTS_LAB_CHALLTESTSRV"):
            if name not in found:
                raise Missing(f"{name}: tests/lab did not find it")
        if not shutil.which("openssl"):
            raise Missing("openssl: Pebble's own certificate is made with it")
        with tempfile.TemporaryDirectory(prefix="certs-bench-") as made, contextlib.ExitStack() as servers:
            directory = Path(made)
            subprocess.run(["sh", "-ec", CERTIFICATES], cwd=directory, check=True, capture_output=True)
            port, management, http_port, tls_port, dns_port, dns_management = (free_port() for _ in range(6))
            config = {
                "listenAddress": f"127.0.0.1:{port}",
                "managementListenAddress": f"127.0.0.1:{management}",
                "certificate": str(directory / "leaf.pem"),
                "privateKey": str(directory / "key.pem"),
                "httpPort": http_port,
                "tlsPort": tls_port,
                "ocspResponderURL": "",
                "externalAccountBindingRequired": False,
                "retryAfter": {"authz": 0, "order": 0},
            }
            (directory / "pebble.json").write_text(json.dumps({"pebble": config}))
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            servers.enter_context(running(cls._dns(found, dns_port, dns_management), **quiet))
            command = [found["CERTS_LAB_PEBBLE"], "-strict", "-config", directory / "pebble.json"]
            command += ["-dnsserver", dns or f"127.0.0.1:{dns_port}"]
            env = environment(directory, PEBBLE_VA_NOSLEEP="1", PEBBLE_AUTHZREUSE="0", PEBBLE_WFE_NONCEREJECT="0", **settings)
            pebble = servers.enter_context(running(command, env=env, **quiet))
            until("Pebble", lambda: listens(port) and listens(dns_management))
            yield cls(directory, port, http_port, pebble.pid)

    @staticmethod
    def _dns(found, port, management):
        program = found["CERTS_LAB_CHALLTESTSRV"]
        usage = subprocess.run([program, "-h"], capture_output=True, text=True, check=False)
        command = [program, "-management", f"127.0.0.1:{management}", "-defaultIPv6", ""]
        command += ["-http01", "", "-https01", "", "-tlsalpn01", ""]
        # Older versions name the DNS option differently and have no `-doh`.
        if "-dnsserver" in usage.stdout + usage.stderr:
            return [*command, "-dnsserver", f"127.0.0.1:{port}", "-doh", ""]
        return [*command, "-dns01", f"127.0.0.1:{port}"]


@contextlib.contextmanager
def slow_lookups(server, seconds):
    """A name server over TCP, as Pebble asks one, that leads to `server`, and replies so many seconds later."""
    host, port = server.rsplit(":", 1)

    class Relay(socketserver.StreamRequestHandler):
        def handle(self):
            while query := message(self.rfile):
                time.sleep(seconds)
                with socket.create_connection((host, int(port)), 5) as further:
                    further.sendall(query)
                    self.wfile.write(message(further.makefile("rb")))

    def message(stream):
        length = stream.read(2)
        return length and length + stream.read(int.from_bytes(length, "big"))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay) as relay:
        relay.daemon_threads = True
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{relay.server_address[1]}"
        finally:
            relay.shutdown()


class Bind:
    """A name server for example.com that takes updates signed by a key, at port 53 of an address of its own."""

    KEY, SECRET = "certs-bench", "dGhpcy1pcy1hLXNlY3JldC1vZi10aGUtYmVuY2htYXJr"
    CONFIG = """
options {{ directory "{home}"; listen-on port 53 {{ {at}; }}; listen-on-v6 {{ none; }}; pid-file none; recursion yes;
    session-keyfile "{home}/session.key"; allow-query {{ any; }}; allow-recursion {{ any; }}; notify no; dnssec-validation no;
    empty-zones-enable no; query-source {at}; }};
controls {{ }};
key "{key}" {{ algorithm hmac-sha256; secret "{secret}"; }};
zone "example.com" {{ type primary; file "{home}/zone"; update-policy {{ grant {key} zonesub TXT; }}; }};
"""
    ZONE = "$TTL 1\n@ SOA ns1.example.com. admin.example.com. 1 1 1 3600 1\n@ NS ns1.example.com.\nns1 A {at}\n@ A 127.0.0.1\n"

    @classmethod
    @contextlib.contextmanager
    def start(cls, found):
        """Gives `ADDRESS:53`."""
        if "CERTS_LAB_NAMED" not in found or "CERTS_LAB_DIG" not in found:
            raise Missing("BIND: tests/lab did not find it")
        if os.geteuid() != 0 or not shutil.which("ip"):
            raise Missing("BIND: port 53 and an address of its own need root and `ip`")
        number = os.getpid() % 65_025
        at = f"127.15.{number // 255}.{number % 255 + 1}"
        with tempfile.TemporaryDirectory(prefix="certs-bench-bind-") as made, contextlib.ExitStack() as ends:
            home = Path(made)
            (home / "zone").write_text(cls.ZONE.format(at=at))
            (home / "named.conf").write_text(cls.CONFIG.format(home=home, at=at, key=cls.KEY, secret=cls.SECRET))
            subprocess.run(["ip", "address", "add", f"{at}/32", "dev", "lo"], check=True)
            ends.callback(subprocess.run, ["ip", "address", "delete", f"{at}/32", "dev", "lo"], check=False)
            command = [found["CERTS_LAB_NAMED"], "-g", "-n", "1", "-c", home / "named.conf"]
            ends.enter_context(running(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            ask = [found["CERTS_LAB_DIG"], "+short", "+tries=1", "+time=1", f"@{at}", "SOA", "example.com"]
            until("BIND", lambda: subprocess.run(ask, capture_output=True, check=False).stdout.strip())
            yield f"{at}:53"


def table(rows):
    """Columns as wide as their widest cell; all but the first to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        print("  ".join(cells).rstrip())
