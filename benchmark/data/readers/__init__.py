"""One reader per dataset, each of which turns official files into records."""
