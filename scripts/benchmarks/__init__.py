"""The parts of `scripts/benchmark.py`: what is compared, how it is timed, what becomes of the figures."""
