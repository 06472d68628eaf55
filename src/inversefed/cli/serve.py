"""`inversefed serve`: a ledger in the browser."""

import secrets
import socket
import sys
from typing import Any

from inversefed.cli.options import Serve
from inversefed.errors import ConfigError, InputError

__all__ = ["config", "listen", "run_serve"]


def run_serve(options: Serve) -> int:
    """Serve until Ctrl-C.

    Raises:
        ConfigError: the extra is not installed, or the port is none.
        InputError: nothing can listen there.
    """
    try:
        import uvicorn

        from inversefed.cli.sweep import open_ledger
        from inversefed.experiments.serve.app import make_app
        from inversefed.experiments.serve.guard import is_loopback
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("starlette", "uvicorn", "anyio"):
            raise
        raise ConfigError(
            f"serve needs {error.name}, which is not installed: pip install 'inversefed[serve]'"
        ) from error
    if not 0 <= options.port < 2**16:
        raise ConfigError(f"a port is a number from 0 to 65535, 0 for a free one; got {options.port}")
    ledger = open_ledger(options)
    listening = listen(options.host, options.port)
    port, token = listening.getsockname()[1], secrets.token_urlsafe(24)
    servers: list[Any] = []
    app = make_app(ledger, token, options.host, f"inversefed_{port}", lambda: bool(servers and servers[0].should_exit))
    servers.append(uvicorn.Server(config(app)))
    if not is_loopback(options.host):
        print(
            f"inversefed: warning: {options.host} can be reached from other machines; what is sent is not encrypted, "
            "and who reads the token along the way sees all pictures. An SSH tunnel to 127.0.0.1 is safer",
            file=sys.stderr,
        )
    shown = f"[{options.host}]" if ":" in options.host else options.host
    print(f"http://{shown}:{port}/?token={token}", flush=True)
    if not options.quiet:
        print("inversefed: Ctrl-C ends it", file=sys.stderr)
    try:
        servers[0].run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        ledger.close()
    return 0


def config(app: Any) -> Any:
    """How uvicorn serves it; nothing is logged of a request, since an address may hold the token."""
    import uvicorn

    return uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=3,
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: nothing can listen there.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}; name another --port, or 0 for a free one"
        ) from error
