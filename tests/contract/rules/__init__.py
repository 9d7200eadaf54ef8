"""An update rule of a user, outside the package: its Python twin and its CUDA twin."""
