"""Tests of lucid_gpu.optim, module by module."""
