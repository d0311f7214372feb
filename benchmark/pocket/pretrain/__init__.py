"""How the shipped small models were made: language stage, vision tower, alignment, upstream instruction tuning."""
