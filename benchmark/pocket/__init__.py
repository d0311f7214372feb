"""The pocket scale: eight drawn datasets and the pretraining of the shipped models."""
