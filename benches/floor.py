"""The floor of a CA: the seconds that it needs for one order by DNS-01, of a client that does nothing else.

The account, the keys and the signing request are made before the clock starts, and the clock stands while the records
are added: no lookup of a zone, no update, no wait for name servers, no file. What is left is one connection, the
requests that no client can leave out, one after the other, and looks at the order every millisecond.

    floor.py DIRECTORY ROOT NSUPDATE SERVER KEY NAME...

It prints the seconds and the number of requests as JSON. The records are added by `nsupdate -y KEY` at SERVER. It needs
the package `cryptography`, which certbot's environment has."""

import base64
import hashlib
import http.client
import json
import ssl
import subprocess
import sys
import time
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

PAUSE = 0.001
LONGEST = 30


def text(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Client:
    def __init__(self, directory, root):
        self.directory = directory
        self.context = ssl.create_default_context(cafile=root)
        self.key = ec.generate_private_key(ec.SECP256R1())
        numbers = self.key.public_key().public_numbers()
        x, y = (text(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
        self.jwk = {"crv": "P-256", "kty": "EC", "x": x, "y": y}
        thumbprint = json.dumps(self.jwk, sort_keys=True, separators=(",", ":"))
        self.thumbprint = text(hashlib.sha256(thumbprint.encode()).digest())
        self.account = None

    def connect(self):
        """A new connection, the directory and a nonce."""
        to = urlsplit(self.directory)
        self.connection = http.client.HTTPSConnection(to.hostname, to.port, timeout=LONGEST, context=self.context)
        self.requests = 0
        self.urls = json.loads(self.send("GET", self.directory)[1])
        self.send("HEAD", self.urls["newNonce"])

    def send(self, method, url, body=None):
        headers = {"User-Agent": "floor", "Content-Type": "application/jose+json"}
        self.connection.request(method, urlsplit(url).path, body, headers)
        reply = self.connection.getresponse()
        content = reply.read()
        self.requests += 1
        self.nonce = reply.headers.get("Replay-Nonce")
        if reply.status >= 400:
            raise SystemExit(f"{method} {url}: {reply.status} {content.decode(errors='replace')}")
        return reply.headers.get("Location"), content

    def post(self, url, payload=None):
        account = {"kid": self.account} if self.account else {"jwk": self.jwk}
        head = text(json.dumps({"alg": "ES256", "nonce": self.nonce, "url": url, **account}).encode())
        body = "" if payload is None else text(json.dumps(payload).encode())
        signed = decode_dss_signature(self.key.sign(f"{head}.{body}".encode(), ec.ECDSA(hashes.SHA256())))
        signature = text(b"".join(number.to_bytes(32, "big") for number in signed))
        return self.send("POST", url, json.dumps({"protected": head, "payload": body, "signature": signature}))

    def until(self, url, status):
        end = time.monotonic() + LONGEST
        while time.monotonic() < end:
            order = json.loads(self.post(url)[1])
            if order["status"] == status:
                return order
            if order["status"] == "invalid":
                break
            time.sleep(PAUSE)
        raise SystemExit(f"the order is {order['status']}: {order.get('error')}")


def change(nsupdate, server, key, lines):
    host, port = server.rsplit(":", 1)
    script = "\n".join([f"server {host} {port}", *lines, "send", ""])
    subprocess.run([nsupdate, "-y", key], input=script, text=True, check=True)


def request(names):
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=False)
    return text(request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER))


def main(directory, root, nsupdate, server, key, *names):
    client, csr = Client(directory, root), request(names)
    client.connect()
    client.account = client.post(client.urls["newAccount"], {"termsOfServiceAgreed": True})[0]
    client.connection.close()

    begun = time.monotonic()
    client.connect()
    ordered = {"identifiers": [{"type": "dns", "value": name} for name in names]}
    order, state = client.post(client.urls["newOrder"], ordered)
    challenges, records = [], []
    for url in json.loads(state)["authorizations"]:
        authorization = json.loads(client.post(url)[1])
        challenge = next(one for one in authorization["challenges"] if one["type"] == "dns-01")
        value = text(hashlib.sha256(f"{challenge['token']}.{client.thumbprint}".encode()).digest())
        records.append(f"_acme-challenge.{authorization['identifier']['value']}. 1 TXT {value}")
        challenges.append(challenge["url"])
    before = time.monotonic() - begun
    change(nsupdate, server, key, [f"update add {record}" for record in records])
    begun = time.monotonic()
    for url in challenges:
        client.post(url, {})
    client.post(client.until(order, "ready")["finalize"], {"csr": csr})
    chain = client.post(client.until(order, "valid")["certificate"])[1]
    seconds = before + time.monotonic() - begun
    change(nsupdate, server, key, [f"update delete {record.split()[0]} TXT" for record in records])
    if not chain.startswith(b"-----BEGIN CERTIFICATE-----"):
        raise SystemExit("the CA sent no chain")
    print(json.dumps({"seconds": seconds, "requests": client.requests}))


if __name__ == "__main__":
    main(*sys.argv[1:])
