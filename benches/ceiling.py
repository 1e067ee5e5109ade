"""The ceiling of a CA: how many orders by HTTP-01 it bears a second, of clients that do nothing else.

One account; the keys and the signing requests are made before the clock starts. Each client is a process with one
connection, which places an order, asks for its validation, sends the request and fetches the chain, without a pause but
for its looks at the order. A process of its own answers every validation. Nothing is stored.

    ceiling.py DIRECTORY ROOT HTTP_PORT ORDERS CLIENTS

It prints the seconds as JSON. It needs the package `cryptography`, which certbot's environment has."""

import asyncio
import json
import multiprocessing
import sys
import time

from floor import Client, request

# Between two looks at an order. The clients wait for each other's validations anyway.
PAUSE = 0.01
LONGEST = 60


def answer(port, thumbprint, ready):
    """Answers each token's validation, at every name."""

    async def reply(reading, writing):
        asked = await reading.readuntil(b"\r\n\r\n")
        body = asked.split(b" ", 2)[1].rpartition(b"/")[2] + b"." + thumbprint.encode()
        writing.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writing.drain()
        writing.close()

    async def serve():
        server = await asyncio.start_server(reply, "127.0.0.1", port, backlog=1024)
        ready.set()
        await server.serve_forever()

    asyncio.run(serve())


def until(client, url, status):
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        order = json.loads(client.post(url)[1])
        if order["status"] == status:
            return order
        if order["status"] == "invalid":
            break
        time.sleep(PAUSE)
    raise SystemExit(f"the order is {order['status']}: {order.get('error')}")


def issue(client, name, csr):
    order, state = client.post(client.urls["newOrder"], {"identifiers": [{"type": "dns", "value": name}]})
    for url in json.loads(state)["authorizations"]:
        challenges = json.loads(client.post(url)[1])["challenges"]
        client.post(next(one["url"] for one in challenges if one["type"] == "http-01"), {})
    client.post(until(client, order, "ready")["finalize"], {"csr": csr})
    chain = client.post(until(client, order, "valid")["certificate"])[1]
    if not chain.startswith(b"-----BEGIN CERTIFICATE-----"):
        raise SystemExit("the CA sent no chain")


def order_all(client, orders, together):
    client.connect()
    together.wait()
    for name, csr in orders:
        issue(client, name, csr)


def main(directory, root, port, count, clients):
    count, clients = int(count), int(clients)
    client = Client(directory, root)
    client.connect()
    client.account = client.post(client.urls["newAccount"], {"termsOfServiceAgreed": True})[0]
    client.connection.close()
    names = [f"n{number}.ceiling.example.com" for number in range(count)]
    orders = [(name, request([name])) for name in names]
    fork = multiprocessing.get_context("fork")
    ready, together = fork.Event(), fork.Barrier(clients + 1)
    answers = fork.Process(target=answer, args=(int(port), client.thumbprint, ready), daemon=True)
    answers.start()
    ready.wait()
    parts = [fork.Process(target=order_all, args=(client, orders[first::clients], together), daemon=True) for first in range(clients)]
    for part in parts:
        part.start()
    together.wait(LONGEST)
    begun = time.monotonic()
    for part in parts:
        part.join()
    seconds = time.monotonic() - begun
    answers.terminate()
    if failed := sum(part.exitcode != 0 for part in parts):
        raise SystemExit(f"{failed} of {clients} clients failed")
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
