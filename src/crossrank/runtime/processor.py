"""What this machine's processor is, as the system says."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["FEATURES", "Processor", "processor", "read_processor"]

FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""What the speed of an integer or float matrix product depends on, as Linux names it."""

_SUMS_OF_INTEGERS = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
_ARM_NAME = ("CPU implementer", "CPU architecture", "CPU part", "CPU variant")  # ARM's has no name


class Processor(NamedTuple):
    """A processor.

    Attributes:
        name: as people know it: "AMD EPYC 9004"; on ARM the numbers that the system gives.
        features: those of `FEATURES` that it has; None where the system does not list them.
    """

    name: str
    features: tuple[str, ...] | None

    @property
    def sums_integers(self) -> bool | None:
        """Whether one instruction multiplies and sums 8-bit integers; None where that is not known."""
        return None if self.features is None else not _SUMS_OF_INTEGERS.isdisjoint(self.features)

    @property
    def has_bf16(self) -> bool | None:
        """Whether it multiplies bf16; None where that is not known."""
        return None if self.features is None else not _BF16.isdisjoint(self.features)


@cache
def processor() -> Processor:
    """This machine's processor; read once."""
    return read_processor()


def read_processor(listing: str | Path = "/proc/cpuinfo") -> Processor:
    """Read a processor off the system's list of them.

    Args:
        listing: Linux's list; only tests change it. Where there is none, Python says the name.
    """
    facts: dict[str, str] = {}
    try:
        with Path(listing).open(encoding="utf-8", errors="replace") as lines:
            for line in lines:  # up to the second processor: a large machine's list is long
                name, colon, value = line.partition(":")
                if not colon and facts:
                    break
                facts[name.strip()] = value.strip()
    except OSError:
        pass
    flags = facts.get("flags") or facts.get("Features")
    numbers = ", ".join(f"{name} {facts[name]}" for name in _ARM_NAME if name in facts)
    return Processor(
        facts.get("model name") or numbers or platform.processor() or platform.machine(),
        None if flags is None else tuple(each for each in FEATURES if each in flags.split()),
    )
