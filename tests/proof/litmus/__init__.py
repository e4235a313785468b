"""Litmus tests of the C11 memory model for every ordering that csrc relies on."""
