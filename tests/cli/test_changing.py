"""The instructions of ``--change``, against what Docker makes of them."""

from __future__ import annotations

import click
import pytest

from lamina.cli.changing import changed
from lamina.oci import ImageConfig, RunConfig


@pytest.mark.parametrize(
    ("instruction", "field", "value"),
    [
        ('CMD ["a", "b c"]', "cmd", ["a", "b c"]),
        ("CMD a  b", "cmd", ["/bin/sh", "-c", "a  b"]),
        ('entrypoint ["/x"]', "entrypoint", ["/x"]),
        ("ENV A=1 B='two words'", "env", ["OLD=0", "A=1", "B=two words"]),
        ("ENV A the rest", "env", ["OLD=0", "A=the rest"]),
        ("ENV OLD=new", "env", ["OLD=new"]),
        ("LABEL a=1 b=2", "labels", {"a": "1", "b": "2"}),
        ("USER ann:staff", "user", "ann:staff"),
        ("WORKDIR /srv", "working_dir", "/srv"),
        ("WORKDIR below", "working_dir", "/top/below"),
        ("EXPOSE 80 53/udp", "exposed_ports", {"80/tcp": {}, "53/udp": {}}),
        ('VOLUME ["/data"]', "volumes", {"/data": {}}),
        ("STOPSIGNAL SIGINT", "stop_signal", "SIGINT"),
    ],
)
def test_an_instruction_sets_its_field_and_leaves_the_others(
    instruction: str, field: str, value: object
) -> None:
    config = ImageConfig(config=RunConfig(env=["OLD=0"], working_dir="/top", user="root"))
    run = changed(config, [instruction])
    assert run is not None
    assert getattr(run, field) == value
    if field != "user":
        assert run.user == "root"
    assert config.config is not None
    assert config.config.env == ["OLD=0"], "the image's own stays as it is"


def test_no_instruction_changes_nothing() -> None:
    assert changed(None, []) is None


def test_an_image_without_any_gets_one() -> None:
    assert changed(None, ["USER ann"]) == RunConfig(user="ann")


@pytest.mark.parametrize(
    "instruction", ["RUN x", "CMD", "CMD [1]", 'CMD ["a"', "ENV =x", "ENV A=1 B", "LABEL 'open"]
)
def test_what_is_no_instruction_is_refused(instruction: str) -> None:
    with pytest.raises(click.UsageError):
        changed(None, [instruction])
