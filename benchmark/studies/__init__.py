"""Studies that need more than one table: sweeps, learning rates, calibration, forgetting curves, the report."""
