"""Where Ray comes from: a cluster of others that is joined, or one of this machine, begun and ended here.

A cluster runs any code for whoever reaches its ports and has its token. One that is begun here has a token of its own,
which only this process and its children know, and listens on loopback alone; it writes into a folder of its own, which
is removed with it. It has no dashboard, and sends no telemetry.
"""

import functools
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from inversefed.errors import ConfigError, InputError

__all__ = ["begun", "joined"]

_LOOPBACK = "127.0.0.1"
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
    folder = tempfile.mkdtemp(prefix="ifray", dir="/tmp")  # short: sockets in it have at most 107 characters
    try:
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
        listens = context.address_info["node_ip_address"]
        if listens != _LOOPBACK:
            raise ConfigError(
                f"Ray {ray.__version__} listens on {listens}, not on loopback alone; use the local executor, or begin "
                "a cluster yourself and name its address"
            )
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


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
