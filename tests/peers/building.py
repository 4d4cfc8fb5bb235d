"""Images of the changes in changes.py, each made by another program in its own way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import daemons, support
from tests.adopt.trees import Entry, tree
from tests.oci import peers
from tests.peers import changes

NAME = "localhost/rich:1"


@dataclass(frozen=True)
class Built:
    """An image as the program that made it describes it."""

    id: str
    """The digest of its configuration."""
    diff_ids: list[str]


def base_tar(ground: Path) -> Path:
    """The first step as GNU tar packs it, with all attributes."""
    support.need("tar")
    root, target = ground / "base", ground / "base.tar"
    root.mkdir()
    changes.do(0, root)
    # Go's archive/tar, which others read it with, knows ACLs as attributes only.
    support.run(
        "tar", "--xattrs", "--xattrs-include=*", "--format=pax", "--numeric-owner", "--sort=name",
        "-cf", target, "-C", root, ".",
    )  # fmt: skip
    shutil.rmtree(root)
    return target


# -- docker


def by_docker(docker: daemons.Docker, ground: Path) -> Built:
    """By ``docker import``, ``commit`` and ``build``."""
    docker("import", "--change", 'CMD ["/bin/su"]', base_tar(ground), NAME)
    for step in (1, 2):
        container = docker("create", "--network=none", NAME).strip()
        with docker_mounted(docker, NAME, ground, container) as root:
            changes.do(step, root)
        docker("commit", "--change", f"ENV STEP={step}", container, NAME)
        docker("rm", container)
    context = ground / "context"
    changes.do(3, context / "tree")
    (context / "Dockerfile").write_text(
        f"FROM {NAME}\nLABEL made.by=docker\nCOPY tree /\nENV A=b\n"
        "ADD --chown=70000:70001 tree /more\n"
    )
    docker("build", "--tag", NAME, context)
    return docker_built(docker, NAME)


def docker_built(docker: daemons.Docker, name: str) -> Built:
    """What dockerd says of an image."""
    (found,) = docker.inspect(name)
    return Built(found["Id"], found["RootFS"]["Layers"])


@contextmanager
def docker_mounted(
    docker: daemons.Docker, image: str, ground: Path, container: str | None = None
) -> Iterator[Path]:
    """The tree of an image as dockerd keeps it; with a container, to be written in."""
    (found,) = docker.inspect(image)
    layers = found["GraphDriver"]["Data"]
    lower = ":".join(filter(None, (layers["UpperDir"], layers.get("LowerDir"))))
    options = f"lowerdir={lower}"
    if container:
        # Without the layer of files for the network, which is no part of the image.
        (found,) = docker.inspect(container)
        data = found["GraphDriver"]["Data"]
        options += f",upperdir={data['UpperDir']},workdir={data['WorkDir']}"
    elif ":" not in lower:
        options += f":{_empty(ground)}"
    with mounted(ground, options) as root:
        yield root


def _empty(ground: Path) -> Path:
    path = ground / "nothing"
    path.mkdir(exist_ok=True)
    return path


@contextmanager
def mounted(ground: Path, options: str) -> Iterator[Path]:
    """A union of Linux's own, by mount(8)."""
    target = ground / "merged"
    target.mkdir(exist_ok=True)
    support.run("mount", "-t", "overlay", "overlay", "-o", options, target)
    try:
        yield target
    finally:
        support.run("umount", target)


# -- podman and buildah


def by_podman(podman: peers.Podman, ground: Path) -> Built:
    """By ``podman import``, ``commit`` and ``build``, in Docker's format."""
    podman("import", "--change", "CMD=/bin/su", base_tar(ground), NAME)
    for step in (1, 2):
        container = podman("create", "--network=none", NAME).strip()
        changes.do(step, Path(podman("mount", container).strip()))
        podman("unmount", container)
        podman("commit", "--format", "docker", "--change", f"ENV=STEP={step}", container, NAME)
        podman("rm", container)
    context = ground / "context"
    changes.do(3, context / "tree")
    (context / "Dockerfile").write_text(
        f"FROM {NAME}\nLABEL made.by=podman\nCOPY tree /\nENV A=b\n"
    )
    podman(
        "build",
        "--signature-policy",
        podman.policy,
        "--format",
        "docker",
        "--layers",
        "--tag",
        NAME,
        context,
    )
    return podman_built(podman, NAME)


def by_buildah(podman: peers.Podman, ground: Path) -> Built:
    """By ``buildah from scratch``, ``commit``, ``add`` and ``copy``, in the OCI's format.

    Two of its layers are equal: nothing was changed in them.
    """
    image = "scratch"
    for step in (0, 1, 2, None, None):
        container = podman.buildah("from", "--pull-never", image).strip()
        if step is not None:
            changes.do(step, Path(podman.buildah("mount", container).strip()))
            podman.buildah("unmount", container)
        podman.buildah("config", "--env", f"STEP={step}", container)
        podman.buildah("commit", container, NAME)
        podman.buildah("rm", container)
        image = NAME
    changes.do(3, ground / "tree")
    container = podman.buildah("from", "--pull-never", image).strip()
    podman.buildah("copy", container, ground / "tree", "/copied")
    podman.buildah("add", container, ground / "tree", "/added")
    podman.buildah("config", "--cmd", "/bin/su", "--label", "made.by=buildah", container)
    podman.buildah("commit", container, NAME)
    podman.buildah("rm", container)
    return podman_built(podman, NAME)


