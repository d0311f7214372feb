"""From records to a tuned model and its answers: the trainer, sharded weights, checkpoints, post-hoc methods."""
