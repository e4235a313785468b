"""Recipes for frameworks: one file each, and each imports its framework only."""
