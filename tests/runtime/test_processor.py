"""What the system says of the processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossrank.runtime.processor import read_processor

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8488C
flags\t\t: fpu vme avx2 {flags}

processor\t: 1
model name\t: another one
flags\t\t: fpu amx_int8
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd {flags}
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


@pytest.mark.parametrize(
    ("listing", "flags", "sums", "bf16"),
    [
        (X86, "avx512f", False, False),
        (X86, "avx512f avx512_vnni", True, False),
        (X86, "avx_vnni avx512_bf16", True, True),
        (X86, "avx_vnni_int8", False, False),  # another instruction, whose name begins the same
        (ARM, "crc32", False, False),
        (ARM, "asimddp", True, False),
        (ARM, "asimddp bf16", True, True),
    ],
)
def test_features_are_those_of_the_first_processor(
    tmp_path: Path, listing: str, flags: str, sums: bool, bf16: bool
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(listing.format(flags=flags), encoding="utf-8")
    found = read_processor(path)
    assert (found.sums_integers, found.has_bf16) == (sums, bf16)
    expected = "Intel(R) Xeon(R) Platinum 8488C" if listing == X86 else "CPU implementer 0x41, CPU part 0xd40"
    assert found.name == expected


def test_nothing_is_said_where_the_system_does_not(tmp_path: Path) -> None:
    found = read_processor(tmp_path / "none")
    assert found.name
    assert (found.features, found.sums_integers, found.has_bf16) == (None, None, None)
