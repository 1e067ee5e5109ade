"""A back end on port 8080: answers with the path and the scheme of the request, and echoes a WebSocket's texts."""

import base64
import hashlib
import socketserver

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Connection(socketserver.StreamRequestHandler):
    def handle(self):
        request = self.rfile.readline().split()
        headers = {}
        while line := self.rfile.readline().strip():
            name, value = line.split(b":", 1)
            headers[name.lower()] = value.strip()
        key = headers.get(b"sec-websocket-key")
        if headers.get(b"upgrade", b"").lower() == b"websocket" and key:
            accepted = base64.b64encode(hashlib.sha1(key + MAGIC).digest())
            self.wfile.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accepted + b"\r\n\r\n"
            )
            while (head := self.rfile.read(2)) and head[0] & 15 == 1:
                mask = self.rfile.read(4)
                text = bytes(byte ^ mask[at % 4] for at, byte in enumerate(self.rfile.read(head[1] & 127)))
                self.wfile.write(bytes([0x81, len(text)]) + text)
        elif len(request) == 3:
            body = request[1] + b" " + headers.get(b"x-forwarded-proto", b"-")
            self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


Server(("", 8080), Connection).serve_forever()
