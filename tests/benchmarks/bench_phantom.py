"""Speed of the cardiac phantom: ``OMP_NUM_THREADS=1 python tests/benchmarks/bench_phantom.py``.

Prints subjects per CPU second, and the cost of a subject in units of a reference workload that does not change
with this code (two-dimensional FFTs of the same arrays), so that figures from different machines compare.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import scipy.fft

sys.path.insert(0, str(Path(__file__).parents[2]))

from data_prep.cardiac_phantom import generate  # noqa: E402


def cpu_seconds(work, repeats: int = 5) -> float:
    """Least CPU time of `work` over a few repeats: the one that other processes disturbed least."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times) if min(times) > 0 else statistics.mean(times)


def measure() -> list[dict[str, float]]:
    """One row for each image size."""
    rows = []
    for size, count in ((64, 100), (128, 40)):
        images = generate(count, size=size).images.astype(np.float32)
        made = cpu_seconds(lambda size=size, count=count: generate(count, size=size)) / count
        reference = cpu_seconds(lambda images=images: scipy.fft.fft2(images)) / count
        rows.append({"px": size, "ms a subject": 1000 * made, "subjects / CPU s": 1 / made, "FFTs": made / reference})
    return rows


def main() -> None:
    """Prints one line for each image size."""
    for row in measure():
        line = f"{row['px']:4d} px {row['subjects / CPU s']:7.0f} subjects / CPU s {row['ms a subject']:7.2f} ms a subject"
        sys.stdout.write(f"{line} {row['FFTs']:6.1f} FFTs of the same images\n")


if __name__ == "__main__":
    main()