def podman_built(podman: peers.Podman, name: str) -> Built:
    """What podman says of an image."""
    (found,) = json.loads(podman("inspect", name))
    return Built(f"sha256:{found['Id']}", found["RootFS"]["Layers"])


# -- umoci


class Umoci:
    """umoci(1) on a layout of its own."""

    def __init__(self, layout: Path) -> None:
        support.need("umoci")
        self.layout = layout
        support.run("umoci", "init", "--layout", layout)

    def __call__(self, tag: str, *argv: str | Path) -> None:
        verb = argv[:2] if argv[0] == "raw" else argv[:1]
        support.run("umoci", *verb, "--image", f"{self.layout}:{tag}", *argv[len(verb) :])

    def built(self, tag: str) -> Built:
        """What the layout says of an image."""
        index = json.loads((self.layout / "index.json").read_bytes())
        name = "org.opencontainers.image.ref.name"
        (found,) = (m for m in index["manifests"] if m["annotations"][name] == tag)
        config = self._document(found["digest"])["config"]["digest"]
        return Built(config, self._document(config)["rootfs"]["diff_ids"])

    def _document(self, digest: str) -> dict[str, Any]:
        path = self.layout / "blobs" / digest.replace(":", "/")
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found


def umoci_tree(layout: Path, tag: str, ground: Path) -> dict[str, Entry]:
    """The tree of an image in a layout as umoci unpacks it."""
    bundle = ground / f"unpacked-{tag}"
    support.run("umoci", "unpack", "--image", f"{layout}:{tag}", bundle)
    try:
        return tree(bundle / "rootfs")
    finally:
        shutil.rmtree(bundle)


def by_umoci(umoci: Umoci, ground: Path) -> tuple[Built, Built]:
    """By ``umoci raw add-layer`` (the same one twice), ``insert`` and ``config``, tag ``plain``;
    and with ``umoci repack`` on it, tag ``rich``.
    """
    umoci("plain", "new")
    umoci("plain", "raw", "add-layer", base_tar(ground))
    changes.do(3, ground / "tree")
    support.run("tar", "--format=pax", "-cf", ground / "small.tar", "-C", ground / "tree", ".")
    for _ in range(2):
        umoci("plain", "raw", "add-layer", ground / "small.tar")
    umoci("plain", "insert", ground / "tree", "/inserted")
    umoci("plain", "insert", "--opaque", ground / "tree", "/d/opaque")
    umoci("plain", "insert", "--whiteout", "/names/to-long")
    umoci("plain", "config", "--config.cmd", "/bin/su", "--config.env", "A=b", "--author", "me")
    bundle = ground / "bundle"
    umoci("plain", "unpack", bundle)
    for step in (1, 2):
        changes.do(step, bundle / "rootfs")
        umoci("rich", "repack", "--refresh-bundle", bundle)
    shutil.rmtree(bundle)
    return umoci.built("plain"), umoci.built("rich")


# -- images of a number of layers


def count_by_docker(docker: daemons.Docker, ground: Path, count: int) -> Built:
    """``docker build`` of as many steps as there are to be layers."""
    lines = [f"COPY file-{number} /dir-{number % 7}/" for number in range(count)]
    for number in range(count):
        (ground / f"file-{number}").write_text(f"{number}\n" * number)
    (ground / "Dockerfile").write_text("\n".join(["FROM scratch", *lines, "CMD x"]))
    docker("build", "--tag", f"count:{count}", ground)
    return docker_built(docker, f"count:{count}")


def count_by_buildah(podman: peers.Podman, ground: Path, count: int) -> Built:
    """``buildah bud --layers`` of as many steps as there are to be layers."""
    lines = [f"COPY file-{number} /dir-{number % 7}/" for number in range(count)]
    for number in range(count):
        (ground / f"file-{number}").write_text(f"{number}\n" * number)
    (ground / "Dockerfile").write_text("\n".join(["FROM scratch", *lines]))
    podman.buildah("bud", "--layers", "--tag", f"localhost/count:{count}", ground)
    return podman_built(podman, f"localhost/count:{count}")


def count_by_umoci(umoci: Umoci, ground: Path, count: int) -> Built:
    """``umoci insert`` as often as there are to be layers."""
    umoci("count", "new")
    for number in range(count):
        directory = ground / f"dir-{number}"
        directory.mkdir()
        (directory / f"file-{number}").write_text(f"{number}\n" * number)
        umoci("count", "insert", directory, f"/{directory.name}")
    return umoci.built("count")
