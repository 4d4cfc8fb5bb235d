from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from lamina.errors import UnmappedId
from lamina.kernel.idmap import IdMap, IdRange

MAP = IdMap(
    (IdRange(0, 1000, 1), IdRange(1, 100000, 65536)),
    (IdRange(0, 2000, 1), IdRange(1, 200000, 65536)),
)


def test_the_empty_map_is_the_identity() -> None:
    identity = IdMap.identity()
    assert not identity
    assert identity.to_host(7, 8) == (7, 8) == identity.to_container(7, 8)
    assert identity.root == (0, 0)


def test_ids_go_there_and_back() -> None:
    assert MAP
    assert MAP.root == (1000, 2000)
    assert MAP.to_host(33, 34) == (100032, 200033)
    for ids in ((0, 0), (1, 1), (65536, 65536), (0, 65536)):
        assert MAP.to_container(*MAP.to_host(*ids)) == ids


def test_ids_without_a_place_are_refused() -> None:
    with pytest.raises(UnmappedId, match="65537"):
        MAP.to_host(65537, 0)
    with pytest.raises(UnmappedId, match="group id 5"):
        MAP.to_container(1000, 5)


def test_a_process_has_the_map_of_its_user_namespace() -> None:
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    assert [str(r).split() for r in IdMap.of_process().uids] == [line.split() for line in lines]
    assert IdMap.of_process() == IdMap.of_process(os.getpid())


def test_ranges_must_not_overlap() -> None:
    with pytest.raises(ValueError, match="two ranges"):
        IdMap((IdRange(0, 1000, 10), IdRange(5, 2000, 1)), (IdRange(0, 0, 1),))
    with pytest.raises(ValueError, match="two ranges"):
        IdMap((IdRange(0, 1000, 10), IdRange(10, 1005, 1)), (IdRange(0, 0, 1),))
    with pytest.raises(ValueError, match="both"):
        IdMap((IdRange(0, 1000, 10),))
    with pytest.raises(ValueError, match="range"):
        IdRange(0, 0, 0)


def test_a_range_prints_as_a_line_of_uid_map() -> None:
    assert str(IdRange(1, 100000, 65536)) == "1 100000 65536"


def test_for_user_reads_subuid_by_name_and_by_number(tmp_path: Path) -> None:
    me = pwd.getpwuid(os.geteuid())
    uids, gids = tmp_path / "subuid", tmp_path / "subgid"
    uids.write_text(f"other:5:5\n{me.pw_name}:100000:10\n\nbroken\n{me.pw_uid}:300000:20\n")
    gids.write_text(f"{me.pw_name}:200000:30\n{me.pw_name}:x:y\n")
    found = IdMap.for_user(subuid=uids, subgid=gids)
    assert found.uids == (
        IdRange(0, me.pw_uid, 1),
        IdRange(1, 100000, 10),
        IdRange(11, 300000, 20),
    )
    assert found.gids == (IdRange(0, me.pw_gid, 1), IdRange(1, 200000, 30))


def test_for_user_without_subordinate_ids_maps_the_user_alone(tmp_path: Path) -> None:
    found = IdMap.for_user(subuid=tmp_path / "none", subgid=tmp_path / "none")
    assert len(found.uids) == len(found.gids) == 1
