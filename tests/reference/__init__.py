"""Float64 numpy transcriptions of the equations; they import nothing of ours."""
