"""The machinery of optimizers: groups, hooks, state, the prepared step and its placement."""
