"""Relays datagrams to an echoing peer with aioice's TURN client and prints how many came back.

Arguments: server address, server port, user, password, peer address, peer port, number of datagrams.
"""

import asyncio
import sys

from aioice import turn


class Receiver(asyncio.DatagramProtocol):
    def __init__(self):
        self.received = asyncio.Queue()

    def datagram_received(self, data, addr):
        self.received.put_nowait((data, addr))


async def main():
    server, server_port, user, password, peer, peer_port, count = sys.argv[1:]
    peer_address = (peer, int(peer_port))
    transport, receiver = await turn.create_turn_endpoint(
        Receiver, server_addr=(server, int(server_port)), username=user, password=password
    )
    relayed = transport.get_extra_info("sockname")
    print("relayed", relayed[0], relayed[1])
    echoed = 0
    for number in range(int(count)):
        payload = b"datagram %d" % number
        transport.sendto(payload, peer_address)
        data, source = await asyncio.wait_for(receiver.received.get(), timeout=10)
        if data == payload and source == peer_address:
            echoed += 1
    transport.close()
    print("echoed", echoed)


asyncio.run(main())
