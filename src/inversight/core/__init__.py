"""What every room uses: errors, settings, seeds, devices, processes, progress, run folders."""
