"""Checkpoints: trees of arrays to disk and back, atomic, durable, checked to the byte."""

from lucid_gpu.checkpoint.checkpointer import Checkpointer
from lucid_gpu.checkpoint.errors import CheckpointError
from lucid_gpu.checkpoint.files import load, save

__all__ = ["CheckpointError", "Checkpointer", "load", "save"]
