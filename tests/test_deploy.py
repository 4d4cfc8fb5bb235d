"""What deploy/ has: each file is read by the program that it is for, or as its format."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from lamina.cli.app import lamina
from tests import support

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
UNITS = sorted(DEPLOY.glob("*.service")) + sorted(DEPLOY.glob("*.socket"))


def accepted(words: list[str]) -> bool:
    """Whether ``lamina`` takes this command line."""
    assert words[0].rpartition("/")[2] == "lamina"
    group = click.Context(lamina, info_name="lamina")
    command: click.Command | None = lamina
    rest = words[1:]
    while isinstance(command, click.Group):
        command = command.get_command(group, rest.pop(0))
    assert command is not None
    command.make_context("x", rest, parent=group)
    return True


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_reads_the_units(unit: Path, tmp_path: Path) -> None:
    support.need("systemd-analyze")
    program = tmp_path / "lamina"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for each in UNITS:
        text = each.read_text().replace("ExecStart=lamina ", f"ExecStart={program} ")
        (tmp_path / each.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / unit.name],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    mine = [line for line in done.stderr.splitlines() if os.fspath(tmp_path) in line]
    assert mine == []
    assert done.returncode == 0, done.stderr


def test_the_service_starts_what_there_is() -> None:
    for unit in DEPLOY.glob("*.service"):
        lines = unit.read_text().splitlines()
        start = next(line for line in lines if line.startswith("ExecStart="))
        assert accepted(shlex.split(start.removeprefix("ExecStart=")))
        assert "Type=notify" in lines


def test_containerds_configuration_is_one() -> None:
    text = (DEPLOY / "containerd.toml").read_text()
    config = tomllib.loads(text)
    assert config["proxy_plugins"]["lamina"]["type"] == "snapshot"
    commented = "\n".join(line.removeprefix("# ") for line in text.splitlines() if "=" in line
                          or line.startswith("# ["))  # fmt: skip
    assert "[proxy_plugins.lamina-diff]" in commented


def test_containerd_takes_its_configuration() -> None:
    support.need("containerd")
    done = support.run("containerd", "--config", DEPLOY / "containerd.toml", "config", "dump")
    dumped: dict[str, Any] = tomllib.loads(done.stdout.decode())
    assert dumped["proxy_plugins"]["lamina"]["address"] == "/run/lamina/containerd.sock"


def test_the_kubernetes_manifest_is_one() -> None:
    yaml = pytest.importorskip("yaml")
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    assert [document["kind"] for document in documents] == [
        "Namespace", "RuntimeClass", "DaemonSet",
    ]  # fmt: skip
    spec = documents[2]["spec"]
    pod = spec["template"]["spec"]
    assert pod["runtimeClassName"] == documents[1]["metadata"]["name"]
    plain = f"containerd.runtimes.{documents[1]['handler']}]"
    assert plain in (DEPLOY / "containerd.toml").read_text()
    assert spec["selector"]["matchLabels"].items() <= (
        spec["template"]["metadata"]["labels"].items()
    )
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        assert accepted(container["args"])
        given = {f"$({variable['name']})" for variable in container["env"]}
        assert given == set(re.findall(r"\$\(\w+\)", " ".join(container["args"])))
        ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
        probed = ports[container["readinessProbe"]["httpGet"]["port"]]
        assert f"--metrics=$(HOST_IP):{probed}" in container["args"]
        assert spec["template"]["metadata"]["annotations"]["prometheus.io/port"] == probed
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
