"""Loaders of models, one file for each format."""
