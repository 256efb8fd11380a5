"""The table benchmark compares like with like."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.benchmarks import bench_tables  # noqa: E402


def test_both_compute_the_same_loss_from_the_same_weights():
    assert bench_tables.same_loss() < 1e-5


def test_both_take_the_same_number_of_steps():
    x, c = bench_tables.table(1500)
    people, seen = 1500 * 9 // 10, []
    class Counting(bench_tables.Plain):
        def loss(self, *args):
            seen.append(1)
            return super().loss(*args)

    original, bench_tables.Plain = bench_tables.Plain, Counting
    try:
        bench_tables.plain(x, c, 2)
    finally:
        bench_tables.Plain = original
    assert len(seen) == 2 * (people // bench_tables.BATCH)
