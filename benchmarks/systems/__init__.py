"""Benchmarks of whole systems: training steps and translation against plain eager PyTorch."""
