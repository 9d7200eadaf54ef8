"""The ``lucid-gpu`` command."""
