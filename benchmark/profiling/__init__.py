"""What machines can do: step cost, scorers, GPUs, and what a machine lacks."""
