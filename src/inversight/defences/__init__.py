"""Defences: private images and an undefended target -> a defended target."""

from inversight.defences.base import Defence, Defended, Level, Material

DEFENCES: dict[str, type[Defence]] = {}
"""The defences that have a name of their own."""

__all__ = ["DEFENCES", "Defence", "Defended", "Level", "Material"]
