"""How a step runs: its plan as tables, and the executors that carry it out on CUDA and NumPy."""
