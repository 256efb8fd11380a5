"""The benchmark of large cohorts runs, and says what its page reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "benchmarks" / "bench_scale.py"


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
def test_the_quick_benchmark_measures_images_and_tables(tmp_path):
    words = [sys.executable, BENCH, "--quick", "--out", tmp_path / "figures.json", "--keep", tmp_path / "cohorts"]
    done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    for kind in ("images", "tables"):
        (row,) = figures[kind]
        assert row["people"] == 200 and row["steps"] >= 1 and row["trained per CPU s"] > 0 and row["read per s, memory"] > 0
        # The kernel keeps both figures by thread, and lags behind by some pages of each.
        assert 50 < row["prepare, peak MiB"] < 2000 and 50 < row["peak MiB"] <= row["highest MiB since the start"] + 8 < 2000
    assert {path.name for path in (tmp_path / "cohorts").glob("*.json")} == {"cardiac-200.json", "regions-200.json"}
