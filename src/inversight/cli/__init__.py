"""The command line: parses, builds, calls the pipeline; nothing else."""

from inversight.cli.app import main

__all__ = ["main"]
