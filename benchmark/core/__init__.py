"""What every package uses: errors, files, signals, progress, the machine and its variables."""
