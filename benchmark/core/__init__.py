"""What every package stands on: errors, files, signals, progress, the machine and its variables."""
