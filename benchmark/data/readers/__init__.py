"""One reader for each of the eight datasets, from its official files to records."""
