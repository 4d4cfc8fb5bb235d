"""Who we are to a registry: what Docker's and containers' files and helpers have.

Sources: docker/cli, docs/reference/commandline/login.md and docker_config (config.json);
containers-auth.json(5); docker-credential-helpers (the protocol).
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamina.errors import RegistryError, printable

_log = logging.getLogger(__name__)

HELPER_TIMEOUT = 60.0
"""Seconds that a helper has; some ask the user."""
RUN = Path("/run/containers")
"""Where Podman and skopeo keep logins by user id, if XDG_RUNTIME_DIR is not set."""
HUB_KEY = "https://index.docker.io/v1/"
"""What Docker's files and helpers call docker.io."""

_TOKEN_USER = "<token>"
_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and password, or one of two tokens. None of it is in the representation."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    """A refresh token that the token server takes."""
    registry_token: str = field(default="", repr=False)
    """A token that the registry takes as it is."""

    def basic(self) -> str:
        """The value of ``Authorization`` for the user and password (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def docker_file() -> Path:
    """Docker's configuration file."""
    directory = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    return Path(directory, "config.json")


def files() -> list[Path]:
    """The files that may have credentials, those that count first; not all are there."""
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    found = [docker_file(), Path(config, "containers/auth.json")]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        found.insert(1, Path(runtime, "containers/auth.json"))
    elif os.access(own := Path(RUN, f"{os.geteuid()}/auth.json"), os.R_OK):
        found.insert(1, own)  # not for root of a user namespace, who is someone else there
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        found.insert(0, Path(named))
    return found


def find_credentials(host: str, repository: str) -> Credentials | None:
    """Those for a repository (perhaps empty) of a registry; None where no file has any.

    The longest path that an entry's key names wins, as in containers' files.

    Raises:
        RegistryError: a file that is no JSON object.
        OSError: a file that can't be read.
    """
    for path in files():
        document = read_file(path)
        if document and (found := _from_file(document, path, host, repository)):
            return found
    return None


def read_file(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty where there is no file."""
    try:
        document = json.loads(path.read_bytes() or b"{}")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise RegistryError(f"{path}: not a JSON object")
    return document


def _from_file(
    document: dict[str, Any], path: Path, host: str, repository: str
) -> Credentials | None:
    auths = document.get("auths")
    entries = auths if isinstance(auths, dict) else {}
    keys = {normal_key(key): key for key in entries}
    for name in _prefixes(host, repository):
        if name == normal_key(host) and (helper := helper_of(document, host, default=False)):
            return ask_helper(helper, host)
        if name in keys and (found := _entry(entries[keys[name]], path, keys[name])):
            return found
    helper = helper_of(document, host)
    return ask_helper(helper, host) if helper else None


def _prefixes(host: str, repository: str) -> Iterator[str]:
    """``HOST/a/b``, ``HOST/a``, ``HOST``."""
    parts = repository.split("/") if repository else []
    for length in range(len(parts), 0, -1):
        yield "/".join([normal_key(host), *parts[:length]])
    yield normal_key(host)


def normal_key(key: str) -> str:
    """HOST or HOST/PATH of a key in ``auths``: older files have addresses of an API there."""
    name = re.sub(r"^https?://", "", key).rstrip("/")
    if name != key.rstrip("/"):
        name = re.sub(r"/v[12]$", "", name)
    host, slash, path = name.partition("/")
    if host in _HUB:
        host, slash, path = "docker.io", *(("", "") if path in ("v1", "v2") else (slash, path))
    return host + slash + path


def _entry(entry: Any, path: Path, key: str) -> Credentials | None:
    """An entry of ``auths``; None for one without credentials (they are in a helper)."""
    members = entry if isinstance(entry, dict) else {}
    values = {k: v for k, v in members.items() if isinstance(v, str)}
    user, password = values.get("username", ""), values.get("password", "")
    if encoded := values.get("auth"):
        try:
            decoded = base64.b64decode(encoded, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise RegistryError(f"{path}: 'auth' of {printable(key)}: {error}") from error
        user, _, password = decoded.rstrip("\0").partition(":")
    found = Credentials(
        user, password, values.get("identitytoken", ""), values.get("registrytoken", "")
    )
    return found if found != Credentials() else None


def helper_of(document: dict[str, Any], host: str, *, default: bool = True) -> str | None:
    """The helper that a file names for a host, with ``default`` also the one for all hosts."""
    helpers = document.get("credHelpers")
    for key, helper in helpers.items() if isinstance(helpers, dict) else ():
        if normal_key(key) == normal_key(host) and isinstance(helper, str) and helper:
            return helper
    store = document.get("credsStore") if default else None
    return store if isinstance(store, str) and store else None


def ask_helper(helper: str, host: str) -> Credentials | None:
    """What ``docker-credential-HELPER get`` says; None, with a warning, where it can't be asked."""
    try:
        answer = json.loads(run_helper(helper, "get", helper_key(host)) or "{}")
        user, secret = answer["Username"], answer["Secret"]
    except RegistryError as error:
        if "credentials not found" not in str(error):
            _log.warning("going on without credentials: %s", error)
        return None
    except (ValueError, KeyError, TypeError):
        _log.warning("docker-credential-%s gave no credentials that can be read", helper)
        return None
    if user == _TOKEN_USER:
        return Credentials(identity_token=str(secret))
    return Credentials(str(user), str(secret))


def helper_key(host: str) -> str:
    """What a helper calls a registry."""
    return HUB_KEY if normal_key(host) == "docker.io" else host


def run_helper(helper: str, verb: str, given: str) -> str:
    """What ``docker-credential-HELPER VERB`` prints when it is given a text.

    Raises :class:`RegistryError` if it is not there, fails or takes too long.
    """
    name = f"docker-credential-{helper}"
    program = shutil.which(name) if _HELPER.fullmatch(helper) else None
    if program is None:
        raise RegistryError(f"the credential helper {printable(name)} is not in PATH")
    try:
        done = subprocess.run(
            [program, verb], input=given.encode(), capture_output=True, check=False,
            timeout=HELPER_TIMEOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RegistryError(f"{name} {verb} took over {HELPER_TIMEOUT:g} s") from error
    if done.returncode:
        said = (done.stdout or done.stderr).decode(errors="replace").strip()
        raise RegistryError(f"{name} {verb} failed: {printable(said)}")
    return done.stdout.decode(errors="replace")
