"""Measurements of shmcow, one file for each question: ``python -m benchmarks core``. See ``harness`` for the method."""
