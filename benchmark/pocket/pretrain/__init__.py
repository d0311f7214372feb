"""Pretraining of the shipped small models: language, vision tower, alignment, instruction tuning on source sets."""
