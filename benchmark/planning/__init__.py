"""Which cells have to run, and what they cost in time, memory and disk."""
