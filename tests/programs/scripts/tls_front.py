"""Ends TLS in front of a server: tls_front.py CERTIFICATE KEY PORT. Prints its own port, then the first line of each
connection's request."""
import asyncio
import ssl
import sys

certificate, key, behind = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)


async def copy(reader, writer, first):
    while data := await reader.read(1 << 18):
        if first:
            print(data.split(b"\r\n", 1)[0].decode("latin-1"), flush=True)
        first = False
        writer.write(data)
        await writer.drain()


async def serve(reader, writer):
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", int(behind))
    there = asyncio.ensure_future(copy(reader, far_writer, True))
    back = asyncio.ensure_future(copy(far_reader, writer, False))
    await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
    for task, end in ((there, far_writer), (back, writer)):
        task.cancel()
        end.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
