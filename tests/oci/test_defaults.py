from __future__ import annotations

from lamina.oci import Defaults, ImageConfig, RunConfig


def defaults(config: RunConfig | None) -> Defaults:
    return Defaults.decode(ImageConfig(architecture="amd64", os="linux", config=config).encode())


def test_the_last_value_of_a_variable_counts() -> None:
    config = RunConfig(env=["PATH=/bin", "A=1", "A=2=3", "B"])
    assert defaults(config).env == {"PATH": "/bin", "A": "2=3", "B": ""}


def test_a_command_replaces_cmd_and_not_the_entrypoint() -> None:
    run = defaults(RunConfig(entrypoint=["/init"], cmd=["serve"]))
    assert run.argv() == ["/init", "serve"]
    assert run.argv(["sh", "-c", "x"]) == ["/init", "sh", "-c", "x"]


def test_directory_and_user_are_the_image_s() -> None:
    found = defaults(RunConfig(working_dir="/srv", user="www-data:adm"))
    assert (found.working_dir, found.user) == ("/srv", "www-data:adm")


def test_an_image_that_says_nothing_has_docker_s_defaults() -> None:
    assert defaults(None) == defaults(RunConfig()) == Defaults()
    assert Defaults() == ({}, (), (), "/", None)
