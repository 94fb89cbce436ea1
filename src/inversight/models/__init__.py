"""Classifiers: networks, training, and the target under audit."""
