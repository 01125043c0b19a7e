"""The memory and cores this process may use, within the limits of a container or batch system.

On Linux, control groups limit both. They nest, so the smallest limit between a group and the root
applies: see cgroups(7).
"""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self")
XLA_THREADS = ("PJRT_NPROC", "NPROC")
"""Variables that set XLA's number of threads on a CPU; the first that holds a number counts."""


def cores() -> int:
    """Return the number of threads XLA uses on a CPU; the low bits of a run's results depend on it.

    XLA starts a thread per core that this process may be scheduled on, whatever the quota of
    processor time.
    """
    numbers = (os.environ.get(name, "") for name in XLA_THREADS)
    return next((int(number) for number in numbers if number.isdecimal() and int(number) > 0), scheduled_cores())


def scheduled_cores() -> int:
    """Return how many cores this process may be scheduled on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores(proc: Path = PROC) -> int:
    """Return how many cores this process can keep busy, within its quota of processor time."""
    quotas = (math.ceil(quota) for group in _groups("cpu", proc) for quota in _quota(group))
    return min([scheduled_cores(), *quotas])


def memory(proc: Path = PROC) -> int:
    """Return how many bytes of memory this process may use."""
    files = (group / name for group in _groups("memory", proc) for name in ("memory.max", "memory.limit_in_bytes"))
    return min([_physical_memory(), *(limit for file in files for limit in _numbers(file))])


def _physical_memory() -> int:
    """Return the bytes of this machine's memory, or the limit of `ulimit -v` if that is less."""
    try:
        import resource

        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        most, _ = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, AttributeError, ValueError, OSError):  # the system does not tell
        return sys.maxsize
    return there if most == resource.RLIM_INFINITY else min(there, most)


def _groups(controller: str, proc: Path) -> Iterator[Path]:
    """Yield the directories of this process's control groups, up to the root that it sees.

    Both versions of control groups are read.
    """
    mine: dict[str, PurePosixPath] = {}
    for line in _lines(proc / "cgroup"):
        _, names, path = line.split(":", 2)
        mine.update(dict.fromkeys(names.split(","), PurePosixPath(path)))  # version 2: the name is empty
    for line in _lines(proc / "mountinfo"):
        mount, _, kind = line.partition(" - ")
        root, where = mount.split(" ")[3:5]
        system, _, options = kind.split(" ", 2)
        name = {"cgroup": controller if controller in options.split(",") else None, "cgroup2": ""}.get(system)
        if name is not None and name in mine:
            group = mine[name]
            is_below = group.is_relative_to(root) and ".." not in group.parts  # else hidden from a container
            below = group.relative_to(root) if is_below else PurePosixPath()
            yield from (Path(where) / path for path in (below, *below.parents))


def _quota(group: Path) -> Iterator[float]:
    """Yield a group's limit in cores, from `cpu.max` or from version 1's two files."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        numbers = [number for name in files for number in _numbers(group / name)]
        if len(numbers) == 2 and min(numbers) > 0:
            yield numbers[0] / numbers[1]


def _numbers(file: Path) -> list[int]:
    """Return the numbers in a file, or none if a word is not a number (`max`: no limit)."""
    words = [word for line in _lines(file) for word in line.split()]
    return [int(word) for word in words] if all(word.isdecimal() for word in words) else []


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux, or a group without this limit
        return []


def processor() -> str:
    """Return the processor's name, or "" if the system does not tell.

    XLA compiles for the instructions of this processor.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
