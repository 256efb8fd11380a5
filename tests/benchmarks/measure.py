"""What a benchmark measures with: time in turns, memory, operations, the machine and its peak."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).parent


def clock(device: str) -> float:
    """Seconds on a GPU, once it has done all it was given; on a CPU the seconds this process computed."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def seconds(cases: Mapping[str, Callable[[], None]], turns: int, device: str) -> dict[str, list[float]]:
    """Seconds of every case, turn by turn. Cases take turns, so that what disturbs one disturbs its rivals too."""
    took: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(turns + 1):  # the first one warms up
        for name, run in cases.items():
            start = clock(device)
            run()
            if turn:
                took[name].append(clock(device) - start)
    return took


def ratio(slow: list[float], fast: list[float]) -> list[float]:
    """How many times as fast: median, least and largest of the turns, each of which compares its own two."""
    each = [a / b for a, b in zip(slow, fast, strict=True)]
    return [statistics.median(each), min(each), max(each)]


def matmul_peak(dtype: torch.dtype, device: str) -> float:
    """Operations per second of a large matrix product, two for a multiplication and its addition."""
    n = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / min(seconds({"": lambda: a @ b}, 10, device)[""])


def operations(run: Callable[[], None]) -> float:
    """Operations of `run` in convolutions and matrix products, forward and backward; all else counts as none."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def memory_of(expression: str, device: str) -> float:
    """MiB that one step needs at its peak; `expression` makes the step from `bench_steps`, in a process of its own."""
    code = f"import torch, measure, bench_steps as b; torch.set_num_threads(1); print(measure.peak({expression}, {device!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"memory of {expression}: {done.stderr[-500:]}")
    return float(done.stdout)


def peak(run: Callable[[], None], device: str) -> float:
    """MiB beyond what is held already: weights, images, Python. On a CPU from Linux, for this process."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def mib(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(field))) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = mib("VmRSS")
    run()
    return mib("VmHWM") - before


def machine(device: str) -> dict[str, str | int | float]:
    """Where, when and with what; measured with one thread."""
    cpuinfo = Path("/proc/cpuinfo")
    named = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "processor": f"{named[0] if named else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "GPU": torch.cuda.get_device_name() if device == "cuda" else "none",
        "cores": os.cpu_count() or 0,
        "threads used": torch.get_num_threads(),
        "processes waiting for a core at the start": round(os.getloadavg()[0], 1),
        "system": platform.system(),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "float32 matrix product, GFLOP/s": matmul_peak(torch.float32, device) / 1e9,
        "bfloat16 matrix product, GFLOP/s": matmul_peak(torch.bfloat16, device) / 1e9,
    }
