from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.kernel import mount, quota
from tests.support import need, run


@pytest.fixture(params=["xfs", "ext4"])
def file_system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small file system of the kind, with project quota on where the kernel has it."""
    kind = str(request.param)
    need(f"mkfs.{kind}", "mount")
    image, target = tmp_path / "image", tmp_path / "mnt"
    target.mkdir()
    with image.open("wb") as file:
        file.truncate(320 << 20)
    quota_on = {"xfs": [], "ext4": ["-O", "quota,project", "-E", "quotatype=prjquota"]}[kind]
    for features, options in ((quota_on, "loop,prjquota"), ([], "loop")):
        run(f"mkfs.{kind}", "-q", "-f" if kind == "xfs" else "-F", *features, image)
        command = ["mount", "-o", options, str(image), str(target)]
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:
            break
    else:
        pytest.skip(f"this kernel does not mount {kind} from a file")
    try:
        yield target
    finally:
        mount.unmount(target)


@pytest.mark.parametrize("path", ["/proc", "/sys"])
def test_a_file_system_without_project_ids_says_so(path: str) -> None:
    assert "no project ids" in str(quota.supported(path))


def test_a_missing_directory_is_a_reason_too(tmp_path: Path) -> None:
    assert "No such file" in str(quota.supported(tmp_path / "missing"))


@pytest.mark.root
def test_project_ids_are_kept_and_inherited(file_system: Path) -> None:
    (file_system / "layer").mkdir()
    try:
        quota.set_project(file_system / "layer", 42)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            pytest.skip(f"no project ids here: {error.strerror}")
        raise
    assert quota.get_project(file_system / "layer") == 42
    (file_system / "layer/below").mkdir()
    assert quota.get_project(file_system / "layer/below") == 42


@pytest.mark.root
def test_a_limit_holds_or_is_refused_with_a_reason(file_system: Path) -> None:
    layer = file_system / "layer"
    layer.mkdir()
    reason = quota.supported(layer)
    if reason is not None:
        assert reason.count("\n") == 0
        assert "quota" in reason or "project" in reason
        with pytest.raises(OSError):
            quota.set_limit(layer, 42, 1 << 20)
        return
    quota.set_project(layer, 42)
    quota.set_limit(layer, 42, 1 << 20)
    assert quota.get_limit(layer, 42)[1] == 1 << 20
    with pytest.raises(OSError) as caught, (layer / "file").open("wb") as file:
        file.write(bytes(2 << 20))
        os.fsync(file.fileno())
    assert caught.value.errno in (errno.EDQUOT, errno.ENOSPC)
    quota.set_limit(layer, 42, 0)
    (layer / "file").write_bytes(bytes(2 << 20))
