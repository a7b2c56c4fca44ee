"""Apps served over real HTTP on the loopback, for what speaks with them from outside of Python."""

import contextlib
import socket
import threading

import uvicorn


@contextlib.contextmanager
def served(app, port=0):
    """The base URL of an app, which is served by a thread until the block ends."""
    listening = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
