"""The offline suite: eight small drawn datasets in the official layouts of the real eight."""
