"""Studies that need more than one table: sweeps, learning rates, forgetting curves, the report."""
