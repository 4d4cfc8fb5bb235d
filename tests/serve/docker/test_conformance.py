"""The conformance suite of the drivers, through the socket."""

from __future__ import annotations

import pytest

from tests.conformance.test_chains import *  # noqa: F403
from tests.conformance.test_diff import *  # noqa: F403
from tests.conformance.test_life import *  # noqa: F403
from tests.conformance.test_mounts import *  # noqa: F403
from tests.conformance.test_owners import *  # noqa: F403
from tests.conformance.test_whiteouts import *  # noqa: F403

pytestmark = pytest.mark.allow_log("call failed")

_NOT_BYTES = "JSON has no bytes: a name that is not UTF-8 comes with U+FFFD in it"
_PROCESSES = "a plugin's references are those of all its clients, and no process's"

BEYOND = {
    "test_a_layer_without_parent_is_all_additions": _NOT_BYTES,
    "test_two_processes_share_one_mount": _PROCESSES,
    "test_a_dead_process_leaves_no_count": _PROCESSES,
    "test_a_mount_of_another_process_is_not_removed": _PROCESSES,
    "test_a_restart_finds_mounts_standing": _PROCESSES,
    "test_a_forked_child_does_not_own_its_parents_references": _PROCESSES,
    "test_a_pin_outlives_the_process_that_took_it": _PROCESSES,
    "test_256_ids_at_once_from_several_processes": _PROCESSES,
    "test_an_owner_that_has_no_place_inside_is_not_packed": "a stream's end is all that is told",
    "test_cleanup_unmounts_what_nobody_refers_to": _PROCESSES,
    "test_cleanup_gives_pins_back_when_it_is_to": "Cleanup always does",
    "test_a_removal_can_do_away_with_pins": "Remove always does",
}
"""What the protocol does otherwise on purpose, and why."""


@pytest.fixture(autouse=True)
def _within_the_protocol(request: pytest.FixtureRequest) -> None:
    reason = BEYOND.get(request.node.originalname)
    if reason is not None:
        pytest.skip(reason)
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("bad") == "":
        pytest.skip("an empty parent is none")
