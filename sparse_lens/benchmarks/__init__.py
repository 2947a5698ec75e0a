"""What `sparse-lens bench` runs: each figure beside the alternative it is measured against, in one run on one machine."""

from sparse_lens.benchmarks.runs import available_benchmarks as available_benchmarks
from sparse_lens.benchmarks.runs import run_benchmarks as run_benchmarks
