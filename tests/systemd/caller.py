"""The program that units of the lab run: serves a port, or connects where it is told to.

    caller.py listen PORT       answers every line on 127.0.0.1:PORT with `NAME: line`
    caller.py activated         the same, on the socket that the service manager passes
    caller.py once PORT         makes a conversation and ends it; prints what came of it
    caller.py call              does what it reads from /run/NAME.sock, one order per connection:
                                `connect PORT` makes a conversation and ends it, `open PORT` makes one and keeps it,
                                `talk` uses the one that was kept

NAME is the unit's, without its ending. Answers of `call` are the line that came back, or the name of the error.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from pathlib import Path

PATIENCE_S = 3.0
FIRST_PASSED_FD = 3


def unit_name() -> str:
    """Which unit this process is in: its control group says so."""
    return Path("/proc/self/cgroup").read_text().strip().rpartition("/")[2].rpartition(".")[0]


def notify(state: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(state.encode(), os.environ["NOTIFY_SOCKET"])


def answer(client: socket.socket, name: str) -> None:
    with client:
        while line := client.recv(4096):
            client.sendall(f"{name}: ".encode() + line)


def serve(listener: socket.socket) -> None:
    name = unit_name()
    while True:
        client, _ = listener.accept()
        threading.Thread(target=answer, args=(client, name), daemon=True).start()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE_S)


def talk(conversation: socket.socket) -> str:
    conversation.sendall(b"hello")
    return conversation.recv(4096).decode()


class Caller:
    def __init__(self) -> None:
        self.kept: socket.socket | None = None

    def obey(self, order: str) -> str:
        word, _, port = order.partition(" ")
        try:
            return self.act(word, port)
        except TimeoutError:
            return "ETIMEDOUT"
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def act(self, word: str, port: str) -> str:
        if word == "connect":
            with connect(int(port)) as conversation:
                return talk(conversation)
        if word == "open":
            self.kept = connect(int(port))
        if self.kept is None:
            return "nothing is kept"
        return talk(self.kept)


def call() -> None:
    path = Path(f"/run/{unit_name()}.sock")
    path.unlink(missing_ok=True)
    caller = Caller()
    with socket.socket(socket.AF_UNIX) as orders:
        orders.bind(str(path))
        orders.listen()
        notify("READY=1")
        while True:
            client, _ = orders.accept()
            with client:
                client.sendall(caller.obey(client.recv(4096).decode()).encode())


if __name__ == "__main__":
    if sys.argv[1] == "listen":
        with socket.create_server(("127.0.0.1", int(sys.argv[2]))) as own:
            notify("READY=1")
            serve(own)
    elif sys.argv[1] == "activated":
        with socket.socket(fileno=FIRST_PASSED_FD) as passed:
            serve(passed)
    elif sys.argv[1] == "once":
        sys.stdout.write(Caller().obey(f"connect {sys.argv[2]}"))
    else:
        call()
