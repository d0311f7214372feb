"""From finished cells to tables, figures and verdicts."""
