from __future__ import annotations

import subprocess
import sys

import pytest

from lamina.log import Log

SOURCE = """
import sys
from lamina import log
logger = log.Log("lamina.here")
def prepare():
    import logging
    print("once")
    logging.basicConfig(format="%(name)s %(funcName)s %(levelname)s %(message)s", stream=sys.stdout)
log.before_first(prepare)
assert "logging" not in sys.modules
def work():
    logger.warning("%d of %s", 1, "two")
    logger.error("three")
    logger.debug("unheard")
work()
"""


def test_logging_is_imported_and_prepared_for_the_first_message() -> None:
    said = subprocess.run([sys.executable, "-c", SOURCE], check=True, stdout=subprocess.PIPE)
    assert said.stdout.decode().splitlines() == [
        "once",
        "lamina.here work WARNING 1 of two",
        "lamina.here work ERROR three",
    ]


def test_messages_are_logging_s(caplog: pytest.LogCaptureFixture) -> None:
    Log("lamina.there").warning("can't delete %s", "it")
    assert caplog.record_tuples == [("lamina.there", 30, "can't delete it")]
