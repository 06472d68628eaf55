"""Where Ray comes from: a cluster of others that is joined, or one of this machine, begun and ended here.

A cluster runs any code for whoever reaches its ports and has its token. One that is begun here has a token of its own,
which only this process and its children know, and listens on loopback alone; it writes into a folder of its own, which
is removed with it, also when this process is asked to end (SIGTERM); what was left by one that was killed the next one
removes. It has no dashboard, and sends no telemetry.
"""

import functools
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inversefed.errors import ConfigError, InputError
from inversefed.experiments.places import remove_abandoned

__all__ = ["begun", "joined"]

_LOOPBACK = "127.0.0.1"
_FOLDERS, _PREFIX = Path("/tmp"), "ifray"
"""Where the folders are and how they are called: shortly, since sockets in them have at most 107 characters."""
_TRIES, _PAUSE = 20, 0.1
"""How often, and every how many seconds, a folder is removed until it is gone."""
_INSTALL = "Ray is not installed: pip install 'inversefed[ray]'"


@contextmanager
def joined(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster that others run."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError(_INSTALL) from error
    try:
        ray.init(address=address, logging_level="error", log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        said = str(error).strip().splitlines()[0]
        raise InputError(
            f"there is no cluster at {address} that lets this machine in: {said}. The command runs on a machine of the "
            "cluster (`ray start` was run on it), with the cluster's token"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def begun(cores: int, gpus: float) -> Iterator[Any]:
    """Ray, begun on this machine for this process: on loopback, behind a token, without dashboard or telemetry."""
    ray = _loopback_ray()
    remove_abandoned(_FOLDERS, _PREFIX)
    folder = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}.", dir=_FOLDERS)
    before = signal.getsignal(signal.SIGTERM)
    try:
        _end_in_order()  # while it begins
        context = ray.init(
            address="local",
            num_cpus=cores,
            num_gpus=None if gpus else 0,
            include_dashboard=False,
            logging_level="error",
            log_to_driver=False,
            _node_ip_address=_LOOPBACK,
            _temp_dir=folder,
        )
        _end_in_order()  # and from then on: Ray's own answer ends the cluster before what runs in it is given back
        listens = context.address_info["node_ip_address"]
        if listens != _LOOPBACK:
            raise ConfigError(
                f"Ray {ray.__version__} listens on {listens}, not on loopback alone; use the local executor, or begin "
                "a cluster yourself and name its address"
            )
        yield ray
    finally:
        ray.shutdown()
        _remove(Path(folder))
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _end_in_order() -> None:
    """Have SIGTERM end this process as an exception does: what runs is given back, and what was begun is ended."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def _remove(folder: Path) -> None:
    """Remove a folder into which processes that end may still write."""
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_PAUSE)


@functools.cache
def _loopback_ray() -> Any:
    """Ray, with all that it reads from the environment when it is imported; once a process, since it keeps it.

    Raises:
        ConfigError: it is not installed, or was imported before.
    """
    if "ray" in sys.modules:
        raise ConfigError(
            "Ray was imported before, and so reads no more what makes a cluster of this machine safe: connect to one "
            "first, by ray.init(..), and it is used"
        )
    os.environ.update(
        {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's name for: this machine alone, so listen on loopback
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_worker_niceness": "0",  # as the local executor's
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        }
    )
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError(_INSTALL) from error
    return ray
