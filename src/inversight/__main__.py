"""``python -m inversight``, also for ``accelerate launch -m inversight``."""

from inversight.cli import main

main()
