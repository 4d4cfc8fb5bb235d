from __future__ import annotations

import pytest

from lamina.kernel.selinux import format_mount_label

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


@pytest.mark.parametrize(
    ("options", "label", "expected"),
    [  # the cases of go-selinux's TestFormatMountLabel, and both empty
        ("", LABEL, f'context="{LABEL}"'),
        ("src", LABEL, f'src,context="{LABEL}"'),
        ("src", "", "src"),
        ("", "", ""),
        ("br:/a=rw:/b=ro+wh,dio", "x", 'br:/a=rw:/b=ro+wh,dio,context="x"'),
    ],
)
def test_format_mount_label(options: str, label: str, expected: str) -> None:
    assert format_mount_label(options, label) == expected
