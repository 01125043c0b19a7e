"""Memory and cores that a process may use, from files as in Linux containers and batch systems."""

from pathlib import Path

import pytest

from quantilax import devices
from quantilax.host import limits

GIB = 2**30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 64 cores and 256 GiB whose files lie in `tmp_path`."""
    monkeypatch.setattr(limits, "scheduled_cores", lambda: 64)
    monkeypatch.setattr(limits, "_physical_memory", lambda: 256 * GIB)

    def tree(groups: str, mounts: dict[str, tuple[str, str]], files: dict[str, str]) -> Path:
        lines = [
            f"3{i} 24 0:{i} {root} {tmp_path / where} rw,nosuid shared:9 - {kind}"
            for i, (where, (root, kind)) in enumerate(mounts.items())
        ]
        for name, text in {
            "cgroup": groups,
            "mountinfo": "\n".join(["24 1 8:1 / / rw - ext4 /dev/sda1 rw", *lines]),
        }.items():
            (tmp_path / name).write_text(text + "\n")
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + "\n")
        return tmp_path

    return tree


V2 = {"sys": ("/", "cgroup2 cgroup2 rw")}
V1 = {"sys/memory": ("/", "cgroup cgroup rw,memory"), "sys/cpu": ("/", "cgroup cgroup rw,cpu,cpuacct")}


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "cores", "memory"),
    [
        ("0::/", V2, {}, 64, 256),
        ("0::/", V2, {"sys/memory.max": "max", "sys/cpu.max": "max 100000"}, 64, 256),
        ("0::/", V2, {"sys/memory.max": str(4 * GIB), "sys/cpu.max": "150000 100000"}, 2, 4),
        ("0::/", V2, {"sys/cpu.max": "1000 100000"}, 1, 256),
        ("0::/", V2, {"sys/memory.max": str(999 * GIB), "sys/cpu.max": "9900000 100000"}, 64, 256),
        (
            "0::/slurm/job_7/step_0",
            V2,
            {
                "sys/slurm/job_7/step_0/memory.max": "max",
                "sys/slurm/job_7/memory.max": str(8 * GIB),
                "sys/slurm/memory.max": str(64 * GIB),
                "sys/slurm/job_7/step_0/cpu.max": "800000 100000",
                "sys/slurm/cpu.max": "400000 100000",
                "sys/slurm/job_8/memory.max": str(GIB),
            },
            4,
            8,
        ),
        (
            "11:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab\n0::/",
            V1,
            {
                "sys/memory/memory.limit_in_bytes": "9223372036854771712",
                "sys/memory/docker/ab/memory.limit_in_bytes": str(3 * GIB),
                "sys/cpu/cpu.cfs_quota_us": "-1",
                "sys/cpu/cpu.cfs_period_us": "100000",
                "sys/cpu/docker/ab/cpu.cfs_quota_us": "300000",
                "sys/cpu/docker/ab/cpu.cfs_period_us": "100000",
            },
            3,
            3,
        ),
        (  # the container sees its own group as the root, and its path as the host's
            "11:memory:/docker/ab/inner\n4:cpu,cpuacct:/elsewhere",
            {name: ("/docker/ab", kind) for name, (_, kind) in V1.items()},
            {
                "sys/memory/memory.limit_in_bytes": str(6 * GIB),
                "sys/memory/inner/memory.limit_in_bytes": str(5 * GIB),
                "sys/cpu/cpu.cfs_quota_us": "50000",
                "sys/cpu/cpu.cfs_period_us": "100000",
            },
            1,
            5,
        ),
        ("0::/../other", V2, {"sys/memory.max": str(2 * GIB), "other/memory.max": "1"}, 64, 2),
    ],
)
def test_the_smallest_limit_of_the_groups_a_process_is_in_holds(machine, groups, mounts, files, cores, memory):
    proc = machine(groups, mounts, files)
    assert (limits.usable_cores(proc), limits.memory(proc)) == (cores, memory * GIB)


def test_where_the_system_says_nothing_the_machine_is_what_there_is(machine, tmp_path):
    assert (limits.usable_cores(tmp_path), limits.memory(tmp_path)) == (64, 256 * GIB)


def test_what_this_machine_says_is_understood():
    assert 1 <= limits.usable_cores() <= limits.scheduled_cores()
    assert 0 < limits.memory() <= limits._physical_memory()


def test_ulimit_bounds_the_memory(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (GIB, GIB))
    assert limits.memory() == GIB


def test_xla_takes_as_many_threads_as_it_may_be_scheduled_on_or_is_told(machine, monkeypatch):
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    monkeypatch.setenv("NPROC", "")
    assert limits.cores() == 64
    monkeypatch.setenv("NPROC", "7")
    assert limits.cores() == 7
    monkeypatch.setenv("PJRT_NPROC", "many")
    assert limits.cores() == 7
    monkeypatch.setenv("PJRT_NPROC", "2")
    assert limits.cores() == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 2), ({"asked": True}, 8), ({"elsewhere": True}, 100)],
    ids=["auto", "asked", "elsewhere"],
)
def test_a_quota_bounds_the_devices_that_nobody_asked_for(monkeypatch, options, expected):
    said = {}
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(limits, "usable_cores", lambda: 2)
    monkeypatch.setattr(limits, "scheduled_cores", lambda: 8)
    monkeypatch.setattr(devices.jax.config, "update", said.__setitem__)
    devices.use_all_cores(100, **options)
    assert said == {"jax_num_cpu_devices": expected}
