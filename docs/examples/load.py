#!/usr/bin/env python3
"""A small load: 20 threads fetch a page from 127.0.0.1, each on a new connection.

usage: load.py CONNECTIONS [PORT]
"""
import socket
import sys
import threading

connections = int(sys.argv[1])
port = int(sys.argv[2]) if len(sys.argv) > 2 else 8000
done = []


def fetch():
    for _ in range(connections // 20):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
                s.sendall(b"GET / HTTP/1.0\r\n\r\n")
                s.recv(100)
                done.append(1)
        except OSError as error:
            print(error)


threads = [threading.Thread(target=fetch) for _ in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(done), "pages")
