"""Logging in and out: credentials tried at the registry, then kept where Docker keeps them.

They go to ``$REGISTRY_AUTH_FILE`` if that is set, else to Docker's ``config.json``, which Docker,
podman, skopeo and others read; where that file names a credential helper, to the helper.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from lamina.errors import InvalidName, PermissionRequired
from lamina.oci.registry.credentials import (
    HUB_KEY,
    Credentials,
    docker_file,
    helper_key,
    helper_of,
    normal_key,
    read_file,
    run_helper,
)
from lamina.oci.registry.hosts import check_registry
from lamina.oci.registry.options import Options


def login(registry: str, user: str, password: str, options: Options | None = None) -> Path:
    """Have the registry check a user and password, then keep them; the file that now has them.

    Raises:
        InvalidName: no registry, or a user that no header could carry.
        Unauthorized: the registry refuses them.
        RegistryError: it can't be asked, or the credential helper fails.
        PermissionRequired: the file can't be written; the registry is not asked then.
        OSError: likewise, for another reason.
    """
    if not user or ":" in user or not (user + password).isprintable():
        raise InvalidName("a user is not empty, has no colon, and no control characters")
    path = _file()
    _check_writable(path)
    check_login(registry, Credentials(user, password), options)
    document = read_file(path)
    auths = _auths(document)
    key, helper = _key(path, registry), helper_of(document, registry)
    _drop(auths, registry)
    if helper:
        secret = {"ServerURL": helper_key(registry), "Username": user, "Secret": password}
        run_helper(helper, "store", json.dumps(secret))
        auths[key] = {}
    else:
        encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
        auths[key] = {"auth": encoded}
    _write(path, document)
    return path


def logout(registry: str) -> bool:
    """Forget the credentials of a registry; whether there were any.

    Raises:
        RegistryError: the credential helper fails, or the file is damaged.
        OSError: the file can't be written.
    """
    path = _file()
    document = read_file(path)
    found = _drop(_auths(document), check_registry(registry))
    if helper := helper_of(document, registry):
        run_helper(helper, "erase", helper_key(registry))
    if found:
        _write(path, document)
    return found


def logout_all() -> list[str]:
    """Forget all credentials in the file that :func:`login` writes to; whose they were, sorted.

    Raises as :func:`logout`.
    """
    path = _file()
    document = read_file(path)
    auths = _auths(document)
    names = sorted({normal_key(key) for key in auths})
    for name in names:
        if helper := helper_of(document, name):
            run_helper(helper, "erase", helper_key(name))
    if auths:
        auths.clear()
        _write(path, document)
    return names


def check_login(registry: str, credentials: Credentials, options: Options | None = None) -> None:
    """Ask a registry for nothing but whether it takes credentials; raises as :func:`login`."""
    from lamina.oci.registry.answers import discard
    from lamina.oci.registry.client import Ask, Client

    client = Client(registry, replace(options or Options(), credentials=credentials))
    try:
        ask = Ask(method="GET", path="/", what="a login", capability="push", accept=(200,))
        discard(client.ask(ask))
    finally:
        client.close()


def _file() -> Path:
    named = os.environ.get("REGISTRY_AUTH_FILE")
    return Path(named) if named else docker_file()


def _key(path: Path, registry: str) -> str:
    hub = normal_key(registry) == "docker.io"
    return HUB_KEY if hub and path == docker_file() else normal_key(registry)


def _auths(document: dict[str, Any]) -> dict[str, Any]:
    """The entries of a document, made if it has none."""
    auths = document.get("auths")
    if not isinstance(auths, dict):
        auths = document["auths"] = {}
    return auths


def _drop(auths: dict[str, Any], registry: str) -> bool:
    """Remove all keys that mean the registry, not those of paths in it."""
    keys = [key for key in auths if normal_key(key) == normal_key(registry)]
    for key in keys:
        del auths[key]
    return bool(keys)


def _check_writable(path: Path) -> None:
    """Raise PermissionRequired unless a file can be made at ``path``, as far as can be told."""
    there = Path(os.path.realpath(path)).parent
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionRequired(
            f"a login can't be kept in {path}: {there} can't be written (REGISTRY_AUTH_FILE names "
            "another file; --creds of pull, push and copy logs in for once)"
        )


def _write(path: Path, document: dict[str, Any]) -> None:
    """Replace the file at once, readable by its owner alone; a link to it stays."""
    target = Path(os.path.realpath(path))
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)  # mode 0600
    try:
        with os.fdopen(fd, "w") as file:
            json.dump(document, file, indent="\t")
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
