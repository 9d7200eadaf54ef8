"""The contract, docs/contract.md, row by row."""
