"""Tables, figures and verdicts from finished cells."""
