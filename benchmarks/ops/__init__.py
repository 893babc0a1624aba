"""One file an op: `bench_<op>.py` holds `BENCH`, its description, and the pytest-benchmark test of its rows."""
