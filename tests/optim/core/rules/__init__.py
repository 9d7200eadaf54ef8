"""Rules for tests of what stands around a rule."""
