"""A node with aioquic's QUIC and TLS: an Ed25519 key in a certificate of its own, on both ends.

    aioquic_node.py call ADDRESS PORT BYTES    a stream of so many bytes, and a datagram, that come back
    aioquic_node.py listen ADDRESS PORT        sends back what it gets

Prints who is at the other end, what came back, and how connections end.
"""

import asyncio
import base64
import datetime
import ssl
import sys

from aioquic import tls
from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import (
    ConnectionTerminated,
    DatagramFrameReceived,
    HandshakeCompleted,
    StreamDataReceived,
)
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

ALPN = "towpath/1"


def say(*words):
    print(*words, flush=True)


def peer_id(key):
    """The text of a node's id: its public key in base32, lower case, without padding."""
    return base64.b32encode(key.public_bytes_raw()).decode().rstrip("=").lower()


def configuration(is_client):
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "aioquic")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, None)
    )
    made = QuicConfiguration(
        is_client=is_client,
        alpn_protocols=[ALPN],
        certificate=certificate,
        private_key=key,
        max_datagram_frame_size=65536,
        # Who is there says the key, which this file prints.
        verify_mode=ssl.CERT_NONE,
        server_name="peer" if is_client else None,
    )
    return made, key.public_key()


class Node(QuicConnectionProtocol):
    """Sends back what it gets, where it was called; keeps it, where it calls."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.received = bytearray()
        self.whole = asyncio.Event()
        self.datagrams = asyncio.Queue()

    def quic_event_received(self, event):
        is_client = self._quic.configuration.is_client
        if isinstance(event, HandshakeCompleted):
            certificate = self._quic.tls._peer_certificate
            say("peer", peer_id(certificate.public_key()) if certificate else "nobody")
        elif isinstance(event, ConnectionTerminated):
            say("closed", hex(event.error_code), event.reason_phrase)
        elif isinstance(event, StreamDataReceived) and is_client:
            self.received += event.data
            if event.end_stream:
                self.whole.set()
        elif isinstance(event, StreamDataReceived):
            self._quic.send_stream_data(event.stream_id, event.data, event.end_stream)
        elif isinstance(event, DatagramFrameReceived) and is_client:
            self.datagrams.put_nowait(event.data)
        elif isinstance(event, DatagramFrameReceived):
            self._quic.send_datagram_frame(event.data)


async def call(address, port, size):
    made, key = configuration(True)
    say("calling", peer_id(key))
    sent = bytes((at * 31 + at // 251) & 255 for at in range(size))
    try:
        async with connect(address, port, configuration=made, create_protocol=Node) as node:
            stream = node._quic.get_next_available_stream_id()
            node._quic.send_stream_data(stream, sent, True)
            node.transmit()
            await asyncio.wait_for(node.whole.wait(), 30)
            say("stream", len(node.received), "same" if node.received == sent else "other")
            node._quic.send_datagram_frame(b"a datagram")
            node.transmit()
            echo = await asyncio.wait_for(node.datagrams.get(), 30)
            say("datagram", "same" if echo == b"a datagram" else "other")
    except ConnectionError:
        say("no connection")


async def listen(address, port):
    # aioquic has this for tests alone: its servers ask nobody for a certificate.
    make = tls.Context.__init__

    def make_asking(self, *arguments, **named):
        make(self, *arguments, **named)
        self._request_client_certificate = True

    tls.Context.__init__ = make_asking
    made, key = configuration(False)
    await serve(address, port, configuration=made, create_protocol=Node)
    say("listening", peer_id(key))
    await asyncio.Event().wait()


_, mode, address, port, *more = sys.argv
if mode == "call":
    asyncio.run(call(address, int(port), int(more[0])))
else:
    asyncio.run(listen(address, int(port)))
