"""Results that others can trust: publish, verify, compare, export, and the acceptance of changed code."""
