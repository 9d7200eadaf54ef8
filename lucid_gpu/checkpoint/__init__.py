"""Checkpoints: trees of arrays to disk and back, atomic, durable, checked to the byte."""

from lucid_gpu.checkpoint.checkpointer import Checkpointer
from lucid_gpu.checkpoint.errors import CheckpointError
from lucid_gpu.checkpoint.export import export_safetensors
from lucid_gpu.checkpoint.files import load, save
from lucid_gpu.checkpoint.lazy import OpenCheckpoint, open  # noqa: A004
from lucid_gpu.checkpoint.steps import latest

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "OpenCheckpoint",
    "export_safetensors",
    "latest",
    "load",
    "open",
    "save",
]
