"""The document that an OCI runtime reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import InvalidName
from lamina.kernel.idmap import IdMap, IdRange
from lamina.oci.runtime import Isolation, Mount, Process, bind, configuration, encode

PROCESS = Process(["sh"], {"A": "b=c"}, "/srv", 1000, 50, [50, 10], ["CAP_CHOWN"])


def document(isolation: Isolation, **options: Any) -> dict[str, Any]:
    return configuration(PROCESS, isolation, root="rootfs", **options)


def destinations(made: dict[str, Any]) -> list[str]:
    return [mount["destination"] for mount in made["mounts"]]


def test_the_process_is_what_was_said() -> None:
    process = document(Isolation(private_network=True))["process"]
    assert process == {
        "terminal": False,
        "user": {"uid": 1000, "gid": 50, "additionalGids": [50, 10]},
        "args": ["sh"],
        "env": ["A=b=c"],
        "cwd": "/srv",
        "capabilities": {"bounding": ["CAP_CHOWN"]},
        "noNewPrivileges": False,
    }


def test_root_holds_its_capabilities_and_others_none() -> None:
    process = PROCESS._replace(uid=0)
    made = configuration(process, Isolation(private_network=True), root="rootfs")
    held = made["process"]["capabilities"]
    assert held == {s: ["CAP_CHOWN"] for s in ("bounding", "effective", "permitted")}


def test_root_has_cgroups_and_no_device_but_the_harmless() -> None:
    made = document(Isolation(private_network=False, hostname="box"))
    assert "/sys/fs/cgroup" in destinations(made)
    assert made["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    kinds = {namespace["type"] for namespace in made["linux"]["namespaces"]}
    assert kinds == {"pid", "ipc", "uts", "mount", "cgroup"}
    assert made["hostname"] == "box"


def test_an_ordinary_user_s_has_a_user_namespace_and_leaves_cgroups_alone() -> None:
    ids = (IdRange(0, 1000, 1), IdRange(1, 100000, 4))
    made = document(
        Isolation(private_network=False, in_user_namespace=True, id_map=IdMap(ids, ids))
    )
    assert {"type": "user"} in made["linux"]["namespaces"]
    assert made["linux"]["uidMappings"] == made["linux"]["gidMappings"]
    assert made["linux"]["uidMappings"][1] == {"containerID": 1, "hostID": 100000, "size": 4}
    assert "resources" not in made["linux"]
    assert "/sys/fs/cgroup" not in destinations(made)
    assert "additionalGids" not in made["process"]["user"]
    mounts = {mount["destination"]: mount for mount in made["mounts"]}
    assert mounts["/sys"]["type"] == "bind"
    assert "gid=5" not in mounts["/dev/pts"]["options"]


def test_the_group_of_terminals_is_asked_for_where_it_is_mapped() -> None:
    ids = (IdRange(0, 1000, 1), IdRange(1, 100000, 5))
    made = document(Isolation(private_network=True, in_user_namespace=True, id_map=IdMap(ids, ids)))
    mounts = {mount["destination"]: mount for mount in made["mounts"]}
    assert "gid=5" in mounts["/dev/pts"]["options"]
    assert mounts["/sys"]["type"] == "sysfs"
    assert {"type": "network"} in made["linux"]["namespaces"]


def test_mounts_come_after_those_of_every_container() -> None:
    made = document(Isolation(private_network=True), mounts=[Mount("/data", "tmpfs", "tmpfs")])
    assert destinations(made)[-1] == "/data"
    assert made["mounts"][-1] == {"destination": "/data", "type": "tmpfs", "source": "tmpfs"}


def test_a_bind_may_be_read_only_with_what_is_below(tmp_path: Path) -> None:
    assert bind(str(tmp_path), "/x").options == ["rbind", "rprivate", "rw"]
    assert bind(str(tmp_path), "/x", read_only=True).options == ["rbind", "rprivate", "ro", "rro"]
    (tmp_path / "file").write_text("")
    assert "rro" not in bind(str(tmp_path / "file"), "/x", read_only=True).options


def test_json_is_utf8_and_refuses_what_is_not() -> None:
    assert json.loads(encode({"args": ["größe"]})) == {"args": ["größe"]}
    assert "größe".encode() in encode({"args": ["größe"]})
    with pytest.raises(InvalidName, match="not UTF-8"):
        encode({"args": ["\udcff"]})
