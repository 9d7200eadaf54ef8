"""How fast it is, beside every peer that is installed: one module per question."""
