"""Registries: the client's side of the OCI distribution specification.

:class:`Repository` is a source and a target of images; :class:`Client` holds the connections of
one registry, for several repositories and threads; :func:`login` and :func:`logout` keep
credentials. A name is loaded when it is first used.
"""

from __future__ import annotations

import sys

from lamina.lazy import loader

# httpx imports its own command line, with click, pygments and rich, a third of its time, unless
# that is not installed: let it seem so.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lamina.oci.registry.client import Client as Client
    from lamina.oci.registry.credentials import Credentials as Credentials
    from lamina.oci.registry.logins import login as login
    from lamina.oci.registry.logins import logout as logout
    from lamina.oci.registry.logins import logout_all as logout_all
    from lamina.oci.registry.options import Options as Options
    from lamina.oci.registry.options import Retries as Retries
    from lamina.oci.registry.repository import Repository as Repository

_HOMES = {
    "Client": "lamina.oci.registry.client",
    "Credentials": "lamina.oci.registry.credentials",
    "Options": "lamina.oci.registry.options",
    "Repository": "lamina.oci.registry.repository",
    "Retries": "lamina.oci.registry.options",
    "login": "lamina.oci.registry.logins",
    "logout": "lamina.oci.registry.logins",
    "logout_all": "lamina.oci.registry.logins",
}
__all__ = [
    "Client",
    "Credentials",
    "Options",
    "Repository",
    "Retries",
    "login",
    "logout",
    "logout_all",
]

__getattr__, __dir__ = loader(__name__, _HOMES)
