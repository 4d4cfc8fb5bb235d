"""The other programs, one a session each; an image that each of them made; our own stores.

What makes images and what takes them are two dockerds and two podmans, so that whoever takes an
image has no layer of it already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lamina.oci.registry import Credentials, Options
from lamina.store import Store
from tests import daemons, support
from tests.adopt.trees import Entry, tree
from tests.oci import peers
from tests.peers import building
from tests.peers.building import NAME, Built
from tests.registries import PASSWORD, USER, Registry

Ground = Callable[[str], Path]


@dataclass(frozen=True)
class Original:
    """An image as it came from who made it."""

    built: Built
    tree: dict[str, Entry]
    """As its maker shows it."""
    path: Path
    """An archive or a layout with it."""
    tag: str
    """What it is called there."""


@pytest.fixture(scope="session")
def ground_for(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A new directory."""
    return lambda name: tmp_path_factory.mktemp(name)


@pytest.fixture(autouse=True)
def _no_credentials(no_credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(no_credentials / name))


# -- who makes images, and what they made


@pytest.fixture(scope="session")
def docker(ground_for: Ground) -> Iterator[daemons.Docker]:
    with daemons.dockerd(ground_for("docker")) as found:
        yield found


@pytest.fixture(scope="session")
def podman(ground_for: Ground) -> Iterator[peers.Podman]:
    with peers.podman(ground_for("podman"), "overlay") as found:
        yield found


@pytest.fixture(scope="session")
def by_docker(docker: daemons.Docker, ground_for: Ground) -> Original:
    ground = ground_for("by-docker")
    built = building.by_docker(docker, ground)
    docker("save", "-o", ground / "saved.tar", NAME)
    with building.docker_mounted(docker, NAME, ground) as root:
        return Original(built, tree(root), ground / "saved.tar", NAME)


@pytest.fixture(scope="session")
def by_podman(podman: peers.Podman, ground_for: Ground) -> Original:
    """In Docker's format; called ``localhost/podman:1`` there."""
    ground = ground_for("by-podman")
    built = building.by_podman(podman, ground)
    podman("tag", NAME, "localhost/podman:1")
    return _saved(podman, "localhost/podman:1", built, ground, "docker-archive")


@pytest.fixture(scope="session")
def by_buildah(podman: peers.Podman, ground_for: Ground) -> Original:
    """In the OCI's format; called ``localhost/buildah:1`` there."""
    ground = ground_for("by-buildah")
    built = building.by_buildah(podman, ground)
    podman("tag", NAME, "localhost/buildah:1")
    return _saved(podman, "localhost/buildah:1", built, ground, "oci-archive")


def _saved(podman: peers.Podman, name: str, built: Built, ground: Path, form: str) -> Original:
    podman("save", "--format", form, "-o", ground / "saved.tar", name)
    with podman.mounted(name) as root:
        return Original(built, tree(root), ground / "saved.tar", name)


@pytest.fixture(scope="session")
def _by_umoci(ground_for: Ground) -> dict[str, Original]:
    ground = ground_for("by-umoci")
    umoci = building.Umoci(ground / "layout")
    plain, rich = building.by_umoci(umoci, ground)
    return {
        tag: Original(built, building.umoci_tree(umoci.layout, tag, ground), umoci.layout, tag)
        for tag, built in (("plain", plain), ("rich", rich))
    }


@pytest.fixture(scope="session")
def by_umoci(_by_umoci: dict[str, Original]) -> Original:
    """With layers that umoci alone reads; see test_umoci's whiteouts in test_ways_out.py."""
    return _by_umoci["rich"]


@pytest.fixture(scope="session")
def by_umoci_plain(_by_umoci: dict[str, Original]) -> Original:
    """Without such layers."""
    return _by_umoci["plain"]


@pytest.fixture
def original(request: pytest.FixtureRequest) -> Original:
    """The image of the maker that a test is parametrized with."""
    found: Original = request.getfixturevalue(f"by_{request.param}")
    return found


# -- who takes images


@pytest.fixture(scope="session")
def _far_docker(ground_for: Ground) -> Iterator[daemons.Docker]:
    with daemons.dockerd(ground_for("far-docker")) as found:
        yield found


@pytest.fixture
def far_docker(_far_docker: daemons.Docker) -> Iterator[daemons.Docker]:
    """A dockerd without images."""
    yield _far_docker
    if images := set(_far_docker.lines("images", "--all", "--quiet", "--no-trunc")):
        _far_docker("rmi", "--force", *images)


@pytest.fixture(scope="session")
def _far_podman(ground_for: Ground) -> Iterator[peers.Podman]:
    with peers.podman(ground_for("far-podman"), "overlay") as found:
        yield found


@pytest.fixture
def far_podman(_far_podman: peers.Podman) -> Iterator[peers.Podman]:
    """A podman without images."""
    yield _far_podman
    _far_podman("rmi", "--all", "--force")


@pytest.fixture(scope="session")
def _containerd() -> Iterator[daemons.Containerd]:
    support.need_filesystem("overlay")
    with daemons.containerd() as found:
        yield found


@pytest.fixture
def containerd(_containerd: daemons.Containerd) -> Iterator[daemons.Containerd]:
    """A containerd without images."""
    yield _containerd
    if images := _containerd("images", "ls", "--quiet").split():
        _containerd("images", "rm", "--sync", *images)


@pytest.fixture(scope="session")
def skopeo(ground_for: Ground) -> peers.Skopeo:
    return peers.Skopeo(ground_for("skopeo"))


# -- us


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    with Store(tmp_path / "store", run=tmp_path / "run", driver="overlay") as found:
        yield found


@pytest.fixture(scope="session")
def _full(ground_for: Ground) -> Path:
    return ground_for("full")


@pytest.fixture
def full(_full: Path) -> Iterator[Store]:
    """A store that keeps what tests of this session load into it."""
    with Store(_full / "store", run=_full / "run", driver="overlay") as found:
        yield found


@dataclass(frozen=True)
class Reached:
    """A registry, and how each of those who speak with it is told to."""

    registry: Registry
    ours: Options
    podman: list[str]
    """Options of podman and buildah."""

    @property
    def host(self) -> str:
        """HOST:PORT."""
        return self.registry.host


@pytest.fixture(params=["plain", "basic", "tls"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Reached:
    """Each of the registries in turn."""
    found: Registry = request.getfixturevalue(f"{request.param}_registry")
    theirs = ["--tls-verify=false"]
    credentials = None
    if found.user:
        theirs += ["--creds", f"{USER}:{PASSWORD}"]
        credentials = Credentials(USER, PASSWORD)
    if found.ca:
        certificates = tmp_path / "certs" / found.host
        certificates.mkdir(parents=True)
        (certificates / "ca.crt").symlink_to(found.ca)
    ours = Options(
        credentials=credentials,
        hosts_directories=(),
        certificate_directories=(tmp_path / "certs",),
    )
    return Reached(found, ours, theirs)
