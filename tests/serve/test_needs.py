"""What servers need to start."""

from __future__ import annotations

import pytest

from tests.users import User


@pytest.mark.parametrize("server", ["containerd", "docker"])
def test_an_ordinary_user_is_refused(ordinary_user: User, server: str) -> None:
    home = ordinary_user.home
    done = ordinary_user.run(
        [ordinary_user.python, "-m", "lamina", "--root", home / "store", "--run-root", home / "run",
         "serve", server, "--address", home / "s.sock"],
        timeout=60,
    )  # fmt: skip
    said = b"lamina: servers take root, as containerd and Docker do: use sudo\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", said)
    assert not (home / "store").exists()
